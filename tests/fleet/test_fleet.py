"""A model with three runners, of which one is killed, suspended, drained or started again while they work.

A scripted engine tells which windows each runner decoded.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import requests

from tests.commands import run_eardrum
from tests.conftest import run_server, wait_for
from tests.fleet.fleets import PATIENCE_S, TOKEN, Fleet, build_scripted_model, build_server_arguments, measure_seconds, run_fleet
from tests.recordings import encode, load_announcements

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(600)]

WINDOW_S = 0.08
NOTICED_S = 3.0
"""A replica that hangs gets no more work after this time."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    model, environment = build_scripted_model(folder)
    with run_fleet(folder, 3, model, environment, seconds=WINDOW_S) as fleet:
        fleet.server.post_audio(encode(load_announcements()[0][1], "flac"), model="m")
        fleet.wait_for_states("ready", "ready", "ready")
        yield fleet


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    """Recordings whose windows are not those of the long one."""
    return [encode(-samples, "flac") for _, samples, _ in load_announcements()[:12]]


@pytest.fixture(scope="module")
def long() -> bytes:
    return encode(np.concatenate([samples for _, samples, _ in load_announcements()]), "flac")


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet, long: bytes) -> tuple[str, int]:
    """The text of the long recording when nothing happens, and how many windows it has."""
    before = fleet.decoded
    text = fleet.stream_text(long)
    return text, sum((fleet.decoded - before).values())


class Streaming(threading.Thread):
    """A request for a long recording, in a thread."""

    def __init__(self, fleet: Fleet, audio: bytes):
        super().__init__()
        self.fleet, self.audio, self.text = fleet, audio, ""
        self.start()

    def run(self) -> None:
        self.text = self.fleet.stream_text(self.audio)

    def wait(self) -> str:
        self.join(240)
        return self.text


def test_work_is_spread(fleet: Fleet, clips: list[bytes]) -> None:
    before = [sum(runner.decoded.values()) for runner in fleet.runners]

    def all_have_worked() -> bool:
        threads = [threading.Thread(target=fleet.transcribe, args=(clip,)) for clip in clips]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        return all(sum(runner.decoded.values()) > count for runner, count in zip(fleet.runners, before, strict=True))

    wait_for(all_have_worked, PATIENCE_S)


def test_a_killed_runner_costs_the_windows_in_hand_only(fleet: Fleet, long: bytes, undisturbed: tuple[str, int]) -> None:
    text, windows = undisturbed
    before = fleet.decoded
    streaming = Streaming(fleet, long)
    killed = fleet.find_busy()
    killed.kill()
    assert streaming.wait() == text
    again = sum((fleet.decoded - before).values()) - windows
    print(f"killed: {again} of {windows} windows were decoded again")
    assert 0 <= again <= 2, "one that was decoded and not sent yet, and the one in hand"
    assert fleet.states[killed.name] == "silent"
    killed.start()
    fleet.wait_for_states("ready", "ready", "ready")
    fleet.server.wait_for_log("continues with another replica")


def test_a_suspended_runner_gets_no_work_and_loses_nothing(
    fleet: Fleet, long: bytes, clips: list[bytes], undisturbed: tuple[str, int]
) -> None:
    text, windows = undisturbed
    before = fleet.decoded
    streaming = Streaming(fleet, long)
    hung = fleet.find_busy()
    hung.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        wait_for(lambda: fleet.states[hung.name] == "silent", PATIENCE_S)
        print(f"suspended: it counted as silent after {measure_seconds(stopped):.1f} s")
        index = fleet.runners.index(hung)
        in_hand = fleet.read_model()["replicas"][index]["requests"]
        for clip in clips[:6]:
            fleet.transcribe(clip)
            assert fleet.read_model()["replicas"][index]["requests"] <= in_hand
        assert streaming.wait() == text
    finally:
        hung.send_signal(signal.SIGCONT)
    fleet.wait_for_states("ready", "ready", "ready")
    wait_for(lambda: hung.is_idle, PATIENCE_S)
    again = sum(count for digest, count in (fleet.decoded - before).items() if digest in text) - windows
    print(f"suspended: {again} of {windows} windows were decoded again")
    assert 0 <= again <= 3, "the one in hand, one that was not sent yet, and one until the hang-up is seen"


def test_a_drained_runner_finishes_what_it_has(
    fleet: Fleet, clips: list[bytes], undisturbed: tuple[str, int], long: bytes
) -> None:
    text, windows = undisturbed
    before = fleet.decoded
    streaming = Streaming(fleet, long)
    drained = fleet.find_busy()
    drained.send_signal(signal.SIGTERM)
    wait_for(lambda: fleet.states[drained.name] == "draining", PATIENCE_S)
    for clip in clips[:4]:
        fleet.transcribe(clip)
    assert streaming.wait() == text
    assert drained.process
    drained.process.wait(60)
    again = sum(count for digest, count in (fleet.decoded - before).items() if digest in text) - windows
    print(f"drained: {again} of {windows} windows were decoded again")
    assert 0 <= again <= 2, "none, unless a busy machine made it look as if it hung"
    drained.start()
    fleet.wait_for_states("ready", "ready", "ready")


def test_people_and_programs_see_the_replicas(fleet: Fleet) -> None:
    fleet.runners[2].send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: fleet.states["gpu3"] == "silent", PATIENCE_S)
        fleet.wait_for_states("ready", "ready", "silent")
        shown = run_eardrum("ps", "--server", fleet.server.address, check=True).stdout
        assert "of 3 replicas ready" in shown
        assert f"{fleet.runners[2].address}  silent, 0 requests" in shown
        health = requests.get(f"{fleet.server.address}/health", timeout=30).json()
        (model,) = [model for model in health["models"] if model["id"] == "m"]
        assert (health["status"], model["replicas"], model["replicas_ready"] < 3) == ("ok", 3, True)
        assert fleet.runners[2].address not in json.dumps(health)
        metrics = requests.get(f"{fleet.server.address}/metrics", timeout=30).text
        assert 'eardrum_replicas{model="m",state="draining"} 0.0' in metrics
        assert f'eardrum_replica_requests{{model="m",replica="{fleet.runners[0].address}"}} 0.0' in metrics
        assert TOKEN not in shown + json.dumps(health) + metrics + fleet.server.log
    finally:
        fleet.runners[2].send_signal(signal.SIGCONT)
    fleet.wait_for_states("ready", "ready", "ready")


def test_a_wrong_token_is_told(fleet: Fleet) -> None:
    model, environment = fleet.runners[0].model, fleet.runners[0].environment
    with run_server(*build_server_arguments(model, fleet.runners, "another-token-than-theirs"), **environment) as server:
        answer = server.post_audio(b"nothing", model="m")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
        assert "it requires another token" in answer.json()["error"]["message"]
        answer = requests.post(f"{fleet.runners[0].address}/transcribe", data=b"audio", timeout=30)
        assert (answer.status_code, answer.json()["error"]["error"]) == (401, "UnauthorizedError")


def test_a_runner_refuses_to_be_open_to_everybody() -> None:
    done = run_eardrum("runner", "moonshine-tiny-en", "--listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert "Every client that can connect to 0.0.0.0 could use this runner" in done.stderr
    command = [sys.executable, "-m", "eardrum.runner", "--engine", "moonshine", "--source", "/nowhere", "--host", "0.0.0.0"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    assert "Every client that can connect to 0.0.0.0 could use this runner" in json.loads(said)["failed"]["message"]
