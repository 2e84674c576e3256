"""The scheduler in time: tickets, timers, and who is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from eardrum.config import SchedulingSettings
from eardrum.errors import EardrumError, ModelLoadError
from eardrum.gateway import scheduler
from eardrum.gateway.models.inventory import COMMAND, EXTERNAL_CAPABILITIES, Model
from eardrum.gateway.scheduler import ModelState, Scheduler
from eardrum.gateway.scheduler.dispatcher import SchedulerDispatcher


class DispatchHarness:
    """A dispatch, and what it had done."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.changes = 0
        self.dispatch = SchedulerDispatcher(
            Scheduler(), start_model=self.started.append, stop_model=self._stop_model, on_change=self._count_change
        )
        self.ended = asyncio.Event()

    def _stop_model(self, model: str) -> None:
        self.stopped.append(model)
        self.ended.set()

    def _count_change(self) -> None:
        self.changes += 1

    def get_state(self, id: str) -> ModelState:
        return self.dispatch.models[id].state


def create_model(ttl: float = 0.0) -> Model:
    return Model("m", COMMAND, None, EXTERNAL_CAPABILITIES, "config", scheduling=SchedulingSettings(ttl=ttl))


@pytest.fixture
async def house() -> DispatchHarness:
    return DispatchHarness()


async def load_and_rest(house: DispatchHarness, wanted: Model) -> None:
    """Have the model started, used once, and at rest."""
    turn = asyncio.create_task(house.dispatch.wait_for_turn(wanted))
    await asyncio.sleep(0)
    assert house.started
    house.dispatch.handle_event(scheduler.ModelReady("m"))
    house.dispatch.release_ticket("m", await turn)


async def test_a_request_waits_for_the_start_and_the_next_one_does_not(house: DispatchHarness) -> None:
    await load_and_rest(house, create_model())
    turn = house.dispatch.wait_for_turn(create_model())
    with pytest.raises(StopIteration) as returned:
        turn.send(None)  # it never waits
    house.dispatch.release_ticket("m", returned.value.value)
    assert house.started == ["m"]


async def test_states_are_told_when_they_change_and_not_with_every_request(house: DispatchHarness) -> None:
    await load_and_rest(house, create_model())
    before = house.changes
    for _ in range(3):
        house.dispatch.release_ticket("m", await house.dispatch.wait_for_turn(create_model()))
    assert house.changes == before
    house.dispatch.handle_event(scheduler.UnloadRequested("m", force=False))
    assert (house.changes, house.stopped) == (before + 1, ["m"])


async def test_the_time_to_live_counts_from_the_last_request(house: DispatchHarness) -> None:
    await load_and_rest(house, create_model(ttl=0.3))
    await asyncio.sleep(0.2)
    house.dispatch.release_ticket("m", await house.dispatch.wait_for_turn(create_model(ttl=0.3)))
    last = time.monotonic()
    async with asyncio.timeout(10):
        await house.ended.wait()
    assert 0.28 < time.monotonic() - last < 5


async def test_who_gives_up_leaves_nothing_behind(house: DispatchHarness) -> None:
    turn = asyncio.create_task(house.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert house.started
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    slot = house.dispatch.models["m"]
    assert not slot.waiting
    assert not slot.active


async def test_who_is_granted_and_gives_up_at_the_same_moment_leaves_nothing_behind(house: DispatchHarness) -> None:
    turn = asyncio.create_task(house.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert house.started
    house.dispatch.handle_event(scheduler.ModelReady("m"))
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert not house.dispatch.models["m"].active


async def test_a_start_that_fails_is_told_to_who_waits(house: DispatchHarness) -> None:
    turn = asyncio.create_task(house.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert house.started
    house.dispatch.handle_event(scheduler.StartFailed("m", ModelLoadError("no")))
    with pytest.raises(EardrumError, match="no"):
        await turn
    assert house.get_state("m") is ModelState.FAILED
