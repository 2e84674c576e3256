"""Transcripts as text, SubRip and WebVTT."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.api import transcript_formats
from eardrum.subtitles import BROADCAST_RULES, SubtitleRules
from eardrum.transcription import Segment, Word


def create_segment(start: float, end: float, text: str = "Hi.") -> Segment:
    return Segment(start, end, text)


def test_text_is_one_line() -> None:
    assert (
        transcript_formats.format_text([create_segment(0, 1, " Hello there. "), create_segment(1, 2, "General.")])
        == "Hello there. General."
    )
    assert transcript_formats.format_text([]) == ""


def test_scripts_without_spaces_are_joined_without() -> None:
    assert (
        transcript_formats.format_text(
            [
                create_segment(0, 1, "今天天气"),
                create_segment(1, 2, "很好。"),
                create_segment(2, 3, "OK"),
                create_segment(3, 4, "是"),
            ]
        )
        == "今天天气很好。 OK 是"
    )
    assert transcript_formats.format_text([create_segment(0, 1, "สวัสดี"), create_segment(1, 2, "ครับ")]) == "สวัสดีครับ"
    assert transcript_formats.format_text([create_segment(0, 1, "안녕"), create_segment(1, 2, "하세요")]) == "안녕 하세요", (
        "Korean has spaces"
    )
    assert (
        transcript_formats.format_text([create_segment(0, 1, "a"), create_segment(1, 2, " "), create_segment(2, 3, "b")]) == "a b"
    )


def test_srt() -> None:
    segments = [create_segment(0.0, 3.32, " The beach."), create_segment(3.5, 4.0, "It was.")]
    assert transcript_formats.format_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:03,320\nThe beach.\n\n2\n00:00:03,500 --> 00:00:04,000\nIt was.\n\n"
    )
    assert transcript_formats.format_srt([]) == ""


def test_vtt() -> None:
    assert transcript_formats.format_vtt([create_segment(0.0, 3.32)]) == "WEBVTT\n\n00:00:00.000 --> 00:00:03.320\nHi.\n\n"
    assert transcript_formats.format_vtt([]) == "WEBVTT\n\n"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (3.3, "00:00:03,300"),
        (59.9996, "00:01:00,000"),
        (59.9994, "00:00:59,999"),
        (0.0004, "00:00:00,000"),
        (3599.9999, "01:00:00,000"),
        (3661.001, "01:01:01,001"),
        (86_400.0, "24:00:00,000"),
        (360_000.5, "100:00:00,500"),
    ],
)
def test_times_are_rounded_as_a_whole(seconds: float, written: str) -> None:
    assert transcript_formats.format_srt([create_segment(seconds, seconds)]).splitlines()[1] == f"{written} --> {written}"
    assert transcript_formats.format_vtt([create_segment(seconds, seconds)]).splitlines()[
        2
    ] == f"{written} --> {written}".replace(",", ".")


@settings(deadline=None)
@given(st.floats(0, 400_000))
def test_any_time_is_written_to_the_nearest_millisecond(seconds: float) -> None:
    line = transcript_formats.format_srt([create_segment(seconds, seconds)]).splitlines()[1]
    match = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3}) --> .*", line)
    assert match
    hours, minutes, whole, ms = map(int, match.groups())
    assert hours * 3600 + minutes * 60 + whole + ms / 1000 == pytest.approx(seconds, abs=0.00051)


def test_an_arrow_in_the_text_does_not_start_a_cue() -> None:
    for written in (
        transcript_formats.format_srt([create_segment(0, 1, "a --> b")]),
        transcript_formats.format_vtt([create_segment(0, 1, "a --> b")]),
    ):
        assert written.count("-->") == 1
        assert "a → b" in written


def test_a_blank_line_in_the_text_does_not_end_the_cue() -> None:
    assert transcript_formats.format_srt([create_segment(0, 1, "one\n\ntwo")]).strip().count("\n\n") == 0


def test_vtt_escapes_what_would_be_markup() -> None:
    assert "a &lt;b&gt; &amp; c" in transcript_formats.format_vtt([create_segment(0, 1, "a <b> & c")])
    assert "a <b> & c" in transcript_formats.format_srt([create_segment(0, 1, "a <b> & c")])


WORDS = [Word("a", 0.0, 1.0, 1), Word("<b>", 1.5, 2.0, 1), Word("c", 2.0, 3.0, 1), Word("-->", 3.0, 4.0, 1)]


def test_a_shape_gives_cues_lines() -> None:
    segments = [Segment(0.0, 4.0, "a <b> c -->", words=WORDS)]
    shape = SubtitleRules(max_line_width=5, max_line_count=2)
    assert transcript_formats.format_srt(segments, shape) == "1\n00:00:00,000 --> 00:00:04,000\na <b>\nc →\n\n"
    assert transcript_formats.format_vtt(segments, shape) == "WEBVTT\n\n00:00:00.000 --> 00:00:04.000\na &lt;b&gt;\nc →\n\n"


def test_highlighted_words_are_underlined_as_by_openai_whisper() -> None:
    written = transcript_formats.format_vtt([Segment(0.0, 3.0, "a <b> c", words=WORDS[:3])], SubtitleRules(highlight_words=True))
    assert written == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.000\n<u>a</u> &lt;b&gt; c\n\n"
        "00:00:01.000 --> 00:00:01.500\na &lt;b&gt; c\n\n"
        "00:00:01.500 --> 00:00:02.000\na <u>&lt;b&gt;</u> c\n\n"
        "00:00:02.000 --> 00:00:03.000\na &lt;b&gt; <u>c</u>\n\n"
    )


def test_the_length_of_the_recording_bounds_the_last_cue() -> None:
    assert "--> 00:00:01,500" in transcript_formats.format_srt(
        [create_segment(1.0, 1.2)], SubtitleRules(min_duration=1.0, max_duration=2.0), duration=1.5
    )


def test_names_of_speakers_stand_before_the_text() -> None:
    segments = [Segment(0.0, 1.0, " Yes. ", speaker="A"), Segment(1.0, 2.0, "No.", speaker="<B> --> C")]
    assert transcript_formats.format_srt(segments).split("\n")[2::4] == ["A: Yes.", "<B> → C: No."]
    assert "&lt;B&gt; → C: No." in transcript_formats.format_vtt(segments)
    assert transcript_formats.format_text(segments) == "Yes. No."


@pytest.mark.parametrize("timed", [True, False])
def test_no_cue_holds_two_speakers(timed: bool) -> None:
    rules = SubtitleRules(max_line_width=30, max_line_count=2, min_duration=1.0, min_gap=0.1)
    texts = [("A", "Yes."), ("A", "I think so, and many others do."), ("B", "No."), ("A", "Oh.")]
    words = [[Word(word, n, n + 0.5, 1.0) for word in text.split()] if timed else [] for n, (_, text) in enumerate(texts)]
    segments = [Segment(n, n + 0.8, text, words=words[n], speaker=speaker) for n, (speaker, text) in enumerate(texts)]
    lines = [
        " ".join(cue.splitlines()[2:]) for cue in transcript_formats.format_srt(segments, rules, duration=9).strip().split("\n\n")
    ]
    assert " ".join(lines) == "A: Yes. I think so, and many others do. B: No. A: Oh."
    assert [line[:2] for line in lines if ":" in line] == ["A:", "B:", "A:"]


def test_cues_of_two_speakers_are_not_there_at_one_time() -> None:
    """The reply is too short to be read, and comes a little before it is heard: only where nothing else is shown."""
    answer = " ".join(["meeting"] * 10)  # no line is left for the reply
    texts = [(0.0, 4.9, "Do you think so?", "A"), (5.0, 5.3, "No.", "B"), (5.4, 11.9, answer, "B")]
    segments = [Segment(start, end, text, speaker=speaker) for start, end, text, speaker in texts]
    cues = transcript_formats.format_vtt(segments, BROADCAST_RULES, duration=12).strip().split("\n\n")[1:]
    times = [cue.split("\n")[0].split(" --> ") for cue in cues]
    assert len(times) == 3
    assert [before[1] < after[0] for before, after in pairwise(times)] == [True, True], times


def test_highlighted_words_of_speakers() -> None:
    segment = Segment(0.0, 1.0, "Yes sir.", words=[Word("Yes", 0.0, 0.5, 1.0), Word("sir.", 0.5, 1.0, 1.0)], speaker="Anna")
    vtt = transcript_formats.format_vtt([segment], SubtitleRules(highlight_words=True))
    assert vtt.split("\n")[3::3] == ["Anna: <u>Yes</u> sir.", "Anna: Yes <u>sir.</u>"]
