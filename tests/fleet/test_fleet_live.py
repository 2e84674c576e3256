"""Live sessions of the embedded model on two runners, of which one is killed or suspended in the middle."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eardrum.gateway.live import find_live_model
from eardrum.live import FinalTranscript, SessionSettings, SpeechStarted, UtteranceCommitted
from tests.fleet.fleets import PATIENCE_S, TOKEN, FleetRunner, run_runners
from tests.gateway.live.number_speaker import LiveSpeaker, open_speaker, run_service
from tests.recordings import SPEECH_TEXT, create_silence, encode_pcm, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(600)]

PIECE = 3200


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FleetRunner]]:
    with run_runners(tmp_path_factory.mktemp("live"), 2, {"source": "moonshine-tiny-en"}, {}) as runners:
        yield runners


def split_words(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


async def push_audio(speaker: LiveSpeaker, audio: bytes) -> None:
    for at in range(0, len(audio), PIECE):
        await speaker.session.feed(audio[at : at + PIECE])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_a_session_goes_on_with_another_runner(runners: list[FleetRunner], tmp_path: Path, number: int) -> None:
    recording = encode_pcm(load_speech())
    at = len(recording) // 2 // PIECE * PIECE
    addresses = {"addresses": [runner.address for runner in runners], "token": TOKEN}
    models = {"m": {"source": "moonshine-tiny-en", "replicas": addresses}}
    async with run_service(tmp_path, models, default_model="m") as service:
        await service.load_model(find_live_model(service, "m"))
        async with open_speaker(service, "m", SessionSettings(partials=False)) as speaker:
            await push_audio(speaker, recording[:at])
            await speaker.wait_until(lambda: speaker.list_events(SpeechStarted), PATIENCE_S)
            (status,) = service.list_processes()
            (busy,) = [replica.address for replica in status.replicas if replica.requests]
            (runner,) = [runner for runner in runners if runner.address == busy]
            runner.send_signal(number)
            await push_audio(speaker, recording[at:] + encode_pcm(create_silence(1)))
            await speaker.finish_session(PATIENCE_S)
        words = split_words(" ".join(speaker.texts[number] for number in sorted(speaker.texts)))
        assert words == split_words(SPEECH_TEXT)
        assert [event.utterance for event in speaker.list_events(FinalTranscript)] == [
            event.utterance for event in speaker.list_events(UtteranceCommitted)
        ]
        (status,) = service.list_processes()
        assert [replica.moved >= 1 for replica in status.replicas if replica.address == busy] == [True]
    if number == signal.SIGSTOP:
        runner.send_signal(signal.SIGCONT)
    else:
        assert runner.process
        await asyncio.to_thread(runner.process.wait, 60)
        runner.start()
        await asyncio.to_thread(runner.wait_ready)
