"""Starts and stops what is measured: the real server, and the baselines' processes."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from bench.client import MODEL, form

ROOT = Path(__file__).parent.parent
START_S = 60.0
SERVE = ("-c", "from eardrum.cli import main; main()", "serve")


@dataclass(frozen=True, slots=True)
class RunningServer:
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
        return cpu_of(self.gateway) + cpu_of(self.runner)

    @property
    def peak_mb(self) -> tuple[float, float]:
        """The most memory that gateway and runner ever held."""
        return peak_mb(self.gateway), peak_mb(self.runner)


@contextmanager
def running(*, warm: bool = True) -> Iterator[RunningServer]:
    """A fresh server in its own temporary folder; `warm` has it load the model first."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        # Models lying around on this machine would change what is measured.
        environment = {"TMPDIR": temp, "HF_HUB_CACHE": temp}
        with child([*SERVE, "--port", str(port)], environment=environment) as process:
            until_healthy(port, process)
            server = RunningServer(port, psutil.Process(process.pid))
            if warm:
                post_clip(port)
            yield server


@contextmanager
def child(
    arguments: Sequence[str], *, environment: dict[str, str] | None = None, pipes: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that ends, with all its children, when this block does.

    It gets a session of its own, so that Ctrl-C reaches only the benchmark, which then ends it in order.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EARDRUM_", "STT_", "WHISPER_"))}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=clean | (environment or {}),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        except Exception as error:
            error.add_note(f"{' '.join(arguments)} logged: {_tail(log)}")
            raise
        finally:
            _end(process)


def until_healthy(port: int, process: subprocess.Popen[bytes], path: str = "/health") -> float:
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


def post_clip(port: int) -> None:
    """Have a short recording transcribed, whatever comes of it."""
    from bench.recordings import clips  # noqa: PLC0415 -- the figures that send nothing should not pay for PyAV

    body = form(clips(1)[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    kind = body.headers.split(": ", 1)[1].strip()
    connection.request("POST", "/v1/audio/transcriptions", b"".join(body.pieces), {"content-type": kind})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{MODEL} answered {answer.status}: {text!r}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of the process, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


def busy() -> float:
    """CPU seconds of the whole machine so far, other guests of its host included, less those of this process.

    What is left of a difference after taking off what was measured is other work, which disturbs the measurement.
    """
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return float(times.user + times.nice + times.system + times.steal - own.user - own.system)


def rss_mb(process: psutil.Process) -> float:
    """Megabytes the process holds now."""
    return float(process.memory_info().rss / 1e6)


def peak_mb(process: psutil.Process) -> float:
    """The most megabytes the process ever held (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _end(process: subprocess.Popen[bytes]) -> None:
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.stdin:
        with suppress(OSError):
            process.stdin.close()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
    for left in psutil.wait_procs(children, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def _tail(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size  # read by position: the child writes through the same offset
    return os.pread(log.fileno(), 2000, max(size - 2000, 0)).decode(errors="replace")
