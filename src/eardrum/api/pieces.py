"""A transcript's text as it comes."""

from __future__ import annotations

from dataclasses import dataclass

from eardrum.text import separator
from eardrum.types import Delta, Event, Segment


@dataclass(slots=True)
class Pieces:
    """Turns events into pieces of text. Joined, they are the text of all segments."""

    _last: str = ""
    _in_deltas: bool = False

    def take(self, event: Event) -> str:
        """The text that the next event adds, with what belongs between it and the text before."""
        if isinstance(event, Delta):
            self._in_deltas = True
            return event.text
        if not isinstance(event, Segment) or self._in_deltas:
            return ""
        text = event.text.strip()
        piece = separator(self._last, text) + text
        self._last = text or self._last
        return piece
