"""The speakers of a live session: voices that are compared with those before. And labels where memory holds one model only."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from eardrum.gateway import speakers
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.speakers import MAX_REMEMBERED_S, SpeakerVoices
from eardrum.live import FinalTranscript, SessionSettings
from eardrum.speakers import VoicePrint
from eardrum.transcription import Priority, TranscriptionRequest
from tests.gateway.live.number_speaker import build_model, open_speaker, run_service, speak_sentence


def create_voice(degrees: float, speech_s: float = 3.0) -> VoicePrint:
    """Voices in a plane: the cosine of the angle between two is their likeness."""
    return VoicePrint((math.cos(math.radians(degrees)), math.sin(math.radians(degrees))), speech_s)


def assign(*voices: VoicePrint, most: int | None = None) -> list[int | None]:
    speakers = SpeakerVoices()
    return [speakers.choose_speaker(voice, most) for voice in voices]


def test_like_voices_are_one_speaker() -> None:
    assert assign(*map(create_voice, (0, 90, 10, 80, 180, 5))) == [0, 1, 0, 1, 2, 0]


def test_a_short_remark_makes_nobody_new_but_the_first_one() -> None:
    assert assign(create_voice(0, 0.5), create_voice(80, 0.5), create_voice(80, 2.0)) == [0, 0, 1]


def test_there_are_no_more_speakers_than_are_known_of() -> None:
    assert assign(*map(create_voice, (0, 90, 200, 100)), most=2) == [0, 1, 1, 1]
    assert assign(*map(create_voice, (0, 90)), most=1) == [0, 0]


def test_silence_has_no_speaker() -> None:
    assert assign(VoicePrint(()), create_voice(0), VoicePrint(())) == [None, 0, None]


def test_a_voice_follows_its_speaker_but_not_another_one() -> None:
    steps = [create_voice(degrees) for degrees in range(0, 100, 10)]
    assert assign(*steps) == [0] * 10, "ten degrees at a time"
    strangers = [create_voice(0), *[create_voice(75, 0.5)] * 20, create_voice(75)]
    assert assign(*strangers) == [0] * 21 + [1], "what is too short to be somebody new does not change the voice"


def test_the_mean_of_a_voice_has_the_length_1() -> None:
    speakers = SpeakerVoices()
    for degrees in (0, 40, 20, 30):
        speakers.choose_speaker(create_voice(degrees, 40.0))
    (voice,) = speakers._voices
    assert math.hypot(*voice.values) == pytest.approx(1.0)
    assert voice.speech_s == MAX_REMEMBERED_S


SMALL_POOL = {"cpu": "310M"}
"""Memory for the speakers' model, or for one of this size, but not for both."""
MODEL_SIZE = {"memory": "300M"}


@pytest.mark.slow
async def test_a_recording_is_labelled_where_memory_holds_one_model_at_a_time(tmp_path: Path) -> None:
    models = {"m": build_model(tmp_path, entry=MODEL_SIZE)}
    async with run_service(tmp_path, models, memory=SMALL_POOL) as service:
        model = await service.load_model(service.find_model("m"))
        with service.create_spool() as spool:
            await spool.write(speak_sentence(1, 2))
            spool.finish()
            async with asyncio.timeout(30):
                transcript = await service.transcribe(model, TranscriptionRequest(speakers=True, raw_pcm=True), spool)
        assert [(segment.text, segment.speaker) for segment in transcript.segments] == [("1 2", "A")]
        assert service.get_state(model) is ModelState.STOPPED, "the speakers' model fits beside it"


@pytest.mark.slow
async def test_live_texts_come_without_speakers_where_memory_holds_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakers, "MAX_SEARCH_S", 0.5)
    models = {"m": build_model(tmp_path, entry=MODEL_SIZE)}
    wanted = SessionSettings(TranscriptionRequest(speakers=True, priority=Priority.LIVE))
    async with run_service(tmp_path, models, memory=SMALL_POOL) as service, open_speaker(service, "m", wanted) as speaker:
        await speaker.session.feed(speak_sentence(1) + speak_sentence(2))
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "2"}
        assert [final.speaker for final in speaker.list_events(FinalTranscript)] == ["", ""]
