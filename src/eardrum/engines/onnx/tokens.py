"""Words with times and probabilities, made of tokens of which only the beginning is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eardrum.transcription import Token, Word

TOKEN_S = 0.4
"""A token lasts no longer than this; what follows is a pause."""

CLOSING = frozenset(".,;:?!…%)]}»”\u2019")
"""Marks that belong to the word before them, also when the vocabulary puts a space in between."""

Piece = tuple[str, float, float]
"""A token's text, its beginning in seconds, its natural-log probability."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word with the tokens it is made of."""

    word: Word
    tokens: list[Token]


def words_of(pieces: Iterable[Piece], seconds: float) -> list[Spoken]:
    """The words in a stretch of `seconds`, from its tokens in order; a token that begins with a space begins a word."""
    words: list[list[Piece]] = []
    apart = True
    for token, time, logprob in pieces:
        apart = apart or token.startswith(" ")
        if not words or (apart and not _closes(token)):
            words.append([])
        words[-1].append((token, min(time, seconds), logprob))
        apart = apart and not token.strip()
    words = [word for word in words if any(token.strip() for token, _, _ in word)]
    until = [*(_start(word) for word in words[1:]), seconds]
    return [_word(word, end) for word, end in zip(words, until, strict=False)]


def mean(logprobs: Sequence[float] | None) -> float:
    """The mean log probability; 0.0 without any, and for scores that are no log probabilities, as some exports have."""
    return sum(logprobs) / len(logprobs) if logprobs and max(logprobs) < 0.01 else 0.0


def _closes(token: str) -> bool:
    return CLOSING.issuperset(token.strip())


def _start(pieces: Sequence[Piece]) -> float:
    return next(time for token, time, _ in pieces if token.strip())


def _word(pieces: Sequence[Piece], until: float) -> Spoken:
    """A word that is over by `until`, when the next one begins."""
    start = _start(pieces)
    # A full stop may be emitted only after the pause it stands for.
    last = max((time for token, time, _ in pieces if not _closes(token)), default=start)
    word = Word(
        word="".join(token.strip() for token, _, _ in pieces),
        start=start,
        end=max(start, min(last + TOKEN_S, until)),
        probability=math.exp(mean([logprob for _, _, logprob in pieces])),
    )
    return Spoken(word, [Token(token, logprob) for token, _, logprob in pieces])
