"""The official OpenAI client against a real server."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import ServerUnderTest
from tests.recordings import SPEECH_TEXT, encode, encode_announcements, encode_speech, load_announcements

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(server: ServerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


def create_upload(container: str) -> io.BytesIO:
    file = io.BytesIO(encode_speech(container))
    file.name = f"speech.{container}"
    return file


@pytest.mark.parametrize("response_format", ["srt", "vtt"])
def test_subtitles_with_a_shape(client: openai.OpenAI, response_format: str) -> None:
    extra: dict[str, str] = {"subtitles": "broadcast", "max_line_width": "32"}
    wanted: dict[str, Any] = {"file": create_upload("mp3"), "model": "whisper-1", "response_format": response_format}
    cues = client.audio.transcriptions.create(**wanted, extra_body=extra).removeprefix("WEBVTT\n\n").strip().split("\n\n")
    texts = [cue.splitlines()[2 if response_format == "srt" else 1 :] for cue in cues]
    assert " ".join(line for lines in texts for line in lines) == SPEECH_TEXT
    assert all(1 <= len(lines) <= 2 for lines in texts)
    assert all(len(line) <= 32 for lines in texts for line in lines)
    assert len(cues) > 4, "the sentences are longer than two lines"


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "verbose_json"])
@pytest.mark.parametrize("container", ["mp3", "m4a", "webm", "wav"])
def test_every_format_and_every_container(client: openai.OpenAI, container: str, response_format: str) -> None:
    wanted: dict[str, Any] = {"file": create_upload(container), "model": "whisper-1", "response_format": response_format}
    answer = client.audio.transcriptions.create(**wanted)
    match response_format:
        case "json":
            assert answer.text == SPEECH_TEXT
            assert answer.usage.seconds == 18
        case "text":
            assert answer == SPEECH_TEXT + "\n"
        case "srt":
            assert answer.startswith("1\n00:00:00,")
            assert answer.count(" --> ") == 3
        case "vtt":
            assert answer.startswith("WEBVTT\n\n00:00:00.")
        case "verbose_json":
            assert (answer.text, answer.language, round(answer.duration)) == (SPEECH_TEXT, "english", 18)
            assert [s.id for s in answer.segments] == [0, 1, 2]
            ends = [(s.start, s.end) for s in answer.segments]
            assert all(start < end for start, end in ends)
            assert ends == sorted(ends)
            assert all(s.avg_logprob > -0.3 and s.no_speech_prob < 0.2 and s.tokens for s in answer.segments)


def test_deltas_come_before_the_last_window_is_decoded(client: openai.OpenAI, server: ServerUnderTest) -> None:
    long = encode_announcements(90)
    before = server.count_windows() if server.list_runners() else 0
    stream = client.audio.transcriptions.create(file=("long.mp3", long), model="whisper-1", stream=True)
    text, decoded_at_first_delta = "", None
    for event in stream:
        if event.type == "transcript.text.delta":
            if decoded_at_first_delta is None:
                decoded_at_first_delta = server.count_windows() - before
            text += event.delta
    assert event.type == "transcript.text.done"
    assert event.text == text
    total = server.count_windows() - before
    assert total > 7
    assert decoded_at_first_delta < total / 2


def test_token_probabilities(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(file=create_upload("wav"), model="gpt-4o-transcribe", include=["logprobs"])
    assert answer.logprobs
    assert "".join(t.token for t in answer.logprobs).split() == SPEECH_TEXT.split()
    assert all(t.logprob <= 0 and bytes(map(int, t.bytes)).decode() == t.token for t in answer.logprobs)


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()][:2] == ["moonshine-tiny-en", "hibari-en"]
    assert client.models.retrieve("UsefulSensors/moonshine-tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="There is no model 'a/b'"):
        client.models.retrieve("a/b")


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"language": "de"}, "does not support German"),
        ({"language": "xx"}, "Unknown language 'xx'"),
        ({"response_format": "xml"}, "response_format must be json, text, srt"),
        ({"temperature": "abc"}, "temperature must be a number"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, "not per word"),
    ],
)
def test_what_cannot_be_done_is_a_readable_400(client: openai.OpenAI, wishes: dict, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.audio.transcriptions.create(file=create_upload("wav"), model="whisper-1", **wishes)
    assert caught.value.request_id.startswith("req_")
    assert caught.value.param in (*wishes, "response_format")


def test_translation_is_refused_by_name(client: openai.OpenAI) -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.BadRequestError, match="transcribes but does not translate"),
    ):
        client.audio.translations.create(file=create_upload("wav"), model="whisper-1")


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'org/nope'") as caught:
        client.audio.transcriptions.create(file=create_upload("wav"), model="org/nope")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("audio", [b"", b"just text", b"\x00\xff" * 5000])
def test_what_is_not_audio_is_a_400(client: openai.OpenAI, audio: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match=r"empty|cannot be decoded") as caught:
        client.audio.transcriptions.create(file=("speech.mp3", audio), model="whisper-1")
    assert caught.value.param == "file"


async def test_many_at_once(server: ServerUnderTest) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        clips = load_announcements()[:12]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                client.audio.transcriptions.create(file=("a.flac", encode(samples, "flac")), model="whisper-1")
                for _, samples, _ in clips
            )
        )
        assert time.monotonic() - began < 60
    for (name, _, text), answer in zip(clips, answers, strict=True):
        assert len(set(split_words(text)) & set(split_words(answer.text))) >= len(set(split_words(text))) / 2, (name, answer.text)


def split_words(text: str) -> list[str]:
    return [word.strip(".,!?'\"") for word in text.lower().split()]
