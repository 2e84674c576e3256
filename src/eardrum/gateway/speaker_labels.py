"""Labels the segments of a transcript with speakers. Pure.

A segment in which the speaker changes is split between two words. Every word of the transcript stays, in its place, and belongs
to one speaker: that of the turn it overlaps most, else of the nearest turn. Where a model gives no times of words, those of a
segment are shared out over the speech in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, count, groupby

from msgspec.structs import replace

from eardrum.speakers import SpeakerTurn
from eardrum.subtitles import TextPiece, join_pieces, split_pieces
from eardrum.text import choose_separator
from eardrum.transcription import Segment, Word

SNAP_PIECES = 3
"""A change of speakers is moved so many words at most to the end of a sentence or clause."""
SNAP_TIMED_S, SNAP_SHARED_S = 0.3, 1.5
"""The same in seconds, where the times of words are known, and where they are guessed."""
MIN_SNAP_GAIN = 0.5
"""How much better the new place must be, in costs of breaking a line."""


def label_segments(
    segments: Iterable[Segment], turns: Sequence[SpeakerTurn], names: Mapping[int, str], reserved: Collection[str] = ()
) -> list[Segment]:
    """Return the segments with their speakers. Those without a name are A, B, C ... in order of appearance.

    Args:
        segments: the segments of a transcript.
        turns: the turns of all speakers, in order of time.
        names: the names of speakers that are known, by number.
        reserved: names that only known speakers may have.
    """
    letters = SpeakerLetters(names, reserved)
    timeline = SpeakerTimeline(turns)
    return [
        replace(part, speaker=letters.get_name(number))
        for segment in segments
        for number, part in _split_by_speaker(segment, timeline)
    ]


class SpeakerLetters:
    """Names speakers as they appear."""

    def __init__(self, names: Mapping[int, str], reserved: Collection[str]):
        self._names = dict(names)
        self._letters = (letter for letter in map(spell_number, count()) if letter not in reserved)

    def get_name(self, number: int) -> str:
        """Return the speaker's name; a new speaker gets the next letter."""
        if number not in self._names:
            self._names[number] = next(self._letters)
        return self._names[number]


def spell_number(number: int) -> str:
    """Spell a number in capital letters: A to Z, then AA, AB as columns of a spreadsheet."""
    letters = ""
    number += 1
    while number:
        number, last = divmod(number - 1, 26)
        letters = chr(ord("A") + last) + letters
    return letters


class SpeakerTimeline:
    """Finds the speaker at any time."""

    def __init__(self, turns: Sequence[SpeakerTurn]):
        self._turns = turns
        self._starts = [turn.start for turn in turns]
        self._latest_ends = list(accumulate((turn.end for turn in turns), max))

    def find_speaker(self, start: float, end: float) -> int:
        """Return the speaker of the turn that overlaps a stretch of time most, else of the nearest one; 0 without any turn."""
        if not self._turns:
            return 0
        first = max(bisect_right(self._latest_ends, start) - 1, 0)
        last = min(bisect_right(self._starts, end) + 1, len(self._turns))
        near = self._turns[first:last] or self._turns[-1:]
        return max(near, key=lambda turn: min(end, turn.end) - max(start, turn.start)).speaker

    def list_speech(self, start: float, end: float) -> list[tuple[float, float]]:
        """List the stretches of speech between two times."""
        first, last = bisect_right(self._latest_ends, start), bisect_right(self._starts, end)
        spans = ((max(turn.start, start), min(turn.end, end)) for turn in self._turns[first:last])
        return [span for span in spans if span[0] < span[1]]


def _split_by_speaker(segment: Segment, timeline: SpeakerTimeline) -> Iterator[tuple[int, Segment]]:
    """Yield the parts of a segment, each with the number of its speaker."""
    pieces = split_pieces(segment)
    if not segment.words:
        pieces = _share_over_speech(pieces, segment, timeline.list_speech(segment.start, segment.end))
    speakers = [timeline.find_speaker(piece.start, piece.end) for piece in pieces]
    speakers = _join_inseparable(pieces, _snap_changes(pieces, speakers, SNAP_TIMED_S if segment.words else SNAP_SHARED_S))
    if len(set(speakers)) <= 1:
        yield (speakers[0] if speakers else timeline.find_speaker(segment.start, segment.end)), segment
        return
    runs = [[number for number, _ in run] for _, run in groupby(enumerate(speakers), key=lambda item: item[1])]
    words = _divide_words(segment.words, [pieces[run[0]].start for run in runs])
    for number, (run, own) in enumerate(zip(runs, words, strict=True)):
        part = [pieces[at] for at in run]
        start = segment.start if number == 0 else part[0].start
        end = segment.end if number == len(runs) - 1 else part[-1].end
        text = join_pieces(part)
        yield (
            speakers[run[0]],
            replace(segment, start=start, end=max(start, end), text=text, words=own, tokens=[], token_logprobs=[]),
        )


def _share_over_speech(pieces: Sequence[TextPiece], segment: Segment, speech: Sequence[tuple[float, float]]) -> list[TextPiece]:
    """Move pieces whose times are shared out over a segment to the stretches of speech in it."""
    lengths = [end - start for start, end in speech]
    length = segment.end - segment.start
    if not speech or length <= 0:
        return list(pieces)
    ends = list(accumulate(lengths))

    def move(time: float) -> float:
        spoken = (time - segment.start) / length * ends[-1]
        at = min(bisect_right(ends, spoken), len(speech) - 1)
        return speech[at][1] - (ends[at] - spoken)

    return [replace(piece, start=move(piece.start), end=move(piece.end)) for piece in pieces]


def _snap_changes(pieces: Sequence[TextPiece], speakers: list[int], within_s: float) -> list[int]:
    """Move changes of speakers to where a sentence ends, if that is near: people begin with a sentence."""
    moved = list(speakers)
    for at in range(1, len(pieces)):
        if speakers[at] == speakers[at - 1]:
            continue
        near = [
            other
            for other in range(max(at - SNAP_PIECES, 1), min(at + SNAP_PIECES, len(pieces) - 1) + 1)
            if abs(pieces[other].start - pieces[at].start) <= within_s
            and len(set(speakers[min(at, other) : max(at, other)])) <= 1
        ]
        best = min(near, key=lambda other: (pieces[other].break_cost, abs(other - at)), default=at)
        if pieces[at].break_cost - pieces[best].break_cost < MIN_SNAP_GAIN:
            continue
        for other in range(best, at):
            moved[other] = speakers[at]
        for other in range(at, best):
            moved[other] = speakers[at - 1]
    return moved


def _join_inseparable(pieces: Sequence[TextPiece], speakers: list[int]) -> list[int]:
    """Undo changes between pieces that would be joined otherwise than they are: no word is split."""
    joined = list(speakers)
    for at in range(1, len(pieces)):
        if pieces[at].space != choose_separator(pieces[at - 1].text, pieces[at].text):
            joined[at] = joined[at - 1]
    return joined


def _divide_words(words: Sequence[Word], starts: Sequence[float]) -> list[list[Word]]:
    """Divide words among parts that begin at these times, each word to one part."""
    parts: list[list[Word]] = [[] for _ in starts]
    at = 0
    for word in words:
        at = max(at, bisect_right(starts, (word.start + word.end) / 2) - 1, 0)
        parts[at].append(word)
    return parts
