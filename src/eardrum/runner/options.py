"""Checks engine options against the engine's declaration: for a runner that loads a model, and for `eardrum check`.

`python -m eardrum.runner.options` reads a JSON list of `{"engine", "options"}` from stdin and prints a list with one entry for
each: a list of its problems as `{"path", "message"}`. No model is loaded and no engine library is imported.

With `--device` it reads one such object, imports the engine's library and prints where a model would be loaded:
`{"device", "reason", "wrong"}`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.engines import cuda, registry
from eardrum.engines.base import Device, EngineOptions, ModelEngine
from eardrum.errors import ConfigError, DeviceError, ModelLoadError


def main() -> None:
    """Check the options on stdin."""
    if "--device" in sys.argv:
        question = json.load(sys.stdin)
        print(json.dumps(describe_device(question["engine"], question["options"])))
        return
    print(json.dumps([find_problems(model["engine"], model["options"]) for model in json.load(sys.stdin)]))


def describe_device(engine: str, options: dict[str, Any]) -> dict[str, str]:
    """Find the device for a model, why it is not a GPU, and what is wrong with the options."""
    try:
        cls = load_engine_class(engine)
        device = choose_device(cls, validate_options(cls, engine, options))
    except (ConfigError, ModelLoadError) as error:
        return {"device": "", "reason": "", "wrong": error.message}
    except ImportError as error:
        return {"device": "", "reason": "", "wrong": f"The engine {engine} cannot import its library ({error})."}
    return {"device": device.name, "reason": device.reason, "wrong": ""}


def find_problems(engine: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """List the errors in the options, each with its path below the options and a message."""
    try:
        cls = load_engine_class(engine)
    except (ConfigError, ModelLoadError) as error:
        return [{"path": [], "message": error.message}]
    try:
        cls.Options(**options)
    except ValidationError as error:
        return [{"path": list(wrong["loc"]), "message": _describe_error(wrong, cls, engine)} for wrong in error.errors()]
    return []


def choose_device(cls: type[ModelEngine], options: EngineOptions) -> Device:
    """Choose the device on which the engine loads a model with these options.

    Raises:
        DeviceError: the options require a GPU, and the engine cannot use one.
        ImportError: the engine's library cannot be imported.
    """
    try:
        return cls.find_device(options)
    except DeviceError as error:
        raise cuda.explain_requested_device(error) from error
    except ImportError:
        raise
    except Exception as error:
        failed = cuda.build_device_error(f"The engine {cls.__name__}", error)
        if options.device == "cuda":
            raise cuda.explain_requested_device(failed) from error
        return Device("cpu", failed.message)


def load_engine_class(name: str) -> type[ModelEngine]:
    """Import an engine's file.

    Raises:
        ConfigError: there is no such engine.
        ModelLoadError: the file cannot be imported.
    """
    card = registry.find_card(name)
    try:
        cls: type[ModelEngine] = getattr(importlib.import_module(card.module), card.class_name)
    except ImportError as error:
        raise ModelLoadError(f"The engine {name} cannot import its library ({error}): run {card.install}.") from error
    except Exception as error:  # an engine of another package may raise anything
        why = f"{type(error).__name__}: {cuda.to_one_line(error)}"
        raise ModelLoadError(f"The file of the engine {name} ({card.module}) cannot be imported: {why}.") from error
    if not issubclass(cls, ModelEngine):
        raise ModelLoadError(
            f"The class {card.class_name} of {card.module} is not derived from eardrum.engines.base.Engine or VoiceEngine."
        )
    return cls


def validate_options(cls: type[ModelEngine], name: str, options: dict[str, Any]) -> EngineOptions:
    """Validate options against an engine's declaration.

    Raises:
        ConfigError: an option does not exist, or has a wrong value.
    """
    try:
        return cls.Options(**options)
    except ValidationError as error:
        raise ConfigError(_describe_error(error.errors()[0], cls, name)) from error


def _describe_error(error: ErrorDetails, cls: type[ModelEngine], engine: str) -> str:
    known = ", ".join(cls.Options.model_fields)
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, cls.Options.model_fields, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{engine} has no option {name}.{hint} Its options: {known}."
    what = error["msg"].replace("tuple", "list").removeprefix("Value error, ").rstrip(".")
    return f"Option {name} of {engine}: {what}. Options: {known}." if name else f"The options of {engine} are wrong: {what}."


if __name__ == "__main__":
    main()
