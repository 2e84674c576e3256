"""A request that kills its model's process fails alone; whoever was there at the same time is served."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eardrum.errors import RunnerCrashedError
from eardrum.gateway.processes.crashes import CrashIsolation, CrashSuspicion
from eardrum.gateway.processes.supervisor import ModelLease
from eardrum.gateway.service import Service
from eardrum.live import SpeechStarted, UtteranceFailed
from eardrum.transcription import TranscriptionRequest
from tests.gateway.live.number_speaker import build_model, open_speaker, run_service, speak_sentence, speak_words

DEADLY = 13


class UploadedRecording:
    """Some words, as a client's upload."""

    def __init__(self, *words: int):
        self._audio = speak_words(*words)

    async def read(self) -> AsyncIterator[bytes]:
        yield self._audio


async def transcribe(service: Service, *words: int) -> str:
    transcript = await service.transcribe(service.find_model(""), TranscriptionRequest(raw_pcm=True), UploadedRecording(*words))
    return " ".join(segment.text for segment in transcript.segments)


def count_starts(caplog: pytest.LogCaptureFixture) -> int:
    return sum("ready after" in record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def info_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.slow
async def test_only_the_request_that_kills_the_process_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, dies_always=DEADLY, decode_s=0.3)}) as service:
        await transcribe(service, 1)
        *answers, failure = await asyncio.gather(
            *(transcribe(service, n) for n in range(1, 6)), transcribe(service, DEADLY), return_exceptions=True
        )
        assert answers == ["1", "2", "3", "4", "5"]
        assert isinstance(failure, RunnerCrashedError)
        assert count_starts(caplog) <= 3, "the one at hand, the one of the trial, the one after it"


@pytest.mark.slow
async def test_two_of_them_fail_and_take_nobody_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.gateway.processes.crashes.BACKOFF_S", (0.0, 0.0, 0.2))
    async with run_service(tmp_path, {"m": build_model(tmp_path, dies_always=DEADLY, decode_s=0.3)}) as service:
        await transcribe(service, 1)
        words = (DEADLY, 1, 2, DEADLY, 3, 4)
        answers = await asyncio.gather(*(transcribe(service, word) for word in words), return_exceptions=True)
        for word, answer in zip(words, answers, strict=True):
            assert isinstance(answer, RunnerCrashedError) if word == DEADLY else answer == str(word)


@pytest.mark.slow
async def test_who_comes_during_the_trial_is_served_after_it(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path, dies_always=DEADLY, decode_s=0.3)}) as service:
        await transcribe(service, 1)
        guilty = asyncio.create_task(transcribe(service, DEADLY))
        innocent = asyncio.create_task(transcribe(service, 2))
        await asyncio.sleep(0.6)
        late = [asyncio.create_task(transcribe(service, n)) for n in (3, 4)]
        assert [await task for task in (innocent, *late)] == ["2", "3", "4"]
        with pytest.raises(RunnerCrashedError):
            await guilty


@pytest.mark.slow
@pytest.mark.parametrize("pending", [(), (2,)], ids=["silent", "speaking"])
async def test_a_live_session_beside_a_deadly_file_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pending: tuple[int, ...]
) -> None:
    async with (
        run_service(tmp_path, {"m": build_model(tmp_path, dies_always=DEADLY)}) as service,
        open_speaker(service) as speaker,
    ):
        await speaker.session.feed(speak_sentence(1) + speak_words(*pending))
        await speaker.wait_until(lambda: speaker.texts)
        if pending:
            await speaker.wait_until(lambda: speaker.list_events(SpeechStarted)[1:])
        with pytest.raises(RunnerCrashedError):
            await transcribe(service, DEADLY)
        await speaker.session.feed(speak_words(3) + speak_sentence(4))
        await speaker.finish_session()
        assert speaker.texts == {1: "1", 2: " ".join(map(str, (*pending, 3, 4)))}
        assert count_starts(caplog) <= 3, "the one at hand, the one of the trial, the one after it"


async def crash_process(*leases: ModelLease) -> None:
    """Kill the process of these leases, and release them in this order."""
    pid = leases[0].running.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    for lease in leases:
        with pytest.raises(RunnerCrashedError):
            await lease.release(RunnerCrashedError("It is gone."))


@pytest.mark.slow
@pytest.mark.parametrize("session_first", [True, False])
async def test_a_session_that_survived_its_isolation_is_not_suspected_with_the_next(tmp_path: Path, session_first: bool) -> None:
    async with run_service(tmp_path, {"m": build_model(tmp_path)}) as service:
        model = service.find_model("")
        session, file = CrashSuspicion(max_crashes=3, isolation_s=0.05), CrashSuspicion()
        leases = [service.lease_model(model, suspicion) for suspicion in (session, file)]
        for lease in leases:
            await lease.acquire()
        await crash_process(*leases)
        for lease in leases:  # the session first: it is alone until its isolation is over
            await lease.acquire()
        assert leases[0].running is leases[1].running
        await crash_process(*(leases if session_first else leases[::-1]))
        assert file.is_proven
        assert (session.crashes, session.suspected) == (1, False)
        await leases[0].acquire()
        await leases[0].release()


@pytest.mark.slow
async def test_a_deadly_live_session_takes_neither_files_nor_other_sessions_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eardrum.gateway.processes.crashes.BACKOFF_S", (0.0, 0.0, 0.2))
    async with (
        run_service(tmp_path, {"m": build_model(tmp_path, dies_always=DEADLY, decode_s=0.2)}) as service,
        open_speaker(service) as guilty,
        open_speaker(service) as innocent,
    ):
        await transcribe(service, 1)
        await innocent.session.feed(speak_sentence(1) + speak_words(2))
        await innocent.wait_until(lambda: innocent.texts)
        file = asyncio.create_task(transcribe(service, 7))
        await guilty.session.feed(speak_sentence(DEADLY))
        await guilty.wait_until(lambda: guilty.error, 20)
        assert isinstance(guilty.error, RunnerCrashedError)
        assert await file == "7"
        await innocent.session.feed(speak_sentence(3))
        await innocent.finish_session()
        assert innocent.texts == {1: "1", 2: "2 3"}
        assert not innocent.list_events(UtteranceFailed)


async def test_others_wait_no_longer_than_a_trial_may_take() -> None:
    trials, suspicion = CrashIsolation(), CrashSuspicion(isolation_s=0.05)
    suspicion.record_crash(alone=False, within_s=60)
    trial, other = trials.create_admission("m", suspicion), trials.create_admission("m", CrashSuspicion())
    await trial.wait_for_turn()
    trial.start()
    assert trial.isolated
    await asyncio.wait_for(other.wait_for_turn(), 60)
    assert not trial.isolated
    trial.leave()
    other.leave()
    assert not suspicion.is_proven


async def test_others_wait_for_a_suspect_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.gateway.processes.crashes.RETURN_S", 0.5)
    trials, suspicion = CrashIsolation(), CrashSuspicion()
    suspicion.record_crash(alone=False, within_s=60)
    trials.create_admission("m", suspicion).reserve_return()
    other = asyncio.create_task(trials.create_admission("m", CrashSuspicion()).wait_for_turn())
    await asyncio.sleep(0.02)
    trial = trials.create_admission("m", suspicion)
    await trial.wait_for_turn()
    await asyncio.sleep(0.6)
    assert trial.isolated
    assert not other.done()
    trial.leave()
    await asyncio.wait_for(other, 60)


async def test_others_do_not_wait_for_a_suspect_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.gateway.processes.crashes.RETURN_S", 0.05)
    trials = CrashIsolation()
    trials.create_admission("m", CrashSuspicion()).reserve_return()
    await asyncio.wait_for(trials.create_admission("m", CrashSuspicion()).wait_for_turn(), 60)


async def test_a_suspect_that_gives_up_waiting_holds_up_nobody() -> None:
    trials = CrashIsolation()
    first, second = CrashSuspicion(), CrashSuspicion()
    for suspicion in (first, second):
        suspicion.record_crash(alone=False, within_s=1)
    trial = trials.create_admission("m", first)
    await trial.wait_for_turn()
    waiting = asyncio.create_task(trials.create_admission("m", second).wait_for_turn())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    trial.leave()
    await asyncio.wait_for(trials.create_admission("m", CrashSuspicion()).wait_for_turn(), 60)


@pytest.mark.parametrize(
    ("deaths", "convicted"),
    [
        ((True,), False),
        ((True, True), True),
        ((False, True), True),
        ((False, False), False),
        ((False,) * 5, False),
        ((False,) * 6, True),
    ],
)
def test_two_deaths_convict_whoever_was_alone_at_one(deaths: tuple[bool, ...], convicted: bool) -> None:
    suspicion = CrashSuspicion()
    for alone in deaths:
        suspicion.record_crash(alone=alone, within_s=1)
    assert suspicion.is_proven is convicted


def test_a_recording_of_a_job_is_convicted_of_deaths_at_which_it_was_alone() -> None:
    suspicion = CrashSuspicion(3, min_crashes_alone=3)
    for alone in (False, True, True):
        suspicion.record_crash(alone=alone, within_s=1)
    assert not suspicion.is_proven
    suspicion.record_crash(alone=True, within_s=1)
    assert suspicion.is_proven
