"""Starts a runner: `python -m eardrum.runner --engine moonshine --source DIR --socket PATH`.

The process writes one line of JSON to stdout when the model is ready, or the reason why it is not; logs go to stderr. With
`--parent` the runner exits when its stdin closes, so that no runner outlives the process that started it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from eardrum.engines import cuda, registry
from eardrum.engines.base import Engine, EngineOptions, ModelEngine, VoiceEngine
from eardrum.engines.cuda import to_one_line
from eardrum.errors import ConfigError, DeviceError, EardrumError, ModelLoadError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.memory_trimming import return_free_memory
from eardrum.process_messages import reserve_stdout, write_message
from eardrum.request_ids import RunnerLogFormatter
from eardrum.runner.options import choose_device, load_engine_class, validate_options
from eardrum.runner.process_tuning import keep_freed_memory, limit_arenas, lower_priority, set_passive_waiting
from eardrum.runner_access import TOKEN_VARIABLE, find_token_problem, is_loopback
from eardrum.tracing import start_tracing

OUT_OF_MEMORY = "out of memory"

SPEAKERS = "speakers"
"""The engine for speaker labels. It transcribes nothing, so it is not among the others."""

log = logging.getLogger("eardrum.runner")


def main() -> None:
    """Load the model and serve it until a signal or the parent's end."""
    arguments = _parse_arguments()
    reserve_stdout()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RunnerLogFormatter())
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])
    lower_priority()
    limit_arenas()
    set_passive_waiting()
    try:
        arguments.token = _read_token(arguments)
        with pause_garbage_collection(), ThreadPoolExecutor(1, "load") as loading:
            engine_loading = loading.submit(load_engine, arguments.engine, arguments.source, json.loads(arguments.options))
            # Libraries read weights without Python's lock: the rest of the runner is imported meanwhile.
            from eardrum.runner.serving import serve_engine, serve_voice  # noqa: PLC0415
            from eardrum.runner.vad import VadModel  # noqa: PLC0415

            start_tracing("eardrum-runner")
            speaks = arguments.engine != SPEAKERS and registry.find_card(arguments.engine).capabilities.speak
            vad = None if speaks else VadModel()
            engine = engine_loading.result()
        batch = _check_batch(arguments.batch, engine) or (1 if engine.capabilities.max_batch == 1 else 0)
    except EardrumError as error:
        _report_failure(error, arguments)
    except Exception as error:
        log.exception("The model could not be loaded.")
        message = f"The engine {arguments.engine} could not load the model: {type(error).__name__}: {to_one_line(error)}."
        _report_failure(ModelLoadError(message), arguments)
    return_free_memory()  # what reading and converting the weights took
    keep_freed_memory()
    if isinstance(engine, VoiceEngine):
        serve_voice(engine, arguments)
    else:
        assert isinstance(engine, Engine)
        assert vad
        serve_engine(engine, batch, vad, arguments)


def load_engine(name: str, source: Path, options: dict[str, Any]) -> ModelEngine:
    """Import an engine's file and load a model with it.

    If `device` is `auto` and the GPU cannot be used, the model is loaded on the CPU; `Engine.reason` gives the cause.

    Raises:
        ConfigError: no such engine, or an option it does not have.
        DeviceError: the requested GPU cannot be used.
        ModelLoadError: a library is missing or fails on import, or the weights cannot be loaded.
    """
    if name == SPEAKERS:
        from eardrum.runner.speakers.voice_encoder import VoiceEncoder  # noqa: PLC0415 -- as every engine's file

        return VoiceEncoder.load(source, EngineOptions())
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
        write_message({"trying": device.name})  # lets the gateway name the device if a library ends the process
        return _load_on_gpu(cls, source, checked)
    except ImportError as error:
        raise ModelLoadError(f"The engine {name} cannot import its library ({error}): run {card.install}.") from error


def _set_device(options: EngineOptions, device: str) -> EngineOptions:
    return options.model_copy(update={"device": device})


def _load_on_gpu(cls: type[ModelEngine], source: Path, options: EngineOptions) -> ModelEngine:
    """Load the model on the GPU and try it, as libraries may fail at their first use. With `auto`, fall back to the CPU."""
    try:
        engine = cls.load(source, _set_device(options, "cuda"))
        _try_engine(engine)
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


def _try_engine(engine: ModelEngine) -> None:
    """Have the engine do a little of its work."""
    if isinstance(engine, VoiceEngine):
        engine.speak("1, 2, 3.", engine.capabilities.voices[0][0], 1.0)
        return
    from eardrum.runner.tuning import load_sample_window  # noqa: PLC0415 -- PyAV, which nothing else needs before

    assert isinstance(engine, Engine)
    engine.transcribe([load_sample_window()])


def _check_batch(batch: int, engine: ModelEngine) -> int:
    if batch > (most := engine.capabilities.max_batch):
        raise ConfigError(f"batch is {batch}, but this engine decodes at most {most} windows at once: set less, or leave it out.")
    return batch


def _report_failure(error: EardrumError, arguments: argparse.Namespace) -> NoReturn:
    """Tell why the model cannot be served, and end the process."""
    if arguments.log_only:
        log.error("%s", error.message)
    else:
        write_message({"failed": error.to_json()})
    sys.exit(1)


def _read_token(arguments: argparse.Namespace) -> str:
    """Return the token that clients must show; empty if none is needed. It is removed from the environment.

    Raises:
        ConfigError: the token is unfit, or missing although others reach the port.
    """
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if token and (problem := find_token_problem(token)):
        raise ConfigError(f"The token {problem}.")
    if not (token or arguments.socket or is_loopback(arguments.host)):
        raise ConfigError(
            f"Every client that can connect to {arguments.host} could use this runner: set a token in {TOKEN_VARIABLE}."
        )
    return token


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
    parser.add_argument("--drain-timeout", type=float, default=0.0, help="seconds to finish requests after a signal, on TCP")
    parser.add_argument("--log-only", action="store_true", help="write failures to the log, and nothing to stdout")
    parser.add_argument("--parent", action="store_true", help="exit when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
