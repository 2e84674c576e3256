"""How stretches of text are taken apart and put together, in scripts with and without spaces."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff"
_HAN = "\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
UNSPACED = re.compile(f"[{_UNSPACED}{_HAN}]")
"""Letters and marks of Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese."""

UNIT = re.compile(rf"\s*(?:[{_UNSPACED}{_HAN}]|[^\s{_UNSPACED}{_HAN}]+)")


def separator(before: str, after: str) -> str:
    """What belongs between two stretches of text: a space, but none between scripts that are written without."""
    if not before or not after or (UNSPACED.match(before[-1]) and UNSPACED.match(after[0])):
        return ""
    return " "


def joined(texts: Iterable[str]) -> str:
    """Stretches of text in one line."""
    line = ""
    for text in map(str.strip, texts):
        line += separator(line, text) + text
    return line


def units(text: str) -> list[str]:
    """The words of a text, each with the spaces before it; letters where there are no spaces. Joined they are the text."""
    return UNIT.findall(text.rstrip())


def bare(unit: str) -> str:
    """A word as it sounds: without case, spaces and punctuation."""
    return "".join(letter for letter in unit.casefold() if letter.isalnum())
