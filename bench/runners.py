"""The runner with another order of service: `python -m bench.runners --order lock|fifo|fair --socket PATH --batch N`.

The same engine, decoder, VAD, windows and web service as the real runner; only whose turn it is differs.
Every batch is written to stdout as a line `{"batch": size}` when `--tell` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from bench.children import run_child
from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.runner.__main__ import load_engine
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import DecodeJob, WindowBatcher
from eardrum.runner.fair_queue import FairQueue, ServiceClass, WindowQueue
from eardrum.runner.idle import IdleWork
from eardrum.runner.liveness import LivenessProbe
from eardrum.runner.process_tuning import freeze_garbage_collector, keep_freed_memory, limit_arenas
from eardrum.runner.serving import serve
from eardrum.runner.tuning import EngineTuner
from eardrum.runner.vad import VadModel

EMBEDDED = find_spec("moonshine_voice")
assert EMBEDDED
assert EMBEDDED.origin
WEIGHTS = Path(EMBEDDED.origin).parent / "assets" / "tiny-en"
"""The embedded model's files, found without importing their package."""


class FifoQueue:
    """Windows in the order in which they came, whoever sent them."""

    def __init__(self) -> None:
        self._items: deque[DecodeJob] = deque()

    def push(self, item: DecodeJob) -> None:
        """Add a window."""
        self._items.append(item)

    def take(self, limit: int, *, live: bool = False, clips_alone: bool = False) -> list[DecodeJob]:
        """Remove and return the oldest windows, up to `limit`."""
        return [self._items.popleft() for _ in range(min(limit, len(self._items)))]

    def take_urgent(self, most: float) -> list[DecodeJob]:
        """Nothing: no window is more urgent than another."""
        return []

    def take_ahead_of(self, rank: ServiceClass, limit: int) -> list[DecodeJob]:
        """Nothing: no batch is interrupted."""
        return []

    def drop(self, request_id: int) -> list[DecodeJob]:
        """Remove and return everything of one request."""
        dropped = [item for item in self._items if item.request_id == request_id]
        self._items = deque(item for item in self._items if item.request_id != request_id)
        return dropped


class LockedRunnerApp(RunnerApp):
    """One file at a time: a request holds the model from its first byte to its last word."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._lock = asyncio.Lock()

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve the request when all those before it are done; questions about the runner's health do not wait."""
        if scope["type"] == "http" and scope["path"] == "/transcribe":
            async with self._lock:
                await super().__call__(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class BatchReportingEngine(Engine):
    """Another engine that says how large each batch was."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.capabilities = engine.capabilities

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> BatchReportingEngine:
        """It wraps what is loaded already."""
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Say it, then decode."""
        print(json.dumps({"batch": len(windows)}), flush=True)
        return self._engine.transcribe(windows)


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a runner loads."""

    engine: str
    source: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The same on a command line."""
        return ["--engine", self.engine, "--source", str(self.source), "--options", json.dumps(self.options)]


@contextmanager
def start_own_runner(model: LoadOrder, batch: int) -> Iterator[tuple[Path, int, psutil.Process]]:
    """The real runner in a process of its own: its socket, the batch size (its own choice if `batch` is 0), the process."""
    with TemporaryDirectory(prefix="eardrum-bench-") as temp:
        socket = Path(temp) / "runner.sock"
        arguments = [*model.arguments, "--batch", str(batch), "--socket", str(socket), "--parent"]
        with run_child(["-m", "eardrum.runner", *arguments], pipes=True) as process:
            assert process.stdout
            message = json.loads(process.stdout.readline() or "{}")
            if "ready" not in message:
                raise RuntimeError(f"The runner did not start: {message}")
            yield socket, message["ready"]["batch"], psutil.Process(process.pid)


@contextmanager
def start_runner(order: str, batch: int, *, tell: bool = False) -> Iterator[tuple[Path, Popen[bytes]]]:
    """A runner in a process of its own: its socket, and the process whose stdout tells of batches."""
    with TemporaryDirectory(prefix="eardrum-bench-") as temp:
        socket = Path(temp) / "runner.sock"
        arguments = ["-m", "bench.runners", "--order", order, "--batch", str(batch), "--socket", str(socket)]
        with run_child([*arguments, *["--tell"] * tell], pipes=True) as process:
            assert process.stdout
            line = process.stdout.readline()
            if b"ready" not in line:
                raise RuntimeError(f"The runner did not start: {line!r}")
            yield socket, process


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", choices=("lock", "fifo", "fair"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--tell", action="store_true")
    arguments = parser.parse_args()
    arguments.parent, arguments.own_folder = True, None
    limit_arenas()
    keep_freed_memory()
    engine = load_engine("moonshine", WEIGHTS, {})
    queue: WindowQueue[DecodeJob] = FifoQueue() if arguments.order == "fifo" else FairQueue[DecodeJob]()
    batcher = WindowBatcher(BatchReportingEngine(engine) if arguments.tell else engine, batch=arguments.batch, queue=queue)
    app = (LockedRunnerApp if arguments.order == "lock" else RunnerApp)(
        batcher, VadModel(), engine.capabilities, max_audio_s=24 * 3600
    )
    freeze_garbage_collector()
    serve(app, arguments, {}, LivenessProbe(batcher.calls), IdleWork(batcher, EngineTuner(engine, arguments.batch)))
    batcher.close()


if __name__ == "__main__":
    main()
