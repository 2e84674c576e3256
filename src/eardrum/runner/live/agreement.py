"""Which part of a text that is still being heard will not be taken back.

LocalAgreement (Liu, Spanakis, Niehues 2020; for Whisper: Machacek et al. 2023): words on which two hypotheses in a row agree are
stable. What later hypotheses and the final text say instead of stable words is left out, and what they say behind them is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from eardrum.text import behind, glued, units

APART_S = 2.0
"""Audio between two hypotheses that count as two: what is heard a moment later is misheard in the same way."""

SHAKY = 1
"""Words at the end of a hypothesis that may have been cut in two."""


class Agreement:
    """The hypotheses on one window, oldest first."""

    def __init__(self) -> None:
        self.stable = ""
        self.tentative = ""
        self._before: list[tuple[float, list[str]]] = []  # when, and what it said behind the stable words

    def hear(self, text: str, at: float) -> None:
        """Take a hypothesis on the window up to second `at`."""
        rest = units(behind(self.stable, text))
        agreed = min(self._agreed(rest, at), max(len(rest) - SHAKY, 0))
        self.stable = glued(self.stable, "".join(rest[:agreed]))
        self._before = [(when, said[agreed:]) for when, said in self._before] + [(at, rest[agreed:])]
        self.tentative = glued(self.stable, "".join(rest[agreed:]))[len(self.stable) :]

    def _agreed(self, rest: list[str], at: float) -> int:
        """The words that all hypotheses had, from a moment far enough back until now."""
        count = len(rest)
        for number in range(len(self._before) - 1, -1, -1):
            when, said = self._before[number]
            count = _alike(rest[:count], said[: len(said) - SHAKY])
            if at - when >= APART_S:
                self._before = self._before[number:]
                return count
        return 0


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words both begin with, to the letter."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a.strip() != b.strip():
            break
        count += 1
    return count
