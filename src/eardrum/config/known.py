"""The settings there are, by their paths: for messages about those there are not."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from eardrum.config.places import KeyPath, dotted
from eardrum.config.settings import Settings


def unknown(path: KeyPath) -> str:
    """What to say about a setting that does not exist."""
    return f"Unknown setting {dotted(path)}.{hint(str(path[-1]), path[:-1])}"


def hint(name: str, path: KeyPath = ()) -> str:
    """Which setting was meant by a name below `path` that does not exist."""
    here = _names_at(path)
    if name not in here and (close := nearest(name, here)):
        return f" Did you mean {close}?"
    if elsewhere := next((place for place, names in _sections() if name in names), ""):
        return f" There is a {elsewhere}.{name}: is it in the right place?"
    if close := nearest(name, {known for _, names in _sections() for known in names}):
        return f" Did you mean {close}?"
    return " `docs/config.md` lists all settings."


def has_names(setting: str) -> bool:
    """Whether there are names below a top-level setting."""
    kind = sole(Settings.model_fields[setting].annotation)
    return is_section(kind) or get_origin(kind) is dict


def _names_at(path: KeyPath) -> set[str]:
    kind: Any = Settings
    for part in path:
        kind = sole(kind)
        if is_section(kind):
            field = fields(kind).get(str(part))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return set()
    kind = sole(kind)
    return set(fields(kind)) if is_section(kind) else set()


def fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of a section by all names that they have in a file."""
    return {written: field for name, field in section.model_fields.items() for written in _written(name, field)}


def _written(name: str, field: FieldInfo) -> list[str]:
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [field.alias or name]


@cache
def _sections() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(_walked())


def _walked() -> Iterator[tuple[str, tuple[str, ...]]]:
    """All parts of the settings that have names, with a path to each."""
    waiting: list[tuple[str, Any]] = [("", Settings)]
    while waiting:
        where, kind = waiting.pop(0)
        kind = sole(kind)
        if get_origin(kind) is dict:
            waiting.append((f"{where}.NAME", get_args(kind)[1]))
        elif is_section(kind):
            if where:
                yield where, tuple(fields(kind))
            waiting += [(f"{where}.{name}".lstrip("."), field.annotation) for name, field in fields(kind).items()]


def is_section(kind: Any) -> bool:
    """Whether such a value is a part of the settings with names of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def sole(kind: Any) -> Any:
    """The one type that a value may have besides None; several stay as they are."""
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        return arms[0] if len(arms) == 1 else kind
    return kind


def nearest(name: str, names: Collection[str]) -> str:
    """The name that was probably meant; empty if none is like it."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")
