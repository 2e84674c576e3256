"""The options of engines, held against what the engines declare: for a runner that loads, and for a check that does not.

`python -m eardrum.runner.options` reads a JSON list of `{"engine", "options"}` from stdin and prints one of what is wrong with
each, an empty text for nothing. No model is loaded, and no library of an engine.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from pydantic import ValidationError

from eardrum.engines import registry
from eardrum.engines.base import Engine, EngineOptions
from eardrum.errors import ConfigError, ModelLoadError


def main() -> None:
    """Check what comes in on stdin."""
    print(json.dumps([problem(asked["engine"], asked["options"]) for asked in json.load(sys.stdin)]))


def problem(engine: str, options: dict[str, Any]) -> str:
    """What is wrong with the options; empty if nothing is."""
    try:
        validated(engine_class(engine), engine, options)
    except (ConfigError, ModelLoadError) as error:
        return error.message
    return ""


def engine_class(name: str) -> type[Engine]:
    """Import an engine's file.

    Raises:
        ConfigError: there is no such engine.
        ModelLoadError: the file cannot be imported.
    """
    card = registry.card(name)
    try:
        cls: type[Engine] = getattr(importlib.import_module(card.module), card.class_name)
    except ImportError as error:
        raise ModelLoadError(f"The engine {name} cannot import its library ({error}): run {card.install}.") from error
    return cls


def validated(cls: type[Engine], name: str, options: dict[str, Any]) -> EngineOptions:
    """The options as the engine wants them.

    Raises:
        ConfigError: one that the engine does not have, or a value that it cannot have.
    """
    try:
        return cls.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(cls.Options.model_fields)
        wrong = first["msg"].replace("tuple", "list").removeprefix("Value error, ").rstrip(".")
        raise ConfigError(f"Option {'.'.join(map(str, first['loc']))} of {name}: {wrong}. Options: {known}.") from error


if __name__ == "__main__":
    main()
