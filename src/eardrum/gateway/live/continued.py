"""Text that was promised to stay, and a second hearing of the same audio that says it a little differently. Pure."""

from __future__ import annotations

import re

WORDS, CHARACTERS = re.compile(r"\S+"), re.compile(r"\S")


def continued(told: str, text: str) -> str:
    """`told`, and what `text` has behind the words that fit it best."""
    if text.startswith(told):
        return text
    spaced = " " in told.strip() or " " in text.strip()
    pieces = list((WORDS if spaced else CHARACTERS).finditer(text))
    before = (WORDS if spaced else CHARACTERS).findall(told)
    count = _fitting([_bare(word) for word in before], [_bare(piece.group()) for piece in pieces])
    rest = text[pieces[count - 1].end() :] if count else text
    gap = " " if rest and spaced and not told[-1:].isspace() and not rest[:1].isspace() else ""
    return told.rstrip() + rest if rest[:1].isspace() else told + gap + rest


def _fitting(told: list[str], words: list[str]) -> int:
    """How many of the words say what was told: the number at the least distance (words added, left out, replaced), the
    largest of equals."""
    distances = list(range(len(words) + 1))
    for i, one in enumerate(told, 1):
        diagonal, distances[0] = distances[0], i
        for j, other in enumerate(words, 1):
            least = min(diagonal + (one != other), distances[j] + 1, distances[j - 1] + 1)
            diagonal, distances[j] = distances[j], least
    return max(range(len(distances)), key=lambda count: (-distances[count], count))


def _bare(word: str) -> str:
    return "".join(filter(str.isalnum, word)).casefold() or word
