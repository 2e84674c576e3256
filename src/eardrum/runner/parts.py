"""A segment's text by its letters, with what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eardrum.types import Segment, Token, Word


def word_places(text: str, words: Sequence[Word]) -> list[int] | None:
    """Where in the text each word begins, and its end; None if the words are not those of the text."""
    found, at = [], 0
    for word in words:
        begin = text.find(word.word, at)
        if begin < 0 or text[at:begin].strip():
            return None
        found.append(begin)
        at = begin + len(word.word)
    return None if text[at:].strip() else [*found, len(text)]


def tokens_between(segment: Segment, first: int, last: int) -> list[Token]:
    """The tokens whose letters are those from `first` to `last` of the text."""
    found, at = [], 0
    whole = "".join(token.text for token in segment.token_logprobs)
    lead = len(whole) - len(whole.lstrip())
    for token in segment.token_logprobs:
        if first <= at - lead + len(token.text) - len(token.text.lstrip()) < last:
            found.append(token)
        at += len(token.text)
    return found


def without(segment: Segment, first: int, last: int) -> Segment:
    """The segment less the letters from `first` to `last` of its text."""
    places = word_places(segment.text, segment.words)
    end = len(segment.text)
    return replace(
        segment,
        text=f"{segment.text[:first].rstrip()}{segment.text[last:].rstrip()}".strip(),
        words=[word for word, at in zip(segment.words, places or (), strict=False) if not first <= at < last],
        token_logprobs=tokens_between(segment, 0, first) + tokens_between(segment, last, end + 1),
    )
