"""A child's end is noticed without a thread that waits for it."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from eardrum.gateway.processes.child import ChildProcess, avoid_waiting_threads


@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open")
async def test_no_thread_waits_for_a_child() -> None:
    avoid_waiting_threads()
    before = threading.active_count()
    children = [await ChildProcess.spawn("shell", ["sh", "-c", program], {}) for program in ("exit 3", "exec sleep 60")]
    short, long = children
    try:
        assert threading.active_count() == before
        await asyncio.wait_for(short.ended, 10)
    finally:
        await long.kill()
    assert short.exit_description == "ended with exit code 3"
    assert "SIGKILL" in long.exit_description
