"""Transcripts as text, SubRip and WebVTT: written once, for every edge."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from eardrum.text import joined
from eardrum.types import Segment


def text(segments: Iterable[Segment]) -> str:
    """All segments in one line."""
    return joined(segment.text for segment in segments)


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
