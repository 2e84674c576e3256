"""How long people wait, in simulated time: the figures of `docs/explanation/scheduler.md`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.gateway.scheduler.policies import MemoryPolicy
from tests.gateway.scheduler.traffic import LOAD_S, SERVE_S, create_policy, simulate_arrivals
from tests.generated_cases import count_cases

pytestmark = [pytest.mark.slow, pytest.mark.hostile]


@pytest.mark.parametrize("rate", [0.5, 2, 10, 20])
def test_patience_bounds_the_longest_wait_of_two_models(rate: float) -> None:
    world, waits = simulate_arrivals(create_policy("ab"), "ab", rate=rate, patience=10.0)
    assert waits[-1] <= 10.0 + SERVE_S + LOAD_S + 1e-6
    assert len(world.starts) < 0.5 * len(waits), "though not by loading for every request"


def test_who_serves_whoever_is_ready_lets_others_starve() -> None:
    """As llama-swap does."""
    world, waits = simulate_arrivals(create_policy("ab"), "ab", rate=20, patience=1e9)
    patient, bounded = simulate_arrivals(create_policy("ab"), "ab", rate=20, patience=10.0)
    assert waits[-1] > 3 * bounded[-1]
    assert len(world.starts) <= len(patient.starts)


def test_without_patience_waits_are_shortest_and_loads_most() -> None:
    """Who was there when a model became ready is served together, so it is not a load per request even then."""
    impatient, waits = simulate_arrivals(create_policy("ab"), "ab", rate=10, patience=0.0)
    patient, bounded = simulate_arrivals(create_policy("ab"), "ab", rate=10, patience=10.0)
    assert len(impatient.starts) > 1.3 * len(patient.starts)
    assert waits[-1] <= 2 * (SERVE_S + LOAD_S) + 1e-6 < bounded[-1]


@given(
    models=st.sampled_from(["ab", "abc", "abcde"]),
    rate=st.sampled_from([0.3, 1.0, 5.0]),
    patience=st.sampled_from([0.0, 3.0, 10.0]),
    load_s=st.sampled_from([0.5, 5.0, 30.0]),
    leaving=st.sampled_from([0.0, 0.33]),
    in_pool=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=count_cases(60), deadline=None)
def test_nobody_waits_longer_than_patience_and_a_turn_of_every_other(
    models: str, rate: float, patience: float, load_s: float, leaving: float, in_pool: bool, seed: int
) -> None:
    rules = MemoryPolicy({"cpu": 10}, {model: {"cpu": 6} for model in models}) if in_pool else create_policy(models)
    world, _ = simulate_arrivals(
        rules, models, rate=rate, patience=patience, requests=200, seed=seed, load_s=load_s, leaving=leaving
    )
    turn = SERVE_S + load_s
    bound = max(patience, turn) + (len(models) - 1) * turn + 1e-6
    left = [request for request in world.requests.values() if request.left is not None]
    for request in world.requests.values():
        if request.granted is not None and (wait := request.granted - request.asked) > bound:
            # Who gives up ahead of somebody lets in those who came before the next one for whom room is made.
            ahead = [other for other in left if other.asked < request.asked < (other.left or 0) < request.granted]
            assert wait <= bound + len(ahead) * SERVE_S


@given(seed=st.integers(0, 1000), at_once=st.sampled_from([0, 1]))
@settings(max_examples=count_cases(20), deadline=None)
def test_a_low_priority_is_no_sentence(seed: int, at_once: int) -> None:
    """Two favourites that are always wanted do not keep a third one out."""
    _, waits = simulate_arrivals(
        create_policy("abc"),
        "aaaabbbbc",
        rate=3,
        patience=10.0,
        requests=300,
        seed=seed,
        at_once=at_once,
        priorities={"a": 5, "b": 5},
        serve_s=0.2,
        load_s=2.0,
    )
    assert waits[-1] <= 2 * 10.0 + 60.0


def test_a_priority_is_an_advantage() -> None:
    world, _ = simulate_arrivals(create_policy("abc"), "abc", rate=0.5, patience=10.0, requests=600, priorities={"c": 1})
    means = {}
    for model in "abc":
        waits = [r.granted - r.asked for r in world.requests.values() if r.model == model and r.granted is not None]
        means[model] = sum(waits) / len(waits)
    assert means["c"] < 0.8 * min(means["a"], means["b"])


def test_200_requests_for_3_exclusive_models_with_a_third_of_the_clients_leaving() -> None:
    world, waits = simulate_arrivals(create_policy("abc"), "abc", rate=10, patience=10.0, requests=200, leaving=0.33)
    assert len(world.requests) == 200
    assert waits[-1] <= 10.0 + 2 * (SERVE_S + LOAD_S)
    assert len(world.processes) == 1, "and one is left loaded"
