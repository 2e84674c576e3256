"""Text that was promised to stay, and a second hearing of the same audio that says it a little differently. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from eardrum.text import bare, separator, units


def continued(told: str, text: str) -> str:
    """`told`, and what `text` has behind the words that fit it best."""
    if text.startswith(told):
        return text
    said = units(text)
    count = _fitting([bare(unit) for unit in units(told)], [bare(unit) for unit in said])
    rest = "".join(said[count:])
    if rest[:1].isspace():
        return told.rstrip() + rest
    return told + ("" if told[-1:].isspace() else separator(told, rest)) + rest


def _fitting(told: Sequence[str], words: Sequence[str]) -> int:
    """How many of the words say what was told: the number at the least distance (words added, left out, replaced), the
    largest of equals."""
    distances = list(range(len(words) + 1))
    for row, one in enumerate(told, 1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(words, 1):
            least = min(diagonal + (one != other), distances[column] + 1, distances[column - 1] + 1)
            diagonal, distances[column] = distances[column], least
    return max(range(len(distances)), key=lambda count: (-distances[count], count))
