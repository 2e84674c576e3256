"""Builds subtitle cues: line lengths and durations by the rules of subtitle makers.

Pure: segments in, cues out. No word is lost or moved past another. Where a rule cannot be kept (a word longer than a line,
two words a millisecond apart), it is broken by as little as possible.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from eardrum.text import choose_separator, compile_unspaced_letter, normalize_word, split_units
from eardrum.transcription import Segment, Word


class SubtitleRules(Struct, frozen=True):
    """The rules. 0 is no limit; without any limit a segment is a cue."""

    max_line_width: int = 0
    """Columns; letters of Chinese, Japanese and Korean take two."""
    max_line_count: int = 0
    """Lines of a cue. Without a limit a segment stays one cue, of as many lines as it takes."""
    max_words_per_line: int = 0
    """Without `max_line_width` and `max_line_count`, each such line is a separate cue, as with openai-whisper."""
    highlight_words: bool = False
    """Each cue is repeated for each of its words, which is underlined while it is spoken."""
    min_duration: float = 0.0
    """Seconds; kept where the next cue leaves room."""
    max_duration: float = 0.0
    min_gap: float = 0.0
    """Seconds between cues."""
    max_characters_per_second: float = 0.0
    """Cues stay longer for this, where the next one leaves room."""

    @property
    def is_unrestricted(self) -> bool:
        """Whether nothing is asked for."""
        return self == NO_RULES

    @property
    def max_lines(self) -> int:
        """Most lines of a cue, 0 for any number."""
        alone = self.max_words_per_line and not self.max_line_width and not self.max_line_count
        return 1 if alone else self.max_line_count

    def with_changes(self, changes: Mapping[str, Any]) -> SubtitleRules:
        """The same with some rules set to other values, those of a preset first.

        Of the two durations the one that is set wins over the one that was there before, which follows.
        """
        rules = dict(changes)
        preset = rules.pop("preset", None)
        shape = replace(self if preset is None else PRESETS[preset], **rules)
        if 0 < shape.max_duration < shape.min_duration and not {"min_duration", "max_duration"} <= rules.keys():
            both = rules.get("max_duration") or shape.min_duration
            return replace(shape, min_duration=both, max_duration=both)
        return shape


NO_RULES = SubtitleRules()
"""No rules: each segment is a cue."""
BROADCAST_RULES = SubtitleRules(
    max_line_width=42, max_line_count=2, min_duration=5 / 6, max_duration=7.0, min_gap=2 / 24, max_characters_per_second=20
)
"""Netflix's limits for English subtitles; other services have similar ones. With two columns a letter they suit Chinese, too."""

PRESETS: dict[str, SubtitleRules] = {"none": NO_RULES, "broadcast": BROADCAST_RULES}
RULE_NAMES = tuple(asdict(NO_RULES))
"""The names of the rules, as clients and the config have them."""
MAX_RULE_VALUES = {
    "max_line_width": 1000,
    "max_line_count": 100,
    "max_words_per_line": 1000,
    "min_duration": 60.0,
    "max_duration": 3600.0,
    "min_gap": 10.0,
    "max_characters_per_second": 1000.0,
}
"""The largest value of each rule that is a number."""

SENTENCE_ENDS, CLAUSE_ENDS = ".!?…。！？｡", ",;:–—،，、；："  # noqa: RUF001 -- of all scripts on purpose
CLOSERS = "\"'”’»)]}」』）】》〉〕"  # noqa: RUF001
OPENERS = "\"'“‘«([{「『（【《〈〔¿¡"  # noqa: RUF001
NOT_FIRST = frozenset(
    SENTENCE_ENDS + CLAUSE_ENDS + "”’»)]}」』）】》〉〕ー々ゝゞ・ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶะาำๅๆฯ%％℃"  # noqa: RUF001
)
"""Nothing that begins with these begins a line, where letters follow one another without spaces."""
NOT_LAST = frozenset("“‘«([{「『（【《〈〔¿¡$￥เแโใไ")  # noqa: RUF001

MAX_JOINED_COLUMNS = 8
"""Columns that marks may hold together: of a cry of fifty vowels each can begin a line."""

SHORT_PAUSE_S = 0.5
"""A cue may span pauses so long as if there were none."""
LONG_PAUSE_S = 1.0
"""Cues are not put together over a longer pause."""
MAX_PIECES = 500
"""Of a cue that has a bound in time only: where a server sends no times, all would come at once."""

MAX_BALANCED_LINES = 8
"""Lines of a cue that are made about equally long; more are no cue that anybody reads, and take long."""

MAX_LEAD_S = 0.25
"""A cue may be there so much before its first word, if it has to."""
MIN_CUE_S = 0.02
"""No cue is shorter for the sake of a gap."""


class TextPiece(Struct, frozen=True):
    """A unit that is never split across lines: a word, or a letter of a script without spaces, with its marks."""

    text: str
    space: str
    """The separator from the piece before, if that is in the same line."""
    start: float
    end: float
    break_cost: float
    """How bad it is to break before it: 0 between sentences, 1 between any two words, more inside of what belongs together."""

    @property
    def width(self) -> int:
        """Columns it takes."""
        return measure_width(self.text)


class Cue(Struct, frozen=True):
    """One cue: its time, and its lines of pieces."""

    start: float
    end: float
    lines: tuple[tuple[TextPiece, ...], ...]

    @property
    def texts(self) -> list[str]:
        """The lines as text."""
        return [join_pieces(line) for line in self.lines]


@lru_cache(1 << 14)
def measure_width(text: str) -> int:
    """Columns that the text takes: two for wide letters, none for marks above and below others."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def join_pieces(line: Iterable[TextPiece]) -> str:
    """The text of pieces in one line."""
    text = ""
    for piece in line:
        text += (piece.space if text else "") + piece.text
    return text


def build_cues(segments: Iterable[Segment], shape: SubtitleRules, *, duration: float = 0.0, begin: float = 0.0) -> list[Cue]:
    """The segments' text as cues of this shape, in order.

    `duration` is the length of the recording in seconds, beyond which no cue is extended; 0 if it is not known. `begin` is the
    time before which there is no room, as other cues are there.
    """
    stretches = [found for segment in segments if (found := split_pieces(segment))]
    for number in range(1, len(stretches)):
        first = stretches[number][0]
        between = choose_separator(stretches[number - 1][-1].text, first.text)
        stretches[number][0] = replace(first, space=between, break_cost=0.0)
    thens = [stretch[0].start for stretch in stretches[1:]] + [
        max(duration, stretches[-1][-1].end) if duration and stretches else math.inf
    ]
    parts = [part for stretch, then in zip(stretches, thens, strict=False) for part in _divide_segment(stretch, shape, then)]
    parts = _merge_short_cues(parts, shape, duration)
    times = _time_cues(parts, shape, duration, begin)
    return [
        Cue(start, end, tuple(map(tuple, _break_lines(part, shape)))) for part, (start, end) in zip(parts, times, strict=True)
    ]


# Text into pieces


def split_pieces(segment: Segment) -> list[TextPiece]:
    """A segment's text in pieces, with the times of its words where it has them, else shared out by length."""
    found = _split_text(" ".join(segment.text.split()))
    times = _time_pieces([text for text, _ in found], segment)
    made: list[TextPiece] = []
    for (text, space), (start, end) in zip(found, times, strict=True):
        before = made[-1] if made else None
        made.append(TextPiece(text, space, start, end, _compute_break_cost(before, text, space, start) if before else 0.0))
    return made


def _split_text(text: str) -> list[tuple[str, str]]:
    """The text's pieces, each with the space before it."""
    found: list[tuple[str, str]] = []
    for unit in split_units(text):
        piece = unit.lstrip()
        space = unit[: len(unit) - len(piece)]
        if not space and found and not _may_break(found[-1][0], piece):
            found[-1] = (found[-1][0] + piece, found[-1][1])
        else:
            found.append((piece, space))
    return found


def _may_break(before: str, after: str) -> bool:
    """Whether a line may end between two that follow one another without a space."""
    first, last = after[0], before[-1]
    if unicodedata.category(first).startswith("M"):
        return False
    return not (first in NOT_FIRST or last in NOT_LAST) or measure_width(before) >= MAX_JOINED_COLUMNS


def _compute_break_cost(before: TextPiece, text: str, space: str, start: float) -> float:
    said = before.text.rstrip(CLOSERS)
    if not any(map(str.isalnum, text)) or not before.text.strip(OPENERS):
        cost = 2.0  # marks with spaces around them, as in French
    elif said.endswith(tuple(SENTENCE_ENDS)):
        cost = 0.0
    elif said.endswith(tuple(CLAUSE_ENDS)):
        cost = 0.25
    else:
        cost = 1.0 if space else _compute_inner_break_cost(before.text[-1], text[0])
    return cost * max(0.2, 1 - max(start - before.end, 0.0))  # a pause is as good as a comma


def _compute_inner_break_cost(last: str, first: str) -> float:
    """How bad a break is between letters without a space: a Japanese phrase begins where kana end and others begin."""
    before, after = _classify_letter(last), _classify_letter(first)
    if before == after:
        return 1.5
    return 0.8 if before == "kana" else 1.2


def _classify_letter(letter: str) -> str:
    if "\u3040" <= letter <= "\u309f":
        return "kana"
    return "katakana" if "\u30a0" <= letter <= "\u30ff" else "han" if compile_unspaced_letter().match(letter) else "other"


# Times of pieces


def _time_pieces(texts: Sequence[str], segment: Segment) -> list[tuple[float, float]]:
    """When each piece is said."""
    begin, end = segment.start, max(segment.end, segment.start)
    known = _match_words(texts, segment.words) if segment.words else [None] * len(texts)
    found: list[tuple[float, float]] = []
    at = 0
    while at < len(texts):
        if (span := known[at]) is not None:
            found.append(span)
            at += 1
            continue
        stop = next((number for number in range(at, len(texts)) if known[number] is not None), len(texts))
        from_ = found[-1][1] if found else begin
        to = known[stop][0] if stop < len(texts) else end  # type: ignore[index]
        found += _share_time(texts[at:stop], from_, max(from_, to))
        at = stop
    ordered: list[tuple[float, float]] = []
    for told, gone in found:  # the segments of a server may be in any order
        start = max(told, ordered[-1][0] if ordered else told)
        ordered.append((start, max(start, gone)))
    return ordered


def _share_time(texts: Sequence[str], begin: float, end: float) -> list[tuple[float, float]]:
    """Time shared out by length; sentences and clauses are followed by a breath."""
    weights = [max(measure_width(text), 1) + (3.0 if text.endswith(tuple(SENTENCE_ENDS)) else 0.0) for text in texts]
    marks = [begin + (end - begin) * done / sum(weights) for done in accumulate(weights, initial=0.0)]
    return list(pairwise(marks))


def _match_words(texts: Sequence[str], words: Sequence[Word]) -> list[tuple[float, float] | None]:
    """The times of pieces that are among the words, however both are divided and whatever marks they have."""
    said, told = [normalize_word(text) for text in texts], [normalize_word(word.word) for word in words]
    if "".join(said) == "".join(told):
        return _time_by_letters(said, told, words)
    found: list[tuple[float, float] | None] = [None] * len(texts)
    for block in SequenceMatcher(None, said, told, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            word = words[block.b + offset]
            found[block.a + offset] = (word.start, word.end)
    return found


def _time_by_letters(said: Sequence[str], told: Sequence[str], words: Sequence[Word]) -> list[tuple[float, float] | None]:
    ends = list(accumulate(map(len, told)))
    found: list[tuple[float, float] | None] = []
    number = at = 0

    def moment(letter: int, word: int) -> float:
        length = len(told[word])
        done = (letter - (ends[word] - length)) / length
        return words[word].start + (words[word].end - words[word].start) * done

    for text in said:
        if not text:
            found.append(None)
            continue
        while ends[number] <= at:
            number += 1
        start = moment(at, number)
        at += len(text)
        while ends[number] < at:
            number += 1
        found.append((start, moment(at, number)))
    return found


# Pieces into cues


def _divide_segment(stretch: Sequence[TextPiece], shape: SubtitleRules, then: float) -> Iterator[list[TextPiece]]:
    """A segment's pieces as cues: the division that is best altogether."""
    bounded = shape.max_lines and (shape.max_line_width or shape.max_words_per_line)
    if not bounded and not shape.max_duration:
        yield list(stretch)
        return
    count = len(stretch)
    least = [math.inf] * count + [0.0]  # the least cost of what begins with a piece
    stops = [count] * count
    for first in range(count - 1, -1, -1):
        filled, silent = LineFiller(shape), 0.0
        for last in range(first, min(count, first + MAX_PIECES)):
            if not filled.add_piece(stretch[last]) and last > first:
                break
            if last > first:
                silent += max(stretch[last].start - stretch[last - 1].end - SHORT_PAUSE_S, 0.0)
            if shape.max_duration and stretch[last].end - stretch[first].start > shape.max_duration and last > first:
                break
            after = stretch[last + 1].start if last + 1 < count else then
            cost = least[last + 1] + _compute_cue_cost(stretch[first], after, filled, shape)
            cost += 3 * silent + (4 * stretch[last + 1].break_cost if last + 1 < count else 0.0)
            if cost < least[first]:
                least[first], stops[first] = cost, last + 1
    at = 0
    while at < count:
        yield list(stretch[at : stops[at]])
        at = stops[at]


@dataclass(slots=True)
class LineFiller:
    """Lines being filled with pieces, each as far as it goes."""

    shape: SubtitleRules
    lines: int = 0
    columns: int = 0
    """Of the last line."""
    words: int = 0
    """Of the last line."""
    all_columns: int = 0

    def add_piece(self, piece: TextPiece) -> bool:
        """Add a piece, in a new line if need be; whether there was one left, and the piece no longer than a line."""
        space = measure_width(piece.space) if self.words else 0
        self.all_columns += (measure_width(piece.space) if self.all_columns else 0) + piece.width
        most, many = self.shape.max_line_width or math.inf, self.shape.max_words_per_line or math.inf
        if self.words and self.columns + space + piece.width <= most and self.words < many:
            self.columns += space + piece.width
            self.words += 1
        else:
            self.lines += 1
            self.columns, self.words = piece.width, 1
        return not self.shape.max_lines or self.lines <= self.shape.max_lines


def _compute_cue_cost(first: TextPiece, after: float, filled: LineFiller, shape: SubtitleRules) -> float:
    """How bad a cue is: that there is one more, that it has no time to be read, or holds little."""
    room = max(after - shape.min_gap - first.start, 0.0)  # for the gap it may be gone before the last sound is
    cost = 1.0
    if room < shape.min_duration:
        cost += 4 + 4 * (1 - room / shape.min_duration)
    if shape.max_characters_per_second:
        needed = max(filled.all_columns, 1) / shape.max_characters_per_second
        cost += 2 * min(max(needed - room, 0.0) / needed, 1.0)
    if shape.max_line_width and shape.max_lines:
        empty = 1 - min(filled.all_columns / (shape.max_line_width * shape.max_lines), 1.0)
        cost += empty * empty
    return cost


def _merge_short_cues(parts: list[list[TextPiece]], shape: SubtitleRules, duration: float) -> list[list[TextPiece]]:
    """Cues that would be too short put together with a neighbour that has room."""
    if not shape.min_duration:
        return parts
    merged: list[list[TextPiece]] = []
    for number, part in enumerate(parts):
        if merged and (
            _is_too_short(merged[-1], part[0].start, shape)
            or _is_too_short(part, _find_latest_end(parts, number, duration), shape)
        ):
            both = [*merged[-1], *part]
            if _fits_rules(both, shape) and part[0].start - merged[-1][-1].end <= LONG_PAUSE_S:
                merged[-1] = both
                continue
        merged.append(part)
    return merged


def _find_latest_end(parts: Sequence[Sequence[TextPiece]], number: int, duration: float) -> float:
    """When a cue has to be gone at the latest."""
    return (
        parts[number + 1][0].start if number + 1 < len(parts) else max(duration, parts[number][-1].end) if duration else math.inf
    )


def _is_too_short(part: Sequence[TextPiece], after: float, shape: SubtitleRules) -> bool:
    return after - shape.min_gap - part[0].start < shape.min_duration


def _fits_rules(part: Sequence[TextPiece], shape: SubtitleRules) -> bool:
    if shape.max_duration and part[-1].end - part[0].start > shape.max_duration:
        return False
    filled = LineFiller(shape)
    return all(filled.add_piece(piece) for piece in part)


# Times of cues


def _time_cues(
    parts: Sequence[Sequence[TextPiece]], shape: SubtitleRules, duration: float, begin: float
) -> list[tuple[float, float]]:
    """When each cue comes and goes."""
    times: list[tuple[float, float]] = []
    for number, part in enumerate(parts):
        start, said = part[0].start, part[-1].end
        last = number + 1 == len(parts)
        limit = _find_latest_end(parts, number, duration) - (0.0 if last else shape.min_gap)
        wanted = shape.min_duration
        if shape.max_characters_per_second:
            wanted = max(wanted, measure_width(join_pieces(part)) / shape.max_characters_per_second)
        if shape.max_duration:
            wanted = min(wanted, shape.max_duration)
        free = times[-1][1] + shape.min_gap if times else begin
        start = max(start, min(free, said - MIN_CUE_S))
        end = min(max(said, start + wanted), limit)  # for the gap's sake it may be gone before the last sound
        end = max(end, min(said, start + MIN_CUE_S), start)
        if end - start < wanted:
            start = min(start, max(end - wanted, start - MAX_LEAD_S, free, 0.0))
        if shape.max_duration:
            end = min(end, start + shape.max_duration)
        times.append((start, end))
    return times


# Cues into lines


def _break_lines(part: Sequence[TextPiece], shape: SubtitleRules) -> list[list[TextPiece]]:
    """A cue's pieces in lines: as few as it takes, about equally long, broken where that hurts least."""
    if not shape.max_line_width and not shape.max_words_per_line:
        return [list(part)]
    filled, starts, seen = LineFiller(shape), [], 0
    for number, piece in enumerate(part):
        filled.add_piece(piece)
        if filled.lines > seen:
            starts.append(number)
            seen = filled.lines
    if shape.max_lines and 1 < len(starts) <= min(shape.max_lines, MAX_BALANCED_LINES):
        starts = _balance_lines(part, len(starts), shape)
    return [list(part[a:b]) for a, b in pairwise([*starts, len(part)])]


def _balance_lines(part: Sequence[TextPiece], count: int, shape: SubtitleRules) -> list[int]:
    """Where `count` lines begin: the best of all ways in which each is no longer than allowed."""
    size = len(part)
    even = max(measure_width(join_pieces(part)), 1) / count
    best: list[list[tuple[float, int]]] = [[(math.inf, size)] * (size + 1) for _ in range(count + 1)]
    best[0][size] = (0.0, size)
    for lines in range(1, count + 1):
        for first in range(size):
            filled = LineFiller(replace(shape, max_line_count=1))
            for stop in range(first + 1, size + 1):
                if not filled.add_piece(part[stop - 1]):
                    break
                rest = best[lines - 1][stop][0]
                uneven = (filled.columns - even) / even
                cost = rest + 4 * uneven * uneven + (part[stop].break_cost if stop < size else 0.0)
                if cost < best[lines][first][0]:
                    best[lines][first] = (cost, stop)
    starts, at = [], 0
    for lines in range(count, 0, -1):
        starts.append(at)
        at = best[lines][at][1]
    return starts


def build_highlights(cue: Cue) -> Iterator[tuple[float, float, TextPiece | None]]:
    """The times of a cue one after another, each with the piece that is spoken, if one is."""
    at = cue.start
    for piece in (piece for line in cue.lines for piece in line):
        start, end = max(piece.start, at), min(piece.end, cue.end)
        if round(end * 1000) <= round(start * 1000):
            continue
        if round(start * 1000) > round(at * 1000):
            yield at, start, None
        yield start, end, piece
        at = end
    if round(cue.end * 1000) > round(at * 1000):
        yield at, cue.end, None
