"""How long people wait for two models that replace each other, in simulated time: the table of `docs/explanation/scheduler.md`.

A load takes 5 s, a request 1 s; requests come at random for either. No process is started: what decides is the scheduler.
"""

from __future__ import annotations

from bench.figure import BenchFigure, SeriesComparison
from tests.gateway.scheduler.traffic import LOAD_S, SERVE_S, create_policy, simulate_arrivals

RATES = (0.5, 2.0, 10.0, 20.0)
PATIENCE_S = 10.0
EVER_S = 1e9


def measure(quick: bool) -> list[BenchFigure]:
    """Longest wait and loads with patience, beside serving whoever is ready for ever and swapping as soon as anybody waits."""
    requests = 600 if quick else 6000
    return [figure for rate in RATES for figure in _build_address(rate, requests)]


def _build_address(rate: float, requests: int) -> list[BenchFigure]:
    found = {
        patience: simulate_arrivals(create_policy("ab"), "ab", rate=rate, patience=patience, requests=requests)
        for patience in TRIED
    }
    waits = {patience: longest[-1] for patience, (_, longest) in found.items()}
    loads = {patience: float(len(world.starts)) for patience, (world, _) in found.items()}
    return [
        BenchFigure(
            name=f"swap_wait_{rate:g}",
            what=f"longest wait, {rate:g} requests/s",
            against="serving whoever is ready",
            unit="s",
            ours=[waits[PATIENCE_S]],
            baseline=[waits[EVER_S]],
            compare=SeriesComparison.ABSOLUTE,
            target=PATIENCE_S + SERVE_S + LOAD_S,
        ),
        BenchFigure(
            name=f"swap_loads_{rate:g}",
            what=f"loads for {requests} requests, {rate:g} requests/s",
            against="swapping as soon as anybody waits",
            unit="loads",
            ours=[loads[PATIENCE_S]],
            baseline=[loads[0.0]],
            compare=SeriesComparison.SHARE,
            target=1.0,
        ),
    ]


TRIED = (0.0, PATIENCE_S, EVER_S)
