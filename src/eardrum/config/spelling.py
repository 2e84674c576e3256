"""Both ways of writing a setting's name: llama-swap has camelCase, ours are in snake_case, and nobody knows which is whose."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

from eardrum.config import known
from eardrum.config.known import is_section, sole
from eardrum.config.places import Errors, KeyPath, Places, dotted
from eardrum.config.settings import Settings


def with_own_names(tree: dict[str, Any], places: Places, errors: Errors) -> dict[str, Any]:
    """The tree with every setting under the name that the reference has, and its place beside it.

    Names that are no setting's in either spelling stay, as do those that are somebody's own, of models for example. It is an
    error to write one setting in both.
    """
    renamed = _Renaming(places, errors).value(tree, Settings, ())
    assert isinstance(renamed, dict)
    return renamed


class _Renaming:
    """Goes through a tree."""

    def __init__(self, places: Places, errors: Errors):
        self._places = places
        self._errors = errors

    def value(self, value: Any, kind: Any, path: KeyPath) -> Any:
        kind = sole(kind)
        if isinstance(value, list) and get_origin(kind) is tuple:
            return [self.value(item, get_args(kind)[0], (*path, position)) for position, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if get_origin(kind) is dict:
            return {name: self.value(inner, get_args(kind)[1], (*path, name)) for name, inner in value.items()}
        return self._section(value, kind, path) if is_section(kind) else value

    def _section(self, value: dict[str, Any], kind: Any, path: KeyPath) -> dict[str, Any]:
        fields = known.fields(kind)
        own = {other: name for name in fields for other in spellings(name) if other not in fields}
        renamed: dict[str, Any] = {}
        for written, inner in value.items():
            name = own.get(written, written)
            if name != written and name in value:
                two = f"{dotted((*path, written))} and {name} are the same setting: keep one of them."
                self._errors.take(self._places.error((*path, written), two), (*path, name))
                continue
            if name != written:
                self._places.copy((*path, written), (*path, name))
            field = fields.get(name)
            renamed[name] = self.value(inner, field.annotation, (*path, name)) if field else inner
        return renamed


def spellings(name: str) -> set[str]:
    """A setting's name in camelCase and in snake_case: `apiKeys` and `api_keys`, `globalTTL` and `global_ttl`."""
    first, *others = name.split("_")
    camel = first + "".join(other[:1].upper() + other[1:] for other in others)
    return {name, camel, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()}
