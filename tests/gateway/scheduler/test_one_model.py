"""Which models are up and whose turn it is, with time passed in."""

from __future__ import annotations

import pytest

from eardrum.errors import BusyError, ModelCoolingError, ModelLoadError, ShuttingDownError
from eardrum.gateway.scheduler import (
    BACK_OFF_S,
    Action,
    Cancelled,
    Done,
    Exited,
    Grant,
    Ready,
    Reject,
    Scheduler,
    Shutdown,
    Start,
    StartFailed,
    State,
    Stop,
    Tick,
    Unload,
    Wanted,
)

M = "tiny"
BROKEN = ModelLoadError("tiny lacks a file.")


def want(scheduler: Scheduler, ticket: int, *, at: float = 0.0, limit: int = 64, model: str = M) -> list[Action]:
    return scheduler.handle(Wanted(model, ticket, limit), at)


def rejection(actions: list[Action]) -> Reject:
    (reject,) = actions
    assert isinstance(reject, Reject)
    return reject


def ready() -> Scheduler:
    scheduler = Scheduler()
    want(scheduler, 0)
    scheduler.handle(Ready(M), 0.0)
    scheduler.handle(Done(M, 0), 0.0)
    return scheduler


def failed(*, times: int = 1, at: float = 0.0) -> Scheduler:
    """A scheduler whose model has failed so often in a row, the last time at `at`."""
    scheduler = Scheduler()
    for attempt in range(times):
        moment = at - 1000.0 * (times - 1 - attempt)
        assert want(scheduler, attempt, at=moment) == [Start(M)]
        scheduler.handle(StartFailed(M, BROKEN), moment)
    return scheduler


def test_many_requests_start_the_model_once_and_are_granted_in_order() -> None:
    scheduler = Scheduler()
    assert want(scheduler, 1) == [Start(M)]
    assert scheduler.slots[M].state is State.STARTING
    assert want(scheduler, 2) == []
    assert want(scheduler, 3) == []
    assert scheduler.handle(Ready(M), 1.0) == [Grant(1), Grant(2), Grant(3)]
    assert scheduler.slots[M].state is State.READY
    assert want(scheduler, 4) == [Grant(4)]


def test_models_do_not_touch_each_other() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    assert want(scheduler, 2, model="base") == [Start("base")]
    scheduler.handle(StartFailed(M, BROKEN), 0.0)
    assert scheduler.handle(Ready("base"), 1.0) == [Grant(2)]


@pytest.mark.parametrize("up", [True, False])
def test_a_full_model_says_when_to_come_back(up: bool) -> None:
    scheduler = ready() if up else Scheduler()
    want(scheduler, 1, limit=2)
    want(scheduler, 2, limit=2)
    busy = rejection(want(scheduler, 3, limit=2))
    assert busy.ticket == 3
    assert isinstance(busy.error, BusyError)
    assert busy.error.retry_after
    assert M in busy.error.message
    assert "2 requests" in busy.error.message
    scheduler.handle(Done(M, 1) if up else Cancelled(M, 1), 1.0)
    assert want(scheduler, 4, limit=2) == ([Grant(4)] if up else [])


def test_a_failed_start_rejects_all_who_wait() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    want(scheduler, 2)
    assert scheduler.handle(StartFailed(M, BROKEN), 5.0) == [Reject(1, BROKEN), Reject(2, BROKEN)]
    assert scheduler.slots[M].state is State.FAILED


def test_a_model_that_failed_cools_down_and_says_why_and_how_long() -> None:
    scheduler = failed(at=10.0)
    cooling = rejection(want(scheduler, 7, at=10.5)).error
    assert isinstance(cooling, ModelCoolingError)
    assert cooling.retry_after == BACK_OFF_S[0] - 0.5
    assert BROKEN.message in cooling.message
    assert cooling.status == 503
    assert want(scheduler, 8, at=10.0 + BACK_OFF_S[0]) == [Start(M)]


def test_pauses_grow_with_each_failure_in_a_row() -> None:
    pauses = [rejection(want(failed(times=n), 99)).error.retry_after for n in range(1, 7)]
    assert pauses == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    assert sorted(set(BACK_OFF_S)) == list(BACK_OFF_S)


def test_a_start_that_works_forgets_earlier_failures() -> None:
    scheduler = failed(times=3)
    want(scheduler, 10, at=100.0)
    scheduler.handle(Ready(M), 100.0)
    scheduler.handle(Exited(M), 101.0)
    want(scheduler, 11, at=102.0)
    scheduler.handle(StartFailed(M, BROKEN), 102.0)
    assert rejection(want(scheduler, 12, at=102.0)).error.retry_after == BACK_OFF_S[0]


def test_who_gave_up_while_waiting_is_not_granted() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    want(scheduler, 2)
    assert scheduler.handle(Cancelled(M, 1), 0.0) == []
    assert scheduler.handle(Ready(M), 0.0) == [Grant(2)]


def test_a_start_nobody_waits_for_any_more_is_still_good_for_the_next() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    scheduler.handle(Cancelled(M, 1), 0.0)
    assert scheduler.handle(Ready(M), 0.0) == []
    assert want(scheduler, 2) == [Grant(2)]


def test_giving_up_too_late_or_twice_does_no_harm() -> None:
    scheduler = ready()
    for event in (Cancelled(M, 5), Done(M, 5), Done(M, 5), Cancelled("unheard of", 1), Done("unheard of", 1)):
        assert scheduler.handle(event, 0.0) == []
    assert want(scheduler, 6) == [Grant(6)]


def test_a_model_that_died_is_started_by_the_next_request() -> None:
    scheduler = ready()
    assert scheduler.handle(Exited(M), 1.0) == []
    assert scheduler.slots[M].state is State.STOPPED
    assert want(scheduler, 1) == [Start(M)]


def test_requests_of_a_dead_model_keep_their_place_until_they_are_done() -> None:
    scheduler = ready()
    want(scheduler, 1, limit=1)
    scheduler.handle(Exited(M), 1.0)
    assert isinstance(rejection(want(scheduler, 2, limit=1)).error, BusyError)
    scheduler.handle(Done(M, 1), 1.0)
    assert want(scheduler, 3, limit=1) == [Start(M)]


def test_an_exit_while_requests_wait_starts_the_model_again() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    assert scheduler.handle(Exited(M), 1.0) == [Start(M)]
    assert scheduler.handle(Ready(M), 2.0) == [Grant(1)]


def test_ready_counts_only_while_starting() -> None:
    scheduler = ready()
    scheduler.handle(Exited(M), 1.0)
    assert scheduler.handle(Ready(M), 1.0) == []
    assert scheduler.slots[M].state is State.STOPPED


def test_shutdown_rejects_who_waits_stops_what_runs_and_starts_nothing() -> None:
    scheduler = ready()
    want(scheduler, 1)
    want(scheduler, 2, model="base")
    want(scheduler, 3, model="broken")
    scheduler.handle(StartFailed("broken", BROKEN), 0.0)
    actions = scheduler.handle(Shutdown(), 1.0)
    assert {type(action) for action in actions} == {Reject, Stop}
    assert {action.model for action in actions if isinstance(action, Stop)} == {M, "base"}
    (reject,) = (action for action in actions if isinstance(action, Reject))
    assert reject.ticket == 2
    assert isinstance(reject.error, ShuttingDownError)
    assert scheduler.slots[M].state is State.STOPPING
    assert scheduler.handle(Shutdown(), 1.0) == []
    assert isinstance(rejection(want(scheduler, 4)).error, ShuttingDownError)
    for event in (Ready("base"), Exited(M), Exited("base"), Done(M, 1)):
        assert scheduler.handle(event, 2.0) == []
    assert scheduler.slots[M].state is State.STOPPED
    assert isinstance(rejection(want(scheduler, 5, model="broken", at=1e6)).error, ShuttingDownError)


def loaded(*, ttl: float = 0.0, at: float = 0.0) -> Scheduler:
    """A scheduler whose model serves ticket 1."""
    scheduler = Scheduler()
    scheduler.handle(Wanted(M, 1, 64, ttl), at)
    scheduler.handle(Ready(M), at)
    return scheduler


def test_unloading_waits_for_the_work_in_hand() -> None:
    scheduler = loaded()
    assert scheduler.handle(Unload(M), 1.0) == []
    assert scheduler.slots[M].state is State.DRAINING
    assert want(scheduler, 2) == [], "who comes now waits for the next life"
    assert scheduler.handle(Done(M, 1), 2.0) == [Stop(M)]
    assert scheduler.handle(Exited(M), 3.0) == [Start(M)]
    assert scheduler.handle(Ready(M), 4.0) == [Grant(2)]


def test_an_idle_model_is_unloaded_at_once() -> None:
    scheduler = ready()
    assert scheduler.handle(Unload(M), 1.0) == [Stop(M)]
    assert scheduler.handle(Unload(M), 1.0) == []
    assert scheduler.handle(Exited(M), 2.0) == []
    assert want(scheduler, 3) == [Start(M)]


def test_unloading_what_is_not_up_does_nothing() -> None:
    for scheduler in (Scheduler(), failed()):
        assert scheduler.handle(Unload(M), 1.0) == []


def test_a_start_is_only_broken_off_when_nobody_waits_for_it() -> None:
    scheduler = Scheduler()
    want(scheduler, 1)
    assert scheduler.handle(Unload(M), 1.0) == []
    assert scheduler.handle(Cancelled(M, 1), 1.0) == [Stop(M)]
    assert want(scheduler, 2) == []
    assert scheduler.handle(StartFailed(M, BROKEN), 3.0) == [Start(M)], "a failure of what was given up is nobody's"


def test_a_model_is_unloaded_when_nobody_came_for_its_ttl() -> None:
    scheduler = loaded(ttl=30.0, at=100.0)
    assert scheduler.due is None, "it is at work"
    scheduler.handle(Done(M, 1), 110.0)
    assert scheduler.due == 140.0
    assert scheduler.handle(Tick(), 139.9) == []
    assert scheduler.handle(Tick(), 140.0) == [Stop(M)]
    assert scheduler.due is None


def test_a_request_renews_the_time_to_live() -> None:
    scheduler = loaded(ttl=30.0)
    scheduler.handle(Done(M, 1), 10.0)
    scheduler.handle(Wanted(M, 2, 64, 30.0), 39.0)
    assert scheduler.handle(Tick(), 40.0) == []
    scheduler.handle(Done(M, 2), 50.0)
    assert scheduler.due == 80.0


def test_a_long_request_is_not_cut_by_the_time_to_live() -> None:
    scheduler = loaded(ttl=2.0)
    assert scheduler.handle(Tick(), 1000.0) == []


def test_without_a_ttl_a_model_stays() -> None:
    scheduler = ready()
    assert scheduler.due is None
    assert scheduler.handle(Tick(), 1e9) == []


def test_a_model_started_for_nobody_lives_as_long_as_any() -> None:
    scheduler = Scheduler()
    scheduler.handle(Wanted(M, 1, 64, 30.0), 0.0)
    scheduler.handle(Cancelled(M, 1), 1.0)
    scheduler.handle(Ready(M), 5.0)
    assert scheduler.due == 35.0
