"""A runner's report of its own life, also while its engine or its event loop stands still."""

from __future__ import annotations

import asyncio
import time

from eardrum.runner.liveness import LivenessProbe
from tests.conftest import wait_for
from tests.runner.test_batcher import create_window, run_batcher


async def test_the_batch_in_hand_and_the_loop_are_timed() -> None:
    with run_batcher() as (batcher, engine):
        liveness, loop = LivenessProbe(batcher.calls), asyncio.get_running_loop()
        assert liveness.report(loop) == {"batch_s": 0.0, "loop_s": 0.0}
        engine.gate.clear()
        future = batcher.submit(batcher.allocate_request_id(), create_window("stuck"))
        wait_for(lambda: liveness.report(None)["batch_s"] > 0.05)
        time.sleep(0.05)  # noqa: ASYNC251 -- the loop is to stand still
        assert (await asyncio.to_thread(liveness.report, loop))["loop_s"] >= 0.05
        await asyncio.sleep(0.01)
        assert liveness.report(loop)["loop_s"] == 0.0
        engine.gate.set()
        future.result(60)
        assert liveness.report(loop)["batch_s"] == 0.0


async def test_an_engine_that_asks_elsewhere_has_times_of_its_own() -> None:
    with run_batcher() as (batcher, engine):
        engine.remote = True
        engine.gate.clear()
        batcher.submit(batcher.allocate_request_id(), create_window("far"))
        assert engine.entered.wait(60)
        assert LivenessProbe(batcher.calls).report(None)["batch_s"] == 0.0
