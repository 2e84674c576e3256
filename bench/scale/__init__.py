"""How an archive's throughput grows with the machines, and what an archive costs those who speak live beside it.

The machines are simulated nodes with a scripted engine: what is measured with them is scheduling, HTTP, decoding, cutting and the
store of jobs. They say nothing about networks, GPUs or the speed of engines. One machine is measured with the embedded model.
"""

from __future__ import annotations

from bench.figure import BenchFigure
from bench.scale import machine, nodes


def measure(quick: bool) -> list[BenchFigure]:
    """Simulated nodes; a killed one; then one real machine: against its engine, beside live sessions, with a large upload."""
    return [*nodes.measure(quick), *machine.measure(quick)]
