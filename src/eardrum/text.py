"""Splits, joins and compares text, in scripts with and without spaces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff"
_HAN = "\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"


# Compiling a pattern takes 3 ms of CPU, so it happens at the first text and not when the gateway starts.


@cache
def compile_unspaced_letter() -> re.Pattern[str]:
    """Compile a pattern of letters and marks of Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese."""
    return re.compile(f"[{_UNSPACED}{_HAN}]")


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text: it holds neither half a character nor bytes of a file's name in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@cache
def _compile_text_unit() -> re.Pattern[str]:
    return re.compile(rf"\s*(?:[{_UNSPACED}{_HAN}]|[^\s{_UNSPACED}{_HAN}]+)")


def choose_separator(before: str, after: str) -> str:
    """Choose the separator of two texts: a space, but none between scripts written without spaces."""
    if not before or not after or (compile_unspaced_letter().match(before[-1]) and compile_unspaced_letter().match(after[0])):
        return ""
    return " "


def join_texts(texts: Iterable[str]) -> str:
    """Join texts into one line."""
    line = ""
    for text in map(str.strip, texts):
        line += choose_separator(line, text) + text
    return line


def split_units(text: str) -> list[str]:
    """Split a text into words, each with the spaces before it, or letters in scripts without spaces. Joined they are the text."""
    return _compile_text_unit().findall(text.rstrip())


def normalize_word(unit: str) -> str:
    """Reduce a word to its letters: without case, spaces and punctuation."""
    return "".join(letter for letter in unit.casefold() if letter.isalnum())


def append_text(before: str, after: str) -> str:
    """Append a text to another, with a space between them if the script needs one."""
    if not before or before[-1].isspace():
        return before + after.lstrip()
    return before + ("" if after[:1].isspace() else choose_separator(before, after)) + after


def remove_known_text(known: str, text: str) -> str:
    """Return the part of `text` after the words of `known`, even if it has other words in their place."""
    sent, current = split_units(known), split_units(text)
    count = len(sent) if current[: len(sent)] == sent else count_counterparts(sent, current)
    return "".join(current[count:])


def count_counterparts(known: Sequence[str], current: Sequence[str]) -> int:
    """Count the words of `current` that correspond to `known`: the beginning with the least edit distance in words, and among
    several the one closest in length."""
    words = [normalize_word(unit) for unit in current]
    distances = list(range(len(words) + 1))
    for row, unit in enumerate(map(normalize_word, known), 1):
        diagonal, distances[0] = distances[0], row
        for column, word in enumerate(words, 1):
            changed = diagonal + (unit != word)
            diagonal = distances[column]
            distances[column] = min(changed, diagonal + 1, distances[column - 1] + 1)
    return min(range(len(distances)), key=lambda count: (distances[count], abs(count - len(known))))
