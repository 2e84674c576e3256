"""Models that exclude each other, step by step. Where llama-swap tests the same, its name for it is given."""

from __future__ import annotations

import time

import pytest

from eardrum.config import SchedulingSettings
from eardrum.errors import BusyError, ConcurrencyLimitError, ModelNotFoundError, ModelUnloadedError
from eardrum.gateway.scheduler import (
    ConfigChanged,
    ModelReady,
    ModelState,
    PolicyChanged,
    RequestActive,
    RequestArrived,
    RequestFinished,
    RequestIdle,
    Scheduler,
    TimerFired,
)
from eardrum.gateway.scheduler.policies import GroupPolicy, MemoryPolicy, ModelGroup, NoEviction
from tests.gateway.scheduler.simulated_world import BROKEN, SimulatedWorld

PATIENCE = 10.0


def create_exclusive_group(*models: str, **how: bool) -> GroupPolicy:
    return GroupPolicy((ModelGroup(frozenset(models), **how),))


def create_world(rules: GroupPolicy | None = None) -> SimulatedWorld:
    """A and B and C replace each other; starts and stops end when the test says so."""
    return SimulatedWorld(rules or create_exclusive_group("a", "b", "c"), PATIENCE)


def get_state(world: SimulatedWorld, model: str) -> ModelState:
    return world.scheduler.models[model].state


def pass_time(world: SimulatedWorld, seconds: float) -> None:
    """As the supervisor's timer does it."""
    world.run_until(world.now + seconds)


def load_model(world: SimulatedWorld, model: str) -> None:
    """The model is loaded and idle."""
    request = world.send_request(model)
    world.report_start(model)
    world.finish_request(request)


def test_an_idle_model_makes_room_at_once() -> None:
    w = create_world()
    load_model(w, "a")
    b = w.send_request("b")
    assert w.processes == {"a": "stopping"}, "b starts when a is gone, not before"
    w.end_process("a")
    assert w.processes == {"b": "starting"}
    w.report_start("b")
    assert b.granted is not None


def test_a_model_at_work_is_not_swapped_out() -> None:
    """NoSwapWhileServing."""
    w = create_world()
    a = w.send_request("a")
    w.report_start("a")
    w.send_request("b")
    assert get_state(w, "a") is ModelState.READY
    w.finish_request(a)
    assert w.processes == {"a": "stopping"}


def test_requests_for_a_model_on_its_way_up_join_it() -> None:
    """JoinInFlightSwap, QueueCollation."""
    w = create_world()
    load_model(w, "a")
    first = w.send_request("b")
    second = w.send_request("b")
    w.end_process("a")
    third = w.send_request("b")
    w.report_start("b")
    assert {r.granted is not None for r in (first, second, third)} == {True}
    assert w.starts == ["a", "b"]


def test_a_ready_model_serves_on_until_somebody_has_lost_patience() -> None:
    w = create_world()
    first = w.send_request("a")
    w.report_start("a")
    b = w.send_request("b")
    pass_time(w, PATIENCE - 1)
    overlapping = w.send_request("a")
    assert overlapping.granted is not None, "the fast way, although b waits"
    w.finish_request(first)
    pass_time(w, 1)
    assert get_state(w, "a") is ModelState.DRAINING
    late = w.send_request("a")
    assert late.granted is None, "its turn is after b's"
    w.finish_request(overlapping)
    w.end_process("a")
    w.report_start("b")
    assert b.granted is not None
    w.finish_request(b)
    w.end_process("b")
    w.report_start("a")
    assert late.granted is not None
    assert w.starts == ["a", "b", "a"]


def test_a_drain_is_called_off_when_who_it_was_for_has_left() -> None:
    w = create_world()
    w.send_request("a")
    w.report_start("a")
    b = w.send_request("b")
    pass_time(w, PATIENCE)
    late = w.send_request("a")
    assert late.granted is None
    w.hang_up(b)
    assert get_state(w, "a") is ModelState.READY
    assert late.granted is not None


def test_a_request_while_its_model_stops_waits_for_its_next_life() -> None:
    """RequestDuringStop."""
    w = create_world()
    load_model(w, "a")
    w.unload_model("a")
    request = w.send_request("a")
    assert w.processes == {"a": "stopping"}
    w.end_process("a")
    w.report_start("a")
    assert request.granted is not None


def test_a_failed_start_fails_all_who_wait_for_it_and_nobody_else() -> None:
    """SwapDoneError_FailsAllWaiters."""
    w = create_world()
    load_model(w, "a")
    waiters = [w.send_request("b"), w.send_request("b")]
    other = w.send_request("c")
    w.end_process("a")
    w.fail_start("b")
    assert [r.outcome for r in waiters] == [BROKEN, BROKEN]
    assert w.processes == {"c": "starting"}, "a, evicted for nothing, is not loaded again by itself"
    w.report_start("c")
    assert other.granted is not None


def test_who_leaves_the_queue_loads_nothing() -> None:
    """OnCancel_RemovesQueued."""
    w = create_world()
    a = w.send_request("a")
    w.report_start("a")
    w.hang_up(w.send_request("b"))
    w.finish_request(a)
    assert w.processes == {"a": "up"}


def test_who_leaves_while_the_model_loads_does_not_end_the_load() -> None:
    w = create_world()
    w.hang_up(w.send_request("a", ttl=30.0))
    w.report_start("a")
    assert w.processes == {"a": "up"}
    pass_time(w, 30)
    assert w.processes == {"a": "stopping"}, "it counts as unused since it was ready"


def test_a_load_for_nobody_makes_room_for_somebody() -> None:
    w = create_world()
    w.hang_up(w.send_request("a"))
    w.send_request("b")
    assert w.processes == {"a": "stopping"}


def test_a_load_that_is_waited_for_is_not_broken_off_however_impatient_others_are() -> None:
    w = create_world()
    a = w.send_request("a")
    w.send_request("b")
    pass_time(w, 5 * PATIENCE)
    assert w.processes == {"a": "starting"}
    w.report_start("a")
    assert a.granted is not None
    assert get_state(w, "a") is ModelState.DRAINING, "but then it serves only who was there"


def test_disjoint_swaps_run_at_the_same_time() -> None:
    w = SimulatedWorld(
        GroupPolicy((ModelGroup(frozenset("ab"), exclusive=False), ModelGroup(frozenset("xy"), exclusive=False))), PATIENCE
    )
    load_model(w, "a")
    load_model(w, "x")
    w.send_request("b")
    w.send_request("y")
    assert w.processes == {"a": "stopping", "x": "stopping"}


def test_a_swap_waits_for_all_who_must_go_before_it_stops_any() -> None:
    w = SimulatedWorld(
        GroupPolicy((ModelGroup(frozenset("ab"), swap=False, exclusive=False), ModelGroup(frozenset("x")))), PATIENCE
    )
    load_model(w, "a")
    b = w.send_request("b")
    w.report_start("b")
    w.send_request("x")
    assert w.processes == {"a": "up", "b": "up"}, "b is at work: nothing is won by stopping a"
    pass_time(w, PATIENCE)
    assert w.processes == {"a": "stopping", "b": "up"}
    w.finish_request(b)
    assert w.processes == {"a": "stopping", "b": "stopping"}


def test_nobody_overtakes_whom_they_would_keep_out() -> None:
    """x waits for a and b; y could start as soon as a is gone, but x would have to wait for y then."""
    w = SimulatedWorld(
        GroupPolicy((ModelGroup(frozenset("ab"), swap=False, exclusive=False), ModelGroup(frozenset("xy")))), PATIENCE
    )
    held = [w.send_request("a"), w.send_request("b")]
    w.report_start("a")
    w.report_start("b")
    w.send_request("x")
    w.send_request("y")
    pass_time(w, PATIENCE)
    w.finish_request(held[0])
    w.end_process("a")
    assert w.processes == {"b": "up"}
    w.finish_request(held[1])
    w.end_process("b")
    assert w.processes == {"x": "starting"}


def test_nobody_starts_who_would_have_to_go_again_for_somebody_ahead() -> None:
    """Nothing keeps y out, but x, which waits for a, would evict it: it is loaded beside x, once x is."""
    w = SimulatedWorld(GroupPolicy((ModelGroup(frozenset("ax")), ModelGroup(frozenset("y"), exclusive=False))), PATIENCE)
    a = w.send_request("a")
    w.report_start("a")
    w.send_request("x")
    w.send_request("y")
    assert w.processes == {"a": "up"}
    w.finish_request(a)
    w.end_process("a")
    assert w.processes == {"x": "starting", "y": "starting"}


def test_a_persistent_model_serves_during_every_swap() -> None:
    """PersistentNotEvicted."""
    ears = ModelGroup(frozenset({"ears"}), exclusive=False, persistent=True)
    w = SimulatedWorld(GroupPolicy((ModelGroup(frozenset("ab")), ears)), PATIENCE)
    load_model(w, "ears")
    load_model(w, "a")
    w.send_request("b")
    assert w.send_request("ears").granted is not None
    assert w.processes == {"ears": "up", "a": "stopping"}


def test_unloading_a_slow_model_stalls_no_other() -> None:
    w = SimulatedWorld(NoEviction(), PATIENCE)
    load_model(w, "slow")
    load_model(w, "other")
    w.unload_model("slow")
    assert w.send_request("other").granted is not None
    third = w.send_request("third")
    w.report_start("third")
    assert third.granted is not None
    assert w.processes["slow"] == "stopping"


def test_an_unload_during_the_load_serves_who_waits_and_then_ends() -> None:
    w = create_world()
    request = w.send_request("a")
    w.unload_model("a")
    w.report_start("a")
    assert request.granted is not None
    late = w.send_request("a")
    assert late.granted is None
    w.finish_request(request)
    assert w.processes == {"a": "stopping"}


def test_force_unloads_at_once_whoever_waits_or_works() -> None:
    w = create_world()
    granted = w.send_request("a", max_concurrency=1)
    w.report_start("a")
    waiting = w.send_request("a", max_concurrency=1)
    w.unload_model("a", force=True)
    assert isinstance(waiting.outcome, ModelUnloadedError)
    assert w.processes == {"a": "stopping"}
    w.end_process("a")
    w.finish_request(granted)
    assert w.processes == {}
    starting = w.send_request("b")
    w.unload_model("b", force=True)
    assert isinstance(starting.outcome, ModelUnloadedError)
    assert w.processes == {"b": "stopping"}


def test_waiting_requests_count_towards_llama_swaps_limit() -> None:
    """ConcurrencyLimit_QueuedWaitersReserveCapacity."""
    w = create_world()
    for _ in range(10):
        w.send_request("a", concurrency_limit=10)
    refused = [w.send_request("a", concurrency_limit=10).outcome for _ in range(2)]
    for error in refused:
        assert isinstance(error, ConcurrencyLimitError)
        assert (error.status, error.code, error.retry_after) == (429, "concurrency_limit", 1.0)
    w.send_request("b", limit=1)
    busy = w.send_request("b", limit=1).outcome
    assert isinstance(busy, BusyError)
    assert busy.status == 503


def test_a_model_that_serves_one_at_a_time_keeps_the_others_in_order() -> None:
    w = create_world()
    requests = [w.send_request("a", max_concurrency=1) for _ in range(3)]
    w.report_start("a")
    for n, request in enumerate(requests):
        assert [r.granted is not None for r in requests] == [True] * (n + 1) + [False] * (2 - n)
        w.finish_request(request)


def test_who_was_there_when_the_model_came_up_is_served_before_the_next_swap() -> None:
    w = create_world()
    load_model(w, "c")
    waiters = [w.send_request("a", max_concurrency=1) for _ in range(3)]
    b = w.send_request("b")
    w.end_process("c")
    pass_time(w, PATIENCE)
    w.report_start("a")
    late = w.send_request("a", max_concurrency=1)
    for request in waiters:
        assert request.granted is not None
        w.finish_request(request)
    assert late.granted is None
    assert w.processes == {"a": "stopping"}
    w.end_process("a")
    w.report_start("b")
    assert b.granted is not None


def test_of_those_who_wait_the_higher_priority_is_loaded_first() -> None:
    w = create_world()
    a = w.send_request("a")
    w.report_start("a")
    w.send_request("b")
    w.send_request("c", priority=1)
    w.finish_request(a)
    w.end_process("a")
    assert w.processes == {"c": "starting"}


def test_whoever_waited_twice_the_patience_goes_before_any_priority() -> None:
    w = create_world()
    w.send_request("a")
    w.send_request("b")
    pass_time(w, 2 * PATIENCE)
    w.send_request("c", priority=99)
    w.report_start("a")
    w.end_process("a")
    assert w.processes == {"b": "starting"}


def test_who_starves_is_helped_when_it_does_and_not_at_the_next_occasion() -> None:
    w = create_world()
    w.send_request("a")
    w.report_start("a")
    w.send_request("b")
    pass_time(w, PATIENCE / 2)
    for _ in range(3):  # while favourites take over from each other, b has patience enough for two
        favourite = w.send_request("c", priority=1)
        pass_time(w, PATIENCE / 2 - 0.1)
        w.hang_up(favourite)
    w.send_request("c", priority=1)
    assert get_state(w, "a") is ModelState.READY
    pass_time(w, 0.3)
    assert get_state(w, "a") is ModelState.DRAINING


def test_a_silent_websocket_does_not_hold_its_model() -> None:
    w = create_world()
    socket = w.send_request("a", ttl=60.0)
    w.report_start("a")
    w.send_request("b")
    socket.resting = True
    w.send_event(RequestIdle("a", socket.ticket))
    assert w.processes == {"a": "stopping"}


def test_a_websocket_that_speaks_again_holds_its_model_again() -> None:
    w = create_world()
    socket = w.send_request("a", ttl=60.0)
    w.report_start("a")
    pass_time(w, 5)
    w.send_event(RequestIdle("a", socket.ticket))
    assert w.scheduler.next_deadline == 65.0
    w.send_event(RequestActive("a", socket.ticket))
    assert w.scheduler.next_deadline is None
    w.send_request("b")
    assert w.processes == {"a": "up"}


def test_a_websocket_that_ends_in_silence_was_last_used_when_it_fell_silent() -> None:
    w = create_world()
    socket = w.send_request("a", ttl=60.0)
    w.report_start("a")
    w.send_event(RequestIdle("a", socket.ticket))
    pass_time(w, 20)
    w.finish_request(socket)
    assert w.scheduler.next_deadline == 60.0


def test_what_is_on_its_way_out_is_the_first_to_make_room() -> None:
    w = SimulatedWorld(MemoryPolicy({"cpu": 10}, {model: {"cpu": 5} for model in "abc"}), PATIENCE)
    load_model(w, "b")
    w.now += 1.0
    a = w.send_request("a")
    w.report_start("a")
    w.unload_model("a")
    w.send_request("c")
    assert w.processes == {"a": "up", "b": "up"}, "although b was used longer ago"
    w.finish_request(a)
    assert w.processes == {"a": "stopping", "b": "up"}


def test_who_is_being_unloaded_need_not_be_waited_for_before_others_go() -> None:
    w = SimulatedWorld(
        GroupPolicy((ModelGroup(frozenset("ab"), swap=False, exclusive=False), ModelGroup(frozenset("x")))), PATIENCE
    )
    load_model(w, "b")
    w.send_request("a")
    w.report_start("a")
    w.unload_model("a")
    w.send_request("x")
    assert w.processes == {"a": "up", "b": "stopping"}


def test_a_request_resets_the_time_to_live() -> None:
    """TTL_ResetsOnRequest."""
    w = create_world()
    request = w.send_request("a", ttl=30.0)
    w.report_start("a")
    w.finish_request(request)
    pass_time(w, 29)
    w.finish_request(w.send_request("a", ttl=30.0))
    pass_time(w, 29)
    assert w.processes == {"a": "up"}
    pass_time(w, 1)
    assert w.processes == {"a": "stopping"}


def test_the_time_to_live_can_be_changed_while_it_runs() -> None:
    w = create_world()
    load_model(w, "a")
    w.send_event(ConfigChanged(w.rules, PATIENCE, settings={"a": SchedulingSettings(ttl=5.0)}))
    pass_time(w, 5)
    assert w.processes == {"a": "stopping"}


def test_waiting_requests_are_let_in_when_the_config_allows_more_of_them() -> None:
    w = create_world()
    load_model(w, "a")
    first, second = w.send_request("a", max_concurrency=1), w.send_request("a", max_concurrency=1)
    assert (first.granted, second.granted) == (0.0, None)
    w.send_event(ConfigChanged(w.rules, PATIENCE, settings={"a": SchedulingSettings(max_concurrency=2)}))
    assert second.granted == 0.0


def test_memory_that_is_measured_counts_from_the_next_load() -> None:
    w = SimulatedWorld(MemoryPolicy({"cpu": 10}, {"a": {"cpu": 5}, "b": {"cpu": 5}}), PATIENCE)
    load_model(w, "a")
    load_model(w, "b")
    w.rules = MemoryPolicy({"cpu": 10}, {"a": {"cpu": 5}, "b": {"cpu": 9}, "c": {"cpu": 1}})
    w.send_event(PolicyChanged(w.rules))
    assert w.processes == {"a": "up", "b": "up"}
    w.now += 1.0
    w.finish_request(w.send_request("b"))
    w.send_request("c")
    assert w.processes == {"a": "stopping", "b": "up"}


def test_a_model_that_failed_to_start_holds_up_no_other() -> None:
    w = create_world()
    w.send_request("a")
    w.fail_start("a")
    refused = w.send_request("a")
    assert BROKEN.message in str(refused.outcome)
    w.send_request("b")
    assert w.processes == {"b": "starting"}, "its failure is its own"


def test_a_new_config_touches_only_what_changed() -> None:
    w = SimulatedWorld(NoEviction(), PATIENCE)
    working = {model: w.send_request(model) for model in "abc"}
    for model in "abc":
        w.report_start(model)
    w.send_event(ConfigChanged(NoEviction(), PATIENCE, changed=frozenset("b"), removed=frozenset("c")))
    assert w.processes == dict.fromkeys("abc", "up"), "nobody is signalled at work"
    assert w.send_request("a").granted is not None
    again = w.send_request("b")
    assert again.granted is None
    w.finish_request(working["b"])
    w.finish_request(working["c"])
    assert w.processes == {"a": "up", "b": "stopping", "c": "stopping"}
    w.end_process("b")
    w.report_start("b")
    assert again.granted is not None


def test_a_new_config_has_no_old_failures_and_no_old_starts() -> None:
    w = SimulatedWorld(NoEviction(), PATIENCE)
    w.send_request("a")
    w.fail_start("a")
    waiter = w.send_request("b")
    gone = w.send_request("c")
    w.send_event(ConfigChanged(NoEviction(), PATIENCE, changed=frozenset("ab"), removed=frozenset("c")))
    assert w.send_request("a").outcome == ""
    assert isinstance(gone.outcome, ModelNotFoundError)
    w.end_process("b")
    w.report_start("b")
    assert waiter.granted is not None


def test_new_rules_let_go_what_they_forbid() -> None:
    w = SimulatedWorld(NoEviction(), PATIENCE)
    for model in "abc":
        w.now += 1.0
        load_model(w, model)
    w.rules = create_exclusive_group("a", "b")
    w.send_event(ConfigChanged(w.rules, PATIENCE))
    assert w.processes == {"a": "stopping", "b": "up", "c": "up"}, "the one used last stays"


@pytest.mark.parametrize("patience", [0.0, 3.0])
def test_a_new_patience_counts_at_once(patience: float) -> None:
    w = create_world()
    w.send_request("a")
    w.report_start("a")
    w.send_request("b")
    pass_time(w, 5)
    w.send_event(ConfigChanged(w.rules, patience))
    assert get_state(w, "a") is ModelState.DRAINING


def test_nothing_is_due_when_nobody_waits() -> None:
    w = create_world()
    load_model(w, "a")
    assert w.scheduler.next_deadline is None
    w.send_request("b")
    w.end_process("a")
    w.send_event(TimerFired())
    assert w.scheduler.next_deadline is None, "a start is not hurried by the clock"


@pytest.mark.slow
def test_a_new_config_is_one_short_step_for_a_thousand_loaded_models() -> None:
    scheduler = Scheduler(NoEviction(), PATIENCE)
    models = [f"m{number}" for number in range(1000)]
    for ticket, model in enumerate(models):
        scheduler.handle_event(RequestArrived(model, ticket, SchedulingSettings()), 0.0)
        scheduler.handle_event(ModelReady(model), 0.0)
        scheduler.handle_event(RequestFinished(model, ticket), 0.0)
    began = time.process_time()
    settings = dict.fromkeys(models[10:], SchedulingSettings(ttl=5.0))
    rules = create_exclusive_group(*models[:1])
    actions = scheduler.handle_event(ConfigChanged(rules, PATIENCE, frozenset(models[:10]), settings=settings), 1.0)
    assert time.process_time() - began < 0.2
    assert len(actions) == 10
    assert scheduler.next_deadline == 5.0
