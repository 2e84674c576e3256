"""Formats transcripts as text, SubRip, WebVTT and text deltas, for every protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import groupby, zip_longest

from msgspec.structs import replace

from eardrum import subtitles
from eardrum.subtitles import NO_RULES, Cue, SubtitleRules
from eardrum.text import choose_separator, join_texts
from eardrum.transcription import Segment, TextDelta, TranscriptionEvent, Word


def format_text(segments: Iterable[Segment]) -> str:
    """Join the segments' texts in one line."""
    return join_texts(segment.text for segment in segments)


def round_time(seconds: float) -> float:
    """Round to milliseconds, for JSON."""
    return round(seconds, 3)


def format_srt(segments: Iterable[Segment], rules: SubtitleRules = NO_RULES, *, duration: float = 0.0) -> str:
    """Format SubRip: numbered cues with comma milliseconds. `duration` is the recording's in seconds, 0 if unknown."""
    cues = _build_cues(segments, rules, duration, str)
    return "".join(
        f"{number}\n{format_time(start, ',')} --> {format_time(end, ',')}\n{text}\n\n"
        for number, (start, end, text) in enumerate(cues, 1)
    )


def format_vtt(segments: Iterable[Segment], rules: SubtitleRules = NO_RULES, *, duration: float = 0.0) -> str:
    """Format WebVTT; the header is present even without cues. `duration` as for `format_srt`."""
    cues = _build_cues(segments, rules, duration, partial(escape, quote=False))
    return "WEBVTT\n\n" + "".join(
        f"{format_time(start, '.')} --> {format_time(end, '.')}\n{text}\n\n" for start, end, text in cues
    )


def _build_cues(
    segments: Iterable[Segment], rules: SubtitleRules, duration: float, escape_text: Callable[[str], str]
) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text of each cue. Without rules, each segment is a cue, with its speaker's name."""
    if rules.is_unrestricted:
        yield from ((s.start, s.end, escape_text(_remove_arrows(_add_name(s).text))) for s in segments)
        return
    for cue in _shape_cues(segments, rules, duration):
        if rules.highlight_words:
            yield from _highlight_words(cue, escape_text)
        else:
            yield cue.start, cue.end, "\n".join(escape_text(_remove_arrows(line)) for line in cue.texts)


def _shape_cues(segments: Iterable[Segment], rules: SubtitleRules, duration: float) -> Iterator[Cue]:
    """Yield cues by the rules. No cue holds two speakers, and a name stands where the speaker changes."""
    runs = [list(run) for _, run in groupby(segments, key=lambda segment: segment.speaker)]
    begin = 0.0
    for run, following in zip_longest(runs, runs[1:]):
        until = following[0].start - rules.min_gap if following else duration
        cues = subtitles.build_cues([_add_name(run[0]), *run[1:]], rules, duration=until, begin=begin)
        yield from cues
        begin = cues[-1].end + rules.min_gap if cues else begin


def _add_name(segment: Segment) -> Segment:
    """Put the speaker's name before the text, and before the words."""
    if not segment.speaker:
        return segment
    first = [Word(f"{segment.speaker}:", word.start, word.start, 1.0) for word in segment.words[:1]]
    return replace(segment, text=f"{segment.speaker}: {segment.text.strip()}", words=[*first, *segment.words])


def _highlight_words(cue: Cue, escape_text: Callable[[str], str]) -> Iterator[tuple[float, float, str]]:
    """Yield a cue for each word, with the word underlined, as openai-whisper does."""
    for start, end, spoken in subtitles.build_highlights(cue):
        lines = []
        for line in cue.lines:
            text = ""
            for piece in line:
                word = escape_text(_remove_arrows(piece.text))
                text += (piece.space if text else "") + (f"<u>{word}</u>" if piece is spoken else word)
            lines.append(text)
        yield start, end, "\n".join(lines)


def _remove_arrows(text: str) -> str:
    """Return the text in one line and without arrows: a blank line would end the cue, and an arrow would start one."""
    return " ".join(text.split()).replace("-->", "→")


def format_time(seconds: float, mark: str) -> str:
    """Format as hh:mm:ss and milliseconds. The time is rounded as a whole: 3.3 s is 3,300 and not 3,299."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


@dataclass(slots=True)
class TextDeltas:
    """Turns transcription events into text deltas. Joined, the deltas are the text of all segments."""

    _last: str = ""
    _has_deltas: bool = False

    def feed(self, event: TranscriptionEvent) -> str:
        """Return the text that an event adds, with a separator before it where one belongs."""
        if isinstance(event, TextDelta):
            self._has_deltas = True
            return event.text
        if not isinstance(event, Segment) or self._has_deltas:
            return ""
        text = event.text.strip()
        delta = choose_separator(self._last, text) + text
        self._last = text or self._last
        return delta
