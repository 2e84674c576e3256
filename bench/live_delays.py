"""How late live text is: messages of a session against the words that were said, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from bench.live_recording import SpokenWord

EDGE_S = 0.3
"""Utterances may begin or end so much beside the words that belong to them."""


@dataclass(frozen=True, slots=True)
class TimedMessage:
    """What came, and when: seconds since the first sample was spoken."""

    at: float
    body: dict[str, Any]


@dataclass(slots=True)
class WordDelays:
    """Seconds from the end of each word to the first text that has it right, and from the end of the speech to each final."""

    words: list[float] = field(default_factory=list)
    missed: int = 0
    """Words that no text had right."""
    finals: dict[int, float] = field(default_factory=dict)
    """By the number of the last word."""


def compute_delays(said: Sequence[SpokenWord], messages: Sequence[TimedMessage]) -> WordDelays:
    """Of a session in which these words were said."""
    found = WordDelays()
    covered = 0
    for final in (message for message in messages if message.body["type"] == "final"):
        mine = _list_within(said, final.body["start"], final.body["end"])
        if not mine:
            continue
        covered += len(mine)
        found.finals[mine[-1]] = final.at - said[mine[-1]].end
        of_it = [m for m in messages if m.body["type"] in ("partial", "final") and m.body["utterance"] == final.body["utterance"]]
        first = _find_first_right([said[index] for index in mine], of_it)
        found.words += [at - said[mine[index]].end for index, at in first.items()]
        found.missed += len(mine) - len(first)
    found.missed += len(said) - covered
    return found


def spell_words(text: str) -> list[str]:
    """The words of a text as the recording's are spelled."""
    return ["".join(letter for letter in word.lower() if letter.isalnum()) for word in text.replace("-", " ").split()]


def _list_within(said: Sequence[SpokenWord], start: float, end: float) -> list[int]:
    """The words whose middle lies there."""
    return [i for i, word in enumerate(said) if start - EDGE_S <= (word.start + word.end) / 2 < end + EDGE_S]


def _find_first_right(said: Sequence[SpokenWord], messages: Sequence[TimedMessage]) -> dict[int, float]:
    """When each word first stood in a text, at its place among the others."""
    first: dict[int, float] = {}
    for message in messages:
        begun = [word for word in said if word.start < message.body["end"]]
        for index in _match_words(begun, message.body["text"]):
            first.setdefault(index, message.at)
    return first


def _match_words(said: Sequence[SpokenWord], text: str) -> Iterator[int]:
    spoken = ["".join(spell_words(word.word)) for word in said]
    for block in SequenceMatcher(None, spoken, spell_words(text), autojunk=False).get_matching_blocks():
        yield from range(block.a, block.a + block.size)
