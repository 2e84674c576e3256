"""The settings there are, by their paths: for messages about those there are not."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from eardrum.config.places import KeyPath, dotted
from eardrum.config.settings import Settings

PROTECTING = ("apiKeys", "tls_certificate", "tls_key", "limits", "origins", "hosts")
"""Settings without which, or with another name in their place, a server is open."""

MISPLACED = ("apiKeys", "api_keys", "tls_certificate", "tlsCertificate", "tls_key", "tlsKey", "origins", "hosts")
"""Names that mean nothing but these, wherever they stand."""

GUARDED_SECTIONS = ("limits", "wyoming")
"""llama-swap has no such sections, so nothing of its in there could be meant."""

WORDS = frozenset(
    (
        *("auth", "authentication", "token", "tokens", "password", "passwords", "secret", "secrets", "key", "keys"),
        *("tls", "ssl", "https", "cert", "certificate", "certificates", "cors", "origin", "origins"),
    )
)
"""What a name speaks of that other servers have for the same purpose."""


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
    if path[:1] == ("models",) and len(path) == 2:
        for_all = f" `{name}` at the top is for all models." if name in _names_at(()) else ""
        return f"{for_all} What a model's engine takes belongs below its `options:`."
    if close := nearest(name, {known for _, names in _sections() for known in names}):
        return f" Did you mean {close}?"
    return " `docs/reference/config.md` lists all settings."


def may_protect(name: str, value: Any, path: KeyPath = ()) -> bool:
    """Whether an unknown name below `path` is likely to be meant to protect the server, which it would not do.

    That is one which is most like the name of a setting that does, or speaks of keys and certificates; one of those somewhere
    else, or inside what has an unknown name; and any below a section that is there for protection.
    """
    if path:
        return path[0] in GUARDED_SECTIONS or name in MISPLACED
    squeezed = {_squeezed(known): known for known in _names_at(())}
    if squeezed.get(nearest(_squeezed(name), squeezed)) in PROTECTING:
        return True
    words = set(re.split(r"[-_.\s]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    return not words.isdisjoint(WORDS) or _holds(value, MISPLACED)


def _holds(value: Any, names: Collection[str]) -> bool:
    if not isinstance(value, dict):
        return False
    return any(name in names or _holds(inner, names) for name, inner in value.items())


def _squeezed(name: str) -> str:
    return re.sub(r"[-_.\s]+", "", name).lower()


def has_names(setting: str) -> bool:
    """Whether there are names below a top-level setting."""
    kind = sole(Settings.model_fields[setting].annotation)
    return is_section(kind) or get_origin(kind) is dict


def names_below(setting: str) -> set[str]:
    """The settings below a top-level one, in small letters, as variables have them."""
    return {name.lower() for name in _names_at((setting,))}


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
