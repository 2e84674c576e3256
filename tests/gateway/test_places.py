"""Places at a model, and clients that are slow."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass, field

import pytest

from eardrum.gateway.places import MIN_BYTES_PER_S, SENDING_CLIENT, WINDOW_S, PlaceRegistry, SendRateMeter


class FakeClock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("eardrum.gateway.places.time", clock)
    return clock


def send_at_rate(pace: SendRateMeter, clock: FakeClock, rate: float, seconds: float, every_s: float = 0.5) -> None:
    for _ in range(int(seconds / every_s)):
        pace.start_waiting()
        clock.now += every_s
        pace.record_bytes(int(rate * every_s))


def test_who_drips_is_slow_after_a_while(clock: FakeClock) -> None:
    pace = SendRateMeter()
    pace.record_bytes(2048)  # at once
    send_at_rate(pace, clock, 2, WINDOW_S - 1)
    assert not pace.is_slow
    send_at_rate(pace, clock, 2, 2)
    assert pace.is_slow
    pace.start_waiting()
    clock.now += 3
    assert pace.is_slow


@pytest.mark.parametrize(("rate", "every_s"), [(MIN_BYTES_PER_S * 1.1, 0.5), (2000, 4.0), (32_000, 0.02), (2000, 0.1)])
def test_audio_however_it_comes_is_not_slow(clock: FakeClock, rate: float, every_s: float) -> None:
    pace = SendRateMeter()
    for _ in range(100):
        send_at_rate(pace, clock, rate, max(1.0, every_s), every_s)
        pace.start_waiting()
        assert not pace.is_slow


def test_a_short_loss_of_the_network_is_not_slow_and_a_long_one_is(clock: FakeClock) -> None:
    pace = SendRateMeter()
    send_at_rate(pace, clock, 2000, 60)
    pace.start_waiting()
    clock.now += 12
    assert not pace.is_slow
    clock.now += 60
    assert pace.is_slow


def test_only_the_time_counts_in_which_the_client_was_waited_for(clock: FakeClock) -> None:
    pace = SendRateMeter()
    for _ in range(100):
        pace.start_waiting()
        clock.now += 0.01
        pace.record_bytes(100)
        clock.now += 5  # the model is busy with what came
    assert not pace.is_slow


@dataclass(eq=False)
class FakeSender:
    is_slow: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def give_up_place(self) -> None:
        self.left.set()


def enter_place(places: PlaceRegistry, sender: FakeSender | None, who: object) -> None:
    def enter() -> None:
        SENDING_CLIENT.set(sender)
        places.add_place("a", who)

    contextvars.copy_context().run(enter)


async def leave_place(places: PlaceRegistry, sender: FakeSender, who: object) -> None:
    await sender.left.wait()
    await asyncio.sleep(0.01)
    places.remove_place("a", who)


async def test_one_that_is_slow_leaves_for_a_newcomer_and_the_others_stay() -> None:
    places, slow, quick = PlaceRegistry(), FakeSender(is_slow=True), FakeSender()
    for who, sender in enumerate((quick, slow, None, quick)):
        enter_place(places, sender, who)
    going = asyncio.create_task(leave_place(places, slow, 1))
    assert await places.make_room("a")
    assert going.done()
    assert not quick.left.is_set()
    assert not await places.make_room("a")
    assert not await places.make_room("b")


async def test_each_newcomer_takes_another_place_and_a_slow_one_takes_none() -> None:
    places, slow = PlaceRegistry(), [FakeSender(is_slow=True) for _ in range(3)]
    for who, sender in enumerate(slow):
        enter_place(places, sender, who)
    going = [asyncio.create_task(leave_place(places, sender, who)) for who, sender in enumerate(slow)]
    assert await asyncio.gather(*(places.make_room("a") for _ in range(4))) == [True, True, True, False]
    await asyncio.gather(*going)
    enter_place(places, last := FakeSender(is_slow=True), 9)
    SENDING_CLIENT.set(FakeSender(is_slow=True))
    assert not await places.make_room("a")
    assert not last.left.is_set()


async def test_one_that_does_not_leave_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.gateway.places.LEAVE_TIMEOUT_S", 0.01)
    places = PlaceRegistry()
    enter_place(places, FakeSender(is_slow=True), 1)
    assert not await places.make_room("a")
