"""What fits stays, and the least recently used goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.gateway.scheduler.policies import LEAVING, MemoryPolicy
from eardrum.units import parse_size


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ("2.1G", 2_100_000_000),
        ("500M", 500_000_000),
        ("22GiB", 22 << 30),
        ("22gib", 22 << 30),
        ("1Ki", 1024),
        ("80 GB", 80_000_000_000),
        ("4096", 4096),
        ("1T", 10**12),
    ],
)
def test_sizes_are_read(size: str, number: int) -> None:
    assert parse_size(size) == number


@pytest.mark.parametrize("size", ["", "G", "-1G", "0", "1.G", "1,5G", "2 apples", "1iB", "nan", "1e9"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(size)


def create_policy(size: float, /, **needs: float) -> MemoryPolicy:
    return MemoryPolicy({"cpu": size}, {model: {"cpu": need} for model, need in needs.items()})


def test_what_fits_stays() -> None:
    assert create_policy(10, a=4, b=6).find_evictions("a", {"b": 0.0}) == frozenset()


def test_the_least_recently_used_goes_first() -> None:
    rules = create_policy(10, a=4, b=4, c=4)
    assert rules.find_evictions("c", {"a": 5.0, "b": 3.0}) == {"b"}
    assert rules.find_evictions("c", {"a": 2.0, "b": 3.0}) == {"a"}
    assert rules.find_evictions("c", {"a": LEAVING, "b": 3.0}) == {"a"}


def test_nobody_goes_for_nothing() -> None:
    assert create_policy(10, small=1, large=9, new=9).find_evictions("new", {"small": 1.0, "large": 2.0}) == {"large"}


def test_a_model_larger_than_the_pool_gets_all_of_it() -> None:
    rules = create_policy(10, a=4, huge=99)
    assert rules.find_evictions("huge", {"a": 1.0}) == {"a"}
    assert rules.find_evictions("a", {"huge": 1.0}) == {"huge"}
    assert rules.allows(["huge"])
    assert not rules.allows(["huge", "a"])


def test_each_pool_has_its_own_models() -> None:
    rules = MemoryPolicy({"cpu": 10, "cuda": 10}, {"a": {"cpu": 9}, "b": {"cuda": 9}, "c": {"cpu": 5, "cuda": 5}})
    assert rules.find_evictions("a", {"b": 0.0}) == frozenset()
    assert rules.find_evictions("c", {"a": 0.0, "b": 0.0}) == {"a", "b"}


def test_a_model_without_a_need_is_let_alone() -> None:
    assert create_policy(10, a=10).find_evictions("a", {"address": 0.0}) == frozenset()
    assert create_policy(10, a=10).find_evictions("address", {"a": 0.0}) == frozenset()


def test_a_model_that_was_told_to_stay_is_not_evicted() -> None:
    rules = MemoryPolicy({"cpu": 10}, {"a": {"cpu": 6}, "b": {"cpu": 6}}, persistent=frozenset("a"))
    assert rules.find_evictions("b", {"a": 0.0}) == frozenset()
    assert rules.allows("ab")


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=2),
    st.data(),
)
def test_who_stays_fits_and_no_less_would_do(needs: dict[str, int], data: st.DataObject) -> None:
    rules = create_policy(10, **needs)
    target = data.draw(st.sampled_from(sorted(needs)))
    loaded: dict[str, float] = {}
    for model in needs:  # as they came to be loaded
        if model != target:
            loaded = {m: used for m, used in loaded.items() if m not in rules.find_evictions(model, loaded)}
            loaded[model] = data.draw(st.integers(0, 9))
    gone = rules.find_evictions(target, loaded)
    staying = [model for model in loaded if model not in gone]
    assert rules.allows([*staying, target])
    assert not any(rules.allows([*staying, target, back]) for back in gone)
