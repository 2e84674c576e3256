"""The official client and a real server: recordings pushed as fast as they were spoken, with the embedded model."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import av
import jiwer
import numpy as np
import openai
import pytest
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.exceptions import ConnectionClosedOK
from whisper_normalizer.english import EnglishTextNormalizer

from tests.conftest import ServerUnderTest, run_server
from tests.recordings import RATE, SPEECH_TEXT, Samples, create_silence, load_announcements, load_speech

pytestmark = pytest.mark.slow

normal = EnglishTextNormalizer()

TRANSCRIPTION = "conversation.item.input_audio_transcription"
COMPLETED = f"{TRANSCRIPTION}.completed"
PIECE_S = 0.05

Event = dict[str, Any]


def load_clip(name: str) -> tuple[Samples, str]:
    return next((samples, text) for found, samples, text in load_announcements() if found == name)


def encode_raw(samples: Samples, format: str = "s16le", rate: int = 24_000) -> bytes:
    """Without a header, in one of FFmpeg's raw formats."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=format) as output:
            sound = output.add_stream({"s16le": "pcm_s16le"}.get(format, f"pcm_{format}"), rate=rate)
            sound.layout = "mono"
            frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            resampler = av.AudioResampler("s16", "mono", rate)
            for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(sound.encode(resampled))
            output.mux(sound.encode(None))
        return file.read()


@asynccontextmanager
async def connect_client(server: ServerUnderTest, **query: str) -> AsyncIterator[AsyncRealtimeConnection]:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
        client.realtime.connect(extra_query={"intent": "transcription", **query}) as connection,
    ):
        assert (await connection.recv()).type == "session.created"
        yield connection


async def push_audio(connection: AsyncRealtimeConnection, audio: bytes, bytes_per_s: int) -> None:
    """At the speed at which it was spoken."""
    begun, size = time.monotonic(), int(bytes_per_s * PIECE_S)
    for number, start in enumerate(range(0, len(audio), size)):
        await asyncio.sleep(begun + number * PIECE_S - time.monotonic())
        await connection.input_audio_buffer.append(audio=base64.b64encode(audio[start : start + size]).decode())


async def collect_events(
    connection: AsyncRealtimeConnection, times: int = 1, *, until: str = COMPLETED, within_s: float = 60
) -> list[Any]:
    """Events up to the one that is so many times of this type; none is an error."""
    events: list[Any] = []
    async with asyncio.timeout(within_s):
        while times:
            events.append(await connection.recv())
            assert events[-1].type != "error", events[-1]
            times -= events[-1].type == until
    return events


def list_transcripts(events: list[Any]) -> list[str]:
    """The transcripts, of which each is what its deltas say."""
    deltas: dict[str, str] = {}
    transcripts = []
    for event in events:
        if event.type == f"{TRANSCRIPTION}.delta":
            deltas[event.item_id] = deltas.get(event.item_id, "") + event.delta
        elif event.type == COMPLETED:
            assert deltas.get(event.item_id, "") == event.transcript
            assert event.usage.type == "duration"
            transcripts.append(event.transcript)
    return transcripts


async def test_the_server_hears_where_speech_begins_and_ends(server: ServerUnderTest) -> None:
    one, first = load_speech()[: int(6.9 * RATE)], SPEECH_TEXT.split(". Had")[0]
    two, second = load_clip("cannot-complete-as-dialed")
    audio = encode_raw(np.concatenate([create_silence(0.5), one, create_silence(1.0), two, create_silence(1.0)]))
    async with connect_client(server) as connection:
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
        )
        assert (await connection.recv()).type == "session.updated"
        pushing = asyncio.ensure_future(push_audio(connection, audio, 48_000))
        events = await collect_events(connection, 2)
        await pushing
    assert jiwer.wer([normal(first), normal(second)], [normal(text) for text in list_transcripts(events)]) < 0.1, (
        list_transcripts(events)
    )
    kinds = [event.type for event in events]
    ends = [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    for number in range(2):
        items = [event for event in events if event.type == "input_audio_buffer.speech_started"]
        mine = [event.type for event in events if getattr(event, "item_id", None) == items[number].item_id]
        assert mine[0] == "input_audio_buffer.speech_started"
        assert mine[-1] == COMPLETED
        at = kinds.index(ends[0])
        assert kinds[at : at + 4] == ends
    (begun, *_), (stopped, *_) = (
        [event for event in events if event.type == f"input_audio_buffer.speech_{name}"] for name in ("started", "stopped")
    )
    assert begun.audio_start_ms == pytest.approx(500, abs=250), "300 ms before the speech"
    assert stopped.audio_end_ms == pytest.approx(500 + len(one) / 16, abs=800)


async def test_the_client_says_where_speech_ends(server: ServerUnderTest) -> None:
    samples, text = load_clip("vm-newpassword")
    async with connect_client(server, model="whisper-1") as connection:
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        updated = await connection.recv()
        assert updated.type == "session.updated"
        assert updated.session.audio.input.turn_detection is None
        await push_audio(connection, encode_raw(samples), 48_000)
        await connection.input_audio_buffer.commit()
        events = await collect_events(connection)
        assert jiwer.wer(normal(text), normal(list_transcripts(events)[0])) < 0.1, list_transcripts(events)
        kinds = {event.type for event in events}
        assert not kinds & {"input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"}
        assert events[-1].usage.seconds == pytest.approx(len(samples) / 16_000, abs=0.1)
        await connection.input_audio_buffer.commit(event_id="again")
        refused = await connection.recv()
        assert (refused.type, refused.error.code, refused.error.event_id) == ("error", "input_audio_buffer_commit_empty", "again")
        await connection.input_audio_buffer.append(audio=base64.b64encode(encode_raw(samples)).decode())
        await connection.input_audio_buffer.commit()
        assert jiwer.wer(normal(text), normal(list_transcripts(await collect_events(connection))[0])) < 0.1, (
            "all at once, in one event"
        )


async def test_text_comes_while_somebody_speaks(server: ServerUnderTest) -> None:
    """However busy the machine: on one that is, it comes later."""
    audio = encode_raw(load_speech()) * 10
    async with connect_client(server) as connection:
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        pushing = asyncio.ensure_future(push_audio(connection, audio, 48_000))
        meanwhile = await collect_events(connection, until=f"{TRANSCRIPTION}.delta", within_s=120)
        assert not pushing.done()
        pushing.cancel()
        await connection.input_audio_buffer.commit()
        (text,) = list_transcripts(meanwhile + await collect_events(connection, within_s=120))
    assert text.startswith(meanwhile[-1].delta)


@pytest.mark.parametrize(("kind", "format"), [("audio/pcmu", "mulaw"), ("audio/pcma", "alaw")])
async def test_audio_of_telephones(server: ServerUnderTest, kind: str, format: str) -> None:
    samples, text = load_clip("confbridge-only-one")
    async with connect_client(server) as connection:
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {"format": {"type": kind}, "turn_detection": None}}}
        )
        assert (await connection.recv()).type == "session.updated"
        await connection.input_audio_buffer.append(audio=base64.b64encode(encode_raw(samples, format, 8_000)).decode())
        await connection.input_audio_buffer.commit()
        assert jiwer.wer(normal(text), normal(list_transcripts(await collect_events(connection))[0])) < 0.2


async def test_a_client_of_the_beta(server: ServerUnderTest) -> None:
    """As a known voice assistant does it: detection by the server, a commit when the microphone closes, the first transcript."""
    samples, text = load_clip("confbridge-only-one")
    update = {
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "gpt-4o-mini-transcribe", "prompt": "", "language": "en"},
        "turn_detection": {"type": "server_vad"},
        "input_audio_noise_reduction": None,
    }
    events: list[Event] = []
    headers = {"OpenAI-Beta": "realtime=v1"}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.address}/v1/realtime?intent=transcription&rate=16000", headers=headers) as socket,
    ):
        await socket.send_json({"type": "transcription_session.update", "session": update})
        for piece in np.array_split((samples * 32767).astype("<i2"), 20):
            await socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(piece.tobytes()).decode()})
        await socket.send_json({"type": "input_audio_buffer.commit"})
        async with asyncio.timeout(30):
            while not events or events[-1]["type"] != COMPLETED:
                events.append(json.loads((await socket.receive()).data))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["transcription_session.created", "transcription_session.updated"]
    assert "conversation.item.created" in kinds
    assert not {"error", "conversation.item.added", "conversation.item.done"} & set(kinds)
    assert jiwer.wer(normal(text), normal(events[-1]["transcript"])) < 0.1


@pytest.fixture
def own_server() -> Iterator[ServerUnderTest]:
    with run_server("--set", "shutdown_timeout=60") as started:  # a busy machine may take long to load the model
        yield started


async def test_the_last_words_come_before_the_server_ends(own_server: ServerUnderTest) -> None:
    samples, text = load_clip("confbridge-only-one")
    async with connect_client(own_server) as connection:
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        assert (await connection.recv()).type == "session.updated"
        await connection.input_audio_buffer.append(audio=base64.b64encode(encode_raw(samples)).decode())
        await connection.session.update(session={"type": "transcription"})
        await collect_events(connection, until="session.updated")  # so the audio has arrived, too
        own_server.process.terminate()
        assert jiwer.wer(normal(text), normal(list_transcripts(await collect_events(connection))[0])) < 0.1
        with pytest.raises(ConnectionClosedOK) as closed:
            await connection.recv()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1001
    await asyncio.to_thread(own_server.process.wait, 60)


async def test_a_session_outlives_the_process_of_its_model(own_server: ServerUnderTest) -> None:
    samples, text = load_clip("confbridge-only-one")
    audio = base64.b64encode(encode_raw(samples)).decode()
    async with connect_client(own_server) as connection:
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        assert (await connection.recv()).type == "session.updated"
        for number in range(2):
            if number:
                own_server.list_runners()[0].kill()
            await connection.input_audio_buffer.append(audio=audio)
            await connection.input_audio_buffer.commit()
            (said_now,) = list_transcripts(await collect_events(connection))
            assert jiwer.wer(normal(text), normal(said_now)) < 0.1
