"""Why a model goes is known from the moment at which that is decided."""

from __future__ import annotations

import pytest

from eardrum.config.matrix import ModelReference
from eardrum.gateway.scheduler import ConfigChanged, ShutdownRequested, UnloadCause, UnloadReason
from eardrum.gateway.scheduler.policies import (
    CombinedPolicy,
    EvictionPolicy,
    GroupPolicy,
    MatrixPolicy,
    MemoryPolicy,
    ModelGroup,
    NoEviction,
)
from tests.gateway.scheduler.simulated_world import SimulatedWorld

GROUP = GroupPolicy((ModelGroup(frozenset("ab")),))
MATRIX = MatrixPolicy((ModelReference("a"), ModelReference("b")))
POOL = MemoryPolicy({"cpu": 10}, {"a": {"cpu": 6}, "b": {"cpu": 6}})


def create_idle(*models: str, rules: EvictionPolicy | None = None, **terms: float) -> SimulatedWorld:
    """Models that are loaded and have nothing to do."""
    world = SimulatedWorld(rules or NoEviction())
    world.load_s, world.stop_s = lambda _: 1.0, lambda _: 1.0
    for model in models:
        world.send_request(model, serve_s=1.0, **terms)
    world.run_until(5.0)
    return world


def get_past_reason(world: SimulatedWorld, model: str) -> UnloadCause | None:
    return world.scheduler.models[model].last_unload


def get_present_reason(world: SimulatedWorld, model: str) -> UnloadCause | None:
    return world.scheduler.models[model].unload_cause


def test_nobody_asks() -> None:
    world = create_idle("a", ttl=30.0)
    assert get_past_reason(world, "a") is get_present_reason(world, "a") is None
    world.run_until(32.5)
    assert get_present_reason(world, "a") == UnloadCause(UnloadReason.TTL)
    world.run_until(40)
    assert (get_past_reason(world, "a"), get_present_reason(world, "a")) == (UnloadCause(UnloadReason.TTL), None)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (GROUP, UnloadReason.GROUP),
        (MATRIX, UnloadReason.MATRIX),
        (POOL, UnloadReason.POOL),
        (CombinedPolicy((GroupPolicy(()), POOL)), UnloadReason.POOL),
        (CombinedPolicy((GROUP, POOL)), UnloadReason.GROUP),
    ],
)
def test_somebody_needs_its_place(rules: EvictionPolicy, reason: UnloadReason) -> None:
    world = create_idle("a", rules=rules)
    world.send_request("b", serve_s=1.0)
    assert get_present_reason(world, "a") == UnloadCause(reason, "b")
    world.run_until(20)
    assert get_past_reason(world, "a") == UnloadCause(reason, "b")
    assert str(get_past_reason(world, "a")) == f"it made room for b ({reason})"
    world.send_request("a", serve_s=1.0)
    world.run_until(40)
    assert get_present_reason(world, "a") is None
    assert get_past_reason(world, "b") == UnloadCause(reason, "a")


def test_a_start_that_gives_way() -> None:
    world = SimulatedWorld(GROUP)
    world.hang_up(world.send_request("a"))
    world.send_request("b")
    assert get_present_reason(world, "a") == UnloadCause(UnloadReason.GROUP, "b")


def test_a_swap_that_is_called_off_leaves_no_reason() -> None:
    world = create_idle("a", rules=GROUP)
    world.send_request("a", serve_s=60)
    other = world.send_request("b")
    world.run_until(30)
    assert get_present_reason(world, "a") == UnloadCause(UnloadReason.GROUP, "b")
    world.hang_up(other)
    assert get_present_reason(world, "a") is None


@pytest.mark.parametrize(("force", "reason"), [(False, UnloadReason.HAND), (True, UnloadReason.FORCE)])
def test_somebody_unloads_it(force: bool, reason: UnloadReason) -> None:
    world = create_idle("a")
    world.unload_model("a", force=force)
    assert get_present_reason(world, "a") == UnloadCause(reason)
    world.run_until(20)
    assert get_past_reason(world, "a") == UnloadCause(reason)


def test_somebody_unloads_it_while_others_wait_for_it() -> None:
    world = SimulatedWorld(NoEviction())
    world.stop_s = lambda _: 1.0
    world.send_request("a", serve_s=2.0)
    world.unload_model("a")
    world.report_start("a")
    world.run_until(20)
    assert get_past_reason(world, "a") == UnloadCause(UnloadReason.HAND)


def test_it_dies_or_does_not_come_up() -> None:
    world = create_idle("a")
    world.end_process("a")
    assert get_past_reason(world, "a") == UnloadCause(UnloadReason.CRASH)
    world = SimulatedWorld(NoEviction())
    world.send_request("a")
    world.fail_start("a")
    assert get_past_reason(world, "a") == UnloadCause(UnloadReason.FAILED)


def test_one_that_dies_while_it_drains_has_died() -> None:
    world = create_idle("a", rules=GROUP)
    world.send_request("a")
    world.send_request("b")
    world.run_until(30)
    assert get_present_reason(world, "a") == UnloadCause(UnloadReason.GROUP, "b")
    world.end_process("a")
    assert get_past_reason(world, "a") == UnloadCause(UnloadReason.CRASH)


def test_another_config_and_the_end() -> None:
    world = create_idle("a", "b", "c")
    world.send_event(ConfigChanged(GROUP, 10.0, changed=frozenset("c")))
    world.run_until(20)
    assert {get_past_reason(world, "c"), get_past_reason(world, "a") or get_past_reason(world, "b")} == {
        UnloadCause(UnloadReason.RELOAD)
    }
    world = create_idle("a")
    world.down = True
    world.send_event(ShutdownRequested())
    world.run_until(20)
    assert get_past_reason(world, "a") == UnloadCause(UnloadReason.SHUTDOWN)
