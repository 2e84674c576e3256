"""What a session wants done."""

from __future__ import annotations

from dataclasses import dataclass

from eardrum.engines.base import Window
from eardrum.live import LiveEvent


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """Have a window decoded, and say what was heard under its number."""

    id: int
    window: Window
    final: bool
    """Its text is part of a final; others are worth less the later they come."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for this window any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """What was asked for as a partial has turned out to be a final. It may have been decoded already."""

    id: int


Output = LiveEvent | Decode | Drop | Adopt
