"""Names of settings: lookup by path, both spellings, and suggestions for unknown names.

llama-swap writes camelCase, Eardrum snake_case; both spellings of every name are accepted.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from eardrum.config.diagnostics import ErrorCollector, KeyPath, LocationMap, format_path
from eardrum.config.settings import Settings

PROTECTIVE_SETTINGS = ("apiKeys", "tls_certificate", "tls_key", "limits", "origins", "hosts")
"""Settings without which, or with another name in their place, a server is open."""

PROTECTIVE_NAMES = ("apiKeys", "api_keys", "tls_certificate", "tlsCertificate", "tls_key", "tlsKey", "origins", "hosts")
"""Names that mean nothing but these, wherever they stand."""

GUARDED_SECTIONS = ("limits", "wyoming")
"""llama-swap has no such sections, so nothing of its in there could be meant."""

PROTECTIVE_WORDS = frozenset(
    (
        *("auth", "authentication", "token", "tokens", "password", "passwords", "secret", "secrets", "key", "keys"),
        *("tls", "ssl", "https", "cert", "certificate", "certificates", "cors", "origin", "origins"),
    )
)
"""What a name speaks of that other servers have for the same purpose."""


def describe_unknown(path: KeyPath) -> str:
    """What to say about a setting that does not exist."""
    return f"Unknown setting {format_path(path)}.{suggest_setting(str(path[-1]), path[:-1])}"


def suggest_setting(name: str, path: KeyPath = ()) -> str:
    """Which setting was meant by a name below `path` that does not exist."""
    here = _list_names_at(path)
    if name not in here and (close := find_nearest(name, here)):
        return f" Did you mean {close}?"
    if elsewhere := next((place for place, names in _list_sections() if name in names), ""):
        return f" There is a {elsewhere}.{name}: is it in the right place?"
    if path[:1] == ("models",) and len(path) == 2:
        for_all = f" `{name}` at the top is for all models." if name in _list_names_at(()) else ""
        return f"{for_all} What a model's engine takes belongs below its `options:`."
    if close := find_nearest(name, {known for _, names in _list_sections() for known in names}):
        return f" Did you mean {close}?"
    return " `docs/reference/config.md` lists all settings."


def may_protect(name: str, value: Any, path: KeyPath = ()) -> bool:
    """Whether an unknown name below `path` is likely to be meant to protect the server, which it would not do.

    That is one which is most like the name of a setting that does, or speaks of keys and certificates; one of those somewhere
    else, or inside what has an unknown name; and any below a section that is there for protection.
    """
    if path:
        return path[0] in GUARDED_SECTIONS or name in PROTECTIVE_NAMES
    squeezed = {_normalize_name(known): known for known in _list_names_at(())}
    if squeezed.get(find_nearest(_normalize_name(name), squeezed)) in PROTECTIVE_SETTINGS:
        return True
    words = set(re.split(r"[-_.\s]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    return not words.isdisjoint(PROTECTIVE_WORDS) or _contains_name(value, PROTECTIVE_NAMES)


def _contains_name(value: Any, names: Collection[str]) -> bool:
    if not isinstance(value, dict):
        return False
    return any(name in names or _contains_name(inner, names) for name, inner in value.items())


def _normalize_name(name: str) -> str:
    return re.sub(r"[-_.\s]+", "", name).lower()


def has_names(setting: str) -> bool:
    """Whether there are names below a top-level setting."""
    kind = unwrap_optional(Settings.model_fields[setting].annotation)
    return is_section(kind) or get_origin(kind) is dict


def list_names_below(setting: str) -> set[str]:
    """The settings below a top-level one, in small letters, as variables have them."""
    return {name.lower() for name in _list_names_at((setting,))}


def _list_names_at(path: KeyPath) -> set[str]:
    kind: Any = Settings
    for part in path:
        kind = unwrap_optional(kind)
        if is_section(kind):
            field = list_fields(kind).get(str(part))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return set()
    kind = unwrap_optional(kind)
    return set(list_fields(kind)) if is_section(kind) else set()


def list_fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of a section by all names that they have in a file."""
    return {written: field for name, field in section.model_fields.items() for written in _list_aliases(name, field)}


def _list_aliases(name: str, field: FieldInfo) -> list[str]:
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [field.alias or name]


@cache
def _list_sections() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(_walk_sections())


def _walk_sections() -> Iterator[tuple[str, tuple[str, ...]]]:
    """All parts of the settings that have names, with a path to each."""
    waiting: list[tuple[str, Any]] = [("", Settings)]
    while waiting:
        where, kind = waiting.pop(0)
        kind = unwrap_optional(kind)
        if get_origin(kind) is dict:
            waiting.append((f"{where}.NAME", get_args(kind)[1]))
        elif is_section(kind):
            if where:
                yield where, tuple(list_fields(kind))
            waiting += [(f"{where}.{name}".lstrip("."), field.annotation) for name, field in list_fields(kind).items()]


def is_section(kind: Any) -> bool:
    """Whether such a value is a part of the settings with names of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def unwrap_optional(kind: Any) -> Any:
    """The one type that a value may have besides None; several stay as they are."""
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        return arms[0] if len(arms) == 1 else kind
    return kind


def find_nearest(name: str, names: Collection[str]) -> str:
    """The name that was probably meant; empty if none is like it."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def use_native_names(tree: dict[str, Any], places: LocationMap, errors: ErrorCollector) -> dict[str, Any]:
    """The tree with every setting under the name that the reference has, and its place beside it.

    Names that are no setting's in either spelling stay, as do those that are somebody's own, of models for example. It is an
    error to write one setting in both.
    """
    renamed = _NameConverter(places, errors).convert_value(tree, Settings, ())
    assert isinstance(renamed, dict)
    return renamed


class _NameConverter:
    """Goes through a tree."""

    def __init__(self, places: LocationMap, errors: ErrorCollector):
        self._locations = places
        self._errors = errors

    def convert_value(self, value: Any, kind: Any, path: KeyPath) -> Any:
        kind = unwrap_optional(kind)
        if isinstance(value, list) and get_origin(kind) is tuple:
            return [self.convert_value(item, get_args(kind)[0], (*path, position)) for position, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if get_origin(kind) is dict:
            return {name: self.convert_value(inner, get_args(kind)[1], (*path, name)) for name, inner in value.items()}
        return self._convert_section(value, kind, path) if is_section(kind) else value

    def _convert_section(self, value: dict[str, Any], kind: Any, path: KeyPath) -> dict[str, Any]:
        fields = list_fields(kind)
        own = {other: name for name in fields for other in list_spellings(name) if other not in fields}
        renamed: dict[str, Any] = {}
        for written, inner in value.items():
            name = own.get(written, written)
            if name != written and name in value:
                two = f"{format_path((*path, written))} and {name} are the same setting: keep one of them."
                self._errors.add_exception(self._locations.build_error((*path, written), two), (*path, name))
                continue
            if name != written:
                self._locations.copy((*path, written), (*path, name))
            field = fields.get(name)
            renamed[name] = self.convert_value(inner, field.annotation, (*path, name)) if field else inner
        return renamed


def list_spellings(name: str) -> set[str]:
    """A setting's name in camelCase and in snake_case: `apiKeys` and `api_keys`, `globalTTL` and `global_ttl`."""
    first, *others = name.split("_")
    camel = first + "".join(other[:1].upper() + other[1:] for other in others)
    return {name, camel, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()}
