"""Formats transcripts as text, SubRip, WebVTT and text deltas, for every protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape

from eardrum import subtitles
from eardrum.subtitles import NO_RULES, Cue, SubtitleRules
from eardrum.text import choose_separator, join_texts
from eardrum.transcription import Segment, TextDelta, TranscriptionEvent


def format_text(segments: Iterable[Segment]) -> str:
    """All segments in one line."""
    return join_texts(segment.text for segment in segments)


def format_srt(segments: Iterable[Segment], shape: SubtitleRules = NO_RULES, *, duration: float = 0.0) -> str:
    """SubRip: numbered cues with comma milliseconds. `duration` is the recording's, in seconds, 0 if it is not known."""
    cues = _build_cues(segments, shape, duration, str)
    return "".join(
        f"{number}\n{_format_time(start, ',')} --> {_format_time(end, ',')}\n{text}\n\n"
        for number, (start, end, text) in enumerate(cues, 1)
    )


def format_vtt(segments: Iterable[Segment], shape: SubtitleRules = NO_RULES, *, duration: float = 0.0) -> str:
    """WebVTT; the header is there even when nobody spoke. `duration` as for `srt`."""
    cues = _build_cues(segments, shape, duration, partial(escape, quote=False))
    return "WEBVTT\n\n" + "".join(
        f"{_format_time(start, '.')} --> {_format_time(end, '.')}\n{text}\n\n" for start, end, text in cues
    )


def _build_cues(
    segments: Iterable[Segment], shape: SubtitleRules, duration: float, escaped: Callable[[str], str]
) -> Iterator[tuple[float, float, str]]:
    """Start, end and text of each cue: of each segment, unless a shape is asked for."""
    if shape.is_unrestricted:
        yield from ((segment.start, segment.end, escaped(_remove_arrows(segment.text))) for segment in segments)
        return
    for cue in subtitles.build_cues(segments, shape, duration=duration):
        if shape.highlight_words:
            yield from _highlight_words(cue, escaped)
        else:
            yield cue.start, cue.end, "\n".join(escaped(_remove_arrows(line)) for line in cue.texts)


def _highlight_words(cue: Cue, escaped: Callable[[str], str]) -> Iterator[tuple[float, float, str]]:
    """A cue for each word, in which it is underlined, as openai-whisper writes them."""
    for start, end, spoken in subtitles.build_highlights(cue):
        lines = []
        for line in cue.lines:
            text = ""
            for piece in line:
                word = escaped(_remove_arrows(piece.text))
                text += (piece.space if text else "") + (f"<u>{word}</u>" if piece is spoken else word)
            lines.append(text)
        yield start, end, "\n".join(lines)


def _remove_arrows(text: str) -> str:
    """The text in one line, because a blank line would end the cue, without arrows, which would start one."""
    return " ".join(text.split()).replace("-->", "→")


def _format_time(seconds: float, mark: str) -> str:
    """hh:mm:ss and milliseconds, rounded as a whole: 3.3 s is 3,300 and not 3,299."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


@dataclass(slots=True)
class TextDeltas:
    """Turns events into pieces of text. Joined, they are the text of all segments."""

    _last: str = ""
    _in_deltas: bool = False

    def feed(self, event: TranscriptionEvent) -> str:
        """The text that the next event adds, with what belongs between it and the text before."""
        if isinstance(event, TextDelta):
            self._in_deltas = True
            return event.text
        if not isinstance(event, Segment) or self._in_deltas:
            return ""
        text = event.text.strip()
        piece = choose_separator(self._last, text) + text
        self._last = text or self._last
        return piece
