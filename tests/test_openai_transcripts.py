"""What is made of upstreams' answers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from eardrum.openai_replies import UpstreamReply
from eardrum.openai_transcripts import UpstreamTranscript, clean_text
from eardrum.transcription import Segment
from tests import upstreams
from tests.engines.openai_requests import SPAN, create_window, transcribe_with
from tests.upstreams import KEY


def test_whisper_servers_answer() -> None:
    with transcribe_with(upstreams.fake_whisper_server, create_window(words=True), path="/inference") as (_, (hearing,)):
        (segment,) = hearing.segments
    assert hearing.language == "de"
    assert (segment.text, segment.start, segment.end) == ("And Mr. Dashwood.", 0.0, 3.0), "times end with the window"
    assert (segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio) == (-0.25, 0.03, 1.0)
    words = [(word.word, word.start, word.end) for word in segment.words]
    assert words == [("And", 0.2, 0.5), ("Mr.", 0.5, 0.8), ("Dashwood.", 0.9, 3.0)], "tokens are joined into words"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" And Mr. Dash\nwood.\n Then\n", "And Mr. Dashwood. Then"),
        ("One line.\nAnother.\n", "One line. Another."),
        ("\u4f60\u597d\n\u4e16\u754c\n", "\u4f60\u597d\u4e16\u754c"),
    ],
)
def test_lines_become_one(text: str, line: str) -> None:
    assert clean_text(text) == (line, "")


def test_words_beside_the_segments_find_theirs() -> None:
    with transcribe_with(upstreams.fake_openai, create_window(words=True), key=KEY) as (_, (hearing,)):
        assert [[word.word for word in segment.words] for segment in hearing.segments] == [["Hello", "there"], ["General"]]
        assert [segment.text for segment in hearing.segments] == ["Hello there.", "General."]
        assert hearing.language == "en"
        assert hearing.segments[1].avg_logprob == -0.4


@pytest.mark.parametrize(
    ("body", "segments", "language"),
    [
        ({"text": ""}, [], "fr"),
        ({"text": None, "segments": None, "words": None}, [], "fr"),
        ({"text": " Hi. ", "duration": "17.65", "language": "English"}, [("Hi.", *SPAN)], "en"),
        ({"text": "Hi.", "language": "klingon", "segments": []}, [("Hi.", *SPAN)], "fr"),
        (
            {"text": "x", "segments": [{"start": "0.5", "end": 0.2, "text": "Hi.", "avg_logprob": None}]},
            [("Hi.", 0.5, 0.5)],
            "fr",
        ),
        ({"text": "x", "segments": [{"start": -1, "end": 99, "text": "Hi."}], "language": "de-AT"}, [("Hi.", 0.0, 3.0)], "de"),
        (
            {"text": "x", "segments": [{"start": 0, "end": 1, "text": "Hi.", "avg_logprob": float("nan")}]},
            [("Hi.", 0.0, 1.0)],
            "fr",
        ),
        ({"text": "language German<asr_text>Ja.", "usage": {}}, [("Ja.", *SPAN)], "de"),
    ],
)
def test_odd_answers(body: dict, segments: list, language: str) -> None:
    with transcribe_with(upstreams.fake_saying(body), create_window(language="fr")) as (_, (hearing,)):
        assert [(segment.text, segment.start, segment.end) for segment in hearing.segments] == segments
        assert hearing.language == language
        assert all(segment.avg_logprob == 0.0 for segment in hearing.segments)


def read_segments(body: object, kind: str = "application/json", seconds: float = 10.0) -> list[Segment]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return UpstreamTranscript.parse(data, kind).to_segments((0.0, seconds), seconds)


def list_spans(body: object, kind: str = "application/json", seconds: float = 10.0) -> list[tuple[str, float, float]]:
    return [
        (s.text, pytest.approx(s.start, abs=0.01), pytest.approx(s.end, abs=0.01)) for s in read_segments(body, kind, seconds)
    ]


def build_segment(start: object, end: object, text: str = "Hello there.") -> dict[str, Any]:
    return {"start": start, "end": end, "text": text}


TIMES: list[tuple[object, object]] = [
    (1.5, 2.39), ("1.5", "2.39"), ("1.5s", "2.39s"), ("1.50 s", "2,39 s"), ("1500ms", "2390 ms"),
    ("00:00:01.500", "00:00:02,390"), ("0:01.5", "0:02.39"), (1500, 2390), (1_500_000_000, 2_390_000_000),
]  # fmt: skip


@pytest.mark.parametrize(("start", "end"), TIMES)
def test_times_in_every_spelling(start: object, end: object) -> None:
    words = [{"word": "Hello", "start": start, "end": end}]
    (segment,) = read_segments({"text": "Hello there.", "segments": [build_segment(start, end) | {"words": words}]}, seconds=3.0)
    assert (segment.start, segment.end) == (pytest.approx(1.5), pytest.approx(2.39))
    assert (segment.words[0].start, segment.words[0].end) == (pytest.approx(1.5), pytest.approx(2.39))


def test_a_negative_duration_is_unknown() -> None:
    stated = UpstreamTranscript.model_validate({"text": "x", "duration": -1})
    assert (stated.estimate_duration(3.0), stated.estimate_duration(0.0)) == (3.0, 0.0)
    billed = UpstreamTranscript.model_validate({"text": "x", "usage": {"type": "duration", "seconds": -7}})
    assert billed.estimate_duration(0.0) == 0.0


def test_nanoseconds_where_nobody_knows_how_long_the_audio_is() -> None:
    """LocalAI, with a file whose head does not tell: Go's durations."""
    answer = UpstreamTranscript.model_validate(
        {"text": "", "segments": [build_segment(0, 2_390_000_000), build_segment(2_390_000_000, 4_000_000_000)]}
    )
    assert [(s.start, s.end) for s in answer.to_segments((0.0, 0.0), math.inf)] == [(0, 2.39), (2.39, 4.0)]
    long = UpstreamTranscript.model_validate({"text": "", "segments": [build_segment(80_000, 86_000)]})
    assert [(s.start, s.end) for s in long.to_segments((0.0, 0.0), math.inf)] == [(80_000, 86_000)], "a day is in seconds"
    assert UpstreamTranscript.model_validate({"text": "x", "duration": 4_000_000_000}).estimate_duration(0.0) == pytest.approx(
        4.0
    )
    assert UpstreamTranscript.model_validate({"text": "x", "duration": "4.5s"}).estimate_duration(0.0) == 4.5


@pytest.mark.parametrize(
    ("segments", "spans"),
    [
        ([{"text": "One."}, {"text": "Three"}], [("One.", 0, 4.44), ("Three", 4.44, 10)]),
        (["One.", "Three"], [("One.", 0, 4.44), ("Three", 4.44, 10)]),
        ([build_segment(1, 2, "One."), {"text": "Three"}], [("One.", 1, 2), ("Three", 2, 10)]),
        ([{"text": "One."}, build_segment(4, 5, "Three")], [("One.", 0, 4), ("Three", 4, 5)]),
        ([build_segment(None, 3, "One."), build_segment(4, None, "Three")], [("One.", 0, 3), ("Three", 4, 10)]),
        ([build_segment(1, None, "One."), build_segment(4, None, "Three")], [("One.", 1, 4), ("Three", 4, 10)]),
        ([build_segment("?", [], "One."), build_segment({}, True, "Three")], [("One.", 0, 4.44), ("Three", 4.44, 10)]),
        ([build_segment(1, 2, "One."), None, 7, build_segment(3, 4, "Three")], [("One.", 1, 2), ("Three", 3, 4)]),
        ({"0": "One."}, [("One. Three", 0, 10)]),
        ("One.", [("One. Three", 0, 10)]),
    ],
)
def test_segments_without_times_share_what_there_is(segments: object, spans: list) -> None:
    assert list_spans({"text": "One. Three", "segments": segments}) == spans


def test_whisper_server_without_timestamps() -> None:
    """`whisper-server -nt`: neither segments nor tokens have times."""
    tokens = [{"word": " And", "probability": 0.9}, {"word": " Mr", "probability": 0.9}, {"word": ".", "probability": 0.8}]
    segment = {"id": 0, "text": " And Mr.", "tokens": [1, 2, 3], "words": tokens, "temperature": 0.0, "avg_logprob": -0.25}
    (only,) = read_segments(
        {"task": "transcribe", "language": "english", "duration": 10, "text": " And Mr.\n", "segments": [segment]}
    )
    assert (only.text, only.start, only.end, only.avg_logprob, only.words) == ("And Mr.", 0, 10, -0.25, [])


def test_whisperx() -> None:
    """No text but that of the segments, words told twice, some without times: numbers are not aligned."""
    words = [{"word": "In", "start": 1.0, "end": 1.2, "score": 0.9}, {"word": "1811"}, {"word": "she", "start": 2.0, "end": 2.3}]
    segments = [{"start": 1.0, "end": 2.5, "text": " In 1811 she", "words": words, "speaker": "SPEAKER_00"}]
    (segment,) = read_segments({"segments": segments, "word_segments": words, "language": "en"})
    assert segment.text == "In 1811 she"
    assert [(word.word, word.start, word.end, word.probability) for word in segment.words] == [
        ("In", 1.0, 1.2, 0.9), ("1811", 1.2, 2.0, 1.0), ("she", 2.0, 2.3, 1.0),
    ]  # fmt: skip


def test_pipelines_and_files_of_whisper_cpp() -> None:
    chunks = [{"timestamp": [0.5, 2.0], "text": " One."}, {"timestamp": [2.0, None], "text": " Two."}]
    assert list_spans({"text": "One. Two.", "chunks": chunks}) == [("One.", 0.5, 2.0), ("Two.", 2.0, 10.0)]
    times = {"timestamps": {"from": "00:00:00,500", "to": "00:00:02,000"}, "offsets": {"from": 500, "to": 2000}}
    assert list_spans({"result": {"language": "en"}, "transcription": [times | {"text": " One."}]}) == [("One.", 0.5, 2.0)]


ONE, TWO, THREE = build_segment(1, 2, "One fish."), build_segment(3, 4, "Two fish."), build_segment(5, 6, "Red fish.")
WHOLE = "One fish. Two fish. Red fish."


@pytest.mark.parametrize(
    ("segments", "spans"),
    [
        ([ONE, TWO, THREE], [("One fish.", 1, 2), ("Two fish.", 3, 4), ("Red fish.", 5, 6)]),
        ([ONE, TWO], [("One fish.", 1, 2), ("Two fish. Red fish.", 3, 10)]),
        ([ONE, THREE], [("One fish. Two fish.", 1, 5), ("Red fish.", 5, 6)]),
        ([TWO, THREE], [("One fish. Two fish.", 3, 5), ("Red fish.", 5, 6)]),
        ([build_segment(3, 4, "two FISH"), THREE], [("One fish. Two fish.", 3, 5), ("Red fish.", 5, 6)]),
        ([ONE, build_segment(3, 4, ""), THREE], [("One fish. Two fish.", 1, 5), ("Red fish.", 5, 6)]),
        ([ONE, build_segment(3, 4, "Tuna"), THREE], [("One fish. Two fish.", 1, 5), ("Red fish.", 5, 6)]),
        ([build_segment(1, 2, "Uno"), build_segment(3, 4, "due")], [(WHOLE, 1, 4)]),
        ([build_segment(1, 2, ""), build_segment(3, 4, " ")], [(WHOLE, 0, 10)]),
        ([], [(WHOLE, 0, 10)]),
        ([ONE, TWO, THREE, build_segment(7, 8, "Blue fish.")],
         [("One fish.", 1, 2), ("Two fish.", 3, 4), ("Red fish.", 5, 6), ("Blue fish.", 7, 8)]),
    ],
)  # fmt: skip
def test_segments_never_shorten_the_text(segments: list, spans: list) -> None:
    assert list_spans({"text": WHOLE, "segments": segments}) == spans


def test_the_text_of_scripts_without_spaces_is_completed_too() -> None:
    spoken = {"text": "你好。世界和平。再见。", "segments": [build_segment(1, 2, "你好。"), build_segment(5, 6, "再见。")]}
    assert list_spans(spoken) == [("你好。世界和平。", 1, 5), ("再见。", 5, 6)]
    quoted = {"text": 'He said: "No." "Why?"', "segments": [build_segment(1, 2, "He said"), build_segment(5, 6, "Why")]}
    assert list_spans(quoted) == [('He said: "No."', 1, 5), ('"Why?"', 5, 6)]


def test_words_are_enough() -> None:
    words = [{"word": "One", "start": 1, "end": 1.5}, {"word": "fish", "start": 1.5, "end": 2}]
    (segment,) = read_segments({"text": "", "words": words})
    assert (segment.text, [word.word for word in segment.words]) == ("One fish", ["One", "fish"])
    assert list_spans({"segments": [{"start": 1, "end": 2, "words": words}]}) == [("One fish", 1, 2)]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"Hello there.\n", "text/plain; charset=utf-8"),
        (b'"Hello there."', "application/json"),
        (b'"Hello there."', "text/plain"),
        (b'\xef\xbb\xbf{"text": "Hello there."}', "application/json"),
        (b'{"text": ["Hello", "there."]}', "application/json"),
        (b'[{"start": 0, "end": 10, "text": "Hello there."}]', "application/json"),
        (b'{"transcription": "Hello there."}', "application/json"),
        (b'{"text": "Hello there.", "usage": "1 cent", "languages": "en", "words": "none", "duration": "?", "language": 7}', ""),
    ],
)
def test_a_text_in_other_wrappings(body: bytes, kind: str) -> None:
    assert list_spans(body, kind) == [("Hello there.", 0, 10)]


def test_a_number_in_plain_text_is_a_text() -> None:
    assert list_spans(b"1811", "text/plain") == [("1811", 0, 10)]
    assert list_spans(b"", "text/plain") == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html></html>", "text/plain"), (b"Ollama is running", "text/html"), (b"{}", "application/json"),
        (b"7", "application/json"),
        (b'{"status": "ok"}', "application/json"), (b"", "application/json"), (b'["a", "b"]', "application/json"), (b"[]", ""),
        (b'{"text": 7}', "application/json"), (b"[" * 100_000, "text/html"),
    ],
)  # fmt: skip
def test_what_is_no_transcript(body: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=r"transcript|neither|valid|Invalid"):
        UpstreamTranscript.parse(body, kind)


def test_plain_text_stays_as_it_is() -> None:
    assert clean_text("a < b | c > d") == ("a < b | c > d", "")


HUGE = int("9" * 400)
"""A number that JSON may have, and no float can be."""


@pytest.mark.parametrize("number", [HUGE, -HUGE, "9" * 400, f"{'9' * 400}:00:01", f"0:{'9' * 400}", "1e400", 1e300, -1e300])
def test_a_number_that_nobody_can_reckon_with_is_none(number: object) -> None:
    odd = {"start": number, "end": number, "avg_logprob": number, "temperature": number, "tokens": [HUGE]}
    words = [{"word": "Hello", "start": 0.1, "end": number, "probability": number}]
    body = {"text": "Hello there.", "duration": number, "segments": [odd | {"text": "Hello there.", "words": words}]}
    (segment,) = read_segments(body | {"usage": {"seconds": number}}, seconds=3.0)
    assert segment.text == "Hello there."
    assert 0 <= segment.start <= segment.end <= 3.0
    assert all(0 <= word.start <= word.end <= 3.0 for word in segment.words)


@pytest.mark.parametrize(
    "wanted", [{"retry-after": "9" * 400}, {"retry-after-ms": "9" * 400}, {"retry-after": f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT"}]
)
def test_a_pause_without_end_is_a_long_one_or_none(wanted: dict[str, str]) -> None:
    pause = UpstreamReply("", 429, wanted, b"{}").retry_after
    assert pause is None or math.isfinite(pause)


TOO_MUCH = {
    "a beginning": b"[" * 100_000,
    "deep": b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}",
    "long": b'{"text": "a", "x": ["' + b'","' * 11_000_000 + b'"]}',
}


@pytest.mark.parametrize("body", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_is_deeper_or_more_than_any_transcript_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        UpstreamTranscript.parse(body, "application/json")
    assert UpstreamReply("", 500, {}, body).message
