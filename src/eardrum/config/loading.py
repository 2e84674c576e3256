"""Loads the settings: the environment overrides YAML files, and `--set a.b=c` overrides both.

Macros, ports and comments are resolved in llama-swap's order, on the tree as it was read, before it is validated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from eardrum.config import command_line, macros, setting_names, validation
from eardrum.config import yaml_files as files
from eardrum.config.consistency import complete_settings
from eardrum.config.diagnostics import ConfigDiagnostic, ErrorCollector, KeyPath, LocationMap, sort_diagnostics
from eardrum.config.environment import CONFIG_VARIABLE, FOLDER_VARIABLE, from_assignments, from_environment, merge_trees
from eardrum.config.macros import ScalarValue
from eardrum.config.settings import Settings, WyomingSettings
from eardrum.config.validation import SettingsValidator
from eardrum.errors import ConfigError

MAX_ERRORS = 20
"""Errors shown at once."""

NAMED_SECTIONS = ("models", "peers", "selectors")
"""Settings that define names to which other settings refer."""

NAME_DEPTH = 2

REMOVED = object()
"""Marks a value that is removed."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
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
    tree = files.read_files(paths, environment, errors)
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
    return files.list_files(named, folder, errors)


def _build_settings(tree: SettingsTree, errors: ErrorCollector) -> Settings:
    """Build the settings from a tree, without wrong values, which become errors."""
    while True:
        try:
            return Settings(**tree)
        except ValidationError as invalid:
            before = tree
            # From the end of lists to their beginning: where an item is taken out, those behind it move up.
            for error in sorted(invalid.errors(), key=lambda error: _sort_key(error["loc"]), reverse=True):
                path: KeyPath = error["loc"]
                missing = error["type"] == "missing"
                if not errors.has_error_at(path):  # what is missing may have been left out because it is wrong
                    errors.add(path, _describe_validation_error(error, errors.locations))
                errors.incomplete |= path[0] in NAMED_SECTIONS and (missing or len(path) <= NAME_DEPTH)
                tree = _remove_path(tree, path[:-1] if missing else path)
            if tree == before:  # where the path leads nowhere
                tree = {
                    name: value for name, value in tree.items() if name not in {error["loc"][0] for error in invalid.errors()}
                }


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


PORT_MACRO, PID_NAME = "${PORT}", "PID"
DEFAULT_PROXY = f"http://localhost:{PORT_MACRO}"
FIRST_PORT = 5800
DEFAULT_SERVER_PORT, DEFAULT_WYOMING_PORT = Settings.model_fields["port"].default, WyomingSettings.model_fields["port"].default

SettingsTree = dict[str, Any]


def resolve_macros(
    tree: SettingsTree, errors: ErrorCollector, known: PortReservations, names: Collection[str]
) -> tuple[SettingsTree, dict[str, int]]:
    """Expand all macros in the tree, and assign ports to the models that use one.

    `names` are the top-level settings there are: what stands below other names may be a template for anchors, and keeps its
    macros. It is an error if a macro is wrong, unknown or used before it is defined.
    """
    globals_ = macros.read_macros(tree.get("macros"), ("macros",), errors)
    done: SettingsTree = {}
    for name, value in tree.items():
        done[name] = value if name in ("macros", "models") else macros.expand_macros(value, globals_, (name,), errors)
        if name in names and name not in ("macros", "models"):
            _check_unresolved(done[name], (name,), errors, globals_)
    models = tree.get("models")
    if not isinstance(models, dict):
        return done, {}
    entries = {id: _expand_model_macros(id, models[id], globals_, errors) for id in models if _is_valid_model_name(id, errors)}
    given = _assign_ports(done, [id for id, entry in entries.items() if _uses_port(entry, "cmd")], known, errors)
    for id, entry in entries.items():
        scope = _build_scope(id, entry, globals_, errors)
        if id not in given and isinstance(entry, dict):
            _check_unresolved(entry.get("cmd"), ("models", id, "cmd"), errors, scope)
        entries[id] = _expand_port(id, entry, given.get(id), errors)
        _check_unresolved(entries[id], ("models", id), errors, scope)
    return done | {"models": entries}, given


def _assign_ports(
    tree: SettingsTree, needing: Collection[str], known: PortReservations, errors: ErrorCollector
) -> dict[str, int]:
    """Assign ports to models, apart from the server's own ports."""
    start = tree.get("start_port")
    known = PortReservations(known.assigned, {*known.excluded, *_list_own_ports(tree)})
    try:
        return assign_ports(needing, start if isinstance(start, int) else FIRST_PORT, known)
    except ConfigError as error:
        path: KeyPath = ("start_port",)
        errors.add_exception(errors.locations.build_error(path, f"{errors.format_path(path)} {error.message}"), path)
        return dict.fromkeys(needing, MAX_PORT)


def _list_own_ports(tree: SettingsTree) -> set[int]:
    """List the server's own ports; invalid values are left out."""
    wyoming = tree.get("wyoming")
    named = (
        tree.get("port", DEFAULT_SERVER_PORT),
        (wyoming if isinstance(wyoming, dict) else {}).get("port", DEFAULT_WYOMING_PORT),
    )
    return {port for port in named if isinstance(port, int)}


def _is_valid_model_name(id: str, errors: ErrorCollector) -> bool:
    if macros.MACRO_REFERENCE.search(id):
        errors.add(("models", id), f"The name of a model cannot hold macros: {id}.")
        errors.incomplete = True
        return False
    return True


def _expand_model_macros(id: str, entry: Any, globals_: dict[str, ScalarValue], errors: ErrorCollector) -> Any:
    if not isinstance(entry, dict):
        return entry
    scope = _build_scope(id, entry, globals_, errors)
    entry = dict(entry)
    for name in ("cmd", "cmd_stop"):
        if isinstance(entry.get(name), str):
            entry[name] = command_line.strip_comments(entry[name])
    if entry.get("cmd") and not entry.get("proxy"):
        entry["proxy"] = DEFAULT_PROXY
    return {
        name: value if name == "macros" else macros.expand_macros(value, scope, ("models", id, name), errors)
        for name, value in entry.items()
    }


def _build_scope(id: str, entry: Any, globals_: dict[str, ScalarValue], errors: ErrorCollector) -> dict[str, ScalarValue]:
    own = macros.read_macros(entry.get("macros"), ("models", id, "macros"), errors) if isinstance(entry, dict) else {}
    return {"MODEL_ID": id, **globals_, **own}  # a name that is there already keeps its position


def _uses_port(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(name), str) and PORT_MACRO in entry[name]


def _expand_port(id: str, entry: Any, port: int | None, errors: ErrorCollector) -> Any:
    if port is not None:
        path: KeyPath = ("models", id)
        return {
            name: value if name == "macros" else macros.expand_macros(value, {"PORT": port}, (*path, name), errors)
            for name, value in entry.items()
        }
    if _uses_port(entry, "proxy"):
        set_here = ("models", id, "proxy") in errors.locations
        which = "uses" if set_here else f"is not set and would be {DEFAULT_PROXY}, which uses"
        cure = "Let `cmd` listen on ${PORT}, or name the port in `proxy`."
        if not errors.has_error_at(("models", id, "cmd")):  # where it may be meant
            errors.add(("models", id, "proxy"), f"The `proxy` of {id} {which} ${{PORT}}, but its `cmd` does not. {cure}")
        return {name: value for name, value in entry.items() if name != "proxy"}
    return entry


def _check_unresolved(value: Any, path: KeyPath, errors: ErrorCollector, scope: dict[str, ScalarValue]) -> None:
    entry = {name: inner for name, inner in value.items() if name != "macros"} if isinstance(value, dict) else value
    for where, name in [(where, name) for where, name in macros.find_unresolved(entry, path) if not errors.has_error_at(where)]:
        if not (name == PID_NAME and where[-1] == "cmd_stop") and not _is_invalid_macro(name, where, errors):
            errors.add(where, f"{errors.format_path(where)}: {macros.describe_unknown_macro(name, scope)}")


def _is_invalid_macro(name: str, where: KeyPath, errors: ErrorCollector) -> bool:
    """Check whether a macro is defined with an error, which is reported at its definition."""
    own = (*where[:2], "macros", name) if where[0] == "models" else ()
    return errors.has_error_at(("macros", name)) or errors.has_error_at(own)


MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class PortReservations:
    """Ports in use when a config is reloaded while models run."""

    assigned: Mapping[str, int] = field(default_factory=dict)
    """The port of each model, which it keeps, so that an added model does not move the others."""
    excluded: Collection[int] = ()
    """Ports that are not assigned, such as those of models that are still stopping."""


def assign_ports(models: Collection[str], start: int, known: PortReservations) -> dict[str, int]:
    """Assign a port to each model: the one it had, else the next from `start`, in the order of the models' names.

    Raises:
        ConfigError: there are not enough.
    """
    kept = {id: known.assigned[id] for id in models if id in known.assigned}
    free = _iterate_free(start, {*kept.values(), *known.excluded})
    return {id: kept.get(id) or next(free) for id in sorted(models)}


def _iterate_free(start: int, taken: Collection[int]) -> Iterator[int]:
    yield from (port for port in range(start, MAX_PORT + 1) if port not in taken)
    raise ConfigError(f"{start} is too high: the ports up to {MAX_PORT} are not enough for all models.")
