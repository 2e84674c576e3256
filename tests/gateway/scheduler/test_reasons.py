"""Why a model goes is known from the moment at which that is decided."""

from __future__ import annotations

import pytest

from eardrum.config.matrix import Ident
from eardrum.gateway.rules import Every, Group, Groups, Matrix, Nothing, Pools, Rules
from eardrum.gateway.scheduler import Going, Reason, Reconfigured, Shutdown
from tests.gateway.scheduler.world import World

GROUP = Groups((Group(frozenset("ab")),))
MATRIX = Matrix((Ident("a"), Ident("b")))
POOL = Pools({"cpu": 10}, {"a": {"cpu": 6}, "b": {"cpu": 6}})


def up(*models: str, rules: Rules | None = None, **terms: float) -> World:
    """Models that are loaded and have nothing to do."""
    world = World(rules or Nothing())
    world.load_s, world.stop_s = lambda _: 1.0, lambda _: 1.0
    for model in models:
        world.ask(model, serve_s=1.0, **terms)
    world.run(5.0)
    return world


def gone(world: World, model: str) -> Going | None:
    return world.scheduler.slots[model].gone


def going(world: World, model: str) -> Going | None:
    return world.scheduler.slots[model].going


def test_nobody_asks() -> None:
    world = up("a", ttl=30.0)
    assert gone(world, "a") is going(world, "a") is None
    world.run(32.5)
    assert going(world, "a") == Going(Reason.TTL)
    world.run(40)
    assert (gone(world, "a"), going(world, "a")) == (Going(Reason.TTL), None)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (GROUP, Reason.GROUP),
        (MATRIX, Reason.MATRIX),
        (POOL, Reason.POOL),
        (Every((Groups(()), POOL)), Reason.POOL),
        (Every((GROUP, POOL)), Reason.GROUP),
    ],
)
def test_somebody_needs_its_place(rules: Rules, reason: Reason) -> None:
    world = up("a", rules=rules)
    world.ask("b", serve_s=1.0)
    assert going(world, "a") == Going(reason, "b")
    world.run(20)
    assert gone(world, "a") == Going(reason, "b")
    assert str(gone(world, "a")) == f"it made room for b ({reason})"
    world.ask("a", serve_s=1.0)
    world.run(40)
    assert going(world, "a") is None
    assert gone(world, "b") == Going(reason, "a")


def test_a_start_that_gives_way() -> None:
    world = World(GROUP)
    world.leave(world.ask("a"))
    world.ask("b")
    assert going(world, "a") == Going(Reason.GROUP, "b")


def test_a_swap_that_is_called_off_leaves_no_reason() -> None:
    world = up("a", rules=GROUP)
    world.ask("a", serve_s=60)
    other = world.ask("b")
    world.run(30)
    assert going(world, "a") == Going(Reason.GROUP, "b")
    world.leave(other)
    assert going(world, "a") is None


@pytest.mark.parametrize(("force", "reason"), [(False, Reason.HAND), (True, Reason.FORCE)])
def test_somebody_unloads_it(force: bool, reason: Reason) -> None:
    world = up("a")
    world.unload("a", force=force)
    assert going(world, "a") == Going(reason)
    world.run(20)
    assert gone(world, "a") == Going(reason)


def test_somebody_unloads_it_while_others_wait_for_it() -> None:
    world = World(Nothing())
    world.stop_s = lambda _: 1.0
    world.ask("a", serve_s=2.0)
    world.unload("a")
    world.started("a")
    world.run(20)
    assert gone(world, "a") == Going(Reason.HAND)


def test_it_dies_or_does_not_come_up() -> None:
    world = up("a")
    world.exits("a")
    assert gone(world, "a") == Going(Reason.CRASH)
    world = World(Nothing())
    world.ask("a")
    world.start_fails("a")
    assert gone(world, "a") == Going(Reason.FAILED)


def test_one_that_dies_while_it_drains_has_died() -> None:
    world = up("a", rules=GROUP)
    world.ask("a")
    world.ask("b")
    world.run(30)
    assert going(world, "a") == Going(Reason.GROUP, "b")
    world.exits("a")
    assert gone(world, "a") == Going(Reason.CRASH)


def test_another_config_and_the_end() -> None:
    world = up("a", "b", "c")
    world.tell(Reconfigured(GROUP, 10.0, changed=frozenset("c")))
    world.run(20)
    assert {gone(world, "c"), gone(world, "a") or gone(world, "b")} == {Going(Reason.RELOAD)}
    world = up("a")
    world.down = True
    world.tell(Shutdown())
    world.run(20)
    assert gone(world, "a") == Going(Reason.SHUTDOWN)
