"""Reads the settings: YAML files are overridden by the environment, that by `--set a.b=c`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.config import files, known, shape
from eardrum.config.environment import CONFIG_VARIABLE, FOLDER_VARIABLE, from_assignments, from_environment, merged
from eardrum.config.finish import finished
from eardrum.config.places import Errors, KeyPath, Places, Remark, dotted, in_order
from eardrum.config.ports import Ports
from eardrum.config.resolve import Tree, resolved
from eardrum.config.settings import Settings
from eardrum.config.shape import Shaper
from eardrum.config.spelling import with_own_names
from eardrum.errors import ConfigError

MOST_ERRORS = 20
"""Wrong values told at once."""

NAMED = ("models", "peers", "selectors")
"""Settings below which are names that other settings refer to."""

DEPTH_OF_NAMES = 2

GONE = object()
"""Stands for a value that is taken out."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and what there is to know about where they come from."""

    settings: Settings
    """Macros and ports are put in, names are checked, and `groups` and `matrix` hold the rules in force."""
    warnings: tuple[Remark, ...]
    """What is accepted but probably not meant, in the order of the files."""
    files: tuple[Path, ...]
    """What was read, in this order."""
    ports: Mapping[str, int]
    """Model to the port that `${PORT}` stands for."""
    places: Places
    """Where each setting is written."""
    errors: tuple[Remark, ...] = ()
    """What is wrong, in the order of the files; the settings are without it."""


def load(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
) -> Settings:
    """As `read`, for those who need no more than the settings."""
    return read(file, assignments, environment, overrides, folder=folder).settings


def read(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    ports: Ports | None = None,
) -> Loaded:
    """As `examine`, for those who want all of it to be right.

    Raises:
        ConfigError: a wrong value, an unreadable file, a contradiction; the message has a line for each, which names the setting,
            and in a file the line.
    """
    loaded = examine(file, assignments, environment, overrides, folder=folder, ports=ports)
    if loaded.errors:
        messages = list(dict.fromkeys(map(str, loaded.errors)))
        more = [f"... and {len(messages) - MOST_ERRORS} more."] if len(messages) > MOST_ERRORS else []
        raise ConfigError("\n".join(messages[:MOST_ERRORS] + more))
    return loaded


def examine(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    ports: Ports | None = None,
) -> Loaded:
    """Read the files, then the environment, then `a.b=c` assignments; each overrides those before it.

    What is wrong is told in `Loaded.errors`, all of it at once but for what would only follow from something else.

    Args:
        file: one or several files, joined. With neither file nor folder, EARDRUM_CONFIG (several are separated by `:`) and
            EARDRUM_CONFIG_DIR name them.
        assignments: `a.b=c`.
        environment: the process's own, if not given.
        overrides: top-level settings from flags such as --port; they come last. None is as good as not there.
        folder: its `*.yaml` and `*.yml` are joined after the files.
        ports: those that models hold, when the config is read again.
    """
    environment = os.environ if environment is None else environment
    errors = Errors(Places())
    paths = _chosen(file, folder, environment, errors)
    tree, remarks = files.read(paths, environment, errors)
    for written, places in (from_environment(environment, errors), from_assignments(assignments, errors)):
        source = with_own_names(written, places, errors)
        errors.places.override(source, places)
        tree = merged(tree, source)
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    errors.places.override(flags)
    tree, given = resolved(merged(tree, flags), errors, ports or Ports(), Settings.model_fields)
    shaper = Shaper(errors)
    settings, more = finished(_settings(shaper.shaped(tree), errors), errors)
    names = [str(path) for path in paths]
    warnings = in_order([*remarks, *shaper.remarks, *more], names)
    return Loaded(settings, tuple(warnings), tuple(paths), given, errors.places, tuple(in_order(errors.found, names)))


def _chosen(
    file: Path | Sequence[Path] | None, folder: Path | None, environment: Mapping[str, str], errors: Errors
) -> list[Path]:
    named = [file] if isinstance(file, Path) else list(file or ())
    if not named and not folder:
        named = [Path(name) for name in environment.get(CONFIG_VARIABLE, "").split(os.pathsep) if name]
        folder = Path(environment[FOLDER_VARIABLE]) if environment.get(FOLDER_VARIABLE) else None
    return files.found(named, folder, errors)


def _settings(tree: Tree, errors: Errors) -> Settings:
    """The tree as settings, without the values that cannot be; these are errors."""
    while True:
        try:
            return Settings(**tree)
        except ValidationError as invalid:
            before = tree
            # From the end of lists to their beginning: where an item is taken out, those behind it move up.
            for error in sorted(invalid.errors(), key=lambda error: _sortable(error["loc"]), reverse=True):
                path: KeyPath = error["loc"]
                missing = error["type"] == "missing"
                if not errors.at(path):  # what is missing may have been left out because it is wrong
                    errors.add(path, _worded(error))
                errors.incomplete |= path[0] in NAMED and (missing or len(path) <= DEPTH_OF_NAMES)
                tree = _without(tree, path[:-1] if missing else path)
            if tree == before:  # where the path leads nowhere
                tree = {
                    name: value for name, value in tree.items() if name not in {error["loc"][0] for error in invalid.errors()}
                }


def _sortable(path: KeyPath) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (0, part) for part in path]


def _without(value: Any, path: KeyPath) -> Any:
    """A copy without what is at the path; the same if nothing is there."""
    if not path or not isinstance(value, dict | list):
        return GONE
    at = path[0]
    if isinstance(value, dict):
        if at not in value:
            return value
        inner = _without(value[at], path[1:])
        return {name: inner if name == at else old for name, old in value.items() if name != at or inner is not GONE}
    if not isinstance(at, int) or at >= len(value):
        return value
    inner = _without(value[at], path[1:])
    return [*value[:at], *([] if inner is GONE else [inner]), *value[at + 1 :]]


def _worded(error: ErrorDetails) -> str:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        return known.unknown(path)
    if error["type"] == "missing":
        return f"The setting {dotted(path)} is missing."
    what = error["msg"].removeprefix("Value error, ").rstrip(".")
    meant = known.nearest(error["input"], _choices(what)) if error["type"] == "literal_error" else ""
    hint = f" Did you mean {meant}?" if meant else ""
    return f"The setting {dotted(path)} is wrong: {what}{shape.shown(path, error['input'])}.{hint}"


def _choices(message: str) -> list[str]:
    return re.findall(r"'([^']+)'", message)
