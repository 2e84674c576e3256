"""Traffic in simulated time: people come, wait, are served or leave."""

from __future__ import annotations

import random
from functools import partial

from eardrum.gateway.scheduler.policies import EvictionPolicy, GroupPolicy, ModelGroup
from tests.gateway.scheduler.simulated_world import SimulatedRequest, SimulatedWorld

LOAD_S, SERVE_S = 5.0, 1.0


def create_policy(models: str) -> GroupPolicy:
    return GroupPolicy((ModelGroup(frozenset(models)),))


def simulate_arrivals(
    rules: EvictionPolicy,
    models: str,
    *,
    rate: float,
    patience: float,
    requests: int = 1500,
    seed: int = 1,
    load_s: float = LOAD_S,
    serve_s: float = SERVE_S,
    leaving: float = 0.0,
    at_once: int = 0,
    priorities: dict[str, int] | None = None,
) -> tuple[SimulatedWorld, list[float]]:
    """Poisson arrivals over `models`; the waits until they were granted, sorted. Some leave while they wait."""
    dice = random.Random(seed)
    world = SimulatedWorld(rules, patience)
    world.load_s = lambda _: load_s
    world.stop_s = lambda _: 0.0

    def ask(model: str) -> None:
        request = world.send_request(model, serve_s, max_concurrency=at_once or None, priority=(priorities or {}).get(model, 0))
        if dice.random() < leaving:
            world.schedule(world.now + dice.uniform(0, 20), partial(hang_up, request))

    def hang_up(request: SimulatedRequest) -> None:
        if not request.outcome and request.granted is None:
            world.hang_up(request)

    moment = 0.0
    for _ in range(requests):
        moment += dice.expovariate(rate)
        world.schedule(moment, partial(ask, dice.choice(models)))
    world.run_until()
    assert {r.outcome for r in world.requests.values()} <= {"served", "left"}, "everybody has an outcome"
    return world, sorted(r.granted - r.asked for r in world.requests.values() if r.granted is not None)
