"""Turns a window's segments into segments of the recording: sets their times and removes hallucinations. Pure.

A packed window has its pauses cut out, so its times are mapped back to the recording. Text that a model made up is dropped with a
reason: a whole segment without speech, and the repetitions of a loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby, pairwise

from msgspec import Struct
from msgspec.structs import replace

from eardrum.engines.base import Window
from eardrum.text import compile_unspaced_letter, normalize_word, split_units
from eardrum.transcription import Segment, Token, Word

MIN_WORD_S = 0.02
"""Alignments move in steps of this; a word that takes less was given no time."""
MIN_WORD_ROOM_S = 0.04
"""Room for such a word: from the silence beside it, else from its neighbours, which keep as much."""


def lengthen_words(words: Sequence[Word], begin: float, end: float) -> list[Word]:
    """The words with time for each: those without are spread over what their neighbours leave between `begin` and `end`."""
    if all(word.end - word.start >= MIN_WORD_S for word in words):
        return list(words)
    begin, end = min(begin, words[0].start), max(end, words[-1].end)
    needs = [
        MIN_WORD_ROOM_S if word.end - word.start < MIN_WORD_S else min(word.end - word.start, MIN_WORD_ROOM_S) for word in words
    ]
    scale = min(1.0, (end - begin) / sum(needs))
    needs = [need * scale for need in needs]
    times = [(word.start, word.end) for word in words]
    at = begin
    for number, word in enumerate(words):  # forwards: from the silence before, from that behind, from the next word
        start, stop = max(word.start, at), max(word.end, at)
        if stop - start < needs[number]:
            then = words[number + 1].start if number + 1 < len(words) else end
            start = max(at, min(start, max(stop, then) - needs[number]))
            stop = start + needs[number]
        times[number] = (start, stop)
        at = stop
    at = end
    for number in range(len(words) - 1, -1, -1):  # backwards: what was pushed over the end
        stop = min(times[number][1], at)
        at = min(times[number][0], stop - needs[number])
        times[number] = (at, stop)
    return [replace(word, start=max(start, begin), end=stop) for word, (start, stop) in zip(words, times, strict=True)]


MIN_SPEECH_S = 0.1
"""Less speech than this in a stretch is the edge of a sound that belongs to another."""


class WindowPiece(Struct, frozen=True):
    """Part of a window that is of one piece in the recording: seconds of the window, and the time of its beginning."""

    begin: float
    end: float
    time: float

    def compute_overlap(self, begin: float, end: float) -> float:
        """Seconds that both have in common."""
        return max(0.0, min(end, self.end) - max(begin, self.begin))

    def to_recording_time(self, position: float) -> float:
        """The time in the recording; of what lies outside, that of the nearer end."""
        return self.time + min(max(position, self.begin), self.end) - self.begin


def place_segment(segment: Segment, window: Window) -> list[Segment]:
    """A segment of a window, with the times of the recording.

    A pause that was cut out of the window is not inside of any segment: the segment ends, or begins, where the pause was cut
    out, on the side where it was spoken. One that was spoken on both sides becomes one for each.
    """
    if len(window.pieces) < 2:
        moved = segment.map_times(window.clock)
        moved.words = lengthen_words(moved.words, moved.start, moved.end)
        return [moved]
    stretches = _build_pieces(window)
    parts = _split_by_words(segment, stretches, window) if segment.words else None
    return [_move_segment(part, stretch) for part, stretch in parts or _split_by_speech(segment, stretches, window)]


def _build_pieces(window: Window) -> list[WindowPiece]:
    ends = [*(position for position, _ in window.pieces[1:]), max(window.seconds, window.pieces[-1][0])]
    return [WindowPiece(begin, end, time) for (begin, time), end in zip(window.pieces, ends, strict=True)]


def _move_segment(segment: Segment, stretch: WindowPiece) -> Segment:
    words = [
        replace(word, start=stretch.to_recording_time(word.start), end=stretch.to_recording_time(word.end))
        for word in segment.words
    ]
    start, end = stretch.to_recording_time(segment.start), stretch.to_recording_time(segment.end)
    return replace(segment, start=start, end=end, words=lengthen_words(words, start, end))


def _measure_speech(window: Window, stretch: WindowPiece, begin: float, end: float) -> float:
    """Seconds of speech that both have in common."""
    begin, end = max(begin, stretch.begin), min(end, stretch.end)
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in window.speech_stretches or ((begin, end),))


def _find_piece(begin: float, end: float, stretches: Sequence[WindowPiece], window: Window) -> int:
    """The stretch that holds speech."""
    shares = [(_measure_speech(window, stretch, begin, end), stretch.compute_overlap(begin, end)) for stretch in stretches]
    if max(shares) > (0.0, 0.0):
        return shares.index(max(shares))
    return max((number for number, stretch in enumerate(stretches) if stretch.begin <= begin), default=0)


def _split_by_words(
    segment: Segment, stretches: Sequence[WindowPiece], window: Window
) -> list[tuple[Segment, WindowPiece]] | None:
    """The segment by the stretches of its words; None if they are not those of its text."""
    where, last = [], 0
    for word in segment.words:
        last = max(last, _find_piece(word.start, word.end, stretches, window))
        where.append(last)
    groups = [(number, len(list(group))) for number, group in groupby(where)]
    if len(groups) == 1:
        return [(segment, stretches[groups[0][0]])]
    cuts = find_word_positions(segment.text, segment.words)
    if cuts is None:
        return None
    parts, first = [], 0
    for number, count in groups:
        words = segment.words[first : first + count]
        start = segment.start if first == 0 else words[0].start
        end = segment.end if first + count == len(segment.words) else words[-1].end
        text = (cuts[first], cuts[first + count])
        parts.append((_slice_segment(segment, *text, start, end, words), stretches[number]))
        first += count
    return parts


def _split_by_speech(segment: Segment, stretches: Sequence[WindowPiece], window: Window) -> list[tuple[Segment, WindowPiece]]:
    """The segment by where speech was noticed in it; its text is shared out by length."""
    shares = [_measure_speech(window, stretch, segment.start, segment.end) for stretch in stretches]
    spoken = [number for number, share in enumerate(shares) if share > MIN_SPEECH_S]
    units = split_units(segment.text)
    if len(spoken) < 2 or len(units) < len(spoken):
        return [(replace(segment, words=[]), stretches[_find_piece(segment.start, segment.end, stretches, window)])]
    ends = [0]
    done = 0.0
    for number in spoken[:-1]:
        done += shares[number] / sum(shares[other] for other in spoken)
        ends.append(_find_best_cut(units, done * len(segment.text), ends[-1] + 1, len(units) - (len(spoken) - len(ends)) + 1))
    marks = [len("".join(units[:end])) for end in [*ends, len(units)]]
    return [
        (_slice_segment(segment, a, b, segment.start, segment.end, []), stretches[number])
        for number, (a, b) in zip(spoken, pairwise(marks), strict=True)
    ]


def _find_best_cut(units: Sequence[str], letters: float, least: int, most: int) -> int:
    """How many units come before a cut near so many letters; the end of a sentence or clause is worth some distance."""
    best, found, length = float("inf"), least, len("".join(units[:least]))
    for count in range(least, most):
        mark = units[count - 1][-1]
        cost = abs(length - letters) - (20 if mark in ".!?。！？" else 8 if mark in ",;:，、" else 0)  # noqa: RUF001
        if cost < best:
            best, found = cost, count
        length += len(units[count])
    return found


def _slice_segment(segment: Segment, first: int, last: int, start: float, end: float, words: list[Word]) -> Segment:
    """The letters `first` to `last` of a segment, with what is known of them. Tokens are not known by letters: the first part
    keeps them."""
    return replace(
        segment,
        start=start,
        end=end,
        text=segment.text[first:last].strip(),
        words=words,
        tokens=segment.tokens if first == 0 else [],
        token_logprobs=select_tokens(segment, first, last),
    )


MIN_LOGPROB = -0.5
"""Mean log probability below which text of doubtful audio is dropped; real speech lies above -0.3."""

MIN_SPEECH_PROBABILITY = 0.6
"""Speech probability above which the audio is not doubtful."""

MIN_REPEATS = 4
"""A phrase repeated this often in a row may be a decoder's loop."""

MANY_REPEATS = 8
"""People never repeat a long phrase this often; below this it takes more of it to be suspicious."""

MAX_PHRASE_UNITS = 16
"""Words of a phrase, or letters in scripts without spaces."""

MIN_LOOP_CHARACTERS, MIN_SURE_CHARACTERS = 60, 30
"""Shorter repetitions ("no no no no", "very, very, very good") are things people say; the second applies from `MANY_REPEATS`
on."""

MAX_LETTERS_PER_S, MAX_WORDS_PER_S, MAX_SIGNS_PER_S = 20.0, 6.0, 10.0
"""Nobody repeats anything faster: letters and words of scripts with spaces, letters of those without. Counting aloud, calling for
help, spelling a number come to half of it; decoders loop as fast as they are allowed."""

MUSIC_MARKS = re.compile(r"[\s♪♫♩♬🎵🎶*]*([\[(]?(music|applause|laughter)[\])]?)?[\s♪♫♩♬🎵🎶*.]*", re.IGNORECASE)


class HallucinationCheck(Struct, frozen=True):
    """A segment split into the part that is kept and the part that is dropped."""

    segment: Segment | None
    """Returns None if none of the segment was spoken."""
    dropped: str = ""
    reason: str = ""
    """Why, in words a person can read."""


def remove_hallucinations(segment: Segment, speech: float) -> HallucinationCheck:
    """A segment less what a model made up. `speech` is the highest speech probability in the segment's window."""
    if MUSIC_MARKS.fullmatch(segment.text) and not segment.text.isascii():
        return HallucinationCheck(None, segment.text, "only music notes")
    loop = _find_loop(segment.text)
    if loop and speech < MIN_SPEECH_PROBABILITY:
        return HallucinationCheck(None, segment.text, f"repeats a phrase where speech is unlikely ({speech:.2f})")
    if segment.avg_logprob < MIN_LOGPROB and speech < MIN_SPEECH_PROBABILITY:
        reason = f"unsure text (mean log probability {segment.avg_logprob:.2f}) where speech is unlikely ({speech:.2f})"
        return HallucinationCheck(None, segment.text, reason)
    seconds = segment.end - segment.start
    if loop and (segment.unended or _is_too_fast(segment.text, seconds)):
        left, dropped, more = segment, [], _find_loop(segment.text)
        reason = f"repeats a phrase {loop.count} times in {seconds:.1f} s, faster than speech"
        while more is not None:
            dropped.append(left.text[more.first : more.last].strip())
            left = remove_text(left, more.first, more.last)
            more = _find_loop(left.text)
        return HallucinationCheck(left, " ".join(dropped), reason)
    return HallucinationCheck(segment)


class RepetitionLoop(Struct, frozen=True):
    """A repeated phrase: `first` and `last` are the letters of its repetitions, all but the first."""

    phrase: str
    count: int
    first: int
    last: int


def _find_loop(text: str) -> RepetitionLoop | None:
    """The phrase that fills most of `text` by repeating itself, if there is one."""
    units = split_units(text)
    alike = [normalize_word(unit) or unit.strip() for unit in units]
    for length in range(1, min(MAX_PHRASE_UNITS, len(units) // MIN_REPEATS) + 1):
        begin = 0
        while begin + length * MIN_REPEATS <= len(units):
            end = begin + length
            while end < len(units) and alike[end] == alike[end - length]:
                end += 1
            count = (end - begin) // length
            phrase = "".join(units[begin : begin + length]).strip()
            letters = count * (len(phrase) + 1)
            least = MIN_SURE_CHARACTERS if count >= MANY_REPEATS else MIN_LOOP_CHARACTERS
            if count >= MIN_REPEATS and letters >= least and letters > len(text) / 2:
                first = len("".join(units[: begin + length]))
                return RepetitionLoop(phrase, count, first, len("".join(units[:end])))
            begin = max(begin + 1, end - length + 1)
    return None


def _is_too_fast(text: str, seconds: float) -> bool:
    """Whether the text is too long to be spoken in so many seconds."""
    signs = len(compile_unspaced_letter().findall(text))
    words = len(split_units(text)) - signs
    letters = len(text) - signs
    least = max(letters / MAX_LETTERS_PER_S, words / MAX_WORDS_PER_S) + signs / MAX_SIGNS_PER_S
    return seconds < least


def find_word_positions(text: str, words: Sequence[Word]) -> list[int] | None:
    """Where in the text each word begins, and its end; None if the words are not those of the text."""
    found, at = [], 0
    for word in words:
        begin = text.find(word.word, at)
        if begin < 0 or text[at:begin].strip():
            return None
        found.append(begin)
        at = begin + len(word.word)
    return None if text[at:].strip() else [*found, len(text)]


def select_tokens(segment: Segment, first: int, last: int) -> list[Token]:
    """The tokens whose letters are those from `first` to `last` of the text."""
    found, at = [], 0
    whole = "".join(token.text for token in segment.token_logprobs)
    lead = len(whole) - len(whole.lstrip())
    for token in segment.token_logprobs:
        if first <= at - lead + len(token.text) - len(token.text.lstrip()) < last:
            found.append(token)
        at += len(token.text)
    return found


def remove_text(segment: Segment, first: int, last: int) -> Segment:
    """The segment less the letters from `first` to `last` of its text."""
    places = find_word_positions(segment.text, segment.words)
    end = len(segment.text)
    return replace(
        segment,
        text=f"{segment.text[:first].rstrip()}{segment.text[last:].rstrip()}".strip(),
        words=[word for word, at in zip(segment.words, places or (), strict=False) if not first <= at < last],
        token_logprobs=select_tokens(segment, 0, first) + select_tokens(segment, last, end + 1),
    )
