"""What is made of upstreams' answers."""

from __future__ import annotations

import pytest

from eardrum.remote.answers import plain
from tests import upstreams
from tests.engines.asking import SPAN, asked, window
from tests.upstreams import KEY


def test_whisper_servers_answer() -> None:
    with asked(upstreams.fake_whisper_server, window(words=True), path="/inference") as (_, (hearing,)):
        (segment,) = hearing.segments
    assert hearing.language == "de"
    assert (segment.text, segment.start, segment.end) == ("And Mr. Dashwood.", 0.0, 3.0), "times end with the window"
    assert (segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio) == (-0.25, 0.03, 1.0)
    words = [(word.word, word.start, word.end) for word in segment.words]
    assert words == [("And", 0.2, 0.5), ("Mr.", 0.5, 0.8), ("Dashwood.", 0.9, 3.0)], "tokens are joined into words"


def test_words_beside_the_segments_find_theirs() -> None:
    with asked(upstreams.fake_openai, window(words=True), key=KEY) as (_, (hearing,)):
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
    with asked(upstreams.fake_saying(body), window(language="fr")) as (_, (hearing,)):
        assert [(segment.text, segment.start, segment.end) for segment in hearing.segments] == segments
        assert hearing.language == language
        assert all(segment.avg_logprob == 0.0 for segment in hearing.segments)


def test_plain_text_stays_as_it_is() -> None:
    assert plain("a < b | c > d") == ("a < b | c > d", "")
