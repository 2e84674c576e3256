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
async def harness() -> DispatchHarness:
    return DispatchHarness()


async def load_and_rest(house: DispatchHarness, wanted: Model) -> None:
    """Have the model started, used once, and at rest."""
    turn = asyncio.create_task(house.dispatch.wait_for_turn(wanted))
    await asyncio.sleep(0)
    assert house.started
    house.dispatch.handle_event(scheduler.ModelReady("m"))
    house.dispatch.release_ticket("m", await turn)


async def test_a_request_waits_for_the_start_and_the_next_one_does_not(harness: DispatchHarness) -> None:
    await load_and_rest(harness, create_model())
    turn = harness.dispatch.wait_for_turn(create_model())
    with pytest.raises(StopIteration) as returned:
        turn.send(None)  # it never waits
    harness.dispatch.release_ticket("m", returned.value.value)
    assert harness.started == ["m"]


async def test_states_are_told_when_they_change_and_not_with_every_request(harness: DispatchHarness) -> None:
    await load_and_rest(harness, create_model())
    before = harness.changes
    for _ in range(3):
        harness.dispatch.release_ticket("m", await harness.dispatch.wait_for_turn(create_model()))
    assert harness.changes == before
    harness.dispatch.handle_event(scheduler.UnloadRequested("m", force=False))
    assert (harness.changes, harness.stopped) == (before + 1, ["m"])


async def test_the_time_to_live_counts_from_the_last_request(harness: DispatchHarness) -> None:
    await load_and_rest(harness, create_model(ttl=0.3))
    await asyncio.sleep(0.2)
    harness.dispatch.release_ticket("m", await harness.dispatch.wait_for_turn(create_model(ttl=0.3)))
    last = time.monotonic()
    async with asyncio.timeout(60):
        await harness.ended.wait()
    assert time.monotonic() - last > 0.28


async def test_who_gives_up_leaves_nothing_behind(harness: DispatchHarness) -> None:
    turn = asyncio.create_task(harness.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert harness.started
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    slot = harness.dispatch.models["m"]
    assert not slot.waiting
    assert not slot.active


async def test_who_is_granted_and_gives_up_at_the_same_moment_leaves_nothing_behind(harness: DispatchHarness) -> None:
    turn = asyncio.create_task(harness.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert harness.started
    harness.dispatch.handle_event(scheduler.ModelReady("m"))
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert not harness.dispatch.models["m"].active


async def test_a_start_that_fails_is_told_to_who_waits(harness: DispatchHarness) -> None:
    turn = asyncio.create_task(harness.dispatch.wait_for_turn(create_model()))
    await asyncio.sleep(0)
    assert harness.started
    harness.dispatch.handle_event(scheduler.StartFailed("m", ModelLoadError("no")))
    with pytest.raises(EardrumError, match="no"):
        await turn
    assert harness.get_state("m") is ModelState.FAILED
