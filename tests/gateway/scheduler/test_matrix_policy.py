"""llama-swap's matrix, beside a reading of it that lists every set."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from eardrum.config.matrix import AndExpression, MatrixExpression, ModelReference, OrExpression
from eardrum.gateway.scheduler.policies import CLAIMED, LEAVING, MatrixPolicy

MODELS = "abcde"


def any_of(models: str) -> OrExpression:
    return OrExpression(tuple(ModelReference(model) for model in models))


def list_evicted(rules: MatrixPolicy, target: str, loaded: str) -> set[str]:
    return set(rules.find_evictions(target, dict.fromkeys(loaded, 0.0)))


def test_what_shares_a_set_stays() -> None:
    rules = MatrixPolicy((AndExpression((ModelReference("a"), any_of("bc"))),))
    assert list_evicted(rules, "a", "b") == set()
    assert list_evicted(rules, "c", "ab") == {"b"}
    assert rules.allows("ab")
    assert not rules.allows("bc")


def test_a_part_of_a_set_is_allowed() -> None:
    assert MatrixPolicy((AndExpression((ModelReference("a"), ModelReference("b"), ModelReference("c"))),)).allows("ac")


def test_the_cheapest_set_is_chosen() -> None:
    sets = (AndExpression((ModelReference("x"), ModelReference("a"))), AndExpression((ModelReference("x"), ModelReference("b"))))
    assert list_evicted(MatrixPolicy(sets), "x", "ab") == {"b"}, "of equals the first"
    assert list_evicted(MatrixPolicy(sets, {"b": 5}), "x", "ab") == {"a"}


def test_what_leaves_anyway_costs_nothing_and_what_is_claimed_costs_most() -> None:
    rules = MatrixPolicy(
        (AndExpression((ModelReference("x"), ModelReference("a"))), AndExpression((ModelReference("x"), ModelReference("b")))),
        {"a": 9},
    )
    assert rules.find_evictions("x", {"a": LEAVING, "b": 0.0}) == {"a"}
    assert rules.find_evictions("x", {"a": 0.0, "b": CLAIMED}) == {"a"}


def test_a_model_in_no_set_runs_alone_or_is_outside() -> None:
    rules = MatrixPolicy((AndExpression((ModelReference("a"), ModelReference("b"))),), solitary=frozenset("z"))
    assert list_evicted(rules, "z", "abo") == {"a", "b"}
    assert list_evicted(rules, "a", "bz") == {"z"}
    assert list_evicted(rules, "o", "abz") == set()
    assert rules.allows("abo")


def test_ten_groups_of_ten_are_not_multiplied_out() -> None:
    everything = AndExpression(
        tuple(OrExpression(tuple(ModelReference(f"{group}.{n}") for n in range(10))) for group in range(10))
    )
    loaded = {f"{group}.{n}": 0.0 for group in range(5) for n in range(1, 3)}
    assert MatrixPolicy((everything,)).find_evictions("0.0", loaded) == {"0.1", "0.2", "1.2", "2.2", "3.2", "4.2"}


def list_sets(expression: MatrixExpression) -> list[frozenset[str]]:
    match expression:
        case ModelReference(model):
            return [frozenset((model,))]
        case OrExpression(parts):
            return [found for part in parts for found in list_sets(part)]
        case AndExpression(parts):
            return [frozenset().union(*choice) for choice in product(*(list_sets(part) for part in parts))]


expressions = st.recursive(
    st.sampled_from(MODELS).map(ModelReference),
    lambda inner: st.one_of(
        *(st.lists(inner, min_size=1, max_size=3).map(tuple).map(kind) for kind in (AndExpression, OrExpression))
    ),
    max_leaves=6,
)


@given(
    st.lists(expressions, min_size=1, max_size=3).map(tuple),
    st.sampled_from(MODELS),
    st.sets(st.sampled_from(MODELS)),
    st.dictionaries(st.sampled_from(MODELS), st.integers(1, 5)),
)
def test_it_is_as_good_as_listing_every_set(
    sets: tuple[MatrixExpression, ...], target: str, loaded: set[str], costs: dict[str, int]
) -> None:
    running = loaded - {target}
    listed = [found for expression in sets for found in list_sets(expression)]
    inside = frozenset().union(*listed)
    fitting = [found for found in listed if target in found]
    gone = MatrixPolicy(sets, costs).find_evictions(target, dict.fromkeys(running, 0.0))

    def cost(models: set[str]) -> int:
        return sum(costs.get(model, 1) for model in models)

    if target not in inside:
        assert gone == set()
        return
    assert cost(gone) == min(cost(running & inside - found) for found in fitting)
    assert any(running & inside - gone <= found for found in fitting)
    assert MatrixPolicy(sets, costs).allows((running - gone) | {target})


@given(st.lists(expressions, min_size=1, max_size=3).map(tuple), st.sets(st.sampled_from(MODELS)))
def test_it_allows_what_some_set_holds(sets: tuple[MatrixExpression, ...], models: set[str]) -> None:
    listed = [found for expression in sets for found in list_sets(expression)]
    inside = models & frozenset().union(*listed)
    assert MatrixPolicy(sets).allows(models) == (len(inside) <= 1 or any(inside <= found for found in listed))
