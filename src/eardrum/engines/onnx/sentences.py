"""Where a stretch of recognised words is cut into segments: after sentences, and in pauses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from eardrum.transcription import Word

PAUSE_S = 0.6
"""Silence between two words that ends a segment, also in mid-sentence."""

END = re.compile(r".*[.?!…]+[\"'”\u2019»)\]]*", re.DOTALL)
ABBREVIATION = re.compile(r"[\"'“\u2018«(\[]*[^\W\d_]{1,3}\.|.*\w\.\w+\.", re.DOTALL)
"""Shapes a full stop has inside sentences: `Mr.`, `J.`, `p.m.`; such a word ends a sentence only before a pause."""


def sentences(words: Sequence[Word]) -> Iterator[slice]:
    """Slices of `words`, in order and together all of them, each a segment of its own."""
    begin = 0
    for at, (word, following) in enumerate(pairwise(words), start=1):
        paused = following.start - word.end >= PAUSE_S
        if paused or (_ends_sentence(word.word) and not following.word[:1].islower()):
            yield slice(begin, at)
            begin = at
    if words:
        yield slice(begin, len(words))


def _ends_sentence(word: str) -> bool:
    return bool(END.fullmatch(word)) and not ABBREVIATION.fullmatch(word)
