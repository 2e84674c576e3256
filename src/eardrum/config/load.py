"""Reads the settings: YAML files are overridden by the environment, that by `--set a.b=c`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.config import files, known, shape
from eardrum.config.environment import CONFIG_VARIABLE, FOLDER_VARIABLE, from_assignments, from_environment, merged
from eardrum.config.finish import finished
from eardrum.config.places import Errors, KeyPath, Place, Places, Remark, dotted
from eardrum.config.ports import Ports
from eardrum.config.resolve import resolved
from eardrum.config.settings import Settings
from eardrum.config.shape import Shaper
from eardrum.errors import ConfigError

MOST_ERRORS = 20
"""Wrong values told at once."""


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
    """Read the files, then the environment, then `a.b=c` assignments; each overrides those before it.

    Args:
        file: one or several files, joined. With neither file nor folder, EARDRUM_CONFIG (several are separated by `:`) and
            EARDRUM_CONFIG_DIR name them.
        assignments: `a.b=c`.
        environment: the process's own, if not given.
        overrides: top-level settings from flags such as --port; they come last. None is as good as not there.
        folder: its `*.yaml` and `*.yml` are joined after the files.
        ports: those that models hold, when the config is read again.

    Raises:
        ConfigError: a wrong value, an unreadable file, a contradiction; the message names the setting, and in a file the line.
    """
    environment = os.environ if environment is None else environment
    paths = _chosen(file, folder, environment)
    tree, places, remarks = files.read(paths, environment)
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    for source in (from_environment(environment), from_assignments(assignments), flags):
        places.forget(source)
        tree = merged(tree, source)
    tree, given = resolved(tree, places, ports or Ports(), Settings.model_fields)
    shaper = Shaper(places)
    settings = _settings(shaper.shaped(tree), shaper.errors, places, paths)
    settings, more = finished(settings, errors := Errors(places))
    _raise(errors.found, places, paths)
    warnings = sorted([*remarks, *shaper.remarks, *more], key=lambda remark: _in_order(remark.place, paths))
    return Loaded(settings, tuple(dict.fromkeys(warnings)), tuple(paths), given, places)


def _chosen(file: Path | Sequence[Path] | None, folder: Path | None, environment: Mapping[str, str]) -> list[Path]:
    named = [file] if isinstance(file, Path) else list(file or ())
    if not named and not folder:
        named = [Path(name) for name in environment.get(CONFIG_VARIABLE, "").split(os.pathsep) if name]
        folder = Path(environment[FOLDER_VARIABLE]) if environment.get(FOLDER_VARIABLE) else None
    return files.found(named, folder)


def _settings(tree: Any, errors: dict[KeyPath, ConfigError], places: Places, files: Sequence[Path]) -> Settings:
    """The tree as settings.

    Raises:
        ConfigError: values are wrong; the message has a line for each of them, those found before included.
    """
    try:
        settings = Settings(**tree)
        if not errors:
            return settings
    except ValidationError as invalid:
        found = invalid.errors()
        errors = {error["loc"]: _worded(error, places) for error in found if error["loc"] not in errors} | errors
    _raise(errors.items(), places, files)
    return settings


def _raise(errors: Collection[tuple[KeyPath, ConfigError]], places: Places, files: Sequence[Path]) -> None:
    """Raise all of these errors as one, in the order of the files, if there are any."""
    if not errors:
        return
    ordered = sorted(errors, key=lambda error: _in_order(places.of(error[0]), files))
    messages = list(dict.fromkeys(error.message for _, error in ordered))
    more = [f"... and {len(messages) - MOST_ERRORS} more."] if len(messages) > MOST_ERRORS else []
    raise ConfigError("\n".join(messages[:MOST_ERRORS] + more))


def _worded(error: ErrorDetails, places: Places) -> ConfigError:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        return places.error(path, known.unknown(path))
    if error["type"] == "missing":
        return places.error(path, f"The setting {dotted(path)} is missing.")
    what = error["msg"].removeprefix("Value error, ").rstrip(".")
    return places.error(path, f"The setting {dotted(path)} is wrong: {what}{shape.shown(path, error['input'])}.")


def _in_order(place: Place | None, files: Sequence[Path]) -> tuple[int, int]:
    """Sorts by file and line, with what has no place at the end."""
    names = [str(file) for file in files]
    return (names.index(place.file), place.line) if place else (len(names), 0)
