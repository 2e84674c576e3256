"""Recognises text that a model made up, and says why: all of a segment where nobody spoke, and the repetitions of a loop."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eardrum.runner.parts import without
from eardrum.text import UNSPACED, bare, units
from eardrum.types import Segment

SURE = -0.5
"""Mean log probability below which doubtful audio is not believed; real speech lies above -0.3."""

SPEECH = 0.6
"""Speech probability above which the audio is not doubtful."""

REPEATS = 4
"""A phrase said this often in a row may be a decoder's loop."""

MANY = 8
"""Nobody says a long phrase so often; below this it takes more of it to be suspicious."""

LONGEST = 16
"""Words of a phrase, or letters in scripts without spaces."""

LOOP_CHARACTERS, SURE_CHARACTERS = 60, 30
"""Shorter repetitions ("no no no no", "very, very, very good") are things people say; the second holds from `MANY` on."""

LETTERS_A_SECOND, WORDS_A_SECOND, SIGNS_A_SECOND = 20.0, 6.0, 10.0
"""Nobody repeats anything faster: letters and words of scripts with spaces, letters of those without. Counting aloud, calling for
help, spelling a number come to half of it; decoders loop as fast as they are allowed."""

MUSIC = re.compile(r"[\s♪♫♩♬🎵🎶*]*([\[(]?(music|applause|laughter)[\])]?)?[\s♪♫♩♬🎵🎶*.]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Judged:
    """What is left of a segment, and what is not."""

    segment: Segment | None
    """None if nobody said any of it."""
    dropped: str = ""
    reason: str = ""
    """Why, in words a person can read."""


def judged(segment: Segment, speech: float) -> Judged:
    """A segment less what a model made up. `speech` is the highest speech probability in the segment's window."""
    if MUSIC.fullmatch(segment.text) and not segment.text.isascii():
        return Judged(None, segment.text, "only music notes")
    loop = _loop(segment.text)
    if loop and speech < SPEECH:
        return Judged(None, segment.text, f"repeats {loop.phrase!r} where speech is unlikely ({speech:.2f})")
    if segment.avg_logprob < SURE and speech < SPEECH:
        reason = f"unsure text (mean log probability {segment.avg_logprob:.2f}) where speech is unlikely ({speech:.2f})"
        return Judged(None, segment.text, reason)
    seconds = segment.end - segment.start
    if loop and (segment.unended or _too_fast(segment.text, seconds)):
        left, dropped, more = segment, [], _loop(segment.text)
        reason = f"repeats {loop.phrase!r} {loop.count} times in {seconds:.1f} s, which nobody does"
        while more is not None:
            dropped.append(left.text[more.first : more.last].strip())
            left = without(left, more.first, more.last)
            more = _loop(left.text)
        return Judged(left, " ".join(dropped), reason)
    return Judged(segment)


@dataclass(frozen=True, slots=True)
class Loop:
    """A phrase said again and again: `first` and `last` are the letters of its repetitions, all but the first."""

    phrase: str
    count: int
    first: int
    last: int


def _loop(text: str) -> Loop | None:
    """The phrase that fills most of `text` by repeating itself, if there is one."""
    said = units(text)
    alike = [bare(unit) or unit.strip() for unit in said]
    for length in range(1, min(LONGEST, len(said) // REPEATS) + 1):
        begin = 0
        while begin + length * REPEATS <= len(said):
            end = begin + length
            while end < len(said) and alike[end] == alike[end - length]:
                end += 1
            count = (end - begin) // length
            phrase = "".join(said[begin : begin + length]).strip()
            letters = count * (len(phrase) + 1)
            least = SURE_CHARACTERS if count >= MANY else LOOP_CHARACTERS
            if count >= REPEATS and letters >= least and letters > len(text) / 2:
                first = len("".join(said[: begin + length]))
                return Loop(phrase, count, first, len("".join(said[:end])))
            begin = max(begin + 1, end - length + 1)
    return None


def _too_fast(text: str, seconds: float) -> bool:
    """Whether nobody says this in so many seconds."""
    signs = len(UNSPACED.findall(text))
    words = len(units(text)) - signs
    letters = len(text) - signs
    least = max(letters / LETTERS_A_SECOND, words / WORDS_A_SECOND) + signs / SIGNS_A_SECOND
    return seconds < least
