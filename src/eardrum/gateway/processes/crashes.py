"""Models whose processes die again and again are left alone for a while. Pure: the time is passed in, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

PAUSES_S = (0.0, 0.0, 5.0, 15.0, 60.0)
"""After the first, second ... death in a row: the first may have been a request's doing, and is made good at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """Deaths without a request served in between."""

    deaths: int
    again_at: float
    ending: str
    """How it ended last, in words."""


class Crashes:
    """Counts them."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def died(self, model: str, ending: str, now: float) -> None:
        """Its process is gone, and nobody had asked for that."""
        deaths = self._rows[model].deaths if model in self._rows else 0
        self._rows[model] = Row(deaths + 1, now + PAUSES_S[min(deaths, len(PAUSES_S) - 1)], ending)

    def forget(self, model: str) -> None:
        """It has finished a request, or is another model now."""
        self._rows.pop(model, None)

    def pausing(self, model: str, now: float) -> Row | None:
        """Why, and until when, it is not to be started."""
        row = self._rows.get(model)
        return row if row and now < row.again_at else None
