"""Recordings transcribed by servers that are not ours: what a client sees, whatever the server can."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server
from tests.models import build
from tests.models.tiny_whisper import join_clips, load_clips
from tests.ports import find_free_port
from tests.recordings import ROOT, SPEECH_TEXT, encode, encode_speech
from tests.test_server_uploads import FILE, build_field, open_wire

pytestmark = pytest.mark.slow

PROGRAMS = ROOT / "tests" / "programs"
GERMAN = next(clip for clip in load_clips() if clip.text == "Sechs fünf neun.")
ENGLISH = next(clip for clip in load_clips() if clip.text == "Turn on the fan.")

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def build_model(name: str, *arguments: str, **keys: object) -> dict:
    """A model of a config that is this fake."""
    port = find_free_port()
    command = [sys.executable, str(PROGRAMS / f"{name}.py"), "--port", str(port), *arguments]
    return {"cmd": shlex.join(command), "proxy": f"http://127.0.0.1:{port}", **keys}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A gateway with five models that are commands."""
    folder = tmp_path_factory.mktemp("ears")
    hearing = ["--engine", "faster_whisper", "--source", str(build("faster_whisper", folder / "hearing"))]
    models = {
        "embedded": build_model("fake_whisper_server", "--inference-path", "/v1/audio/transcriptions"),
        "untimed": build_model("fake_whisper_server", "-nt", "--inference-path", "/v1/audio/transcriptions"),
        "whisper": build_model("fake_whisper_server", "-l", "auto", *hearing),
        "vllm": build_model("fake_vllm", "--name", "org/asr", *hearing, use_model_name="org/asr"),
        "plain": build_model("fake_vllm", "--name", "plain", "--no-verbose", *hearing, aliases=["the plain one"]),
    }
    config = folder / "config.yaml"
    groups = {"speech": {"swap": False, "persistent": True, "members": list(models)}}
    config.write_text(json.dumps({"models": models, "groups": groups}))
    with run_server("--config", str(config), PYTHONPATH=f"{ROOT}:{ROOT / 'src'}") as started:
        yield started


def transcribe_all_formats(server: ServerUnderTest, audio: bytes, **fields: str) -> dict[str, str]:
    """The answers in every format."""
    answers = {form: server.post_audio(audio, response_format=form, **fields) for form in FORMATS}
    assert [answer.status_code for answer in answers.values()] == [200] * len(FORMATS), answers["json"].text
    return {form: answer.text for form, answer in answers.items()}


def transcribe_streaming(server: ServerUnderTest, audio: bytes, **fields: str) -> tuple[list[str], dict]:
    """The deltas of a stream, and its last event."""
    answer = server.post_audio(audio, stream="true", **fields)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    answer.encoding = "utf-8"
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "transcript.text.done", events[-1]
    return [event["delta"] for event in events[:-1]], events[-1]


def test_every_format_of_a_whisper_server(server: ServerUnderTest) -> None:
    answers = transcribe_all_formats(server, encode_speech("mp3"), model="embedded")
    assert json.loads(answers["json"])["text"] == SPEECH_TEXT
    assert answers["text"] == SPEECH_TEXT + "\n"
    assert answers["srt"].startswith("1\n00:00:00,")
    assert answers["vtt"].startswith("WEBVTT\n\n00:00:00.")
    verbose = json.loads(answers["verbose_json"])
    assert (verbose["task"], verbose["language"], verbose["text"]) == ("transcribe", "english", SPEECH_TEXT)
    assert 17 < verbose["duration"] < 19
    assert len(verbose["segments"]) == answers["srt"].count(" --> ") == 3


def test_every_format_of_a_whisper_server_without_timestamps(server: ServerUnderTest) -> None:
    """As in llama-swap's own example: `whisper-server -nt`."""
    answers = transcribe_all_formats(server, encode_speech("flac"), model="untimed")
    assert json.loads(answers["json"])["text"] == SPEECH_TEXT
    assert json.loads(answers["verbose_json"])["text"] == SPEECH_TEXT
    assert answers["srt"].count(" --> ") == 3
    deltas, done = transcribe_streaming(server, encode_speech("flac"), model="untimed")
    assert "".join(deltas) == done["text"] == SPEECH_TEXT
    words = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    assert "per word" in server.post_audio(encode_speech("flac"), model="untimed", **words).json()["error"]["message"]


def test_a_format_named_after_the_file_is_the_one_that_counts(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        form = (
            build_field("model", "embedded")
            + FILE
            + encode_speech("mp3")
            + b"\r\n"
            + build_field("response_format", "srt")
            + b"--x--\r\n"
        )
        client.send_bytes(form)
        client.end_body()
        assert client.receive_until(b"himself.").count(b" --> ") == 3


def test_words_of_a_whisper_server_are_words_and_not_tokens(server: ServerUnderTest) -> None:
    form = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    answer = server.post_audio(encode(ENGLISH.samples, "wav"), model="whisper", language="en", **form).json()
    assert [word["word"] for word in answer["words"]] == ["Turn", "on", "the", "fan."]
    assert all(0 <= word["start"] <= word["end"] <= answer["duration"] for word in answer["words"])


@pytest.mark.parametrize("model", ["whisper", "vllm", "plain", "the plain one"])
@pytest.mark.parametrize("clip", [GERMAN, ENGLISH], ids=["german", "english"])
def test_every_format_of_every_server(server: ServerUnderTest, model: str, clip) -> None:
    answers = transcribe_all_formats(server, encode(clip.samples, "flac"), model=model, language=clip.language)
    assert json.loads(answers["json"])["text"] == clip.text
    assert answers["text"] == clip.text + "\n"
    verbose = json.loads(answers["verbose_json"])
    seconds = len(clip.samples) / 16_000
    assert abs(verbose["duration"] - seconds) < 0.1
    assert verbose["language"] == {"de": "german", "en": "english"}[clip.language]
    (segment,) = verbose["segments"]
    assert 0 <= segment["start"] < segment["end"] <= seconds
    for subtitles in (answers["srt"], answers["vtt"]):
        assert subtitles.count(" --> ") == 1
        assert f"\n{clip.text}\n" in subtitles


@pytest.mark.parametrize("model", ["whisper", "vllm", "plain"])
def test_a_stream_of_every_server(server: ServerUnderTest, model: str) -> None:
    audio = encode(join_clips([GERMAN.name, GERMAN.name], 3.0), "flac")
    deltas, done = transcribe_streaming(server, audio, model=model, language="de")
    assert "".join(deltas) == done["text"] == "Sechs fünf neun. Sechs fünf neun."
    assert len(deltas) == (2 if model == "whisper" else 6), "as fine as the server gives them"
    assert done["segments"][-1]["end"] > 0


def test_the_language_is_found_by_the_server(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode(GERMAN.samples, "wav"), model="whisper", response_format="verbose_json").json()
    assert (answer["language"], answer["text"]) == ("german", GERMAN.text)


def test_headerless_samples_become_a_file(server: ServerUnderTest) -> None:
    pcm = (ENGLISH.samples * 32767).astype("<i2").tobytes()
    form = {"data": {"model": "whisper", "language": "en"}, "files": {"file": ("x", pcm, "audio/pcm")}}
    answer = requests.post(f"{server.address}/v1/audio/transcriptions", timeout=60, **form)
    assert answer.json()["text"] == ENGLISH.text


def test_a_translation_where_a_field_asks_for_it(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode(GERMAN.samples, "wav"), "translations", model="whisper", response_format="verbose_json")
    assert answer.status_code == 200, answer.text
    assert answer.json()["task"] == "translate"


def test_a_translation_by_its_route(server: ServerUnderTest) -> None:
    assert server.post_audio(encode(GERMAN.samples, "wav"), "translations", model="vllm").json()["text"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("embedded", "Invalid request. If it is whisper-server: without --convert it reads wav, mp3 and flac only."),
        ("vllm", "Invalid or unsupported audio file."),
    ],
)
def test_junk_is_the_clients_fault(server: ServerUnderTest, model: str, said: str) -> None:
    answer = server.post_audio(b"no audio at all" * 100, model=model)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json()["error"]["message"].endswith(f"refuses this: {said}")
    assert answer.json()["error"]["code"] == "invalid_value"


def test_word_times_of_a_server_without(server: ServerUnderTest) -> None:
    form = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    for model in ("vllm", "plain"):
        error = server.post_audio(encode(ENGLISH.samples, "wav"), model=model, **form)
        assert (error.status_code, error.json()["error"]["code"]) == (400, "unsupported_feature"), error.text
