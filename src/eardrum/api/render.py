"""Transcripts as text, SubRip and WebVTT: written once, for every edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import escape

from eardrum import subtitles
from eardrum.subtitles import ANY, Cue, Shape
from eardrum.text import joined
from eardrum.types import Segment


def text(segments: Iterable[Segment]) -> str:
    """All segments in one line."""
    return joined(segment.text for segment in segments)


def srt(segments: Iterable[Segment], shape: Shape = ANY, *, duration: float = 0.0) -> str:
    """SubRip: numbered cues with comma milliseconds. `duration` is the recording's, in seconds, 0 if it is not known."""
    cues = _cues(segments, shape, duration, str)
    return "".join(
        f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n" for number, (start, end, text) in enumerate(cues, 1)
    )


def vtt(segments: Iterable[Segment], shape: Shape = ANY, *, duration: float = 0.0) -> str:
    """WebVTT; the header is there even when nobody spoke. `duration` as for `srt`."""
    cues = _cues(segments, shape, duration, partial(escape, quote=False))
    return "WEBVTT\n\n" + "".join(f"{_time(start, '.')} --> {_time(end, '.')}\n{text}\n\n" for start, end, text in cues)


def _cues(
    segments: Iterable[Segment], shape: Shape, duration: float, escaped: Callable[[str], str]
) -> Iterator[tuple[float, float, str]]:
    """Start, end and text of each cue: of each segment, unless a shape is asked for."""
    if shape.plain:
        yield from ((segment.start, segment.end, escaped(_without_arrows(segment.text))) for segment in segments)
        return
    for cue in subtitles.cues(segments, shape, duration=duration):
        if shape.highlight_words:
            yield from _highlighted(cue, escaped)
        else:
            yield cue.start, cue.end, "\n".join(escaped(_without_arrows(line)) for line in cue.texts)


def _highlighted(cue: Cue, escaped: Callable[[str], str]) -> Iterator[tuple[float, float, str]]:
    """A cue for each word, in which it is underlined, as openai-whisper writes them."""
    for start, end, spoken in subtitles.highlights(cue):
        lines = []
        for line in cue.lines:
            text = ""
            for piece in line:
                word = escaped(_without_arrows(piece.text))
                text += (piece.space if text else "") + (f"<u>{word}</u>" if piece is spoken else word)
            lines.append(text)
        yield start, end, "\n".join(lines)


def _without_arrows(text: str) -> str:
    """The text in one line, because a blank line would end the cue, without arrows, which would start one."""
    return " ".join(text.split()).replace("-->", "→")


def _time(seconds: float, mark: str) -> str:
    """hh:mm:ss and milliseconds, rounded as a whole: 3.3 s is 3,300 and not 3,299."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"
