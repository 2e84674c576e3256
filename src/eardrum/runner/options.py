"""The options of engines, held against what the engines declare: for a runner that loads, and for a check that does not.

`python -m eardrum.runner.options` reads a JSON list of `{"engine", "options"}` from stdin and prints a list, of a list for each:
what is wrong with it, as `{"path", "message"}`. No model is loaded, and no library of an engine.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.engines import registry
from eardrum.engines.base import Engine, EngineOptions
from eardrum.errors import ConfigError, ModelLoadError


def main() -> None:
    """Check what comes in on stdin."""
    print(json.dumps([problems(asked["engine"], asked["options"]) for asked in json.load(sys.stdin)]))


def problems(engine: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with the options: for each of them where below the options, and a sentence."""
    try:
        cls = engine_class(engine)
    except (ConfigError, ModelLoadError) as error:
        return [{"path": [], "message": error.message}]
    try:
        cls.Options(**options)
    except ValidationError as error:
        return [{"path": list(wrong["loc"]), "message": _worded(wrong, cls, engine)} for wrong in error.errors()]
    return []


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
        raise ConfigError(_worded(error.errors()[0], cls, name)) from error


def _worded(error: ErrorDetails, cls: type[Engine], engine: str) -> str:
    known = ", ".join(cls.Options.model_fields)
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, cls.Options.model_fields, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{engine} has no option {name}, only {known}.{hint}"
    what = error["msg"].replace("tuple", "list").removeprefix("Value error, ").rstrip(".")
    return f"Option {name} of {engine}: {what}. Options: {known}." if name else f"The options of {engine} are wrong: {what}."


if __name__ == "__main__":
    main()
