"""Starts a runner: `python -m eardrum.runner --engine moonshine --source DIR --socket PATH`.

The process writes one line of JSON to stdout when the model is ready, or the reason why it is not; logs go to stderr. With
`--parent` the runner exits when its stdin closes, so that no runner outlives the process that started it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import uvicorn

from eardrum.engines import cuda, registry
from eardrum.engines.base import Engine, EngineOptions, Window
from eardrum.engines.cuda import to_one_line
from eardrum.errors import ConfigError, DeviceError, EardrumError, ModelLoadError
from eardrum.memory_trimming import return_free_memory
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import LivenessProbe, WindowBatcher
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.options import choose_device, load_engine_class, validate_options
from eardrum.runner.tuning import (
    freeze_garbage_collector,
    lower_priority,
    measure_batch_size,
    set_passive_waiting,
    tune_allocator,
)
from eardrum.runner.vad import VadModel
from eardrum.transcription import SAMPLE_RATE, ModelPlacement, TranscriptionRequest
from eardrum.uvicorn_server import IdleServer

PROBE_S = 3
"""Seconds of the sample recording on which batch sizes are timed."""

OUT_OF_MEMORY = "out of memory"

log = logging.getLogger("eardrum.runner")


def main() -> None:
    """Load the model and serve it until a signal or the parent's end."""
    arguments = _parse_arguments()
    _reserve_stdout()
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    lower_priority()
    tune_allocator()
    set_passive_waiting()
    try:
        engine = load_engine(arguments.engine, arguments.source, json.loads(arguments.options))
        vad = VadModel()
        batch = _check_batch(arguments.batch, engine) or _measure_batch(engine)
    except EardrumError as error:
        _write_message({"failed": error.to_json()})
        sys.exit(1)
    except Exception as error:
        log.exception("The model could not be loaded.")
        message = f"The engine {arguments.engine} could not load the model: {type(error).__name__}: {to_one_line(error)}."
        _write_message({"failed": ModelLoadError(message).to_json()})
        sys.exit(1)
    return_free_memory()  # the memory that measuring the largest batch took
    batcher = WindowBatcher(engine, batch=batch)
    app = RunnerApp(batcher, vad, engine.capabilities, max_audio_s=arguments.max_audio_s)
    freeze_garbage_collector()
    ready = {
        "capabilities": engine.capabilities.to_json(),
        "batch": batch,
        "measured": dict(engine.measured),
        "placement": ModelPlacement(engine.device, engine.compute_type, engine.reason).to_json(),
        "answers": arguments.parent,
    }
    serve(app, arguments, ready, LivenessProbe(batcher))
    batcher.close()


def load_engine(name: str, source: Path, options: dict[str, Any]) -> Engine:
    """Import an engine's file and load a model with it.

    If `device` is `auto` and the GPU cannot be used, the model is loaded on the CPU; `Engine.reason` gives the cause.

    Raises:
        ConfigError: no such engine, or an option it does not have.
        DeviceError: the requested GPU cannot be used.
        ModelLoadError: a library is missing or fails on import, or the weights cannot be loaded.
    """
    card = registry.find_card(name)
    if card.missing_packages:
        raise ModelLoadError(card.install_hint)
    cls = load_engine_class(name)
    checked = validate_options(cls, name, options)
    try:
        device = choose_device(cls, checked)
        if device.name != "cuda":
            engine = cls.load(source, _set_device(checked, device.name))
            engine.reason = device.reason
            return engine
        _write_message({"trying": device.name})  # lets the gateway name the device if a library ends the process
        return _load_on_gpu(cls, source, checked)
    except ImportError as error:
        raise ModelLoadError(f"The engine {name} cannot import its library ({error}): run {card.install}.") from error


def _set_device(options: EngineOptions, device: str) -> EngineOptions:
    return options.model_copy(update={"device": device})


def _load_on_gpu(cls: type[Engine], source: Path, options: EngineOptions) -> Engine:
    """Load the model on the GPU and try it, as libraries may fail at their first use. With `auto`, fall back to the CPU."""
    try:
        engine = cls.load(source, _set_device(options, "cuda"))
        engine.transcribe([_load_sample_window()])
    except ImportError:
        raise
    except Exception as error:
        failed = error if isinstance(error, EardrumError) else cuda.build_device_error(f"The engine {cls.__name__}", error)
        if options.device == "cuda":
            raise (cuda.explain_requested_device(failed) if isinstance(failed, DeviceError) else failed) from error
        if OUT_OF_MEMORY in failed.message.lower():  # no fallback to the CPU: the model would load, but be too slow
            raise failed from error
        engine = cls.load(source, _set_device(options, "cpu"))  # if this fails too, the cause is not the GPU
        engine.reason = failed.message
        log.warning("%s The model runs on the CPU instead.", failed.message)
    return engine


def serve(app: RunnerApp, arguments: argparse.Namespace, ready: dict[str, Any], liveness: LivenessProbe) -> None:
    """Serve on the socket or TCP port until a signal or the parent's end, and report when the socket is open."""
    where = {"uds": arguments.socket} if arguments.socket else {"host": arguments.host, "port": arguments.port}
    config = uvicorn.Config(app, **where, lifespan="off", access_log=False, log_config=None, timeout_graceful_shutdown=1)
    server = ReadyServer(config, ready, app)
    if arguments.parent:
        Thread(target=_answer_parent, args=(server, liveness), name="parent", daemon=True).start()
    # uvicorn raises the signal that ended it once more; its default action would skip the cleaning up.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    with _remove_at_exit(arguments.socket, arguments.own_folder):
        server.run()


class ReadyServer(IdleServer):
    """Writes the `ready` line once the socket is open, so that its reader can connect at once."""

    def __init__(self, config: uvicorn.Config, ready: dict[str, Any], app: RunnerApp):
        super().__init__(config)
        self._ready = ready
        self._app = app

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Open the socket, then write the `ready` line."""
        await super().startup(sockets)
        if self.started:
            _write_message({"ready": self._ready})

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End the live sessions, which do not end by themselves, then wait for the other requests."""
        self._app.shut_down()
        await super().shutdown(sockets)


def _answer_parent(server: IdleServer, liveness: LivenessProbe) -> None:
    """Answer every message of the parent with a liveness report, until the parent closes stdin."""
    while os.read(sys.stdin.fileno(), 4096):
        _write_message({"alive": liveness.report(server.loop)})
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


def _check_batch(batch: int, engine: Engine) -> int:
    if batch > (most := engine.capabilities.max_batch):
        raise ConfigError(f"batch is {batch}, but this engine decodes at most {most} windows at once: set less, or leave it out.")
    return batch


def _measure_batch(engine: Engine) -> int:
    """Measure the best batch size for this machine on the sample recording."""
    if engine.capabilities.max_batch == 1:
        return 1
    return engine.measure_batch_size() or measure_batch_size(engine, _load_sample_window())


def _load_sample_window() -> Window:
    """Load the beginning of the sample recording that ships with the package."""
    sample = (files("eardrum") / "sample.ogg").read_bytes()
    pieces = list(AudioDecoder(BytePipe.from_bytes(sample), raw_pcm=False, max_seconds=60))
    audio = np.concatenate(pieces)[: PROBE_S * SAMPLE_RATE]
    return Window(audio, 0.0, 1.0, (0.0, PROBE_S), TranscriptionRequest())


def _reserve_stdout() -> None:
    """Keep stdout for messages to the gateway: anything that a library prints, from Python or C, goes to stderr."""
    sys.__stdout__ = os.fdopen(os.dup(1), "w", encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.stderr
    os.dup2(2, 1)


def _write_message(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.runner", description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--source", type=Path, required=True, help="directory or file of the weights")
    options = os.environ.get("EARDRUM_RUNNER_OPTIONS", "{}")  # may hold keys, and every user can read command lines
    parser.add_argument("--options", default=options, help="the engine's options as JSON; else EARDRUM_RUNNER_OPTIONS")
    parser.add_argument("--socket", help="unix socket to listen on; without it TCP")
    parser.add_argument(
        "--own-folder",
        action="append",
        default=[],
        help="folder made for this process: deleted at the end with its contents; repeatable",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--batch", type=int, default=0, help="windows per batch; 0 measures")
    parser.add_argument("--max-audio-s", type=float, default=24 * 3600.0)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--parent", action="store_true", help="exit when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
