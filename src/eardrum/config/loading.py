"""Loads the settings: the environment overrides YAML files, and `--set a.b=c` overrides both.

Macros, ports and comments are resolved in llama-swap's order, on the tree as it was read, before it is validated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.config import setting_names, validation
from eardrum.config.consistency import complete_settings
from eardrum.config.diagnostics import ConfigDiagnostic, ErrorCollector, KeyPath, LocationMap, sort_diagnostics
from eardrum.config.environment import CONFIG_VARIABLE, FOLDER_VARIABLE, from_assignments, from_environment, merge_trees
from eardrum.config.macros import PortReservations, SettingsTree, resolve_macros
from eardrum.config.settings import ModelSettings, Settings
from eardrum.config.validation import SettingsValidator
from eardrum.errors import ConfigError

MAX_ERRORS = 20
"""Errors shown at once."""

NAMED_SECTIONS = ("models", "peers", "selectors")
"""Settings that define names to which other settings refer."""

NAME_DEPTH = 2

REMOVED = object()
"""Marks a value that is removed."""


class LoadedConfig(Struct, frozen=True):
    """The settings, with their sources, warnings and errors."""

    settings: Settings
    """With macros and ports filled in and names checked; `groups` and `matrix` hold the rules in force."""
    warnings: tuple[ConfigDiagnostic, ...]
    """Warnings, in the order of the files."""
    files: tuple[Path, ...]
    """The files that were read, in order."""
    ports: Mapping[str, int]
    """The port that `${PORT}` stands for, by model."""
    locations: LocationMap
    """The location of each setting."""
    errors: tuple[ConfigDiagnostic, ...] = ()
    """Errors, in the order of the files; the settings lack the wrong values."""


class ConfigExamination(Struct, frozen=True):
    """The outcome of a check of the config: errors and warnings, a sentence each."""

    files: tuple[Path, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_settings(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
) -> Settings:
    """Load the settings alone; see `load_config`."""
    return load_config(file, assignments, environment, overrides, folder=folder).settings


def load_config(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    ports: PortReservations | None = None,
) -> LoadedConfig:
    """Load a config and raise its errors; see `examine_config`.

    Raises:
        ConfigError: a wrong value, an unreadable file, a contradiction; the message has a line for each, which names the setting,
            and in a file the line.
    """
    loaded = examine_config(file, assignments, environment, overrides, folder=folder, ports=ports)
    if loaded.errors:
        messages = list(dict.fromkeys(map(str, loaded.errors)))
        more = [f"... and {len(messages) - MAX_ERRORS} more."] if len(messages) > MAX_ERRORS else []
        raise ConfigError("\n".join(messages[:MAX_ERRORS] + more))
    return loaded


def examine_config(
    file: Path | Sequence[Path] | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    ports: PortReservations | None = None,
) -> LoadedConfig:
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
    errors = ErrorCollector(LocationMap())
    paths = _choose_files(file, folder, environment, errors)
    tree = _read_files(paths, environment, errors)
    for source, places in (from_environment(environment, errors), from_assignments(assignments, errors)):
        errors.locations.override(source, places)
        tree = merge_trees(tree, source)
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    errors.locations.override(flags)
    tree, given = resolve_macros(merge_trees(tree, flags), errors, ports or PortReservations(), Settings.model_fields)
    settings = complete_settings(_build_settings(SettingsValidator(errors).validate(tree), errors), errors)
    names = [str(path) for path in paths]
    return LoadedConfig(
        settings,
        tuple(sort_diagnostics(errors.warnings, names)),
        tuple(paths),
        given,
        errors.locations,
        tuple(sort_diagnostics(errors.diagnostics, names)),
    )


def _choose_files(
    file: Path | Sequence[Path] | None, folder: Path | None, environment: Mapping[str, str], errors: ErrorCollector
) -> list[Path]:
    named = [file] if isinstance(file, Path) else list(file or ())
    if not named and not folder:
        named = [Path(name) for name in environment.get(CONFIG_VARIABLE, "").split(os.pathsep) if name]
        folder = Path(environment[FOLDER_VARIABLE]) if environment.get(FOLDER_VARIABLE) else None
    if not folder:
        return named
    from eardrum.config import yaml_files  # noqa: PLC0415 -- a server without config pays nothing for YAML

    return yaml_files.list_files(named, folder, errors)


def _read_files(paths: Sequence[Path], environment: Mapping[str, str], errors: ErrorCollector) -> SettingsTree:
    if not paths:
        return {}
    from eardrum.config import yaml_files  # noqa: PLC0415 -- see above

    return yaml_files.read_files(paths, environment, errors)


def _build_settings(tree: SettingsTree, errors: ErrorCollector) -> Settings:
    """Build the settings from a tree, without wrong values, which become errors."""
    while True:
        try:
            return Settings(**_validate_models(tree))
        except ValidationError as invalid:
            before = tree
            # From the end of lists to their beginning: when an item is removed, the positions after it change.
            for error in sorted(invalid.errors(), key=lambda error: _sort_key(error["loc"]), reverse=True):
                path: KeyPath = error["loc"]
                missing = error["type"] == "missing"
                if not errors.has_error_at(path):  # a wrong value was left out, and is missing now
                    errors.add(path, _describe_validation_error(error, errors.locations))
                errors.incomplete |= path[0] in NAMED_SECTIONS and (missing or len(path) <= NAME_DEPTH)
                tree = _remove_path(tree, path[:-1] if missing else path)
            if tree == before:  # the path of the error is not one of the tree
                tree = {
                    name: value for name, value in tree.items() if name not in {error["loc"][0] for error in invalid.errors()}
                }


def _validate_models(tree: SettingsTree) -> SettingsTree:
    """Validate each valid model by itself: pydantic lets no other thread run while it validates, 60 ms for 2,000 models.

    A wrong model stays as it is. So it is found again, with its path, when the whole tree is validated.
    """
    if not isinstance(models := tree.get("models"), dict):
        return tree
    validated = dict(models)
    for name, model in models.items():
        with suppress(ValidationError):
            validated[name] = ModelSettings.model_validate(model)
    return {**tree, "models": validated}


def _sort_key(path: KeyPath) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (0, part) for part in path]


def _remove_path(value: Any, path: KeyPath) -> Any:
    """Copy a tree without the value at a path; without that value, return the tree itself."""
    if not path or not isinstance(value, dict | list):
        return REMOVED
    at = path[0]
    if isinstance(value, dict):
        if at not in value:
            return value
        inner = _remove_path(value[at], path[1:])
        return {name: inner if name == at else old for name, old in value.items() if name != at or inner is not REMOVED}
    if not isinstance(at, int) or at >= len(value):
        return value
    inner = _remove_path(value[at], path[1:])
    return [*value[:at], *([] if inner is REMOVED else [inner]), *value[at + 1 :]]


def _describe_validation_error(error: ErrorDetails, locations: LocationMap) -> str:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        return setting_names.describe_unknown(path, locations)
    if error["type"] == "missing":
        return f"The setting {locations.format_path(path)} is missing."
    what = error["msg"].removeprefix("Value error, ").rstrip(".")
    meant = setting_names.find_nearest(error["input"], _list_choices(what)) if error["type"] == "literal_error" else ""
    hint = f" Did you mean {meant}?" if meant else ""
    return (
        f"The setting {locations.format_path(path)} is wrong: {what}{validation.format_faulty_value(path, error['input'])}.{hint}"
    )


def _list_choices(message: str) -> list[str]:
    return re.findall(r"'([^']+)'", message)
