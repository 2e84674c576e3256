"""Live sessions with the embedded model, whose process is killed in the middle, and with a model behind an HTTP server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from eardrum.gateway.live import find_live_model
from eardrum.live import FinalTranscript, PartialTranscript, SessionSettings, UtteranceCommitted
from tests.conftest import run_server
from tests.gateway.live.number_speaker import LiveSpeaker, kill_runner, open_speaker, run_service
from tests.recordings import SAMPLE, SPEECH_TEXT, create_silence, encode_pcm, load_speech
from tests.upstreams import build_error, fake_after, fake_saying, fake_upstream

pytestmark = pytest.mark.slow

PIECE = 3200


def split_words(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


async def push_audio(speaker: LiveSpeaker, audio: bytes, *, pace: float = 0.0) -> None:
    """Feed the audio in pieces of a tenth of a second."""
    for at in range(0, len(audio), PIECE):
        await speaker.session.feed(audio[at : at + PIECE])
        await asyncio.sleep(pace)


def join_text(speaker: LiveSpeaker) -> str:
    return " ".join(speaker.texts[number] for number in sorted(speaker.texts))


@pytest.mark.parametrize(
    ("settings", "part"), [(SessionSettings(), 0.3), (SessionSettings(), 0.8), (SessionSettings(endpointing=None), 0.55)]
)
async def test_no_word_is_lost_when_the_process_is_killed(tmp_path: Path, settings: SessionSettings, part: float) -> None:
    recording = encode_pcm(load_speech())
    at = int(len(recording) * part) // PIECE * PIECE
    async with run_service(tmp_path, {}) as service, open_speaker(service, settings=settings) as speaker:
        await service.load_model(find_live_model(service, ""))
        await push_audio(speaker, recording[:at], pace=0.02)
        # On a busy machine the utterance may be over before there was time for a partial.
        await speaker.wait_until(lambda: speaker.list_events(PartialTranscript) or speaker.list_events(FinalTranscript))
        kill_runner(service)
        await push_audio(speaker, recording[at:] + encode_pcm(create_silence(1)), pace=0.02)
        await speaker.finish_session(60)
        assert split_words(join_text(speaker)) == split_words(SPEECH_TEXT)
        assert [event.utterance for event in speaker.list_events(FinalTranscript)] == [
            event.utterance for event in speaker.list_events(UtteranceCommitted)
        ]
        finals = {final.utterance: final.text for final in speaker.list_events(FinalTranscript)}
        assert all(finals[partial.utterance].startswith(partial.stable) for partial in speaker.list_events(PartialTranscript))


async def test_a_client_does_not_notice_that_the_process_was_killed() -> None:
    recording = encode_pcm(load_speech()) + encode_pcm(create_silence(1))
    with run_server() as server:
        assert server.post_audio(SAMPLE.read_bytes()).status_code == 200
        (runner,) = server.list_runners()
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{server.address}/v1/audio/transcriptions/stream") as socket:
            for at in range(0, len(recording), PIECE):
                await socket.send_bytes(recording[at : at + PIECE])
                await asyncio.sleep(0.02)
                if at <= len(recording) // 2 < at + PIECE:
                    runner.kill()
            await socket.send_json({"type": "finish"})
            async with asyncio.timeout(60):
                heard = [json.loads(message.data) async for message in socket]
        assert socket.close_code == 1000
    finals = [message for message in heard if message["type"] == "final"]
    assert split_words(" ".join(final["text"] for final in finals)) == split_words(SPEECH_TEXT)
    assert [final["utterance"] for final in finals] == list(range(1, len(finals) + 1))
    assert not [message for message in heard if message["type"] == "error"]
    server.wait_for_log("The live session continues in a new process.")
    server.wait_for_log("SOCKET /v1/audio/transcriptions/stream 101")
    assert len([line for line in server.log.splitlines() if "SOCKET /v1/audio/transcriptions/stream 101" in line]) == 1


async def test_a_server_that_takes_recordings_has_live_sessions_through_the_engine_openai_api(tmp_path: Path) -> None:
    with fake_upstream(fake_saying({"text": "Hello there."})) as upstream:
        models = {"cloud": {"engine": "openai_api", "options": {"url": f"{upstream.url}/v1", "response_format": "json"}}}
        async with run_service(tmp_path, models) as service, open_speaker(service, "cloud") as speaker:
            await push_audio(speaker, encode_pcm(load_speech()) + encode_pcm(create_silence(1)))
            await speaker.finish_session(60)
            assert set(speaker.texts.values()) == {"Hello there."}
            assert len(upstream.calls) >= len(speaker.texts)


async def test_a_server_that_fails_costs_the_utterance_and_not_the_session(tmp_path: Path) -> None:
    with fake_upstream(fake_after([lambda: build_error(400, "No.")] * 20, fake_saying({"text": "Hello there."}))) as upstream:
        options = {"url": f"{upstream.url}/v1", "response_format": "json", "retries": 0}
        async with (
            run_service(tmp_path, {"cloud": {"engine": "openai_api", "options": options}}) as service,
            open_speaker(service, "cloud", SessionSettings(partials=False)) as speaker,
        ):
            while "Hello there." not in speaker.texts.values():
                said = len(speaker.texts)
                await push_audio(speaker, encode_pcm(load_speech())[: 5 * 32_000] + encode_pcm(create_silence(1)))
                await speaker.wait_until(lambda said=said: len(speaker.texts) > said)
            assert "failed" in speaker.texts.values()
            await speaker.finish_session()
