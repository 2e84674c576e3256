"""Starts and ends Python processes, and talks to those that answer line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parent.parent


@contextmanager
def run_child(
    arguments: Sequence[str], *, environment: dict[str, str] | None = None, pipes: bool = False, python: str = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that ends, with all its children, when this block does.

    It gets a session of its own, so that Ctrl-C reaches only the benchmark, which then ends it in order.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="eardrum-bench-") as cache:
        process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env=build_environment() | {"EARDRUM_CACHE_DIR": cache} | (environment or {}),  # every server times its models anew
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        except Exception as error:
            error.add_note(f"{' '.join(arguments)} logged: {_read_tail(log)}")
            raise
        finally:
            _end_process(process)


def build_environment() -> dict[str, str]:
    """Our environment, less what would change what is measured. Bytecode is kept, as that of an installed package is."""
    changing = ("EARDRUM_", "STT_", "WHISPER_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(changing)}


def ask_child(process: subprocess.Popen[bytes], line: str) -> dict[str, Any]:
    """Send a process a line, and return what it says to that.

    Raises:
        RuntimeError: it ended instead.
    """
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
    said = process.stdout.readline()
    if not said:
        raise RuntimeError(f"The process ended over {line!r}")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _end_process(process: subprocess.Popen[bytes]) -> None:
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


def _read_tail(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size  # read by position: the child writes through the same offset
    return os.pread(log.fileno(), 2000, max(size - 2000, 0)).decode(errors="replace")
