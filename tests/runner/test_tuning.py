"""How large a batch pays, by an engine's own account."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import psutil
import pytest

from eardrum.engines.base import ClaimIdleTime, EngineResult, Window
from eardrum.runner import tuning
from eardrum.runner.tuning import CoreWatch, EngineTuner, measure_batch_size
from eardrum.transcription import Capabilities
from tests.runner.test_batcher import ScriptedEngine, create_window


class ScriptedCostEngine(ScriptedEngine):
    """Not a model: a batch of n windows costs what it is told, in seconds, by clocks of its own.

    Other processes slow the batches whose numbers are in `disturbed` to ten times by the clock, but not in CPU time.
    """

    def __init__(self, cost: Callable[[int], float], max_batch: int) -> None:
        super().__init__()
        self._cost = cost
        self.now = self.cpu_s = 0.0
        self.disturbed: set[int] = set()
        self.capabilities = Capabilities(max_batch=max_batch)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        cost = self._cost(len(windows))
        self.now += cost * (10 if len(self.batches) in self.disturbed else 1)
        self.cpu_s += cost
        return super().transcribe(windows)


Scripted = Callable[[Callable[[int], float], int], ScriptedCostEngine]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """An engine whose clock is the one that is looked at."""

    def made(cost: Callable[[int], float], max_batch: int) -> ScriptedCostEngine:
        engine = ScriptedCostEngine(cost, max_batch)
        clocks = SimpleNamespace(perf_counter=lambda: engine.now, process_time=lambda: engine.cpu_s)
        monkeypatch.setattr(tuning, "time", clocks)
        return engine

    return made


@pytest.mark.parametrize(
    ("cost", "max_batch", "expected"),
    [
        pytest.param(lambda n: 0.015 * n, 16, 1, id="batching gains nothing"),
        pytest.param(lambda n: 0.02, 16, 16, id="a batch costs what one costs"),
        pytest.param(lambda n: 0.02, 8, 8, id="the engine takes at most 8"),
        pytest.param(lambda n: 0.02, 6, 4, id="sizes are tried in steps"),
        pytest.param(lambda n: 0.02, 1, 1, id="the engine does not batch"),
        pytest.param(lambda n: 2 + n, 16, 4, id="slow, and worth finding out"),
        pytest.param(lambda n: 0.02 if n <= 4 else 0.008 * n, 16, 4, id="no gain past 4"),
        pytest.param(lambda n: 0.02 if n <= 4 else 0.035, 16, 4, id="too little gain past 4 for twice the wait"),
    ],
)
def test_the_batch_size_is_the_one_that_pays(
    scripted: Scripted, cost: Callable[[int], float], max_batch: int, expected: int
) -> None:
    engine = scripted(cost, max_batch)
    assert measure_batch_size(engine, create_window("probe"), lambda seconds, memory: None) == expected
    assert max(map(len, engine.batches), default=1) <= max_batch


def test_what_takes_long_to_find_out_is_not_found_out(scripted: Scripted) -> None:
    engine = scripted(lambda n: tuning.MAX_TUNING_S / 4, 16)
    assert measure_batch_size(engine, create_window("probe"), lambda seconds, memory: None) == 1
    assert len(engine.batches) == 1


LARGER = {2, 4, 6}
"""Numbers of the batches of four, of those that are timed: one window to begin with, then one window and four, in turn."""


def test_on_a_cpu_other_processes_do_not_change_the_batch_size(scripted: Scripted) -> None:
    engine = scripted(lambda n: 0.02, 4)
    engine.device, engine.disturbed = "cpu", LARGER
    assert measure_batch_size(engine, create_window("probe"), lambda seconds, memory: None) == 4


@pytest.mark.parametrize("number", LARGER)
def test_by_the_clock_a_single_disturbed_batch_does_not_decide(scripted: Scripted, number: int) -> None:
    engine = scripted(lambda n: 0.02, 4)
    engine.device, engine.disturbed = "cuda", {number}
    assert measure_batch_size(engine, create_window("probe"), lambda seconds, memory: None) == 4


def claim_nothing(seconds: float, memory: int = 0) -> None:
    """Allow every step."""


@pytest.mark.slow
def test_other_processes_on_the_cores_are_noticed() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        watch = CoreWatch(claim_nothing)
        watch.claim_step(0.0)
        time.sleep(1.0)
        watch.end_step()
        assert watch.is_disturbed
    finally:
        for process in busy:
            process.kill()
            process.wait()


CoreTimes = namedtuple("CoreTimes", "user idle guest")


@pytest.mark.parametrize(
    ("own_s", "busy_s", "expected"),
    [
        pytest.param(0.0, 0.0, False, id="idle"),
        pytest.param(9.0, 9.1, False, id="this process alone"),
        pytest.param(0.0, 0.04, False, id="less than the system counts exactly"),
        pytest.param(5.0, 9.0, True, id="another process besides"),
    ],
)
def test_the_time_of_this_process_is_not_that_of_others(
    monkeypatch: pytest.MonkeyPatch, own_s: float, busy_s: float, expected: bool
) -> None:
    (first, *_) = os.sched_getaffinity(0)
    now = SimpleNamespace(own_s=0.0, core=CoreTimes(100.0, 100.0, 50.0))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(process_time=lambda: now.own_s))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {first})
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [CoreTimes(0.0, 0.0, 0.0)] * first + [now.core])
    watch = CoreWatch(claim_nothing)
    watch.claim_step(0.0)
    now.own_s, now.core = own_s, CoreTimes(100.0 + busy_s, 110.0 - busy_s, 50.0 + busy_s)
    watch.claim_step(0.0)
    assert watch.is_disturbed is expected


class SteppingEngine(ScriptedEngine):
    """Not a model: its options are measured in one step."""

    can_be_tuned = True

    def tune(self, claim: ClaimIdleTime) -> None:
        claim(0.0, 0)
        self.measured = {"threads": 2}


def disturb_cores(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Other processes are busy until the list that is returned is cleared."""
    spent = [(0.0, 0.0)]

    def read() -> tuple[float, float]:
        if spent:
            spent.append((spent[-1][0] + 10.0, spent[-1][1] + 5.0))
        return spent[-1] if spent else (0.0, 0.0)

    monkeypatch.setattr(tuning, "_read_core_times", read)
    return spent


def test_a_disturbed_measurement_is_used_but_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbing = disturb_cores(monkeypatch)
    engine = SteppingEngine()
    tuner = EngineTuner(engine, 0)
    tuner.tune(claim_nothing)
    assert (tuner.pending, tuner.result, engine.measured) == (True, {}, {"threads": 2})
    assert tuner.batch > 0
    disturbing.clear()
    tuner.tune(claim_nothing)
    assert (tuner.pending, tuner.result) == (False, {"batch": tuner.batch, "options": {"threads": 2}})


def test_a_batch_size_by_cpu_time_is_remembered_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    disturb_cores(monkeypatch)
    engine = SteppingEngine()
    engine.device = "cpu"
    tuner = EngineTuner(engine, 0)
    tuner.tune(claim_nothing)
    assert tuner.pending, "its options are measured by the clock"
    assert tuner.result == {"batch": tuner.batch, "options": {}}
