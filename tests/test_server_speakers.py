"""Speakers told apart by a real server, for the official client and others."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import requests
from openai.types.audio import TranscriptionDiarized

from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server
from tests.dialogues import Dialogue, build_dialogue
from tests.processes import read_command
from tests.recordings import (
    RATE,
    Samples,
    create_noise,
    create_silence,
    encode,
    encode_g711,
    encode_pcm,
    load_announcements,
    load_prompts,
    load_speech,
)

pytestmark = pytest.mark.slow

ROUTE = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def client(server: ServerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


@cache
def load_voices() -> tuple[list[Samples], list[Samples]]:
    """Sentences of the reader, and announcements: two women."""
    reader = load_speech()
    sentences = [reader[: int(6.9 * RATE)], reader[int(6.9 * RATE) : int(14.4 * RATE)], reader[int(14.4 * RATE) :]]
    return sentences, [samples for _, samples, _ in load_announcements()[:3]]


@cache
def build_conversation() -> Dialogue:
    """The reader and the announcer in turns."""
    reader, phone = load_voices()
    return build_dialogue([(number % 2, voice) for pair in zip(reader, phone, strict=True) for number, voice in enumerate(pair)])


@cache
def encode_conversation() -> bytes:
    return encode(build_conversation().samples, "flac")


def create_upload() -> tuple[str, bytes]:
    return "talk.flac", encode_conversation()


def build_reference(samples: Samples) -> str:
    return f"data:audio/flac;base64,{base64.b64encode(encode(samples, 'flac')).decode()}"


def test_diarized_json(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=create_upload(), model="gpt-4o-transcribe-diarize", response_format="diarized_json", chunking_strategy="auto"
    )
    plain = client.audio.transcriptions.create(file=create_upload(), model="whisper-1")
    assert isinstance(answer, TranscriptionDiarized)
    assert TranscriptionDiarized.model_validate(answer.model_dump(), strict=True)
    assert answer.text == " ".join(segment.text for segment in answer.segments)
    # Which windows share a batch may change a word of the model's.
    assert SequenceMatcher(None, answer.text.split(), plain.text.split()).ratio() > 0.9
    assert join_turns([segment.speaker for segment in answer.segments]) == ["A", "B"] * 3
    assert len({segment.id for segment in answer.segments}) == len(answer.segments)
    assert answer.duration == pytest.approx(len(build_conversation().samples) / RATE, abs=0.1)
    assert answer.usage.type == "duration"


def join_turns(speakers: list[str]) -> list[str]:
    return [name for number, name in enumerate(speakers) if number == 0 or speakers[number - 1] != name]


def test_a_stream_has_the_text_first_and_the_speakers_at_the_end(client: openai.OpenAI) -> None:
    stream = client.audio.transcriptions.create(
        file=create_upload(), model="gpt-4o-transcribe-diarize", response_format="diarized_json", stream=True
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert join_turns(kinds) == ["transcript.text.delta", "transcript.text.segment", "transcript.text.done"]
    text = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert text == events[-1].text == " ".join(segment.text for segment in segments)
    assert {segment.speaker for segment in segments} == {"A", "B"}
    assert [segment["speaker"] for segment in events[-1].segments] == [segment.speaker for segment in segments]


def test_speakers_in_other_formats(server: ServerUnderTest) -> None:
    verbose = server.post_audio(encode_conversation(), diarize="true", response_format="verbose_json").json()
    assert {segment["speaker"] for segment in verbose["segments"]} == {"A", "B"}
    srt = server.post_audio(encode_conversation(), diarize="true", response_format="srt").text
    cues = [cue.splitlines()[2] for cue in srt.strip().split("\n\n")]
    assert {cue[:3] for cue in cues} == {"A: ", "B: "}
    shaped = server.post_audio(
        encode_conversation(), diarize="true", response_format="vtt", subtitles="broadcast", min_speakers="2", max_speakers="2"
    ).text
    assert shaped.count("A: ") == shaped.count("B: ") == 3, "where the speaker changes"


def test_formats_without_room_for_speakers_say_so(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode_conversation(), diarize="true", max_speakers="3")
    assert answer.headers["x-eardrum-ignored"] == "diarize, max_speakers"
    assert answer.json().keys() == {"text", "usage"}


def test_known_speakers(client: openai.OpenAI) -> None:
    references = [build_reference(load_announcements()[10][1]), build_reference(create_other_voice())]
    answer = client.audio.transcriptions.create(
        file=create_upload(),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        known_speaker_names=["Allison", "Pico, the third"],
        known_speaker_references=references,
    )
    assert join_turns([segment.speaker for segment in answer.segments]) == ["A", "Allison"] * 3


@cache
def create_other_voice() -> Samples:
    """A German voice that is in none of the recordings."""
    return np.concatenate(load_prompts("de")[:2])[: 10 * RATE]


BAD_REFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "silence": ({"one": create_silence(3)}, "'one' holds no speech"),
    "too short": ({"one": load_announcements()[10][1][: RATE // 2]}, "'one' holds (only 0.. s of|no) speech"),
    "one voice twice": (
        {"one": load_announcements()[10][1], "two": load_announcements()[20][1]},
        "'one' and 'two' sound like one person",
    ),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
@pytest.mark.parametrize("stream", [False, True])
def test_references_that_cannot_be_used(client: openai.OpenAI, case: str, stream: bool) -> None:
    voices, says = BAD_REFERENCES[case]
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.audio.transcriptions.create(
            file=create_upload(),
            model="gpt-4o-transcribe-diarize",
            response_format="diarized_json",
            stream=stream,
            known_speaker_names=list(voices),
            known_speaker_references=list(map(build_reference, voices.values())),
        )
    assert caught.value.param == "known_speaker_references"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"known_speaker_names[]": ["a"]}, "There are 1 known_speaker_names and 0 known_speaker_references"),
        ({"known_speaker_names[]": ["a"], "known_speaker_references[]": ["AAAA"]}, "must be a data URL"),
        (
            {"known_speaker_names[]": ["a"], "known_speaker_references[]": ["data:audio/wav;base64,AAAA"]},
            "The reference of 'a': The file cannot be decoded",
        ),
        ({"min_speakers": ["3"], "max_speakers": ["2"]}, r"min_speakers \(3\) is more than max_speakers \(2\)"),
        ({"max_speakers": ["0"]}, "max_speakers must be a whole number from 1 to 1000"),
    ],
)
def test_bad_fields(server: ServerUnderTest, fields: dict[str, list[str]], says: str) -> None:
    form = [(name, value) for name, values in {"response_format": ["diarized_json"], **fields}.items() for value in values]
    answer = requests.post(f"{server.address}{ROUTE}", data=form, files={"file": create_upload()}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert re.search(says, answer.json()["error"]["message"])


@pytest.mark.parametrize("samples", [create_silence(4), create_noise(4)], ids=["silence", "noise"])
def test_nobody_speaks(server: ServerUnderTest, samples: Samples) -> None:
    answer = server.post_audio(encode(samples, "flac"), response_format="diarized_json").json()
    assert (answer["text"], answer["segments"]) == ("", [])


def test_one_speaker(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode(load_speech(), "mp3"), response_format="diarized_json").json()
    assert {segment["speaker"] for segment in answer["segments"]} == {"A"}
    forty = server.post_audio(encode(load_speech(), "mp3"), response_format="diarized_json", max_speakers="40").json()
    assert forty["segments"] == answer["segments"]


def test_damaged_audio_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be decoded") as caught:
        client.audio.transcriptions.create(file=("a.mp3", b"no sound"), model="whisper-1", response_format="diarized_json")
    assert caught.value.param == "file"


def test_whisper_asr_webservice(server: ServerUnderTest) -> None:
    answer = requests.post(f"{server.address}/asr?output=json&diarize=true", files={"audio_file": create_upload()}, timeout=120)
    assert {segment["speaker"] for segment in answer.json()["segments"]} == {"A", "B"}
    assert "x-eardrum-ignored" not in answer.headers


def test_a_server_behind_a_model_and_a_key_for_one_model(server: ServerUnderTest, tmp_path: Path) -> None:
    config = {
        "models": {"far": {"proxy": server.address, "use_model_name": "moonshine-tiny-en"}},
        "api_keys": [{"key": "only-far", "models": ["far"]}],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with run_server("--config", str(tmp_path / "config.yaml")) as gateway:
        answer = requests.post(
            f"{gateway.address}{ROUTE}",
            data={"model": "far", "response_format": "diarized_json"},
            files={"file": create_upload()},
            headers={"authorization": "Bearer only-far"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        assert join_turns([segment["speaker"] for segment in answer.json()["segments"]]) == ["A", "B"] * 3


def test_the_process_that_tells_speakers_apart_is_replaced(server: ServerUnderTest) -> None:
    server.post_audio(encode_conversation(), response_format="diarized_json")
    (process,) = [runner for runner in server.list_runners() if "speakers" in read_command(runner)]
    process.kill()
    process.wait(60)
    answer = server.post_audio(encode_conversation(), response_format="diarized_json")
    assert {segment["speaker"] for segment in answer.json()["segments"]} == {"A", "B"}


def test_the_command_line_here_and_through_a_server(server: ServerUnderTest, tmp_path: Path) -> None:
    recording = tmp_path / "talk.flac"
    recording.write_bytes(encode_conversation())
    arguments = ["transcribe", str(recording), "--diarize", "--max-speakers", "2", "--format", "srt,verbose_json"]
    found = []
    for name, more in (("here", []), ("there", ["--server", server.address])):
        run_eardrum(*arguments, "--output-dir", str(tmp_path / name), *more)
        cues = (tmp_path / name / "talk.srt").read_text().strip().split("\n\n")
        assert join_turns([cue.splitlines()[2][:3] for cue in cues]) == ["A: ", "B: "] * 3
        segments = json.loads((tmp_path / name / "talk.json").read_text())["segments"]
        found.append(segments)
    assert [segment["speaker"] for segment in found[0]] == [segment["speaker"] for segment in found[1]]
    starts = [[segment["start"] for segment in segments] for segments in found]
    assert starts[0] == pytest.approx(starts[1], abs=0.5), "which windows share a batch may change a word, and so its place"


def test_a_job(tmp_path: Path) -> None:
    with run_server("--set", f"jobs.dir={tmp_path}") as gateway:
        jobs = f"{gateway.address}/api/jobs"
        wanted = {"response_format": "diarized_json", "min_speakers": "2", "max_speakers": "2"}
        job = requests.post(jobs, data=wanted, files={"file": create_upload()}, timeout=60).json()
        assert requests.get(f"{jobs}/{job['id']}?wait=60", timeout=100).json()["status"] == "completed"
        found = requests.get(f"{jobs}/{job['id']}/result", timeout=60).json()
        assert join_turns([segment["speaker"] for segment in found["segments"]]) == ["A", "B"] * 3
        srt = requests.get(f"{jobs}/{job['id']}/result?response_format=srt", timeout=60).text
        assert join_turns([cue.splitlines()[2][:3] for cue in srt.strip().split("\n\n")]) == ["A: ", "B: "] * 3
        plain = requests.post(jobs, files={"file": create_upload()}, timeout=60).json()
        assert requests.get(f"{jobs}/{plain['id']}?wait=60", timeout=100).json()["status"] == "completed"
        late = requests.get(f"{jobs}/{plain['id']}/result?response_format=diarized_json", timeout=60)
        assert (late.status_code, "did not request speakers" in late.text) == (400, True)
        known = {"known_speaker_names[]": "a", "known_speaker_references[]": "data:audio/wav;base64,UklGRg=="}
        refused = requests.post(jobs, data=wanted | known, files={"file": create_upload()}, timeout=60)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "known_speaker_references")


@cache
def build_live_conversation() -> Samples:
    """The conversation with pauses that end an utterance."""
    reader, phone = load_voices()
    turns = [(number % 2, voice) for pair in zip(reader, phone, strict=True) for number, voice in enumerate(pair)]
    return np.concatenate([build_dialogue(turns, gap_s=1.0).samples, create_silence(1.0)])


async def listen(server: ServerUnderTest, audio: bytes, **settings: str) -> list[dict[str, Any]]:
    """Send audio to a live session; returns all messages."""
    address = f"{server.address}/v1/audio/transcriptions/stream"
    async with asyncio.timeout(120), aiohttp.ClientSession() as http, http.ws_connect(address, params=settings) as socket:
        for at in range(0, len(audio), 1 << 16):
            await socket.send_bytes(audio[at : at + (1 << 16)])
        await socket.send_json({"type": "finish"})
        return [json.loads(message.data) async for message in socket]


@pytest.mark.parametrize(
    ("settings", "encode_audio"),
    [
        ({}, encode_pcm),
        ({"encoding": "f32le", "max_speakers": "2"}, lambda samples: samples.astype("<f4").tobytes()),
        ({"encoding": "mulaw", "sample_rate": "16000"}, lambda samples: encode_g711(samples, "pcm_mulaw")),
    ],
)
async def test_live_finals_have_speakers(
    server: ServerUnderTest, settings: dict[str, str], encode_audio: Callable[[Samples], bytes]
) -> None:
    heard = await listen(server, encode_audio(build_live_conversation()), diarize="true", **settings)
    assert heard[0]["diarize"] is True
    finals = [message for message in heard if message["type"] == "final" and message["text"]]
    assert join_turns([final["speaker"] for final in finals]) == ["A", "B"] * 3
    assert not [message for message in heard if message["type"] == "error"]
    plain = await listen(server, encode_audio(build_live_conversation()), **settings)
    assert "speaker" not in next(message for message in plain if message["type"] == "final")
    said, told = ([message["text"] for message in messages if message["type"] == "final"] for messages in (heard, plain))
    assert SequenceMatcher(None, " ".join(said).split(), " ".join(told).split()).ratio() > 0.9


async def test_speakers_of_a_live_container_are_refused(server: ServerUnderTest) -> None:
    error = (await listen(server, b"\x1aE\xdf\xa3", diarize="true", encoding="webm"))[-1]
    assert error.get("error", {}).get("param") == "diarize", error
    assert "cannot be cut out of a container" in error["error"]["message"]
