"""Transcripts as text, SubRip and WebVTT: written once, for every edge."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from eardrum.types import Segment

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Letters and marks of Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese."""


def text(segments: Iterable[Segment]) -> str:
    """All segments in one line."""
    joined = ""
    for segment in segments:
        joined += separator(joined, segment.text.strip()) + segment.text.strip()
    return joined


def separator(before: str, after: str) -> str:
    """What belongs between two stretches of text: a space, but none between scripts that are written without."""
    if not before or not after or (UNSPACED.match(before[-1]) and UNSPACED.match(after[0])):
        return ""
    return " "


def srt(segments: Iterable[Segment]) -> str:
    """SubRip: numbered cues with comma milliseconds."""
    cues = (
        f"{number}\n{_time(s.start, ',')} --> {_time(s.end, ',')}\n{_cue_text(s)}\n\n" for number, s in enumerate(segments, 1)
    )
    return "".join(cues)


def vtt(segments: Iterable[Segment]) -> str:
    """WebVTT; the header is there even when nobody spoke."""
    cues = (f"{_time(s.start, '.')} --> {_time(s.end, '.')}\n{escape(_cue_text(s), quote=False)}\n\n" for s in segments)
    return "WEBVTT\n\n" + "".join(cues)


def _cue_text(segment: Segment) -> str:
    """The text in one line, because a blank line would end the cue, without arrows, which would start one."""
    return " ".join(segment.text.split()).replace("-->", "→")


def _time(seconds: float, mark: str) -> str:
    """hh:mm:ss and milliseconds, rounded as a whole: 3.3 s is 3,300 and not 3,299."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"
