"""How large a batch pays, by an engine's own account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from eardrum.engines.base import EngineResult, Window
from eardrum.runner import tuning
from eardrum.runner.tuning import measure_batch_size
from eardrum.transcription import Capabilities
from tests.runner.test_batcher import ScriptedEngine, create_window


class ScriptedCostEngine(ScriptedEngine):
    """Not a model: a batch of n windows costs what it is told, in seconds, by a clock of its own."""

    def __init__(self, cost: Callable[[int], float], max_batch: int) -> None:
        super().__init__()
        self._cost = cost
        self.now = 0.0
        self.capabilities = Capabilities(max_batch=max_batch)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        self.now += self._cost(len(windows))
        return super().transcribe(windows)


Scripted = Callable[[Callable[[int], float], int], ScriptedCostEngine]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """An engine whose clock is the one that is looked at."""

    def made(cost: Callable[[int], float], max_batch: int) -> ScriptedCostEngine:
        engine = ScriptedCostEngine(cost, max_batch)
        monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: engine.now))
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
