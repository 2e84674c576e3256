"""What somebody sets, held against what settings there are: unknown names are told, and words take the type they are for.

llama-swap ignores names that it does not know, and so a typing error. What a file says is accepted here as well, with a remark.
In the environment and in flags, which nobody brings from there, unknown names are refused.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eardrum.config import known, macros
from eardrum.config.known import is_section, sole
from eardrum.config.places import Errors, KeyPath, Remark, SettingError, dotted
from eardrum.config.sections import WITHOUT_EFFECT, Section
from eardrum.config.settings import Settings
from eardrum.units import Unit

TRUE, FALSE = {"y", "yes", "on"}, {"n", "no", "off"}
"""Words that are text, except where true or false is asked for."""

WRONG = object()
"""Stands for a value that is left out."""

PRIVATE = "x-"
"""Names that begin so are somebody's own, for anchors: nothing is said of them."""


class Shaper:
    """Brings a tree into the shape of the settings. `remarks` fill as it goes, and so do the errors."""

    def __init__(self, errors: Errors):
        self._errors = errors
        self._places = errors.places
        self.remarks: list[Remark] = []

    def shaped(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree without what the settings do not know, and with every value of the type they ask for.

        What cannot be the value of its setting is an error, and left out.
        """
        return self._section(tree, Settings, ())

    def _value(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any] = ()) -> Any:
        if self._errors.at(path):
            return WRONG
        try:
            return self._strictly(value, kind, path, marks)
        except SettingError as error:
            self._errors.take(error, path)
            return WRONG

    def _strictly(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any]) -> Any:
        kind = sole(kind)
        origin = get_origin(kind)
        if is_section(kind):
            return self._section(value, kind, path)
        if origin is dict:
            return self._map(value, get_args(kind)[1], path)
        if value is None:
            return value
        return self._list(value, get_args(kind)[0], path) if origin is tuple else self._plain(value, kind, path, marks)

    def _plain(self, value: Any, kind: Any, path: KeyPath, marks: Sequence[Any]) -> Any:
        if get_origin(kind) is typing.Literal or kind in (str, FilePath):
            return self._text(value, path)
        if unit := next((mark for mark in marks if isinstance(mark, Unit)), None):
            return self._with_unit(value, kind, path, unit)
        if kind is bool:
            return self._truth(value, path)
        return self._number(value, kind, path) if kind in (int, float) else value

    def _section(self, value: Any, section: type[BaseModel], path: KeyPath) -> dict[str, Any]:
        if value is None:
            return {}
        if isinstance(value, str) and issubclass(section, Section) and section.shorthand:
            value = {section.shorthand: value}
        if not isinstance(value, dict):
            self._errors.incomplete = True
            raise self._wrong(path, _not_a_section(path), value)
        fields = known.fields(section)
        shaped = {}
        for name, inner in value.items():
            below = (*path, name)
            if field := fields.get(name):
                if inner is not None or _allows_none(field.annotation):
                    shaped[name] = self._value(inner, field.annotation, below, field.metadata)
                self._tell_without_effect(field.json_schema_extra, below)
            elif not self._places.in_file(below):
                self._errors.add(below, known.unknown(below))
            elif name.startswith(PRIVATE):
                continue
            elif known.may_protect(name, inner, path):
                protects = "It may be meant to protect the server, so it is not passed over: correct it or take it out."
                self._errors.add(below, f"{known.unknown(below)} {protects}")
            else:
                self.remarks.append(self._places.remark(below, known.unknown(below)))
        self._look_for_two(fields, shaped, path)
        return {name: inner for name, inner in shaped.items() if inner is not WRONG}

    def _look_for_two(self, fields: Mapping[str, FieldInfo], shaped: Mapping[str, Any], path: KeyPath) -> None:
        """Some settings may be written in two ways, and only one would count."""
        by_field: dict[int, str] = {}
        for name in shaped:
            first = by_field.setdefault(id(fields[name]), name)
            if first != name:
                self._errors.add((*path, name), f"{dotted((*path, name))} and {first} are the same setting: keep one of them.")

    def _tell_without_effect(self, extra: Any, path: KeyPath) -> None:
        if isinstance(extra, dict) and (why := extra.get(WITHOUT_EFFECT)) and path in self._places:
            self.remarks.append(self._places.remark(path, f"{dotted(path)} has no effect here: {why}"))

    def _map(self, value: Any, kind: Any, path: KeyPath) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._errors.incomplete = True
            raise self._wrong(path, "must map names to values, as in `name: value`", value)
        shaped = {name: self._value(inner, kind, (*path, name)) for name, inner in value.items()}
        return {name: inner for name, inner in shaped.items() if inner is not WRONG}

    def _list(self, value: Any, kind: Any, path: KeyPath) -> Any:
        if not isinstance(value, list):
            raise self._wrong(path, "must be a list, as in `[a, b]`", value)
        shaped = [self._value(inner, kind, (*path, position)) for position, inner in enumerate(value)]
        return [inner for inner in shaped if inner is not WRONG]

    def _text(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, str | FilePath):
            return value
        if not isinstance(value, macros.Scalar):
            raise self._wrong(path, "must be text", value)
        written = self._places.text(path)
        return macros.text_of(value) if written is None or "${" in written else written

    def _truth(self, value: Any, path: KeyPath) -> Any:
        word = value.lower() if isinstance(value, str) else ""
        if isinstance(value, bool) or word in TRUE or word in FALSE:
            return value is True or word in TRUE
        if not self._places.in_file(path) and value in (0, 1):  # as variables of the environment often say it
            return bool(value)
        raise self._wrong(path, "must be true or false" + _without_quotes(word in ("true", "false")), value)

    def _with_unit(self, value: Any, kind: type, path: KeyPath, unit: Unit) -> Any:
        """A number, or a text with a unit behind it."""
        if not isinstance(value, str):
            return self._number(value, kind, path, f" or {unit.noun} such as {unit.example}")
        if _is_a_number(value):
            raise self._wrong(path, "must be a number, without quotes", value)
        try:
            return unit.read(value)
        except ValueError:
            raise self._wrong(path, f"must be a number or {unit.noun} such as {unit.example}", value) from None

    def _number(self, value: Any, kind: type, path: KeyPath, other: str = "") -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            number = isinstance(value, str) and _is_a_number(value)
            raise self._wrong(path, f"must be a {'whole ' if kind is int else ''}number{other}" + _without_quotes(number), value)
        if kind is int and isinstance(value, float) and abs(value) < 2**63:
            if not value.is_integer():
                self.remarks.append(self._places.remark(path, f"{dotted(path)} is a whole number: {int(value)} counts."))
            return int(value)
        return value

    def _wrong(self, path: KeyPath, must: str, value: Any) -> SettingError:
        return self._places.error(path, f"The setting {dotted(path)} is wrong: it {must}{shown(path, value)}.")


SECRET = {"apiKeys", "apiKey", "env", "options"}
"""Settings whose values may be secret: messages get into logs."""


def shown(path: KeyPath, value: Any) -> str:
    """The value at fault for a message, unless it could be a secret."""
    return "" if SECRET & set(path) else f" (it is {value!r})" if isinstance(value, macros.Scalar) else ""


def _is_a_number(text: str) -> bool:
    return text.strip().replace(".", "", 1).isdigit()


def _allows_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _without_quotes(quoted: bool) -> str:
    return ", without quotes" if quoted else ""


def _not_a_section(path: KeyPath) -> str:
    if path[:1] == ("profiles",):
        return "must map `pins` to models: profiles that are lists of models are no more"
    return "must hold settings by name"
