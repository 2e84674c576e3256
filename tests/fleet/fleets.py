"""Fleets: real runners of a scripted engine on this machine, and a real server that has them as replicas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.commands import start_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.jobs.scripted_engine import count_windows, install_scripted_engine
from tests.ports import find_free_port

PATIENCE_S = 240.0
"""Runners have a lower priority than anything else on a busy machine."""

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass
class FleetRunner:
    """A runner that may be killed, suspended and started again at its address."""

    folder: Path
    name: str
    model: dict[str, Any]
    """Its entry in the config, without the options."""
    options: dict[str, Any]
    environment: dict[str, str]
    port: int = field(default_factory=find_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def windows_file(self) -> Path:
        return self.folder / f"{self.name}.windows"

    @property
    def decoded(self) -> Counter[str]:
        """How often it decoded each window."""
        return count_windows(self.windows_file)

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    @property
    def health(self) -> dict[str, Any]:
        answer = requests.get(f"{self.address}/health", headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
        return dict(answer.json())

    @property
    def is_idle(self) -> bool:
        """Whether it neither has a request nor decodes a window of an earlier one."""
        health = self.health
        return bool(health["requests"] == 0 and health["batch_s"] == 0)

    def start(self) -> None:
        (self.folder / "token").write_text(TOKEN)
        options = {**self.options, **({"log": str(self.windows_file)} if self.model.get("engine") == "scripted" else {})}
        entry = {**self.model, "options": options}
        with (self.folder / f"{self.name}.log").open("ab") as output:
            self.process = start_eardrum(
                *("runner", "m", "--listen", f"127.0.0.1:{self.port}", "--token-file", str(self.folder / "token")),
                *("--set", f"models={json.dumps({'m': entry})}"),
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process
            assert self.process.poll() is None, self.log
            with suppress(requests.ConnectionError):
                return self.health["status"] == "ok"
            return False

        wait_for(is_ready, PATIENCE_S)

    def send_signal(self, number: int) -> None:
        assert self.process
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        assert self.process
        self.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.send_signal(signal.SIGCONT)
            self.send_signal(signal.SIGTERM)
            self.process.wait(60)


@dataclass
class Fleet:
    """Runners, and the server before them."""

    server: ServerUnderTest
    runners: list[FleetRunner]

    @property
    def decoded(self) -> Counter[str]:
        """How often each window was decoded, by whichever runner."""
        return sum((runner.decoded for runner in self.runners), Counter())

    def read_model(self) -> dict[str, Any]:
        """Its model, as `GET /api/ps` shows it."""
        (model,) = requests.get(f"{self.server.address}/api/ps", timeout=30).json()["models"]
        return dict(model)

    @property
    def states(self) -> dict[str, str]:
        """The state of each runner, by its name."""
        names = {runner.address: runner.name for runner in self.runners}
        return {names[replica["address"]]: replica["state"] for replica in self.read_model()["replicas"]}

    def wait_for_states(self, *states: str) -> None:
        wait_for(lambda: list(self.states.values()) == list(states), PATIENCE_S)

    def find_busy(self) -> FleetRunner:
        """Wait until a runner has begun to decode, and return it."""
        before = {runner.name: sum(runner.decoded.values()) for runner in self.runners}
        busy: list[FleetRunner] = []

        def look() -> bool:
            busy[:] = [runner for runner in self.runners if sum(runner.decoded.values()) > before[runner.name] + 1]
            return bool(busy)

        wait_for(look, PATIENCE_S)
        return busy[0]

    def transcribe(self, audio: bytes, **fields: str) -> str:
        answer = self.server.post_audio(audio, model="m", **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["text"])

    def stream_text(self, audio: bytes) -> str:
        return stream_text(self.server, audio)


def stream_text(server: ServerUnderTest, audio: bytes) -> str:
    """Transcribe with server-sent events; the text is that of the deltas, and has to be that of the end, too."""
    with requests.post(
        f"{server.address}/v1/audio/transcriptions",
        data={"model": "m", "stream": "true"},
        files={"file": ("a.flac", audio)},
        stream=True,
        timeout=240,
    ) as answer:
        assert answer.status_code == 200, answer.text
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith(b"data: {")]
    assert events[-1]["type"] == "transcript.text.done", (events[-1], server.log)
    text = "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")
    assert text == events[-1]["text"]
    return text


def build_scripted_model(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Install the scripted engine; returns a model's entry and the environment that finds the engine."""
    environment = install_scripted_engine(folder)
    return {"engine": "scripted", "source": str(folder / "model")}, environment


@contextmanager
def run_runners(
    folder: Path, count: int, model: dict[str, Any], environment: dict[str, str], **options: Any
) -> Iterator[list[FleetRunner]]:
    runners = [FleetRunner(folder, f"gpu{n}", model, options, environment) for n in range(1, count + 1)]
    with ExitStack() as stack:
        for runner in runners:
            runner.start()
            stack.callback(runner.stop)
        for runner in runners:
            runner.wait_ready()
        yield runners


@contextmanager
def run_fleet(
    folder: Path, count: int, model: dict[str, Any], environment: dict[str, str], *arguments: str, **options: Any
) -> Iterator[Fleet]:
    """Run so many runners of a model, `m`, with these options of its engine, and a server."""
    with (
        run_runners(folder, count, model, environment, **options) as runners,
        run_server(*build_server_arguments(model, runners), *arguments, **environment) as server,
    ):
        yield Fleet(server, runners)


def build_server_arguments(model: dict[str, Any], runners: Sequence[FleetRunner], token: str = TOKEN) -> list[str]:
    replicas = {"addresses": [runner.address for runner in runners], "token": token}
    entry = {"engine": model["engine"], "source": model.get("source", ""), "replicas": replicas}
    return ["--set", f"models={json.dumps({'m': entry})}", "--set", "default_model=m"]


def measure_seconds(since: float) -> float:
    return time.monotonic() - since
