"""Serves a loaded model on a socket, tells the parent process when it is ready, and answers its liveness checks."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn

from eardrum.engines.base import Engine, ModelEngine, VoiceEngine
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import LivenessProbe, WindowBatcher
from eardrum.runner.idle import IdleWork
from eardrum.runner.messages import write_message
from eardrum.runner.process_tuning import freeze_garbage_collector
from eardrum.runner.speech_app import SpeechApp
from eardrum.runner.synthesizer import SpeechSynthesizer
from eardrum.runner.tuning import EngineTuner, choose_first_batch
from eardrum.runner.vad import VadModel
from eardrum.transcription import ModelPlacement
from eardrum.uvicorn_server import IdleServer


def serve_engine(engine: Engine, batch: int, vad: VadModel, arguments: argparse.Namespace) -> None:
    """Serve a loaded model until the end. `batch` is 0 if the size of its batches is not known yet."""
    batcher = WindowBatcher(engine, batch=batch or choose_first_batch(engine))
    idle_work = IdleWork(batcher, EngineTuner(engine, batch))
    app = RunnerApp(batcher, vad, engine.capabilities, max_audio_s=arguments.max_audio_s, idle_work=idle_work)
    freeze_garbage_collector()
    serve(app, arguments, _build_ready_message(engine, batcher.batch, arguments), LivenessProbe(batcher), idle_work)
    batcher.close()


def serve_voice(engine: VoiceEngine, arguments: argparse.Namespace) -> None:
    """Serve a loaded voice model until the end."""
    synthesizer = SpeechSynthesizer(engine)
    idle_work = IdleWork()
    app = SpeechApp(synthesizer, idle_work)
    freeze_garbage_collector()
    serve(app, arguments, _build_ready_message(engine, 1, arguments), LivenessProbe(synthesizer), idle_work)
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
    where = {"uds": arguments.socket} if arguments.socket else {"host": arguments.host, "port": arguments.port}
    config = uvicorn.Config(app, **where, lifespan="off", access_log=False, log_config=None, timeout_graceful_shutdown=1)
    server = ReadyServer(config, ready, app, idle_work)
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
            write_message({"ready": self._ready})
            self._idle_work.start()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End the live sessions, which do not end by themselves, then wait for the other requests."""
        self._idle_work.stop()
        self._app.shut_down()
        await super().shutdown(sockets)


def _answer_parent(server: IdleServer, liveness: LivenessProbe, idle_work: IdleWork) -> None:
    """Answer every message of the parent with a liveness report, until the parent closes stdin."""
    while os.read(sys.stdin.fileno(), 4096):
        write_message({"alive": liveness.report(server.loop)} | idle_work.report())
    server.request_exit()


@contextmanager
def _remove_at_exit(socket: str | None, folders: Sequence[str]) -> Iterator[None]:
    """Delete the socket and the folders made for this process, even if the parent has died.

    The folders are named explicitly, because other programs may have files beside a socket.
    """
    try:
        yield
    finally:
        if socket:
            Path(socket).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
