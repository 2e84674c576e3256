"""Recognises text that a model made up where nobody spoke, and says why."""

from __future__ import annotations

import re
from itertools import groupby

from eardrum.types import Segment

SURE = -0.5
"""Mean log probability below which doubtful audio is not believed; real speech lies above -0.3."""

SPEECH = 0.6
"""Speech probability above which the audio is not doubtful."""

REPEATS = 4
"""A phrase said this often in a row is a decoder loop."""

MANY = 8
"""Nobody says a phrase so often; below this it takes a long one to be sure."""

LOOP_CHARACTERS, SURE_CHARACTERS = 60, 30
"""Shorter repetitions ("no no no no", "very, very, very good") are things people say; the second holds from `MANY` on."""

MUSIC = re.compile(r"[\s♪♫♩♬🎵🎶*]*([\[(]?(music|applause|laughter)[\])]?)?[\s♪♫♩♬🎵🎶*.]*", re.IGNORECASE)


def reason_to_drop(segment: Segment, speech: float) -> str | None:
    """Why `segment` is not speech, in words a person can read; None keeps it.

    `speech` is the highest speech probability in the segment's window.
    """
    if MUSIC.fullmatch(segment.text) and not segment.text.isascii():
        return "only music notes"
    if repeated := _loop(segment.text):
        return f"repeats {repeated!r}"
    if segment.avg_logprob < SURE and speech < SPEECH:
        return f"unsure text (mean log probability {segment.avg_logprob:.2f}) where speech is unlikely ({speech:.2f})"
    return None


def _loop(text: str) -> str | None:
    """The phrase of 1 to 8 words that fills most of `text` by repeating itself, if there is one."""
    words = text.split()
    for length in range(1, min(8, len(words) // REPEATS) + 1):
        for phase in range(length):
            phrases = [tuple(words[i : i + length]) for i in range(phase, len(words) - length + 1, length)]
            for phrase, run in groupby(phrases):
                spoken = " ".join(phrase)
                said = len(list(run))
                loop = said * (len(spoken) + 1)
                least = SURE_CHARACTERS if said >= MANY else LOOP_CHARACTERS
                if said >= REPEATS and loop >= least and loop > len(text) / 2:
                    return spoken
    return None
