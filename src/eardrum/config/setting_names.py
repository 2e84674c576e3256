"""Names of settings: lookup by path, both spellings, and suggestions for unknown names.

llama-swap writes camelCase, Eardrum snake_case; both spellings of every name are accepted.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from eardrum.config.diagnostics import ErrorCollector, KeyPath, LocationMap, format_path
from eardrum.config.settings import Settings

PROTECTIVE_SETTINGS = ("api_keys", "tls_certificate", "tls_key", "limits", "origins", "hosts")
"""Settings that protect the server: under a wrong name, they would leave it open."""

PROTECTIVE_NAMES = ("apiKeys", "api_keys", "tls_certificate", "tlsCertificate", "tls_key", "tlsKey", "origins", "hosts")
"""Names that can only mean these settings, in any section."""

GUARDED_SECTIONS = ("limits", "wyoming")
"""Sections that llama-swap does not have, so an unknown name in them is not one of its settings."""

PROTECTIVE_WORDS = frozenset(
    (
        *("auth", "authentication", "token", "tokens", "password", "passwords", "secret", "secrets", "key", "keys"),
        *("tls", "ssl", "https", "cert", "certificate", "certificates", "cors", "origin", "origins"),
    )
)
"""Words in the names that other servers give to such settings."""


def describe_unknown(path: KeyPath, locations: LocationMap) -> str:
    """Describe a setting that does not exist, with the most similar one."""
    return f"Unknown setting {locations.format_path(path)}.{suggest_setting(str(path[-1]), path[:-1])}"


def suggest_setting(name: str, path: KeyPath = ()) -> str:
    """Suggest the setting that an unknown name below `path` may mean."""
    here = {known for known in _list_names_at(path) if _has_style_of(name, known)}
    options = " Options of a model's engine belong below its `options:`." if path[:1] == ("models",) and len(path) == 2 else ""
    if name not in here and (close := find_nearest(name, here)):
        return f" Did you mean {close}?{options if '_' in name else ''}"
    if elsewhere := _find_section_with(name):
        return f" There is a {elsewhere}{name}: is it in the right place?"
    if options:
        return (f" `{name}` at the top is for all models." if name in _list_names_at(()) else "") + options
    if close := find_nearest(name, {known for known in _list_all_names() if _has_style_of(name, known)}):
        return f" Did you mean {close}?"
    return " `docs/reference/config.md` lists all settings."


def _find_section_with(name: str) -> str:
    """Find the first section below the top with a setting of this name; empty if there is none."""
    return next((path for path, section in list_sections() if path and name in _list_suggested_names(section)), "")


@cache
def _list_all_names() -> frozenset[str]:
    return frozenset().union(*(_list_suggested_names(section) for path, section in list_sections() if path))


def _has_style_of(name: str, known: str) -> bool:
    """Check whether a known name has the spelling of `name`: camelCase or snake_case."""
    return "_" not in known if name != name.lower() else known == known.lower()


def may_protect(name: str, value: Any, path: KeyPath = ()) -> bool:
    """Check whether an unknown name below `path` is probably meant to protect the server.

    That is one which is most like the name of a setting that does, or speaks of keys and certificates; one of those somewhere
    else, or inside what has an unknown name; and any below a section that is there for protection.
    """
    if path:
        return path[0] in GUARDED_SECTIONS or name in PROTECTIVE_NAMES
    squeezed = {_normalize_name(written): known for written, known in list_names(Settings).items()}
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
    """Check whether a top-level setting has names below it."""
    kind = unwrap_optional(Settings.model_fields[setting].annotation)
    return is_section(kind) or get_origin(kind) is dict


def list_names_below(setting: str) -> set[str]:
    """List the names below a top-level setting in lower case, as variables have them."""
    return {name.lower() for name in _list_names_at((setting,))}


def _list_names_at(path: KeyPath) -> set[str]:
    kind: Any = Settings
    for part in path:
        kind = unwrap_optional(kind)
        if is_section(kind):
            field = kind.model_fields.get(list_names(kind).get(str(part), ""))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return set()
    kind = unwrap_optional(kind)
    return set(_list_suggested_names(kind)) if is_section(kind) else set()


@cache
def list_names(section: type[BaseModel]) -> Mapping[str, str]:
    """Map every name by which a section's settings may be written to the setting's own name."""
    names = {spelling: name for name in section.model_fields for spelling in list_spellings(name)}
    for other, name in (list_llama_swap_names(section) | list_former_names(section)).items():
        names |= dict.fromkeys(list_spellings(other), name)
    return names


def list_llama_swap_names(section: type[BaseModel]) -> dict[str, str]:
    """Map llama-swap's names of a section's settings to their own names, where these are more than another spelling."""
    return _collect_names(section, "llama_swap_names")


def list_former_names(section: type[BaseModel]) -> dict[str, str]:
    """Map names that a section's settings had in earlier versions to their present names."""
    return _collect_names(section, "former_names")


def find_unset_value(section: type[BaseModel], name: str, table: str) -> float | None:
    """Look up the value of a setting that means "not set" in one of the section's tables."""
    return next((values[name] for base in section.__mro__ if name in (values := base.__dict__.get(table, {}))), None)


def _collect_names(section: type[BaseModel], table: str) -> dict[str, str]:
    return {other: name for base in section.__mro__ for other, name in base.__dict__.get(table, {}).items()}


@cache
def _list_suggested_names(section: type[BaseModel]) -> frozenset[str]:
    former = {spelling for name in list_former_names(section) for spelling in list_spellings(name)}
    return frozenset(list_names(section).keys() - former)


@cache
def list_sections() -> tuple[tuple[str, type[BaseModel]], ...]:
    """List the sections of the settings, each with the path in front of its names, such as `models.NAME.`."""
    return tuple(_walk_sections())


def _walk_sections() -> Iterator[tuple[str, type[BaseModel]]]:
    waiting: list[tuple[str, Any]] = [("", Settings)]
    while waiting:
        where, kind = waiting.pop(0)
        kind = unwrap_optional(kind)
        if get_origin(kind) is dict:
            waiting.append((f"{where}.NAME", get_args(kind)[1]))
        elif get_origin(kind) is tuple:
            waiting.append((f"{where}[]", get_args(kind)[0]))
        elif is_section(kind):
            yield f"{where}." if where else "", kind
            waiting += [(f"{where}.{name}".lstrip("."), field.annotation) for name, field in kind.model_fields.items()]


def is_section(kind: Any) -> bool:
    """Check whether a type is a section of the settings."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def unwrap_optional(kind: Any) -> Any:
    """Unwrap `T | None` to `T`; other unions stay."""
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        return arms[0] if len(arms) == 1 else kind
    return kind


def find_nearest(name: str, names: Collection[str]) -> str:
    """Find the most similar name; empty if none is similar."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def use_native_names(tree: dict[str, Any], places: LocationMap, errors: ErrorCollector) -> dict[str, Any]:
    """Give every setting in the tree its own name, and `places` the locations under these names.

    Unknown names stay, as do names of models and the like. One setting under two names is an error.
    """
    renamed = _NameConverter(places, errors).convert_value(tree, Settings, ())
    assert isinstance(renamed, dict)
    return renamed


class _NameConverter:
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

    def _convert_section(self, value: dict[str, Any], section: type[BaseModel], path: KeyPath) -> dict[str, Any]:
        names = list_names(section)
        former = {spelling for name in list_former_names(section) for spelling in list_spellings(name)}
        renamed: dict[str, Any] = {}
        first: dict[str, str] = {}
        for written in value:
            name = names.get(written, written)
            if first.setdefault(name, written) != written:
                two = f"{format_path((*path, written))} and {first[name]} are the same setting: keep one of them."
                self._errors.add_exception(self._locations.build_error((*path, written), two), (*path, name))
        for name, written in first.items():
            if name != written:
                self._locations.rename((*path, written), name)
            if written in former:
                self._errors.warn_of_former_name((*path, written), name, self._locations)
            field = section.model_fields.get(name)
            inner = value[written]
            renamed[name] = self.convert_value(inner, field.annotation, (*path, name)) if field else inner
        return renamed


def list_spellings(name: str) -> set[str]:
    """Spell a setting's name in camelCase and in snake_case: `apiKeys` and `api_keys`, `globalTTL` and `global_ttl`."""
    first, *others = name.split("_")
    camel = first + "".join(other[:1].upper() + other[1:] for other in others)
    return {name, camel, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()}
