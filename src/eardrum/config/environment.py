"""Reads settings from the environment and from `--set a.b=c`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from eardrum.config import setting_names
from eardrum.config.diagnostics import (
    ConfigDiagnostic,
    ErrorCollector,
    KeyPath,
    LocationMap,
    SettingError,
    SourceLocation,
    format_path,
)
from eardrum.config.llama_swap import SettingsSection
from eardrum.config.setting_names import use_native_names
from eardrum.config.settings import ENVIRONMENT_PREFIX, Settings
from eardrum.config.validation import format_faulty_value
from eardrum.errors import ConfigError
from eardrum.runner_access import TOKEN_VARIABLE

CONFIG_VARIABLE, FOLDER_VARIABLE = "EARDRUM_CONFIG", "EARDRUM_CONFIG_DIR"

CLIENT_SERVER_VARIABLE, CLIENT_KEY_VARIABLE, CLIENT_CERTIFICATE_VARIABLE = (
    "EARDRUM_SERVER",
    "EARDRUM_KEY",
    "EARDRUM_CERTIFICATE",
)
"""Variables for commands that call a running server; not settings of a server."""

TELEGRAM_TOKEN_VARIABLE, TELEGRAM_ALLOW_VARIABLE, TELEGRAM_API_VARIABLE = (
    "EARDRUM_TELEGRAM_TOKEN",
    "EARDRUM_TELEGRAM_ALLOW",
    "EARDRUM_TELEGRAM_API",
)
"""Variables of the Telegram bot, which may have the server's environment."""

NESTING_SEPARATOR = "__"
"""Separates the name of a section from a name in it."""

CLIENT_VARIABLES = (
    *(CONFIG_VARIABLE, FOLDER_VARIABLE, CLIENT_SERVER_VARIABLE, CLIENT_KEY_VARIABLE, CLIENT_CERTIFICATE_VARIABLE),
    *(TELEGRAM_TOKEN_VARIABLE, TELEGRAM_ALLOW_VARIABLE, TELEGRAM_API_VARIABLE),
    TOKEN_VARIABLE,
)
"""Variables with the prefix of settings that are not settings."""

SET_FLAG = "--set"
PATH_PART = re.compile(r"""(?:^|(?<=\.))(?:("[^"]+"|'[^']+')|([^."'=]+))(?=\.|$)""")
"""One name in the path of an assignment."""

ENVIRONMENT_ALIASES = {
    "STT_DEFAULT_MODEL": "default_model",
    "STT_DEFAULT_BACKEND": "default_engine",
    "STT_DEVICE": "device",
    "STT_COMPUTE_TYPE": "compute_type",
    "STT_MODEL_DIR": "model_dir",
    "ASR_BACKEND": "default_engine",
    "WHISPER_MODEL": "default_model",
    "WHISPER_LANGUAGE": "default_language",
    "WHISPER_DOWNLOAD_ROOT": "model_dir",
    "DEVICE": "device",
    "SUBTITLE_MAX_LINE_WIDTH": "subtitles.max_line_width",
    "SUBTITLE_MAX_LINE_COUNT": "subtitles.max_line_count",
    "SUBTITLE_HIGHLIGHT_WORDS": "subtitles.highlight_words",
}
"""Variables of other servers for the same settings. The first one that is set wins; `EARDRUM_...` wins over all."""


def from_environment(environment: Mapping[str, str], errors: ErrorCollector) -> tuple[dict[str, Any], LocationMap]:
    """Read settings from environment variables. Unknown variables and invalid JSON are errors."""
    tree: dict[str, Any] = {}
    places = LocationMap()
    for variable, setting in ENVIRONMENT_ALIASES.items():
        path: KeyPath = tuple(setting.split("."))
        if environment.get(variable) and path not in places:
            top, *below = setting.split(".")
            value = environment[variable]
            tree = merge_trees(tree, {top: _nest_value(value, Settings.model_fields[top].annotation, below) if below else value})
            places[path] = SourceLocation(variable)
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in CLIENT_VARIABLES and environment[name]:
            try:
                found = _read_variable(name, environment[name])
            except ConfigError as error:
                errors.add_exception(error)
                continue
            found_places = LocationMap()
            _record_locations(found, found_places, name)
            found = use_native_names(found, found_places, errors)
            places.override(found, found_places)
            tree = merge_trees(tree, found)
    return tree, places


def _read_variable(name: str, value: str) -> dict[str, Any]:
    top, *below = name.removeprefix(ENVIRONMENT_PREFIX).lower().split(NESTING_SEPARATOR)
    settings = _index_by_variable(Settings)
    if top not in settings or (below and not setting_names.has_names(setting_names.list_names(Settings)[settings[top]])):
        raise SettingError(ConfigDiagnostic(f"Unknown environment variable {name}.{_build_hint(top, below)}"))
    try:
        return {settings[top]: _nest_value(value, _find_kind(Settings, settings[top]), below)}
    except ValueError as error:
        path = (settings[top], *below)
        message = f"The setting {format_path(path)} must be JSON here, {error}{format_faulty_value(path, value)}."
        raise SettingError(ConfigDiagnostic(message, SourceLocation(name), format_path(path))) from None


def _index_by_variable(section: type[BaseModel]) -> dict[str, str]:
    """Map names in small letters to the names as files have them."""
    return {written.lower(): written for written in [*setting_names.list_names(section), *section.model_fields]}


def _find_kind(section: type[BaseModel], written: str) -> Any:
    """Find the type of a setting by any of its names; `Any` if it is unknown."""
    field = section.model_fields.get(setting_names.list_names(section).get(written, ""))
    return field.annotation if field else Any


def _build_hint(top: str, below: Sequence[str]) -> str:
    """Suggest the variable that was meant, or the place of a setting with this name."""
    names = {field.upper(): field for field in Settings.model_fields}
    for section in names if not below else ():
        if top.upper().startswith(f"{section}_") and top[len(section) + 1 :] in setting_names.list_names_below(names[section]):
            return f" Did you mean {ENVIRONMENT_PREFIX}{section}{NESTING_SEPARATOR}{top[len(section) + 1 :].upper()}?"
    if close := setting_names.find_nearest(top.upper(), names):
        return f" Did you mean {NESTING_SEPARATOR.join([ENVIRONMENT_PREFIX + close, *map(str.upper, below)])}?"
    return setting_names.suggest_setting(top)


def _record_locations(value: Any, places: LocationMap, label: str, path: KeyPath = ()) -> None:
    """Record the same location for every setting of a tree."""
    if path:
        places[path] = SourceLocation(label)
    for name, inner in value.items() if isinstance(value, dict) else ():
        _record_locations(inner, places, label, (*path, name))
    for position, inner in enumerate(value) if isinstance(value, list) else ():
        _record_locations(inner, places, label, (*path, position))


def _nest_value(value: str, kind: Any, below: Sequence[str]) -> Any:
    """Nest a value under the names below a setting of this type, converted to the type of the innermost."""
    kind = setting_names.unwrap_optional(kind)
    if not below:
        return _restore_case(_parse_variable(value, kind), kind)
    inner: Any = Any
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
    elif setting_names.is_section(kind):
        written = _index_by_variable(kind).get(below[0]) or below[0]
        below, inner = [written, *below[1:]], _find_kind(kind, written)
    return {below[0]: _nest_value(value, inner, below[1:])}


def _parse_variable(value: str, kind: Any) -> Any:
    """Parse a variable: JSON for sections, lists and maps, a scalar for numbers and booleans, else text.

    Raises:
        ValueError: it must be JSON, and is not; how it would be some.
    """
    if isinstance(kind, type) and issubclass(kind, SettingsSection) and kind.shorthand and not value.lstrip().startswith("{"):
        return value
    if setting_names.is_section(kind) or get_origin(kind) in (dict, list, tuple):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('as in ["a", "b"]' if get_origin(kind) in (list, tuple) else 'as in {"name": "value"}') from None
    return _parse_scalar(value) if kind in (bool, int, float) else value


def _parse_scalar(text: str) -> Any:
    """Parse a number or boolean; other text stays."""
    from eardrum.config import yaml_files  # noqa: PLC0415 -- a server without such settings pays nothing for YAML

    try:
        found = yaml_files.parse_value(text)
    except ConfigError:
        return text
    return found if isinstance(found, bool | int | float) else text


def _restore_case(value: Any, kind: Any) -> Any:
    """Restore the case of settings' names, which may be lower-case in variables."""
    kind = setting_names.unwrap_optional(kind)
    if not isinstance(value, dict):
        return value
    if get_origin(kind) is dict:
        return {name: _restore_case(inner, get_args(kind)[1]) for name, inner in value.items()}
    if not setting_names.is_section(kind):
        return value
    cased = _index_by_variable(kind)
    spelled = {cased.get(name.lower()) or str(name): inner for name, inner in value.items()}
    return {name: _restore_case(inner, _find_kind(kind, name)) for name, inner in spelled.items()}


def from_assignments(assignments: Sequence[str], errors: ErrorCollector) -> tuple[dict[str, Any], LocationMap]:
    """Read settings from `--set a.b=c`. The value is YAML, and a name with dots is quoted. Other forms are errors."""
    tree: dict[str, Any] = {}
    places = LocationMap()
    if not assignments:
        return tree, places
    from eardrum.config import yaml_files  # noqa: PLC0415 -- see above

    for assignment in assignments:
        written, equals, value = assignment.partition("=")
        path = _parse_path(written)
        if not equals or not path:
            errors.add_exception(ConfigError(f"--set {written!r} is not of the form a.b=c."))
            continue
        try:
            document = yaml_files.parse_yaml(value, SET_FLAG)
        except ConfigError:
            errors.add_exception(ConfigError(f"--set {written}: the value is not valid YAML; put it in quotes."), path)
            continue
        leaf = document.tree
        for key in reversed(path):
            leaf = {key: leaf}
        found = LocationMap()
        _record_locations(leaf, found, f"{SET_FLAG} {written}")
        found[path] = SourceLocation(f"{SET_FLAG} {written}", text=None if isinstance(document.tree, str) else value.strip())
        for inner, place in document.locations.items():
            found[(*path, *inner)] = SourceLocation(f"{SET_FLAG} {written}", text=place.text)
        places.override(leaf, found)
        tree = merge_trees(tree, leaf)
    return use_native_names(tree, places, errors), places


def _parse_path(written: str) -> tuple[str, ...]:
    """Split `a."b.c".d` into names; empty if it has another form."""
    parts = PATH_PART.findall(written)
    whole = ".".join(quoted or plain for quoted, plain in parts)
    return tuple(quoted[1:-1] or plain for quoted, plain in parts) if written and whole == written else ()


def merge_trees(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees; `above` wins where they differ."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = merge_trees(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both
