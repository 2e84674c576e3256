"""Which models are up and whose turn it is, with time passed in."""

from __future__ import annotations

import pytest

from eardrum.config import SchedulingSettings
from eardrum.errors import BusyError, ModelCoolingError, ModelLoadError, ShuttingDownError
from eardrum.gateway.scheduler import (
    BACK_OFF_S,
    GrantRequest,
    ModelReady,
    ModelState,
    ProcessExited,
    RejectRequest,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    Scheduler,
    SchedulerAction,
    ShutdownRequested,
    StartFailed,
    StartModel,
    StopModel,
    TimerFired,
    UnloadRequested,
)

M = "tiny"
BROKEN = ModelLoadError("tiny lacks a file.")


def send_request(scheduler: Scheduler, ticket: int, *, at: float = 0.0, limit: int = 64, model: str = M) -> list[SchedulerAction]:
    return scheduler.handle_event(RequestArrived(model, ticket, SchedulingSettings(max_requests=limit)), at)


def get_rejection(actions: list[SchedulerAction]) -> RejectRequest:
    (reject,) = actions
    assert isinstance(reject, RejectRequest)
    return reject


def create_ready() -> Scheduler:
    scheduler = Scheduler()
    send_request(scheduler, 0)
    scheduler.handle_event(ModelReady(M), 0.0)
    scheduler.handle_event(RequestFinished(M, 0), 0.0)
    return scheduler


def create_failed(*, times: int = 1, at: float = 0.0) -> Scheduler:
    """A scheduler whose model has failed so often in a row, the last time at `at`."""
    scheduler = Scheduler()
    for attempt in range(times):
        moment = at - 1000.0 * (times - 1 - attempt)
        assert send_request(scheduler, attempt, at=moment) == [StartModel(M)]
        scheduler.handle_event(StartFailed(M, BROKEN), moment)
    return scheduler


def test_many_requests_start_the_model_once_and_are_granted_in_order() -> None:
    scheduler = Scheduler()
    assert send_request(scheduler, 1) == [StartModel(M)]
    assert scheduler.models[M].state is ModelState.STARTING
    assert send_request(scheduler, 2) == []
    assert send_request(scheduler, 3) == []
    assert scheduler.handle_event(ModelReady(M), 1.0) == [GrantRequest(1), GrantRequest(2), GrantRequest(3)]
    assert scheduler.models[M].state is ModelState.READY
    assert send_request(scheduler, 4) == [GrantRequest(4)]


def test_models_do_not_touch_each_other() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    assert send_request(scheduler, 2, model="base") == [StartModel("base")]
    scheduler.handle_event(StartFailed(M, BROKEN), 0.0)
    assert scheduler.handle_event(ModelReady("base"), 1.0) == [GrantRequest(2)]


@pytest.mark.parametrize("up", [True, False])
def test_a_full_model_says_when_to_come_back(up: bool) -> None:
    scheduler = create_ready() if up else Scheduler()
    send_request(scheduler, 1, limit=2)
    send_request(scheduler, 2, limit=2)
    busy = get_rejection(send_request(scheduler, 3, limit=2))
    assert busy.ticket == 3
    assert isinstance(busy.error, BusyError)
    assert busy.error.retry_after
    assert M in busy.error.message
    assert "2 requests" in busy.error.message
    scheduler.handle_event(RequestFinished(M, 1) if up else RequestCancelled(M, 1), 1.0)
    assert send_request(scheduler, 4, limit=2) == ([GrantRequest(4)] if up else [])


def test_a_failed_start_rejects_all_who_wait() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    send_request(scheduler, 2)
    assert scheduler.handle_event(StartFailed(M, BROKEN), 5.0) == [RejectRequest(1, BROKEN), RejectRequest(2, BROKEN)]
    assert scheduler.models[M].state is ModelState.FAILED


def test_a_model_that_failed_cools_down_and_says_why_and_how_long() -> None:
    scheduler = create_failed(at=10.0)
    cooling = get_rejection(send_request(scheduler, 7, at=10.5)).error
    assert isinstance(cooling, ModelCoolingError)
    assert cooling.retry_after == BACK_OFF_S[0] - 0.5
    assert BROKEN.message in cooling.message
    assert cooling.status == 503
    assert send_request(scheduler, 8, at=10.0 + BACK_OFF_S[0]) == [StartModel(M)]


def test_pauses_grow_with_each_failure_in_a_row() -> None:
    pauses = [get_rejection(send_request(create_failed(times=n), 99)).error.retry_after for n in range(1, 7)]
    assert pauses == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    assert sorted(set(BACK_OFF_S)) == list(BACK_OFF_S)


def test_a_start_that_works_forgets_earlier_failures() -> None:
    scheduler = create_failed(times=3)
    send_request(scheduler, 10, at=100.0)
    scheduler.handle_event(ModelReady(M), 100.0)
    scheduler.handle_event(ProcessExited(M), 101.0)
    send_request(scheduler, 11, at=102.0)
    scheduler.handle_event(StartFailed(M, BROKEN), 102.0)
    assert get_rejection(send_request(scheduler, 12, at=102.0)).error.retry_after == BACK_OFF_S[0]


def test_who_gave_up_while_waiting_is_not_granted() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    send_request(scheduler, 2)
    assert scheduler.handle_event(RequestCancelled(M, 1), 0.0) == []
    assert scheduler.handle_event(ModelReady(M), 0.0) == [GrantRequest(2)]


def test_a_start_nobody_waits_for_any_more_is_still_good_for_the_next() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    scheduler.handle_event(RequestCancelled(M, 1), 0.0)
    assert scheduler.handle_event(ModelReady(M), 0.0) == []
    assert send_request(scheduler, 2) == [GrantRequest(2)]


def test_giving_up_too_late_or_twice_does_no_harm() -> None:
    scheduler = create_ready()
    for event in (
        RequestCancelled(M, 5),
        RequestFinished(M, 5),
        RequestFinished(M, 5),
        RequestCancelled("unheard of", 1),
        RequestFinished("unheard of", 1),
    ):
        assert scheduler.handle_event(event, 0.0) == []
    assert send_request(scheduler, 6) == [GrantRequest(6)]


def test_a_model_that_died_is_started_by_the_next_request() -> None:
    scheduler = create_ready()
    assert scheduler.handle_event(ProcessExited(M), 1.0) == []
    assert scheduler.models[M].state is ModelState.STOPPED
    assert send_request(scheduler, 1) == [StartModel(M)]


def test_requests_of_a_dead_model_keep_their_place_until_they_are_done() -> None:
    scheduler = create_ready()
    send_request(scheduler, 1, limit=1)
    scheduler.handle_event(ProcessExited(M), 1.0)
    assert isinstance(get_rejection(send_request(scheduler, 2, limit=1)).error, BusyError)
    scheduler.handle_event(RequestFinished(M, 1), 1.0)
    assert send_request(scheduler, 3, limit=1) == [StartModel(M)]


def test_an_exit_while_requests_wait_starts_the_model_again() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    assert scheduler.handle_event(ProcessExited(M), 1.0) == [StartModel(M)]
    assert scheduler.handle_event(ModelReady(M), 2.0) == [GrantRequest(1)]


def test_ready_counts_only_while_starting() -> None:
    scheduler = create_ready()
    scheduler.handle_event(ProcessExited(M), 1.0)
    assert scheduler.handle_event(ModelReady(M), 1.0) == []
    assert scheduler.models[M].state is ModelState.STOPPED


def test_shutdown_rejects_who_waits_stops_what_runs_and_starts_nothing() -> None:
    scheduler = create_ready()
    send_request(scheduler, 1)
    send_request(scheduler, 2, model="base")
    send_request(scheduler, 3, model="broken")
    scheduler.handle_event(StartFailed("broken", BROKEN), 0.0)
    actions = scheduler.handle_event(ShutdownRequested(), 1.0)
    assert {type(action) for action in actions} == {RejectRequest, StopModel}
    assert {action.model for action in actions if isinstance(action, StopModel)} == {M, "base"}
    (reject,) = (action for action in actions if isinstance(action, RejectRequest))
    assert reject.ticket == 2
    assert isinstance(reject.error, ShuttingDownError)
    assert scheduler.models[M].state is ModelState.STOPPING
    assert scheduler.handle_event(ShutdownRequested(), 1.0) == []
    assert isinstance(get_rejection(send_request(scheduler, 4)).error, ShuttingDownError)
    for event in (ModelReady("base"), ProcessExited(M), ProcessExited("base"), RequestFinished(M, 1)):
        assert scheduler.handle_event(event, 2.0) == []
    assert scheduler.models[M].state is ModelState.STOPPED
    assert isinstance(get_rejection(send_request(scheduler, 5, model="broken", at=1e6)).error, ShuttingDownError)


def create_loaded(*, ttl: float = 0.0, at: float = 0.0) -> Scheduler:
    """A scheduler whose model serves ticket 1."""
    scheduler = Scheduler()
    scheduler.handle_event(RequestArrived(M, 1, SchedulingSettings(ttl=ttl)), at)
    scheduler.handle_event(ModelReady(M), at)
    return scheduler


def test_unloading_waits_for_the_work_in_hand() -> None:
    scheduler = create_loaded()
    assert scheduler.handle_event(UnloadRequested(M), 1.0) == []
    assert scheduler.models[M].state is ModelState.DRAINING
    assert send_request(scheduler, 2) == [], "who comes now waits for the next life"
    assert scheduler.handle_event(RequestFinished(M, 1), 2.0) == [StopModel(M)]
    assert scheduler.handle_event(ProcessExited(M), 3.0) == [StartModel(M)]
    assert scheduler.handle_event(ModelReady(M), 4.0) == [GrantRequest(2)]


def test_an_idle_model_is_unloaded_at_once() -> None:
    scheduler = create_ready()
    assert scheduler.handle_event(UnloadRequested(M), 1.0) == [StopModel(M)]
    assert scheduler.handle_event(UnloadRequested(M), 1.0) == []
    assert scheduler.handle_event(ProcessExited(M), 2.0) == []
    assert send_request(scheduler, 3) == [StartModel(M)]


def test_unloading_what_is_not_up_does_nothing() -> None:
    for scheduler in (Scheduler(), create_failed()):
        assert scheduler.handle_event(UnloadRequested(M), 1.0) == []


def test_a_start_is_only_broken_off_when_nobody_waits_for_it() -> None:
    scheduler = Scheduler()
    send_request(scheduler, 1)
    assert scheduler.handle_event(UnloadRequested(M), 1.0) == []
    assert scheduler.handle_event(RequestCancelled(M, 1), 1.0) == [StopModel(M)]
    assert send_request(scheduler, 2) == []
    assert scheduler.handle_event(StartFailed(M, BROKEN), 3.0) == [StartModel(M)], "a failure of what was given up is nobody's"


def test_a_model_is_unloaded_when_nobody_came_for_its_ttl() -> None:
    scheduler = create_loaded(ttl=30.0, at=100.0)
    assert scheduler.next_deadline is None, "it is at work"
    scheduler.handle_event(RequestFinished(M, 1), 110.0)
    assert scheduler.next_deadline == 140.0
    assert scheduler.handle_event(TimerFired(), 139.9) == []
    assert scheduler.handle_event(TimerFired(), 140.0) == [StopModel(M)]
    assert scheduler.next_deadline is None


def test_a_request_renews_the_time_to_live() -> None:
    scheduler = create_loaded(ttl=30.0)
    scheduler.handle_event(RequestFinished(M, 1), 10.0)
    scheduler.handle_event(RequestArrived(M, 2, SchedulingSettings(ttl=30.0)), 39.0)
    assert scheduler.handle_event(TimerFired(), 40.0) == []
    scheduler.handle_event(RequestFinished(M, 2), 50.0)
    assert scheduler.next_deadline == 80.0


def test_a_long_request_is_not_cut_by_the_time_to_live() -> None:
    scheduler = create_loaded(ttl=2.0)
    assert scheduler.handle_event(TimerFired(), 1000.0) == []


def test_without_a_ttl_a_model_stays() -> None:
    scheduler = create_ready()
    assert scheduler.next_deadline is None
    assert scheduler.handle_event(TimerFired(), 1e9) == []


def test_a_model_started_for_nobody_lives_as_long_as_any() -> None:
    scheduler = Scheduler()
    scheduler.handle_event(RequestArrived(M, 1, SchedulingSettings(ttl=30.0)), 0.0)
    scheduler.handle_event(RequestCancelled(M, 1), 1.0)
    scheduler.handle_event(ModelReady(M), 5.0)
    assert scheduler.next_deadline == 35.0
