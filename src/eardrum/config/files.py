"""The files of a config: which they are, the environment inside them, and several as one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eardrum.config import dialect, places
from eardrum.config.dialect import Document
from eardrum.config.places import Errors, Places, Remark
from eardrum.config.spelling import with_own_names
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


def found(files: Sequence[Path], folder: Path | None, errors: Errors) -> list[Path]:
    """The files themselves, and those of the folder in the order of their names.

    It is an error if the folder cannot be read, or holds a file that is also named by itself.
    """
    if not folder:
        return list(files)
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix in (".yml", ".yaml") and path.is_file())
    except OSError as error:
        errors.take(ConfigError(f"Cannot read the config folder {folder}: {error.strerror}."))
        errors.incomplete = True
        return list(files)
    named = {os.path.realpath(file) for file in files}
    for twice in (path for path in inside if os.path.realpath(path) in named):
        message = f"The config file {twice} is named by itself and lies in the config folder {folder}: keep one of both."
        errors.take(ConfigError(message))
    return [*files, *(path for path in inside if os.path.realpath(path) not in named)]


def read(files: Sequence[Path], environment: Mapping[str, str], errors: Errors) -> tuple[dict[str, Any], list[Remark]]:
    """All files as one tree; the places go where those of the errors are.

    It is an error if a file cannot be read or is not YAML, names a variable that is not set, or contradicts one before it.
    """
    tree: dict[str, Any] = {}
    remarks = []
    for file in files:
        try:
            document = _read(file, environment, errors)
        except ConfigError as error:
            errors.take(error)
            errors.incomplete = True
            continue
        if document.goes_on:
            place = places.Place(str(file), document.goes_on)
            remarks.append(Remark("Only the first document of a file counts; what begins here is not read.", place))
        tree = _Joining(errors, document.places).joined(tree, document.tree or {}, ())
        errors.places.adopt(document.places)
    return tree, remarks


def _read(file: Path, environment: Mapping[str, str], errors: Errors) -> Document:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = " A folder of files is given with --config-dir." if file.is_dir() else ""
        raise ConfigError(f"Cannot read the config file {file}: {error.strerror}.{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config file {file} is not valid YAML: it is not text in UTF-8.") from error
    document = dialect.parse(VARIABLE.sub(_substitute(environment), text), str(file), errors)
    if document.tree is not None and not isinstance(document.tree, dict):
        raise ConfigError(f"The config file {file} must hold settings by name, as in `port: 8100`.")
    document.tree = _with_variables(document.tree, (), document.places, errors)
    if isinstance(document.tree, dict):
        document.tree = with_own_names(document.tree, document.places, errors)
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


def _with_variables(value: Any, path: places.KeyPath, where: Places, errors: Errors) -> Any:
    """The value without what names variables that have none; in comments they hurt nobody, so this is asked of what was read."""
    if isinstance(value, dict):
        known = {name: inner for name, inner in value.items() if _is_set(name, (*path, name), where, errors)}
        errors.incomplete |= len(known) < len(value)
        return {name: _with_variables(inner, (*path, name), where, errors) for name, inner in known.items()}
    if isinstance(value, list):
        return [_with_variables(inner, (*path, position), where, errors) for position, inner in enumerate(value)]
    return value if not isinstance(value, str) or _is_set(value, path, where, errors) else None


def _is_set(text: str, path: places.KeyPath, where: Places, errors: Errors) -> bool:
    if not (match := MARKED.search(text)):
        return True
    wrong = "is not set" if match[1] == UNSET else "holds a line break or a null, which cannot stand in a config"
    errors.take(where.error(path, f"The environment variable {match[2]} {wrong}."), path)
    return False


class _Joining:
    """Joins what is `added` by a file to what those before it say."""

    def __init__(self, errors: Errors, added: Places):
        self._errors = errors
        self._added = added

    def joined(self, first: Any, second: Any, path: places.KeyPath) -> Any:
        """Two values of one setting: maps are joined, lists follow one another, and other values must be the same."""
        if first is None or second is None:
            return second if first is None else first
        if isinstance(first, dict) and isinstance(second, dict):
            return self._maps(first, second, path)
        if isinstance(first, list) and isinstance(second, list):
            self._errors.places.adopt(self._added, path, shift=len(first))
            return first + second
        if type(first) is not type(second) or first != second:
            there = self._errors.places.of(path)
            self._wrong(path, f"{places.dotted(path)} is set to something else at {there}: set it in one file.")
        return first

    def _maps(self, first: dict[str, Any], second: dict[str, Any], path: places.KeyPath) -> dict[str, Any]:
        joined = dict(first)
        for name, value in second.items():
            below = (*path, name)
            if name in first and path in ENTITIES:
                there = self._errors.places.of(below)
                self._wrong(below, f"{places.dotted(below)} is described at {there} too: describe it in one file.")
            else:
                joined[name] = self.joined(first[name], value, below) if name in first else value
        return joined

    def _wrong(self, path: places.KeyPath, message: str) -> None:
        self._errors.take(self._added.error(path, message))
