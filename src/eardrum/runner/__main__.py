"""Starts a runner: `python -m eardrum.runner --engine moonshine --source DIR --socket PATH`.

Says one line of JSON on stdout when the model is ready, or why it is not; logs go to stderr. With
`--parent` the runner ends when its stdin closes, so that none survives the process that started it.
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
from eardrum.engines.cuda import one_line
from eardrum.errors import ConfigError, DeviceError, EardrumError, ModelLoadError
from eardrum.quiet import QuietServer
from eardrum.runner.app import RunnerApp
from eardrum.runner.batch_size import measured_batch
from eardrum.runner.batcher import Batcher
from eardrum.runner.decode import Decoder
from eardrum.runner.inlet import Inlet
from eardrum.runner.liveness import Liveness
from eardrum.runner.memory import freeze_garbage_collector, return_free_memory, tune_allocator
from eardrum.runner.options import chosen_device, engine_class, validated
from eardrum.runner.threads import wait_without_spinning
from eardrum.runner.vad import Vad
from eardrum.types import SAMPLE_RATE, Placement, Request

PROBE_S = 3
"""Seconds of the sample recording on which batch sizes are timed."""

FULL = "out of memory"

log = logging.getLogger("eardrum.runner")


def main() -> None:
    """Load the model and serve it until told to stop."""
    arguments = _arguments()
    _keep_stdout()
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    tune_allocator()
    wait_without_spinning()
    try:
        engine = load_engine(arguments.engine, arguments.source, json.loads(arguments.options))
        vad = Vad()
        batch = _allowed(arguments.batch, engine) or _measure(engine)
    except EardrumError as error:
        _say({"failed": error.to_json()})
        sys.exit(1)
    except Exception as error:
        log.exception("The model could not be loaded.")
        why = f"The engine {arguments.engine} could not load the model: {type(error).__name__}: {one_line(error)}."
        _say({"failed": ModelLoadError(why).to_json()})
        sys.exit(1)
    return_free_memory()  # what the largest batch tried needed
    batcher = Batcher(engine, batch=batch)
    app = RunnerApp(batcher, vad, engine.capabilities, max_audio_s=arguments.max_audio_s)
    freeze_garbage_collector()
    ready = {
        "capabilities": engine.capabilities.to_json(),
        "batch": batch,
        "measured": dict(engine.measured),
        "placement": Placement(engine.device, engine.compute_type, engine.reason).to_json(),
        "answers": arguments.parent,
    }
    serve(app, arguments, ready, Liveness(batcher))
    batcher.close()


def load_engine(name: str, source: Path, options: dict[str, Any]) -> Engine:
    """Import an engine's file and load a model with it.

    A GPU that `auto` would have, and that cannot be used, is stood in for by the CPU; `Engine.reason` says why.

    Raises:
        ConfigError: no such engine, or an option it does not have.
        DeviceError: a GPU is asked for that cannot be used.
        ModelLoadError: a library is missing or fails on import, or the weights cannot be loaded.
    """
    card = registry.card(name)
    if card.missing:
        raise ModelLoadError(card.how_to_install)
    cls = engine_class(name)
    checked = validated(cls, name, options)
    try:
        device = chosen_device(cls, checked)
        if device.name != "cuda":
            engine = cls.load(source, _on(checked, device.name))
            engine.reason = device.reason
            return engine
        _say({"trying": device.name})  # the gateway's clue, should a library end the process
        return _on_gpu(cls, source, checked)
    except ImportError as error:
        raise ModelLoadError(f"The engine {name} cannot import its library ({error}): run {card.install}.") from error


def _on(options: EngineOptions, device: str) -> EngineOptions:
    return options.model_copy(update={"device": device})


def _on_gpu(cls: type[Engine], source: Path, options: EngineOptions) -> Engine:
    """Load the model on the GPU, and try it: libraries are loaded when they are first needed. Else, for `auto`, on the CPU."""
    try:
        engine = cls.load(source, _on(options, "cuda"))
        engine.transcribe([_sample_window()])
    except ImportError:
        raise
    except Exception as error:
        failed = error if isinstance(error, EardrumError) else cuda.unusable(f"The engine {cls.__name__}", error)
        if options.device == "cuda":
            raise (cuda.asked_for(failed) if isinstance(failed, DeviceError) else failed) from error
        if FULL in failed.message.lower():  # of which the CPU is no cure: the model would be there, and too slow
            raise failed from error
        engine = cls.load(source, _on(options, "cpu"))  # if that fails too, the GPU was not at fault
        engine.reason = failed.message
        log.warning("%s It runs on the CPU.", failed.message)
    return engine


def serve(app: RunnerApp, arguments: argparse.Namespace, ready: dict[str, Any], liveness: Liveness) -> None:
    """Listen on the socket or the TCP port, say so, and stay until a signal or the parent's end."""
    where = {"uds": arguments.socket} if arguments.socket else {"host": arguments.host, "port": arguments.port}
    config = uvicorn.Config(app, **where, lifespan="off", access_log=False, log_config=None, timeout_graceful_shutdown=1)
    server = ReadyServer(config, ready, app)
    if arguments.parent:
        Thread(target=_follow_parent, args=(server, liveness), name="parent", daemon=True).start()
    # uvicorn raises the signal that ended it once more; its default action would skip the cleaning up.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    with _removed_at_end(arguments.socket, arguments.own_folder):
        server.run()


class ReadyServer(QuietServer):
    """Says that it is ready once the socket is open: whoever reads the line can connect."""

    def __init__(self, config: uvicorn.Config, ready: dict[str, Any], app: RunnerApp):
        super().__init__(config)
        self._ready = ready
        self._app = app

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Open the socket, then say so."""
        await super().startup(sockets)
        if self.started:
            _say({"ready": self._ready})

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End what does not end by itself, then wait for the rest."""
        self._app.end()
        await super().shutdown(sockets)


def _follow_parent(server: QuietServer, liveness: Liveness) -> None:
    """Answer whatever the parent asks, until it is gone. There is only one question."""
    while os.read(sys.stdin.fileno(), 4096):
        _say({"alive": liveness.report(server.loop)})
    server.end()


@contextmanager
def _removed_at_end(socket: str | None, folders: Sequence[str]) -> Iterator[None]:
    """Leave no socket behind, nor a folder that was made for this process alone, even when the parent is gone.

    Which folder that is must be said: a socket may lie beside files of others.
    """
    try:
        yield
    finally:
        if socket:
            Path(socket).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _allowed(batch: int, engine: Engine) -> int:
    if batch > (most := engine.capabilities.max_batch):
        raise ConfigError(f"batch is {batch}, but this engine decodes at most {most} windows at once. Set less, or leave it out.")
    return batch


def _measure(engine: Engine) -> int:
    """The batch size for this machine, timed on real speech: the recording that ships with the package."""
    if engine.capabilities.max_batch == 1 or not engine.gains_by_batching:
        return 1
    return measured_batch(engine, _sample_window())


def _sample_window() -> Window:
    """Real speech: the beginning of the recording that ships with the package."""
    sample = (files("eardrum") / "sample.ogg").read_bytes()
    pieces = list(Decoder(Inlet.holding(sample), raw_pcm=False, max_seconds=60))
    audio = np.concatenate(pieces)[: PROBE_S * SAMPLE_RATE]
    return Window(audio, 0.0, 1.0, (0.0, PROBE_S), Request())


def _keep_stdout() -> None:
    """Keep stdout for what is said here: whatever else a library prints, from Python or from C, goes to stderr."""
    sys.__stdout__ = os.fdopen(os.dup(1), "w", encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.stderr
    os.dup2(2, 1)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.runner", description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--source", type=Path, required=True, help="directory or file of the weights")
    options = os.environ.get("EARDRUM_RUNNER_OPTIONS", "{}")  # may hold keys: a command line is for all to see
    parser.add_argument("--options", default=options, help="the engine's options as JSON; else EARDRUM_RUNNER_OPTIONS")
    parser.add_argument("--socket", help="unix socket to listen on; without it TCP")
    parser.add_argument(
        "--own-folder",
        action="append",
        default=[],
        help="folder made for this process alone: removed at the end, with all that is in it; may be given again",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--batch", type=int, default=0, help="windows per batch; 0 measures")
    parser.add_argument("--max-audio-s", type=float, default=24 * 3600.0)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--parent", action="store_true", help="end when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
