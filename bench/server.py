"""The real server, as it is started with `eardrum serve`."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from bench.children import run_child
from bench.client import MODEL, build_form
from bench.usage import measure_cpu, measure_peak_mb

START_S = 60.0
SERVE = ("-m", "eardrum", "serve", "--no-wyoming")


@dataclass(frozen=True, slots=True)
class BenchServer:
    """A real server: one gateway, and the runner of its one model."""

    port: int
    gateway: psutil.Process

    @property
    def runner(self) -> psutil.Process:
        """The process of the model."""
        (child,) = (child for child in self.gateway.children() if "eardrum.runner" in child.cmdline())
        return child

    @property
    def socket(self) -> Path:
        """Where the runner listens."""
        command = self.runner.cmdline()
        return Path(command[command.index("--socket") + 1])

    @property
    def cpu(self) -> float:
        """CPU seconds of gateway and runner so far."""
        return measure_cpu(self.gateway) + measure_cpu(self.runner)

    def unload_model(self, model: str) -> None:
        """Have the server end the model's process."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        connection.request("DELETE", f"/api/ps/{quote(model)}")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{model} could not be unloaded: {answer.status}")

    @property
    def peak_mb(self) -> tuple[float, float]:
        """The most memory that gateway and runner ever held."""
        return measure_peak_mb(self.gateway), measure_peak_mb(self.runner)


@contextmanager
def run_server(
    *,
    warm: bool = True,
    model: str = MODEL,
    settings: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    arguments: Sequence[str] = (),
    key: str = "",
) -> Iterator[BenchServer]:
    """A fresh server in its own temporary folder; `warm` has it load `model` first, which may be one of `settings`.

    `arguments` stand behind those of `SERVE`, and win over them. `key` is an API key of `settings`, if there are any.
    """
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        config = Path(temp) / "config.yaml"
        config.write_text(json.dumps(settings or {}), encoding="utf-8")  # which is YAML too
        # Models lying around on this machine would change what is measured. Nothing else is written there: the server would look
        # for new models whenever something is.
        hub = Path(temp) / "hub"
        hub.mkdir()
        surroundings = {"HF_HUB_CACHE": str(hub)} if environment is None else environment
        with run_child(
            [*SERVE, "--port", str(port), "--config", str(config), *arguments], environment={"TMPDIR": temp} | surroundings
        ) as process:
            wait_until_healthy(port, process)
            server = BenchServer(port, psutil.Process(process.pid))
            if warm:
                post_clip(port, model, key)
            yield server


def wait_until_healthy(port: int, process: subprocess.Popen[bytes], path: str = "/health") -> float:
    """Wait for the first 200 and return when it came, on the clock of `time.perf_counter`."""
    end = time.perf_counter() + START_S
    while time.perf_counter() < end:
        if process.poll() is not None:
            raise RuntimeError(f"The process ended with {process.returncode} before it answered")
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return time.perf_counter()
        time.sleep(0.002)
    raise RuntimeError(f"Nothing answered on port {port} within {START_S:g} s")


def post_clip(port: int, model: str = MODEL, key: str = "") -> None:
    """Have a short recording transcribed, whatever comes of it."""
    from bench.recordings import create_clips  # noqa: PLC0415 -- the figures that send nothing should not pay for PyAV

    body = build_form(create_clips(1)[0], model=model)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    headers = {"content-type": body.headers.split(": ", 1)[1].strip()} | ({"x-api-key": key} if key else {})
    connection.request("POST", "/v1/audio/transcriptions", b"".join(body.pieces), headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{model} answered {answer.status}: {text!r}")


def find_free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
