"""The files of a config: which they are, the environment inside them, and several as one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eardrum.config import dialect, places
from eardrum.config.dialect import Document
from eardrum.config.places import Places, Remark
from eardrum.errors import ConfigError

VARIABLE = re.compile(r"\$\{env\.([a-zA-Z_][a-zA-Z0-9_]*)\}")

UNSET, UNFIT, END = "\ue000", "\ue001", "\ue002"
"""Stand around the names of variables that cannot be put in, until it is known that they are not in a comment."""

MARKED = re.compile(f"([{UNSET}{UNFIT}])(.*?){END}")

ENTITIES = {
    ("models",),
    ("groups",),
    ("profiles",),
    ("selectors",),
    ("peers",),
    ("matrix",),
    ("routing", "router", "settings", "groups"),
    ("routing", "router", "settings", "matrix"),
}
"""Settings whose names stand for one thing each: it is not described in two files."""


def found(files: Sequence[Path], folder: Path | None) -> list[Path]:
    """The files themselves, and those of the folder in the order of their names.

    Raises:
        ConfigError: the folder cannot be read, or holds a file that is also named by itself.
    """
    if not folder:
        return list(files)
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix in (".yml", ".yaml") and path.is_file())
    except OSError as error:
        raise ConfigError(f"Cannot read the config folder {folder}: {error.strerror}.") from error
    named = {os.path.realpath(file) for file in files}
    if twice := next((path for path in inside if os.path.realpath(path) in named), None):
        raise ConfigError(f"The config file {twice} is named by itself and lies in the config folder {folder}: keep one of both.")
    return [*files, *inside]


def read(files: Sequence[Path], environment: Mapping[str, str]) -> tuple[dict[str, Any], Places, list[Remark]]:
    """All files as one tree.

    Raises:
        ConfigError: a file cannot be read or is not YAML, a variable it names is not set, or two files contradict each other.
    """
    tree: dict[str, Any] = {}
    whole = Places()
    remarks = []
    for file in files:
        document = _read(file, environment)
        if document.goes_on:
            place = places.Place(str(file), document.goes_on)
            remarks.append(Remark("Only the first document of a file counts; what begins here is not read.", place))
        tree = _joined(tree, document.tree or {}, (), whole, document.places)
        whole.adopt(document.places)
    return tree, whole, remarks


def _read(file: Path, environment: Mapping[str, str]) -> Document:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = " A folder of files is given with --config-dir." if file.is_dir() else ""
        raise ConfigError(f"Cannot read the config file {file}: {error.strerror}.{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config file {file} is not valid YAML: it is not text in UTF-8.") from error
    document = dialect.parse(VARIABLE.sub(_substitute(environment), text), str(file))
    if document.tree is not None and not isinstance(document.tree, dict):
        raise ConfigError(f"The config file {file} must hold settings by name, as in `port: 8100`.")
    _check_variables(document.tree, (), document.places)
    return document


def _substitute(environment: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    def substitute(match: re.Match[str]) -> str:
        value = environment.get(match[1])
        if value is None:
            return f"{UNSET}{match[1]}{END}"
        if set(value) & {"\n", "\r", "\0"}:
            return f"{UNFIT}{match[1]}{END}"
        return value.replace("\\", "\\\\").replace('"', '\\"')

    return substitute


def _check_variables(value: Any, path: places.KeyPath, where: Places) -> None:
    """Refuse variables without a value; in comments they hurt nobody, so this is asked of what was read."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_variables(name, (*path, name), where)
            _check_variables(inner, (*path, name), where)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            _check_variables(inner, (*path, position), where)
    elif isinstance(value, str) and (match := MARKED.search(value)):
        wrong = "is not set" if match[1] == UNSET else "holds a line break or a null, which cannot stand in a config"
        raise where.error(path, f"The environment variable {match[2]} {wrong}.")


def _joined(first: Any, second: Any, path: places.KeyPath, whole: Places, added: Places) -> Any:
    """Two values of one setting: maps are joined, lists follow one another, and other values must be the same."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict) and isinstance(second, dict):
        return _joined_maps(first, second, path, whole, added)
    if isinstance(first, list) and isinstance(second, list):
        whole.adopt(added, path, shift=len(first))
        return first + second
    if type(first) is type(second) and first == second:
        return first
    raise added.error(path, f"{places.dotted(path)} is set to something else at {whole.of(path)}: set it in one file.")


def _joined_maps(
    first: dict[str, Any], second: dict[str, Any], path: places.KeyPath, whole: Places, added: Places
) -> dict[str, Any]:
    joined = dict(first)
    for name, value in second.items():
        below = (*path, name)
        if name in first and path in ENTITIES:
            raise added.error(below, f"{places.dotted(below)} is described at {whole.of(below)} too: describe it in one file.")
        joined[name] = _joined(first[name], value, below, whole, added) if name in first else value
    return joined
