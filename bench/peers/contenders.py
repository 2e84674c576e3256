"""Eardrum and its peers as processes: how each is started, asked and weighed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.children import build_environment, run_child
from bench.client import build_form, open_exchange
from bench.peers.speech import SpokenFile
from bench.server import START_S, find_free_port, wait_until_healthy

NAME = "whisper"
"""What the model is called at Eardrum."""

OURS = "eardrum"


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A text, seconds until it was there, and until the first event if there were events."""

    text: str
    wall_s: float
    first_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerModel:
    """The same weights in both formats, and what everybody gets: threads, and the interpreter that has the peers."""

    folder: Path
    ggml: Path
    threads: int
    python: str


@dataclass(frozen=True, slots=True)
class PeerKind:
    """How a contender is started and asked. `needs` are modules that its interpreter must have."""

    label: str
    command: Callable[[PeerModel, int, Path], list[str]]
    needs: tuple[str, ...] = ()
    streams: bool = False
    wyoming: bool = False
    server: bool = True

    def find_missing(self, python: str) -> str:
        """Name the first module that is missing, or nothing."""
        for module in self.needs:
            if subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False, timeout=120).returncode:
                return module
        return ""


def _serve_eardrum(model: PeerModel, port: int, temp: Path) -> list[str]:
    entry = {"engine": "faster_whisper", "source": str(model.folder), "options": {"device": "cpu", "compute_type": "int8"}}
    config = temp / "config.yaml"
    config.write_text(json.dumps({"models": {NAME: entry}}), encoding="utf-8")  # which is YAML too
    return ["-m", "eardrum", "serve", "--no-wyoming", "--port", str(port), "--config", str(config)]


def _stand_in(kind: str) -> Callable[[PeerModel, int, Path], list[str]]:
    def command(model: PeerModel, port: int, _: Path) -> list[str]:
        source = model.ggml if kind == "ggml" else model.folder
        return ["-m", "bench.peers.stand_in", kind, str(port), str(source), str(model.threads)]

    return command


def _serve_wyoming(model: PeerModel, port: int, temp: Path) -> list[str]:
    return [
        *("-m", "wyoming_faster_whisper", "--uri", f"tcp://127.0.0.1:{port}", "--model", str(model.folder)),
        *("--data-dir", str(temp), "--stt-library", "faster-whisper", "--local-files-only", "--language", "en"),
        *("--compute-type", "int8", "--beam-size", "5", "--cpu-threads", str(model.threads), "--vad-filter"),
    ]


LIBRARY = ("faster_whisper", "starlette", "uvicorn", "python_multipart")

KINDS: Mapping[str, PeerKind] = {
    OURS: PeerKind("Eardrum", _serve_eardrum, streams=True),
    "faster-whisper": PeerKind("faster-whisper", _stand_in("plain"), LIBRARY, streams=True),
    "batched": PeerKind("its batched pipeline, as in speaches", _stand_in("batched"), LIBRARY, streams=True),
    "webservice": PeerKind("one lock, as in whisper-asr-webservice", _stand_in("locked"), LIBRARY),
    "wyoming": PeerKind("wyoming-faster-whisper", _serve_wyoming, ("wyoming_faster_whisper",), wyoming=True),
    "whisper.cpp": PeerKind("whisper.cpp (f16)", _stand_in("ggml"), (*LIBRARY, "pywhispercpp.model")),
}


@dataclass(frozen=True, slots=True)
class RunningContender:
    """A contender that answers."""

    kind: PeerKind
    port: int
    process: psutil.Process
    started_at: float
    """On the clock of `time.perf_counter`, when its process was started."""

    def _list_processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, with those of children that have ended."""
        total = 0.0
        for process in self._list_processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return total

    @property
    def resting_mb(self) -> float:
        """Memory of all its processes now; what they share counts once."""
        return measure_group_mb([process.pid for process in self._list_processes()])

    @property
    def peak_mb(self) -> float:
        """The most that each of its processes ever held, added up; what they share is in it twice."""
        return sum(_read_peak(process.pid) for process in self._list_processes())

    async def transcribe(self, file: SpokenFile, *, stream: bool = False) -> PeerAnswer:
        """Have a file transcribed.

        Raises:
            TimeoutError: it took far longer than the file plays.
            RuntimeError: the answer is an error.
        """
        async with asyncio.timeout(120 + 3 * file.seconds):
            if self.kind.wyoming:
                return await _ask_wyoming(self.port, file)
            return await _ask_openai(self.port, file, stream=stream)


@contextmanager
def run_contender(kind: PeerKind, model: PeerModel, cache: Path) -> Iterator[RunningContender]:
    """A contender in processes of its own, in an environment without settings of ours; it ends with this block.

    `cache` is kept between starts, as a server's is between its restarts.
    """
    port = find_free_port()
    with ExitStack() as stack:
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eardrum-bench-")))
        (temp / "hub").mkdir()
        surroundings = {
            "TMPDIR": str(temp),
            "HF_HUB_CACHE": str(temp / "hub"),
            "HF_HUB_OFFLINE": "1",
            "EARDRUM_CACHE_DIR": str(cache),
        }
        started = time.perf_counter()
        python = {} if not kind.needs else {"python": model.python}
        process = stack.enter_context(run_child(kind.command(model, port, temp), environment=surroundings, **python))
        if kind.wyoming:
            _wait_for_port(port, process)
        else:
            wait_until_healthy(port, process)
        yield RunningContender(kind, port, psutil.Process(process.pid), started)


def time_script(model: PeerModel, file: SpokenFile) -> float:
    """Seconds that a script takes to import faster-whisper, load the model, transcribe one file and end."""
    with tempfile.NamedTemporaryFile(prefix="eardrum-bench-") as recording:
        recording.write(file.data)
        recording.flush()
        command = [model.python, "-m", "bench.peers.stand_in", "script", recording.name, str(model.folder), str(model.threads)]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=build_environment(), timeout=300)
        return time.perf_counter() - started


def measure_group_mb(pids: list[int]) -> float:
    """Megabytes that these processes hold together: pages of a file that several have mapped count once."""
    private, shared = 0.0, {}
    for pid in pids:
        with suppress(OSError):
            for place, held in _read_mappings(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8")):
                private += held["Private_Dirty"] if place else held["Rss"]
                if place:
                    shared[place] = max(shared.get(place, 0), held["Rss"] - held["Private_Dirty"])
    return (private + sum(shared.values())) * 1024 / 1e6


def _read_mappings(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Each mapping's file and offset, "" for memory of its own, and its sizes in kB."""
    place, held = "", {}
    for line in text.splitlines():
        first, *rest = line.split()
        if first.endswith(":"):
            if first[:-1] in ("Rss", "Private_Dirty"):
                held[first[:-1]] = int(rest[0])
            continue
        if held:
            yield place, held
        offset, device, inode = rest[1:4]
        place, held = (f"{device} {inode} {offset}" if inode != "0" else ""), {}
    if held:
        yield place, held


def _read_peak(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _wait_for_port(port: int, process: Any) -> None:
    import socket  # noqa: PLC0415

    end = time.perf_counter() + START_S
    while time.perf_counter() < end:
        if process.poll() is not None:
            raise RuntimeError(f"The process ended with {process.returncode} before it answered")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.002)
    raise RuntimeError(f"Nothing answered on port {port} within {START_S:g} s")


async def _ask_openai(port: int, file: SpokenFile, *, stream: bool) -> PeerAnswer:
    fields = {"model": NAME, "language": file.language} | ({"stream": "true"} if stream else {})
    started, first = time.perf_counter(), None
    async with open_exchange(port, "/v1/audio/transcriptions", build_form(file.data, **fields)) as answer:
        if not stream:
            body = json.loads(_skip_chunk_sizes(await answer.read()))
            return PeerAnswer(body["text"], time.perf_counter() - started)
        while line := await answer.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("type") == "transcript.text.done":
                    return PeerAnswer(event["text"], time.perf_counter() - started, first)
                if event.get("type") == "transcript.text.delta":
                    first = first or time.perf_counter() - started
    raise RuntimeError("The stream ended without its last event")


def _skip_chunk_sizes(body: bytes) -> bytes:
    """The JSON of a body that may have come in chunks."""
    return body[body.index(b"{") : body.rindex(b"}") + 1]


PIECE = 32_000
"""Bytes of a chunk of audio: one second."""


async def _ask_wyoming(port: int, file: SpokenFile) -> PeerAnswer:
    """Home Assistant's protocol: a line of JSON for each event, with bytes of data and of audio behind it."""
    pcm = file.pcm
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        audio = {"rate": 16_000, "width": 2, "channels": 1}
        await _send_event(writer, "transcribe", {"language": file.language})
        await _send_event(writer, "audio-start", audio)
        for at in range(0, len(pcm), PIECE):
            await _send_event(writer, "audio-chunk", audio, pcm[at : at + PIECE])
        await _send_event(writer, "audio-stop", {})
        while line := await reader.readline():
            event = json.loads(line)
            data = event.get("data") or {}
            if size := event.get("data_length"):
                data |= json.loads(await reader.readexactly(size))
            if size := event.get("payload_length"):
                await reader.readexactly(size)
            if event["type"] == "transcript":
                return PeerAnswer(data["text"], time.perf_counter() - started)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    raise RuntimeError("The connection was closed without a transcript")


async def _send_event(writer: asyncio.StreamWriter, kind: str, data: dict[str, Any], payload: bytes = b"") -> None:
    head = {"type": kind, "data": data} | ({"payload_length": len(payload)} if payload else {})
    writer.write(json.dumps(head).encode() + b"\n" + payload)
    await writer.drain()


def find_python(wanted: str | None) -> str:
    """The interpreter for the peers: the one asked for, else that of `.venv-peers`, else ours."""
    import sys  # noqa: PLC0415

    own = Path(__file__).parent.parent.parent / ".venv-peers" / "bin" / "python"
    return wanted or (str(own) if os.access(own, os.X_OK) else sys.executable)
