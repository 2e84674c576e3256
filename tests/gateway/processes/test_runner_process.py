"""A child process and whatever it starts: watched, ended, its last words kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
import uvloop

from eardrum.errors import ModelLoadError
from eardrum.gateway.processes.runner_process import RunnerProcess
from tests.conftest import wait_for
from tests.processes import is_alive

pytestmark = pytest.mark.slow


READY = 'print(\'{"ready": {"batch": 1}}\', flush=True)'
GRANDCHILD = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, file=open(sys.argv[1], 'w'))"
"""It inherits the pipes, and holds them for a minute."""

HOLDER = """
import socket
if not os.fork():
    os.closerange(0, 3)
    held = [socket.socket() for _ in range(500)]
    open(sys.argv[1], 'w').write(str(os.getpid()))
    time.sleep(60)
"""
"""A child without the pipes, but with much to let go of."""


def build_script(*lines: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent("\n".join(["import os, sys, time", *lines]))]


async def test_a_death_is_seen_even_when_something_holds_the_pipes(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    process = await RunnerProcess.start("m", [*build_script(GRANDCHILD, READY, "time.sleep(60)"), str(noted)], within_s=50)
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(process.ended, 60)
    assert "SIGKILL" in process.exit_description
    wait_for(lambda: not is_alive(int(noted.read_text())))


async def test_stopping_ends_what_it_started_too(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    process = await RunnerProcess.start("m", [*build_script(GRANDCHILD, READY, "time.sleep(60)"), str(noted)], within_s=50)
    await asyncio.wait_for(process.stop(), 30)
    wait_for(lambda: not is_alive(int(noted.read_text())))


async def test_what_it_leaves_behind_is_gone_with_the_last_of_its_files(tmp_path: Path) -> None:
    """A process that is killed loses what it was started with first and its files last. It is not gone before."""
    noted = tmp_path / "pid"
    process = await RunnerProcess.start("m", [*build_script(HOLDER, READY, "time.sleep(60)"), str(noted)], within_s=50)
    await asyncio.to_thread(wait_for, lambda: noted.exists() and noted.read_text())
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(process.ended, 60)
    assert not is_alive(int(noted.read_text()))


@pytest.mark.slow
async def test_a_start_that_takes_too_long_ends_in_time(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(ModelLoadError, match=r"not ready after 1\.5 s .*start_timeout"):
        await RunnerProcess.start("m", [*build_script(GRANDCHILD, "time.sleep(60)"), str(noted)], within_s=1.5)
    assert time.monotonic() - began < 40
    wait_for(lambda: not is_alive(int(noted.read_text())))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["print('Welcome to conda')", "time.sleep(60)"], "is no runner: it printed 'Welcome to conda'"),
        (["sys.exit(3)"], "ended with exit code 3 before it was ready. It logged nothing."),
        (["print('no such thing', file=sys.stderr)", "sys.exit(1)"], "Its last output: no such thing"),
        (["os.kill(os.getpid(), 4)"], "was ended by SIGILL (a library built for another processor)"),
    ],
)
async def test_what_is_no_runner_is_told_with_a_hint(lines: list[str], says: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        await asyncio.wait_for(RunnerProcess.start("m", build_script(*lines), within_s=50, hint=" Look at python."), 60)
    assert says in caught.value.message
    assert caught.value.message.endswith("Look at python.")


async def test_what_it_says_last_is_heard() -> None:
    failed = 'print(\'{"failed": {"error": "ModelLoadError", "message": "No file."}}\', flush=True)'
    with pytest.raises(ModelLoadError, match=r"^No file\.$"):
        await RunnerProcess.start("m", build_script(failed, "os._exit(1)"), within_s=50)


async def test_a_model_with_a_thousand_voices_is_ready() -> None:
    """As LibriTTS-R is, of Piper's voices: its first message is a line of 40 kB."""
    voices = "[[f'en_US-libritts_r-medium/{number}', 'en-US'] for number in range(904)]"
    ready = f"print(json.dumps({{'ready': {{'batch': 1, 'voices': {voices}}}}}), flush=True)"
    process = await RunnerProcess.start("m", build_script("import json", ready, "time.sleep(60)"), within_s=50)
    try:
        assert process.ready_message["voices"][903] == ["en_US-libritts_r-medium/903", "en-US"]
    finally:
        await process.kill()


ANSWERS = """
print('{"ready": {"batch": 1, "answers": true}}', flush=True)
while os.read(0, 4096):
    print('{"alive": {"batch_s": %s, "loop_s": %s}}', flush=True)
"""


def test_what_has_ended_is_not_asked_whether_it_lives() -> None:
    """uvloop raises when somebody writes into the pipe of a process that has gone."""

    async def ask() -> None:
        process = await RunnerProcess.start("m", build_script(ANSWERS % (0, 0)), within_s=50)
        assert await process._check_liveness(10) == {"batch_s": 0, "loop_s": 0}
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.ended, 60)
        assert await process._check_liveness(10) == {}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


async def test_what_it_measured_is_heard_once() -> None:
    told = ANSWERS.replace("%s}}", '0}, "tuned": {"batch": 4, "options": {"threads": 1}}}') % 0
    process = await RunnerProcess.start("m", build_script(told), within_s=50)
    heard: list[dict] = []
    process.on_tuned = heard.append
    try:
        for _ in range(2):
            assert await process._check_liveness(10) == {"batch_s": 0, "loop_s": 0}
        assert heard == [{"batch": 4, "options": {"threads": 1}}]
    finally:
        await process.kill()


async def wait_for_end(ready: str, *, pause: bool = False, within_s: float = 50) -> str:
    """How a watched process ends, if it does while nobody ends it."""
    process = await RunnerProcess.start("m", build_script(ready), within_s=50)
    try:
        process.start_watchdog(lambda: (0.3, 5))
        if pause:
            os.kill(process.pid, signal.SIGSTOP)
        return process.exit_description if await process.ends_within(within_s) else ""
    finally:
        await process.kill()


@pytest.mark.parametrize(
    ("ready", "pause", "why"),
    [
        pytest.param(ANSWERS % (0, 0), True, "did not answer liveness checks for 0.3 s (liveness_timeout)", id="stopped"),
        pytest.param(ANSWERS % (5.1, 0), False, "worked on one batch for 5 s (batch_timeout)", id="a hung engine"),
        pytest.param(ANSWERS % (0, 0.4), False, "read no input for 0.3 s (liveness_timeout)", id="a hung loop"),
    ],
)
async def test_a_process_that_hangs_is_ended(ready: str, pause: bool, why: str) -> None:
    assert why in await wait_for_end(ready, pause=pause)


@pytest.mark.parametrize(
    "ready",
    [
        pytest.param(ANSWERS % (4.9, 0.2), id="at work"),
        pytest.param(READY + "\ntime.sleep(60)", id="a program that does not answer by nature"),
    ],
)
async def test_one_that_works_is_left_alone(ready: str) -> None:
    assert await wait_for_end(ready, within_s=1.5) == ""


async def test_what_it_owes_is_known_before_it_is_ended() -> None:
    process = await RunnerProcess.start("m", build_script(ANSWERS % (0, 0)), within_s=50)
    try:
        process.start_watchdog(lambda: (20, 0.1))
        began = time.monotonic()
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.to_thread(wait_for, lambda: process.unresponsive_s > 0.3)
        assert process.unresponsive_s < time.monotonic() - began + 1  # it may have been asked just before
        os.kill(process.pid, signal.SIGCONT)
        await asyncio.to_thread(wait_for, lambda: process.unresponsive_s < 0.1)
    finally:
        await process.kill()
