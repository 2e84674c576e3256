"""What a runner does while nobody asks it for anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from eardrum.engines.base import ClaimIdleTime, TuningPostponed
from eardrum.runner import idle, tuning
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.idle import IdleWork, find_free_memory
from eardrum.runner.tuning import EngineTuner, choose_first_batch
from tests.conftest import wait_for
from tests.runner.test_batcher import ScriptedEngine, create_window, get_text


class TunableEngine(ScriptedEngine):
    """Not a model: its tuning claims what it is told, and finds out that two replicas are best."""

    can_be_tuned = True

    def __init__(self, seconds: float = 0.0, memory: int = 0) -> None:
        super().__init__()
        self.needs = seconds, memory
        self.tuned = threading.Event()

    def tune(self, claim: ClaimIdleTime) -> None:
        claim(*self.needs)
        self.parallel, self.measured = 2, {"workers": 2}
        self.tuned.set()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(idle, "TRIM_AFTER_S", 0.05)
    monkeypatch.setattr(idle, "TUNE_AFTER_S", 0.1)
    yield
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(("engine", "idle"))])


@asynccontextmanager
async def start_idle_work(engine: ScriptedEngine, batch: int = 1) -> AsyncIterator[tuple[IdleWork, WindowBatcher]]:
    batcher = WindowBatcher(engine, batch=batch or choose_first_batch(engine))
    work = IdleWork(batcher, EngineTuner(engine, batch))
    work.start()
    try:
        yield work, batcher
    finally:
        work.stop()
        await asyncio.to_thread(batcher.close)


async def wait_until_reported(work: IdleWork) -> dict:
    async with asyncio.timeout(60):
        while not work.report():  # noqa: ASYNC110 -- it reports to who asks
            await asyncio.sleep(0.01)
    return work.report()


async def test_what_is_fastest_is_measured_once_nobody_asks_for_anything() -> None:
    engine = TunableEngine()
    async with start_idle_work(engine) as (work, batcher):
        with work.hold_off():
            await asyncio.sleep(0.3)
            assert not engine.tuned.is_set()
        assert await wait_until_reported(work) == {"tuned": {"batch": 1, "options": {"workers": 2}}}
        futures = [batcher.submit(number, create_window(str(number))) for number in range(4)]
        assert [await asyncio.to_thread(get_text, future) for future in futures] == list("0123")
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("engine")]) == 2


async def test_what_other_processes_disturbed_is_used_and_measured_again_before_it_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = [(0.0, 0.0), (10.0, 5.0)]  # of ten seconds of the cores, others took five
    monkeypatch.setattr(tuning, "_read_core_times", lambda: spent.pop(0) if spent else (0.0, 0.0))
    monkeypatch.setattr(idle, "RETRY_S", 1.5)
    engine = TunableEngine()
    async with start_idle_work(engine) as (work, _):
        await asyncio.to_thread(wait_for, lambda: engine.tuned.is_set() and engine.parallel == 2)
        engine.tuned.clear()
        with work.hold_off():
            pass
        await asyncio.sleep(0.4)
        assert not engine.tuned.is_set(), "not at once"
        assert not work.report()
        assert await wait_until_reported(work) == {"tuned": {"batch": 1, "options": {"workers": 2}}}


async def test_a_batch_size_that_is_not_known_is_measured() -> None:
    engine = ScriptedEngine()
    async with start_idle_work(engine, 0) as (work, batcher):
        assert batcher.batch == choose_first_batch(engine) > 1
        found = await wait_until_reported(work)
        assert found["tuned"]["batch"] == batcher.batch


async def test_long_steps_wait_for_long_idleness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "IDLE_PER_STEP", 20.0)
    engine = TunableEngine(seconds=0.02)
    began = asyncio.get_running_loop().time()
    async with start_idle_work(engine) as (work, _):
        await wait_until_reported(work)
    assert asyncio.get_running_loop().time() - began >= 0.4


async def test_nothing_is_measured_for_which_there_is_no_memory() -> None:
    engine = TunableEngine(memory=find_free_memory())
    async with start_idle_work(engine) as (work, _):
        await asyncio.sleep(0.4)
        assert not work.report()
        with pytest.raises(TuningPostponed):
            work.claim(0.0, find_free_memory())
        work.claim(0.0, 1000)


async def test_a_window_that_comes_while_the_engine_is_measured_is_decoded_then() -> None:
    engine = ScriptedEngine()
    batcher = WindowBatcher(engine, batch=1)
    try:
        with batcher.pause():
            future = batcher.submit(0, create_window("late"))
            await asyncio.sleep(0.1)
            assert not future.done()
        assert await asyncio.to_thread(get_text, future) == "late"
    finally:
        await asyncio.to_thread(batcher.close)


async def test_free_memory_is_returned_after_each_time_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    monkeypatch.setattr(idle, "return_free_memory", lambda: returned.append(True))
    async with start_idle_work(ScriptedEngine()) as (work, _):
        for times in (1, 2):
            with work.hold_off():
                pass
            await asyncio.to_thread(wait_for, lambda times=times: len(returned) >= times)
            await asyncio.sleep(0.2)
            assert len(returned) == times, "once"
