"""What the config changes in a JSON body on its way to an upstream: llama-swap's `useModelName` and `filters`.

Pure, and without a copy of what stays: only the objects and lists along a changed path are made anew, so that a body with
megabytes of images in it costs no more than a short one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eardrum import config
from eardrum.config.llama_swap import Filters

PROTECTED = "model"
"""What no filter may touch; `useModelName` is for that."""

LONGEST_LIST = 10_000
"""Largest index of a path: `a.999999999` would fill the memory with nulls."""

STEP = re.compile(r"(?:\\.|[^.\\])+", re.DOTALL)


class _Nothing:
    """In the place of a value that is not there."""


NOTHING = _Nothing()


def apply(body: dict[str, Any], entry: config.Model | None, requested: str) -> dict[str, Any]:
    """The body for the upstream of a model that the client asked for as `requested`.

    Returns `body` itself, untouched, if nothing is to be changed, so that the client's own bytes can be sent on.
    """
    if entry is None:
        return body
    if entry.useModelName:
        body = {**body, PROTECTED: entry.useModelName}
    return filtered(body, entry.filters, requested)


def filtered(body: dict[str, Any], filters: Filters, requested: str) -> dict[str, Any]:
    """The body less `stripParams`, with `setParams`, and last with what is set for this name.

    Keys are paths: `a.b` is nested, `a.0` the first item of a list, `a.-1` the place behind its last one, `a\\.b` a name
    with a dot in it. Where a path leads through what is neither an object nor a list, that is replaced.
    """
    if not (filters.stripParams or filters.setParams or filters.setParamsByID):
        return body
    for name in _stripped(filters.stripParams):
        if steps := _steps(name):
            body = _without(body, steps)
    for params in (filters.setParams, filters.setParamsByID.get(requested, {})):
        body = _set_all(body, params)
    return body


def _stripped(names: str) -> Iterable[str]:
    return (name for part in names.split(",") if (name := part.strip()) and name != PROTECTED)


def _set_all(body: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    for path in sorted(params):
        if path != PROTECTED and (steps := _steps(path)):
            body = _with(body, steps, params[path])
    return body


def _steps(path: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", step) for step in STEP.findall(path)]


def _with(node: Any, steps: Sequence[str], value: Any) -> Any:
    """`node` with the value at the end of the path. Lists and objects along it are new, everything else is shared."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(node, list) or (not isinstance(node, dict) and _index(step) is not None):
        return _with_item(node if isinstance(node, list) else [], step, rest, value)
    held: dict[str, Any] = node if isinstance(node, dict) else {}
    name = step.removeprefix(":")  # `:1` is a name that looks like a number
    return {**held, name: _with(held.get(name, NOTHING), rest, value)}


def _with_item(items: list[Any], step: str, rest: Sequence[str], value: Any) -> Any:
    index = _index(step)
    if index is None or index > LONGEST_LIST:
        return items  # a list has no such place
    at = len(items) if index < 0 else index
    longer = [*items, *[None] * (at + 1 - len(items))]
    longer[at] = _with(items[at] if at < len(items) else NOTHING, rest, value)
    return longer


def _without(node: Any, steps: Sequence[str]) -> Any:
    """`node` less what is at the end of the path; `node` itself if there is nothing."""
    step, rest = steps[0], steps[1:]
    if isinstance(node, dict):
        name = step.removeprefix(":")
        if name not in node:
            return node
        if not rest:
            return {key: value for key, value in node.items() if key != name}
        changed = _without(node[name], rest)
        return node if changed is node[name] else {**node, name: changed}
    index = _index(step)
    if not isinstance(node, list) or index is None or not -1 <= index < len(node) or not node:
        return node
    at = index % len(node)
    if not rest:
        return [*node[:at], *node[at + 1 :]]
    changed = _without(node[at], rest)
    return node if changed is node[at] else [*node[:at], changed, *node[at + 1 :]]


def _index(step: str) -> int | None:
    return int(step) if step == "-1" or (step.isascii() and step.isdigit()) else None
