"""Live sessions that hold their model, rest, and outlive its process: real processes that die."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from eardrum.errors import (
    BusyError,
    InvalidRequestError,
    ModelLoadError,
    ModelUnloadedError,
    RunnerCrashedError,
    ShuttingDownError,
    UnsupportedFeatureError,
)
from eardrum.gateway.live import find_live_model
from eardrum.gateway.live import replay_buffer as tape_module
from eardrum.gateway.scheduler import ModelState
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    CommandRefused,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    SessionPaused,
    SessionSettings,
    SpeechStarted,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.transcription import TranscriptionRequest
from tests.conftest import wait_for
from tests.gateway.live.number_speaker import (
    build_model,
    create_silence,
    kill_runner,
    open_speaker,
    run_service,
    speak_sentence,
    speak_words,
)

pytestmark = pytest.mark.slow

MANUAL = SessionSettings(endpointing=None)


async def test_a_session_is_open_before_its_model_is_loaded_and_loses_nothing(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, load_s=1.5)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1, 2, 3))
        await asyncio.sleep(0.1)
        assert service.get_state(find_live_model(service, "m")) is ModelState.STARTING
        await speaker.session.feed(speak_sentence(4, 5))
        events = await speaker.finish_session()
        assert speaker.texts == {1: "1 2 3", 2: "4 5"}
        assert isinstance(events[-1], SessionEnded)
        assert events[-1].duration == pytest.approx(2.2, abs=0.05)
        assert speaker.session.summary.windows == 2


async def test_who_speaks_too_far_ahead_of_the_load_waits(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, load_s=1.0)}) as service, open_speaker(service) as speaker:
        speech = create_silence(40.0)
        began = time.monotonic()
        await speaker.session.feed(speech)
        assert service.get_state(find_live_model(service, "m")) is not ModelState.READY, "it does not wait for the model"
        await speaker.session.feed(speech)
        assert time.monotonic() - began > 1.0
        await speaker.finish_session()


async def test_a_model_with_a_session_is_neither_evicted_nor_unloaded_by_its_ttl(tmp_path: Path) -> None:
    entry = {"ttl": 0.2}
    async with run_service(tmp_path, {"m": build_model(tmp_path, entry=entry)}) as service:
        async with open_speaker(service) as speaker:
            await speaker.session.feed(speak_sentence(1))
            await speaker.wait_until(lambda: speaker.texts)
            await asyncio.sleep(0.6)
            (status,) = service.list_processes()
            assert (status.state, status.requests) == (ModelState.READY, 1)
            await speaker.finish_session()
        await asyncio.to_thread(wait_for, lambda: service.list_processes() == [])


async def test_a_silent_session_rests_says_so_once_and_goes_on_with_the_model_loaded_again(tmp_path: Path) -> None:
    models = {"m": build_model(tmp_path, entry={"ttl": 0.1})}
    async with run_service(tmp_path, models, live={"idle_timeout": 0.5}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(SessionPaused))
        assert speaker.list_events(SessionPaused) == [SessionPaused(0.5)]
        await asyncio.to_thread(wait_for, lambda: service.list_processes() == [])
        await asyncio.to_thread(wait_for, lambda: service.count_requests(find_live_model(service, "m")) == 0)
        assert speaker.error is None
        await speaker.session.feed(speak_sentence(2, 3))
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "2 3"}
        assert len(speaker.list_events(SessionPaused)) == 1
        assert speaker.list_events(FinalTranscript)[1].start == pytest.approx(0.8, abs=0.05)


async def test_a_session_that_rests_is_finished_without_loading_its_model(tmp_path: Path) -> None:
    models = {"m": build_model(tmp_path)}
    async with run_service(tmp_path, models, live={"idle_timeout": 0.3}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(SessionPaused))
        await service.unload_model(find_live_model(service, "m"))
        await speaker.finish_session()
        assert speaker.texts == {1: "1"}
        assert service.list_processes() == []


@pytest.mark.parametrize("force", [False, True])
async def test_who_speaks_the_moment_a_resting_sessions_model_was_unloaded_notices_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, force: bool
) -> None:
    models = {"m": build_model(tmp_path)}
    async with run_service(tmp_path, models, live={"idle_timeout": 0.3}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(SessionPaused))
        await service.unload_model(find_live_model(service, "m"), force=force)
        await speaker.session.feed(speak_sentence(2, 3))
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "2 3"}
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_who_speaks_while_a_resting_sessions_model_is_being_stopped_is_not_suspected_of_a_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = {"m": build_model(tmp_path)}
    async with run_service(tmp_path, models, live={"idle_timeout": 0.3}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(SessionPaused))
        model = find_live_model(service, "m")
        unloading = asyncio.create_task(service.unload_model(model))
        await asyncio.sleep(0)
        assert service.get_state(model) is ModelState.STOPPING
        await speaker.session.feed(speak_sentence(2, 3))
        await unloading
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "2 3"}
        suspicion = speaker.session._suspicion
        assert (suspicion.crashes, suspicion.isolations, suspicion.suspected) == (0, 0, False)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_session_in_which_something_is_said_does_not_rest(tmp_path: Path) -> None:
    models = {"m": build_model(tmp_path)}
    async with run_service(tmp_path, models, live={"idle_timeout": 1.0}) as service, open_speaker(service) as speaker:
        await service.load_model(find_live_model(service, "m"))
        for _ in range(15):
            await speaker.session.feed(create_silence(0.1))
            await asyncio.sleep(0.1)
        assert speaker.list_events(SessionPaused) == []
        assert service.list_processes()[0].ttl_remaining is None


@pytest.mark.parametrize("settings", [SessionSettings(), MANUAL], ids=["pauses", "commits"])
async def test_no_final_is_lost_when_the_process_is_killed_in_mid_word(tmp_path: Path, settings: SessionSettings) -> None:
    models = {"m": build_model(tmp_path, decode_s=0.3)}
    async with run_service(tmp_path, models) as service, open_speaker(service, settings=settings) as speaker:
        await speaker.session.feed(speak_sentence(1, 2))
        await speaker.session.commit() if settings is MANUAL else None
        await speaker.session.feed(speak_sentence(3, 4))
        await speaker.session.commit() if settings is MANUAL else None
        await speaker.wait_until(lambda: len(speaker.list_events(UtteranceCommitted)) == 2)
        await speaker.session.feed(speak_words(5, 6))
        await speaker.wait_until(lambda: [event for event in speaker.list_events(PartialTranscript) if "6" in event.tentative])
        assert speaker.texts == {}
        first = kill_runner(service)
        await speaker.session.feed(speak_words(7) + create_silence())
        await speaker.finish_session()
        assert speaker.texts == {1: "1 2", 2: "3 4", 3: "5 6 7"}
        assert [event.utterance for event in speaker.list_events(UtteranceCommitted)] == [1, 2, 3]
        finals = speaker.list_events(FinalTranscript)
        assert [(final.start, final.end) for final in finals] == [
            (event.start, event.end) for event in speaker.list_events(UtteranceCommitted)
        ]
        assert finals[2].start == pytest.approx(2.0, abs=0.05) if settings is MANUAL else 1.6 < finals[2].start < 2.0
        assert service.list_processes()[0].pid != first


async def test_texts_are_whole_however_often_and_whenever_the_process_dies(tmp_path: Path) -> None:
    """Somebody says 42 sentences in pieces of any size; in every seventh the process is killed, wherever it just is."""
    dice = random.Random(11)
    async with run_service(tmp_path, {"m": build_model(tmp_path, decode_s=0.05)}) as service, open_speaker(service) as speaker:
        expected = {}
        for number in range(1, 43):
            words = [number * 100 + position for position in range(dice.randrange(1, 5))]
            expected[number] = " ".join(map(str, words))
            stream = speak_words(*words) + create_silence(dice.choice([0.6, 2.0]))
            fatal = dice.randrange(len(stream)) if number % 7 == 0 else 0
            while stream:
                size = dice.randrange(1, 9000)
                await speaker.session.feed(stream[:size])
                if fatal > 0 and len(stream) - size < fatal <= len(stream):
                    await service.load_model(find_live_model(service, "m"))
                    least = min(len(speaker.texts) + 1, number - 1)
                    kill_runner(service)
                    await speaker.wait_until(lambda least=least: len(speaker.texts) >= least)
                stream = stream[size:]
        await speaker.finish_session()
        assert speaker.texts == expected
        assert list(speaker.texts) == sorted(expected)


async def test_text_is_never_taken_back_when_the_process_dies(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service, open_speaker(service) as speaker:
        for value in range(1, 9):
            await speaker.session.feed(speak_words(value))
            await speaker.wait_until(
                lambda value=value: [event for event in speaker.list_events(PartialTranscript) if str(value) in event.tentative]
            )
            if value in (3, 6):
                kill_runner(service)
        await speaker.session.feed(create_silence())
        await speaker.finish_session()
        stable = [event.stable for event in speaker.list_events(PartialTranscript)]
        assert all(later.startswith(sooner) for sooner, later in zip(stable, [*stable[1:], speaker.texts[1]], strict=True))
        assert len(speaker.list_events(SpeechStarted)) == 1
        assert speaker.texts == {1: "1 2 3 4 5 6 7 8"}


async def test_what_is_too_long_to_be_heard_again_has_failed_and_the_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape_module, "SPEECH_KEPT_S", 1.0)
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 1.0)
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.session.feed(speak_words(*range(10, 20)))
        await speaker.wait_until(
            lambda: speaker.texts and [e for e in speaker.list_events(PartialTranscript) if "19" in e.tentative]
        )
        kill_runner(service)
        await speaker.wait_until(lambda: speaker.list_events(UtteranceFailed))
        await speaker.session.feed(create_silence() + speak_sentence(2))
        await speaker.finish_session()
        (failed,) = speaker.list_events(UtteranceFailed)
        assert isinstance(failed.error, RunnerCrashedError)
        assert speaker.texts == {1: "1", 2: "failed", 3: "15 16 17 18 19", 4: "2"}


async def test_a_process_that_dies_of_what_it_hears_ends_the_session_after_a_few_tries(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, dies_always=13)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.texts)
        await speaker.session.feed(speak_sentence(13))
        await speaker.wait_until(lambda: speaker.error)
        assert isinstance(speaker.error, RunnerCrashedError)
        assert "SIGKILL" in speaker.error.message
        await speaker.session.feed(speak_sentence(2))


async def test_a_word_that_kills_once_is_heard_the_next_time(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, dies_at=13)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(12, 13, 14))
        await speaker.finish_session()
        assert speaker.texts == {1: "12 13 14"}


async def test_an_utterance_without_text_does_not_end_the_session(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, fails_at=4)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1) + speak_sentence(4) + speak_sentence(5))
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "failed", 3: "5"}


async def test_a_stream_in_a_container_ends_with_its_process(tmp_path: Path) -> None:
    settings = SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER))
    async with (
        run_service(tmp_path, {"m": build_model(tmp_path)}) as service,
        open_speaker(service, settings=settings) as speaker,
    ):
        await speaker.session.feed(speak_sentence(1) + speak_words(2))
        await speaker.wait_until(lambda: speaker.texts and len(speaker.list_events(SpeechStarted)) == 2)
        kill_runner(service)
        await speaker.wait_until(lambda: speaker.error)
        assert speaker.error
        assert "in a container" in speaker.error.message
        assert speaker.texts == {1: "1", 2: "failed"}


async def test_one_session_too_many_is_refused_and_room_is_made_by_leaving(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}, live={"max_sessions": 2}) as service:
        async with open_speaker(service), open_speaker(service):
            with pytest.raises(BusyError, match=r"already has 2 live sessions \(live.max_sessions\)"):
                async with open_speaker(service):
                    pass
        async with open_speaker(service) as speaker:
            await speaker.session.feed(speak_sentence(1))
            await speaker.finish_session()


async def test_a_model_that_cannot_be_loaded_is_stood_in_for_by_its_fallback(tmp_path: Path) -> None:
    broken = build_model(tmp_path) | {"python": "/nowhere/python", "fallback": ["m"]}
    async with (
        run_service(tmp_path, {"broken": broken, "m": build_model(tmp_path)}) as service,
        open_speaker(service, "broken") as speaker,
    ):
        await speaker.session.feed(speak_sentence(1))
        await speaker.finish_session()
        assert speaker.texts == {1: "1"}
        assert speaker.session.summary.model == "m"


async def test_a_model_that_cannot_be_loaded_ends_the_session(tmp_path: Path) -> None:
    models = {"broken": build_model(tmp_path) | {"python": "/nowhere/python"}}
    async with run_service(tmp_path, models) as service, open_speaker(service) as speaker:
        await speaker.wait_until(lambda: speaker.error)
        assert isinstance(speaker.error, ModelLoadError)


async def test_models_of_other_servers_are_refused_by_name(tmp_path: Path) -> None:
    models = {
        "ears": {"proxy": "http://127.0.0.1:9", "capabilities": {"inputs": ["audio"], "outputs": ["text"]}},
        "m": build_model(tmp_path),
        "chat": {"proxy": "http://127.0.0.1:9"},
    }
    async with run_service(tmp_path, models) as service:
        with pytest.raises(UnsupportedFeatureError, match=r"chat is not a model for speech. Models for live sessions: m"):
            find_live_model(service, "chat")
        with pytest.raises(UnsupportedFeatureError, match="engine: openai_api"):
            find_live_model(service, "ears")
        assert find_live_model(service, "").id == find_live_model(service, "whisper-1").id == "m", (
            "who names none gets one that can"
        )
        assert service.find_model("whisper-1").id == "ears", "for a recording"


async def test_what_the_model_cannot_do_is_refused_at_once_and_in_the_middle(tmp_path: Path) -> None:
    probabilities = SessionSettings(request=TranscriptionRequest(logprobs=True))
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service:
        with pytest.raises(UnsupportedFeatureError):
            async with open_speaker(service, settings=probabilities):
                pass
        async with open_speaker(service) as speaker:
            await speaker.session.feed(speak_words(1))
            await speaker.session.configure(probabilities)
            await speaker.session.configure(SessionSettings(format=AudioFormat(rate=8000)))
            await speaker.finish_session()
            one, other = speaker.list_events(CommandRefused)
            assert isinstance(one.error, UnsupportedFeatureError)
            assert isinstance(other.error, InvalidRequestError)
            assert speaker.texts == {1: "1"}


async def test_other_settings_hold_for_the_next_process_too(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.session.configure(MANUAL)
        await speaker.session.feed(speak_sentence(2))
        await speaker.wait_until(lambda: [event for event in speaker.list_events(PartialTranscript) if event.utterance == 2])
        kill_runner(service)
        await speaker.session.feed(speak_sentence(3))
        await speaker.session.commit()
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: "2 3"}


async def test_what_was_cleared_stays_forgotten(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service, open_speaker(service, settings=MANUAL) as speaker:
        await speaker.session.feed(speak_words(1, 2))
        await speaker.session.clear()
        await speaker.wait_until(lambda: speaker.list_events(UtteranceCleared))
        await speaker.session.feed(speak_words(3))
        kill_runner(service)
        await speaker.session.commit()
        await speaker.finish_session()
        assert list(speaker.texts.values()) == ["3"]


async def test_a_model_unloaded_by_force_ends_who_speaks(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_words(1))
        await speaker.wait_until(lambda: speaker.events)
        await service.unload_model(find_live_model(service, "m"), force=True)
        await speaker.wait_until(lambda: speaker.error)
        assert isinstance(speaker.error, ModelUnloadedError)


async def test_at_the_end_of_the_server_sessions_give_their_last_texts(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, decode_s=0.3)}) as service:
        async with open_speaker(service) as speaker:
            await speaker.session.feed(speak_sentence(1) + speak_words(2))
            await speaker.wait_until(lambda: len(speaker.list_events(SpeechStarted)) == 2)
            ending = asyncio.create_task(service.live_sessions.end_all())
            await speaker.wait_until(lambda: speaker.error)
            assert isinstance(speaker.error, ShuttingDownError)
            assert speaker.texts == {1: "1", 2: "2"}
            await speaker.session.feed(speak_sentence(3))
            assert not ending.done()
            with pytest.raises(ShuttingDownError):
                async with open_speaker(service):
                    pass
        await asyncio.wait_for(ending, 60)


async def test_a_session_that_has_nothing_to_say_ends_with_the_server_at_once(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, load_s=20)}) as service, open_speaker(service) as speaker:
        ending = asyncio.create_task(service.live_sessions.end_all())
        await speaker.wait_until(lambda: speaker.error)
        assert isinstance(speaker.error, ShuttingDownError)
        assert not ending.done()
        ending.cancel()


async def test_who_has_finished_before_does_not_notice_the_end_of_the_server(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, decode_s=0.3)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(UtteranceCommitted))
        await speaker.session.finish()
        ending = asyncio.create_task(service.live_sessions.end_all())
        await speaker.wait_until(lambda: speaker.list_events(SessionEnded))
        assert speaker.texts == {1: "1"}
        ending.cancel()


async def test_a_session_whose_last_texts_come_too_late_ends_with_the_server(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, decode_s=60)}) as service, open_speaker(service) as speaker:
        await speaker.session.feed(speak_sentence(1))
        await speaker.wait_until(lambda: speaker.list_events(UtteranceCommitted))
        ending = asyncio.create_task(service.live_sessions.end_all())
        await asyncio.sleep(0.1)
        await service.shutdown()
        await speaker.wait_until(lambda: speaker.error)
        assert isinstance(speaker.error, ShuttingDownError)
        ending.cancel()
