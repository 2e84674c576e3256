"""llama-swap's groups."""

from __future__ import annotations

from eardrum.gateway.scheduler.policies import CombinedPolicy, GroupPolicy, MemoryPolicy, ModelGroup, NoEviction


def create_group(*members: str, swap: bool = True, exclusive: bool = True, persistent: bool = False) -> ModelGroup:
    return ModelGroup(frozenset(members), swap, exclusive, persistent)


def list_evicted(rules: GroupPolicy, target: str, *loaded: str) -> set[str]:
    return set(rules.find_evictions(target, dict.fromkeys(loaded, 0.0)))


def test_without_rules_everything_stays() -> None:
    assert NoEviction().find_evictions("a", {"b": 0.0}) == frozenset()
    assert NoEviction().allows(["a", "b"])


def test_members_of_a_swapping_group_replace_each_other() -> None:
    rules = GroupPolicy((create_group("a", "b", exclusive=False),))
    assert list_evicted(rules, "a", "b") == {"b"}
    assert list_evicted(rules, "a", "a") == set()
    assert not rules.allows(["a", "b"])


def test_members_of_a_group_that_does_not_swap_live_together() -> None:
    rules = GroupPolicy((create_group("a", "b", swap=False),))
    assert list_evicted(rules, "a", "b") == set()
    assert rules.allows(["a", "b"])


def test_an_exclusive_group_unloads_other_groups() -> None:
    rules = GroupPolicy((create_group("a"), create_group("b", "c", swap=False, exclusive=False)))
    assert list_evicted(rules, "a", "b", "c") == {"b", "c"}


def test_a_group_that_is_not_exclusive_unloads_no_exclusive_group() -> None:
    """llama-swap: NonExclusiveDoesNotUnloadExclusive."""
    rules = GroupPolicy((create_group("a"), create_group("b", exclusive=False)))
    assert list_evicted(rules, "b", "a") == set()
    assert rules.allows(["a", "b"]), "loaded in this order they are together"
    assert not GroupPolicy((create_group("a"), create_group("b"))).allows(["a", "b"])


def test_a_persistent_group_is_not_unloaded_by_others() -> None:
    """llama-swap: PersistentNotEvicted."""
    rules = GroupPolicy((create_group("llm"), create_group("ears", "voice", swap=True, exclusive=False, persistent=True)))
    assert list_evicted(rules, "llm", "ears") == set()
    assert list_evicted(rules, "voice", "ears") == {"ears"}, "but by its own group"


def test_models_in_no_group_are_outside() -> None:
    rules = GroupPolicy((create_group("a"),))
    assert list_evicted(rules, "a", "moonshine") == set()
    assert list_evicted(rules, "moonshine", "a") == set()


def test_rules_add_up() -> None:
    rules = CombinedPolicy(
        (GroupPolicy((create_group("a", "b"),)), MemoryPolicy({"cpu": 10}, {"a": {"cpu": 6}, "c": {"cpu": 6}, "b": {"cpu": 5}}))
    )
    assert rules.find_evictions("a", {"b": 1.0, "c": 0.0}) == {"b", "c"}
    assert rules.allows(["b"])
    assert not rules.allows(["b", "c"])
