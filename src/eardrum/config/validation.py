"""Validates a tree of values against the declared settings: reports unknown names and converts scalars to the declared types.

llama-swap ignores unknown names, and so typing errors. Files may hold unknown names here as well, with a warning. In the
environment and in flags, which are not shared with llama-swap, unknown names are errors.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from eardrum.config import macros, setting_names
from eardrum.config.diagnostics import ErrorCollector, KeyPath, SettingError
from eardrum.config.llama_swap import WITHOUT_EFFECT, SettingsSection
from eardrum.config.setting_names import is_section, unwrap_optional
from eardrum.config.settings import Settings
from eardrum.units import UnitMarker

TRUE_WORDS, FALSE_WORDS = {"y", "yes", "on"}, {"n", "no", "off"}
"""Words that are text, except where a boolean is expected."""

INVALID_VALUE = object()
"""Marks a value that is left out."""

PRIVATE_PREFIX = "x-"
"""Prefix of names for the user's own anchors, which are ignored without a warning."""


class SettingsValidator:
    """Converts a tree of values to the declared types, and collects errors and warnings."""

    def __init__(self, errors: ErrorCollector):
        self._errors = errors
        self._locations = errors.locations

    def validate(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Drop unknown names from a tree, and convert every value to its declared type.

        What cannot be the value of its setting is an error, and left out.
        """
        return self._convert_section(tree, Settings, ())

    def _validate_value(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any] = ()) -> Any:
        if self._errors.has_error_at(path):
            return INVALID_VALUE
        try:
            return self._convert_value(value, kind, path, marks)
        except SettingError as error:
            self._errors.add_exception(error, path)
            return INVALID_VALUE

    def _convert_value(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any]) -> Any:
        kind = unwrap_optional(kind)
        origin = get_origin(kind)
        if is_section(kind):
            return self._convert_section(value, kind, path)
        if origin is dict:
            return self._convert_map(value, get_args(kind)[1], path)
        if value is None:
            return value
        return (
            self._convert_list(value, get_args(kind)[0], path)
            if origin is tuple
            else self._convert_scalar(value, kind, path, marks)
        )

    def _convert_scalar(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any]) -> Any:
        if get_origin(kind) is typing.Literal or kind in (str, FilePath):
            return self._convert_text(value, path)
        if unit := next((mark for mark in marks if isinstance(mark, UnitMarker)), None):
            return self._convert_with_unit(value, kind, path, unit)
        if kind is bool:
            return self._convert_bool(value, path)
        return self._convert_number(value, kind, path) if kind in (int, float) else value

    def _convert_section(self, value: Any, section: type[BaseModel], path: KeyPath) -> dict[str, Any]:
        if value is None:
            return {}
        if isinstance(value, str) and issubclass(section, SettingsSection) and section.shorthand:
            value = {section.shorthand: value}
        if not isinstance(value, dict):
            self._errors.incomplete = True
            raise self._build_error(path, _describe_missing_section(path), value)
        shaped = {}
        for name, inner in value.items():
            below = (*path, name)
            if field := section.model_fields.get(name):
                if inner is not None or _allows_none(field.annotation):
                    converted = self._validate_value(inner, field.annotation, below, field.metadata)
                    if not self._means_unset(converted, name, section, below):
                        shaped[name] = converted
                self._warn_without_effect(field.json_schema_extra, below)
            else:
                self._report_unknown(name, inner, path)
        return {name: inner for name, inner in shaped.items() if inner is not INVALID_VALUE}

    def _report_unknown(self, name: str, value: Any, path: KeyPath) -> None:
        below = (*path, name)
        message = setting_names.describe_unknown(below, self._locations)
        if not self._locations.is_in_file(below):
            self._errors.add(below, message)
        elif name.startswith(PRIVATE_PREFIX):
            pass
        elif setting_names.may_protect(name, value, path):
            protects = "It may be meant to protect the server, so it is not passed over: correct it or take it out."
            self._errors.add(below, f"{message} {protects}")
        else:
            self._errors.add_warning(below, message)

    def _means_unset(self, value: Any, name: str, section: type[BaseModel], path: KeyPath) -> bool:
        """Check whether a value means the same as leaving the setting out."""
        if value is None or isinstance(value, bool):
            return False
        if value == setting_names.find_unset_value(section, name, "unset_values"):
            return True
        if value != setting_names.find_unset_value(section, name, "former_unset_values"):
            return False
        if not self._locations.is_renamed(path):  # a former name already has a warning
            told = f"{self._locations.format_path(path)}: {value} is the same as leaving the setting out. Leave it out."
            self._errors.add_warning(path, told)
        return True

    def _warn_without_effect(self, extra: Any, path: KeyPath) -> None:
        if isinstance(extra, dict) and (why := extra.get(WITHOUT_EFFECT)) and path in self._locations:
            self._errors.add_warning(path, f"{self._locations.format_path(path)} has no effect here: {why}")

    def _convert_map(self, value: Any, kind: Any, path: KeyPath) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._errors.incomplete = True
            raise self._build_error(path, "must map names to values, as in `name: value`", value)
        shaped = {name: self._validate_value(inner, kind, (*path, name)) for name, inner in value.items()}
        return {name: inner for name, inner in shaped.items() if inner is not INVALID_VALUE}

    def _convert_list(self, value: Any, kind: Any, path: KeyPath) -> Any:
        if not isinstance(value, list):
            raise self._build_error(path, "must be a list, as in `[a, b]`", value)
        shaped = [self._validate_value(inner, kind, (*path, position)) for position, inner in enumerate(value)]
        return [inner for inner in shaped if inner is not INVALID_VALUE]

    def _convert_text(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, str | FilePath):
            return value
        if not isinstance(value, macros.ScalarValue):
            raise self._build_error(path, "must be text", value)
        written = self._locations.get_text(path)
        return macros.format_scalar(value) if written is None or "${" in written else written

    def _convert_bool(self, value: Any, path: KeyPath) -> Any:
        word = value.lower() if isinstance(value, str) else ""
        if isinstance(value, bool) or word in TRUE_WORDS or word in FALSE_WORDS:
            return value is True or word in TRUE_WORDS
        if not self._locations.is_in_file(path) and value in (0, 1):  # environment variables often use 0 and 1
            return bool(value)
        raise self._build_error(path, "must be true or false" + _hint_quotes(word in ("true", "false")), value)

    def _convert_with_unit(self, value: Any, kind: type, path: KeyPath, unit: UnitMarker) -> Any:
        """Convert a number, or a text with a unit."""
        if not isinstance(value, str):
            return self._convert_number(value, kind, path, f" or {unit.noun} such as {unit.example}")
        if _is_a_number(value):
            raise self._build_error(path, "must be a number, without quotes", value)
        try:
            return unit.read(value)
        except ValueError:
            raise self._build_error(path, f"must be a number or {unit.noun} such as {unit.example}", value) from None

    def _convert_number(self, value: Any, kind: type, path: KeyPath, other: str = "") -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            number = isinstance(value, str) and _is_a_number(value)
            raise self._build_error(
                path, f"must be a {'whole ' if kind is int else ''}number{other}" + _hint_quotes(number), value
            )
        if kind is int and isinstance(value, float) and abs(value) < 2**63:
            if not value.is_integer():
                written = self._locations.format_path(path)
                self._errors.add_warning(path, f"{written} is a whole number: {int(value)} counts.")
            return int(value)
        return value

    def _build_error(self, path: KeyPath, must: str, value: Any) -> SettingError:
        return self._locations.build_error(
            path, f"The setting {self._locations.format_path(path)} is wrong: it {must}{format_faulty_value(path, value)}."
        )


SECRET_SETTINGS = {"api_keys", "apiKeys", "api_key", "apiKey", "env", "options"}
"""Settings with secret values, which messages must not show, as logs contain them."""


def format_faulty_value(path: KeyPath, value: Any) -> str:
    """Format a wrong value for a message, unless it may be secret."""
    return "" if SECRET_SETTINGS & set(path) else f" (it is {value!r})" if isinstance(value, macros.ScalarValue) else ""


def _is_a_number(text: str) -> bool:
    return text.strip().replace(".", "", 1).isdigit()


def _allows_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _hint_quotes(quoted: bool) -> str:
    return ", without quotes" if quoted else ""


def _describe_missing_section(path: KeyPath) -> str:
    if path[:1] == ("profiles",):
        return "must map `pins` to models: lists of models are no longer supported"
    return "must hold settings by name"
