"""Serves a loaded model on a socket, reports to the parent process when it is ready, and answers its liveness checks."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import uvicorn

from eardrum.engines.base import Engine, ModelEngine, VoiceEngine
from eardrum.process_messages import write_message
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.idle import IdleWork
from eardrum.runner.liveness import LivenessProbe
from eardrum.runner.network_app import NetworkApp
from eardrum.runner.process_tuning import freeze_garbage_collector
from eardrum.runner.speech_app import SpeechApp
from eardrum.runner.synthesizer import SpeechSynthesizer
from eardrum.runner.tuning import EngineTuner, choose_first_batch
from eardrum.runner.vad import VadModel
from eardrum.runner_access import RUNNER_IDLE_S
from eardrum.transcription import ModelPlacement
from eardrum.uvicorn_server import IdleServer

log = logging.getLogger("eardrum.runner")


def serve_engine(engine: Engine, batch: int, vad: VadModel, arguments: argparse.Namespace) -> None:
    """Serve a loaded model until the end. `batch` is 0 if the size of its batches is not known yet."""
    batcher = WindowBatcher(engine, batch=batch or choose_first_batch(engine))
    idle_work = IdleWork(batcher, EngineTuner(engine, batch))
    app = RunnerApp(batcher, vad, engine.capabilities, max_audio_s=arguments.max_audio_s, idle_work=idle_work)
    freeze_garbage_collector()
    serve(app, arguments, _build_ready_message(engine, batcher.batch, arguments), LivenessProbe(batcher.calls), idle_work)
    batcher.close()


def serve_voice(engine: VoiceEngine, arguments: argparse.Namespace) -> None:
    """Serve a loaded voice model until the end."""
    synthesizer = SpeechSynthesizer(engine)
    idle_work = IdleWork()
    app = SpeechApp(synthesizer, idle_work)
    freeze_garbage_collector()
    serve(app, arguments, _build_ready_message(engine, 1, arguments), LivenessProbe(synthesizer.calls), idle_work)
    synthesizer.close()


def _build_ready_message(engine: ModelEngine, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "capabilities": engine.capabilities.to_json(),
        "batch": batch,
        "placement": ModelPlacement(engine.device, engine.compute_type, engine.reason).to_json(),
        "answers": arguments.parent,
    }


def serve(
    app: RunnerApp | SpeechApp, arguments: argparse.Namespace, ready: dict[str, Any], liveness: LivenessProbe, idle_work: IdleWork
) -> None:
    """Serve on the socket or TCP port until a signal or the parent's end, and report when the socket is open."""
    common: dict[str, Any] = {
        "lifespan": "off",
        "access_log": False,
        "log_config": None,
        "timeout_graceful_shutdown": 1,
        "timeout_keep_alive": RUNNER_IDLE_S,
    }
    if arguments.socket:
        server = ReadyServer(uvicorn.Config(app, uds=arguments.socket, **common), ready, app, idle_work)
    else:
        details = {"engine": arguments.engine, "batch": ready["batch"], "placement": ready["placement"]}
        network = NetworkApp(app, details, token=arguments.token, get_batch_age=liveness.get_batch_age)
        config = uvicorn.Config(network, host=arguments.host, port=arguments.port, **common)
        server = NetworkServer(config, ready, app, idle_work, network, arguments)
    if arguments.parent:
        Thread(target=_answer_parent, args=(server, liveness, idle_work), name="parent", daemon=True).start()
    # uvicorn raises the signal that ended it once more; its default action would skip the cleaning up.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    with _remove_at_exit(arguments.socket, arguments.own_folder):
        server.run()


class ReadyServer(IdleServer):
    """Writes the `ready` line once the socket is open, so that its reader can connect at once."""

    def __init__(self, config: uvicorn.Config, ready: dict[str, Any], app: RunnerApp | SpeechApp, idle_work: IdleWork):
        super().__init__(config)
        self._ready = ready
        self._app = app
        self._idle_work = idle_work

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Open the socket, then write the `ready` line."""
        await super().startup(sockets)
        if self.started:
            self.report_start(self._ready)
            self._idle_work.start()

    def report_start(self, ready: dict[str, Any]) -> None:
        """Tell the parent that the model is ready."""
        write_message({"ready": ready})

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End the live sessions, which do not end by themselves, then wait for the other requests."""
        self._idle_work.stop()
        self._app.shut_down()
        await super().shutdown(sockets)


class NetworkServer(ReadyServer):
    """A server on TCP, which drains when a signal ends it: running requests are finished, and new ones go elsewhere."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: dict[str, Any],
        app: RunnerApp | SpeechApp,
        idle_work: IdleWork,
        network: NetworkApp,
        arguments: argparse.Namespace,
    ):
        super().__init__(config, ready, app, idle_work)
        self._network = network
        self._drain_s: float = arguments.drain_timeout
        self._log_only: bool = arguments.log_only
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain after the first signal, and end after the second, or without a time for draining."""
        if self.loop and self._drain_s and not self._network.is_draining:
            self.loop.call_soon_threadsafe(self._start_draining, sig, frame)
        else:
            super().handle_exit(sig, frame)

    def report_start(self, ready: dict[str, Any]) -> None:
        """Tell the parent, and log where the model is served."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if not self._log_only:
            super().report_start(ready | {"address": address})
        log.info("Ready: %s, batch %d.", address, ready["batch"])

    def _start_draining(self, sig: int, frame: FrameType | None) -> None:
        if not self._draining:
            self._draining = asyncio.ensure_future(self._drain(sig, frame))

    async def _drain(self, sig: int, frame: FrameType | None) -> None:
        log.info("Finishing the running requests, for %g s at most.", self._drain_s)
        await self._network.drain(self._drain_s)
        super().handle_exit(sig, frame)


def _answer_parent(server: IdleServer, liveness: LivenessProbe, idle_work: IdleWork) -> None:
    """Answer every message of the parent with a liveness report, until the parent closes stdin."""
    while os.read(sys.stdin.fileno(), 4096):
        write_message({"alive": liveness.report(server.loop)} | idle_work.report())
    server.request_exit()


@contextmanager
def _remove_at_exit(socket: str | None, folders: Sequence[str]) -> Iterator[None]:
    """Delete the socket and the folders made for this process, even if the parent has died.

    The folders are named explicitly, because other programs may have files next to a socket.
    """
    try:
        yield
    finally:
        if socket:
            Path(socket).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
