"""What a benchmark says: two series measured side by side, what they compare to, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any


class SeriesComparison(StrEnum):
    """How the two series become one number."""

    TIMES_LESS = "baseline / ours"
    SHARE = "ours / baseline"
    ABSOLUTE = "ours"


@dataclass(frozen=True, slots=True)
class BenchFigure:
    """One line of the table. `ours[i]` and `baseline[i]` were measured right after each other.

    `target` is a least value of a TIMES_LESS figure and a most value of the others; None makes it information only.
    """

    name: str
    what: str
    against: str
    unit: str
    ours: Sequence[float]
    baseline: Sequence[float]
    compare: SeriesComparison
    target: float | None = None
    note: str = ""

    @property
    def values(self) -> list[float]:
        """The compared number of each repetition."""
        if self.compare is SeriesComparison.ABSOLUTE:
            return list(self.ours)
        pairs = zip(self.ours, self.baseline, strict=True)
        if self.compare is SeriesComparison.TIMES_LESS:
            return [theirs / max(mine, 1e-9) for mine, theirs in pairs]
        return [mine / theirs for mine, theirs in pairs]

    @property
    def value(self) -> float:
        """The median of `values`."""
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.compare is SeriesComparison.TIMES_LESS else self.value <= self.target

    def to_json(self) -> dict[str, Any]:
        """Everything, the single repetitions included."""
        return asdict(self) | {"value": self.value, "values": self.values, "met": self.met}


HEADER = """| figure | what | ours | baseline | compared | target | met |
|---|---|---|---|---|---|---|"""


def format_table(figures: Iterable[BenchFigure]) -> str:
    """The figures as a Markdown table, followed by their notes."""
    figures = list(figures)
    rows = [_format_row(figure) for figure in figures]
    notes = [f"- `{figure.name}`: {figure.note}" for figure in figures if figure.note]
    return "\n".join([HEADER, *rows, "", *notes, ""])


def _format_row(figure: BenchFigure) -> str:
    sign, suffix = ("≥", "x") if figure.compare is SeriesComparison.TIMES_LESS else ("≤", "x")
    if figure.compare is SeriesComparison.ABSOLUTE:
        suffix = f" {figure.unit}"
    spread = f" ({_format_number(min(figure.values))} to {_format_number(max(figure.values))})" if len(figure.values) > 1 else ""
    baseline = f"{_format_number(median(figure.baseline))} {figure.unit}" if figure.baseline else ""
    cells = [
        f"`{figure.name}`",
        figure.what,
        f"{_format_number(median(figure.ours))} {figure.unit}",
        f"{figure.against}: {baseline}" if baseline else figure.against,
        f"{_format_number(figure.value)}{suffix}{spread}",
        "" if figure.target is None else f"{sign} {_format_number(figure.target)}{suffix}",
        {True: "yes", False: "**no**", None: ""}[figure.met],
    ]
    return f"| {' | '.join(cells)} |"


def _format_number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1.5 and value else f"{value:.3g}"
