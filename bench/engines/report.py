"""One model's results, and the table of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.engines.served import ServedFigures


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Word error rates: of all recordings, and of those `whole` that fit one window, served and by the engine alone."""

    served: float
    whole: int = 0
    whole_served: float | None = None
    alone: float | None = None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model, by its name and engine."""

    model: str
    engine: str
    errors: ErrorRates
    served: ServedFigures
    notes: list[str] = field(default_factory=list)

    @property
    def fastest(self) -> float:
        """Most seconds of audio per second."""
        return max(one.speed for one in self.served.throughput)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


def format_tables(reports: Sequence[ModelReport]) -> str:
    """Two Markdown tables: the models side by side, and throughput by batch size and clients."""
    head = (
        "| model | engine | WER | WER one window: served, alone | audio s/s | clip p50, p95 | files meanwhile "
        "| first use, again | peak RSS (PSS), GPU |\n|---|---|---|---|---|---|---|---|---|"
    )
    notes = [f"- {report.model}: {note}" for report in reports for note in report.notes]
    return "\n".join([head, *map(_format_row, reports), "", *_format_throughput(reports), "", *notes, ""])


def _format_row(report: ModelReport) -> str:
    one, errors = report.served, report.errors
    whole = (
        ""
        if errors.alone is None
        else f"{_format_percent(errors.whole_served)}, {_format_percent(errors.alone)} ({errors.whole} recordings)"
    )
    cells = [
        report.model,
        report.engine,
        _format_percent(errors.served),
        whole,
        f"{report.fastest:.1f}",
        f"{one.beside.clip_p50_s:.2f} s, {one.beside.clip_p95_s:.2f} s",
        f"{one.beside.files_speed:.1f} audio s/s",
        f"{one.first_use_s - one.loaded_answer_s:.1f} s, {one.again_s - one.loaded_answer_s:.1f} s",
        f"{one.peak_rss_mb:.0f} MB ({one.pss_mb:.0f} MB)" + ("" if one.gpu_mb is None else f", {one.gpu_mb:.0f} MB"),
    ]
    return f"| {' | '.join(cells)} |"


def _format_throughput(reports: Sequence[ModelReport]) -> Iterator[str]:
    counts = sorted({one.clients for report in reports for one in report.served.throughput})
    yield f"| audio s/s | batch | {' | '.join(f'{count} at a time' for count in counts)} |"
    yield f"|---|---|{'---|' * len(counts)}"
    for report in reports:
        for batch, chosen in dict.fromkeys((one.batch, one.chosen) for one in report.served.throughput):
            line = [one for one in report.served.throughput if (one.batch, one.chosen) == (batch, chosen)]
            speeds = {one.clients: f"{one.speed:.1f}" for one in line}
            cells = " | ".join(speeds.get(count, "") for count in counts)
            yield f"| {report.model} | {batch}{', its own choice' if chosen else ''} | {cells} |"


def _format_percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
