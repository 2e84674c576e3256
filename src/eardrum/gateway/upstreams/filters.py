"""Rewrites JSON bodies for upstreams: llama-swap's `use_model_name` and `filters`.

Pure. Only the objects and lists along a changed path are copied, so a body with megabytes of images costs no more than a
short one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eardrum import config
from eardrum.config.llama_swap import RequestFilters

PROTECTED_KEY = "model"
"""The key that no filter may change; `use_model_name` does that."""

MAX_LIST_INDEX = 10_000
"""Largest list index in a path: `a.999999999` would fill the memory with nulls."""

STEP_PATTERN = re.compile(r"(?:\\.|[^.\\])+", re.DOTALL)


class MissingValue:
    """Stands for a missing value."""


MISSING = MissingValue()


def apply_filters(body: dict[str, Any], entry: config.ModelSettings | None, requested: str) -> dict[str, Any]:
    """Return the body for the upstream of the model that the client named `requested`.

    Without a change it is `body` itself, so that the client's own bytes can be forwarded.
    """
    if entry is None:
        return body
    if entry.use_model_name:
        body = {**body, PROTECTED_KEY: entry.use_model_name}
    return filter_body(body, entry.filters, requested)


def filter_body(body: dict[str, Any], filters: RequestFilters, requested: str) -> dict[str, Any]:
    """Return the body without `strip_params`, with `set_params`, and with the `set_params_by_id` of this name.

    Keys are paths: `a.b` is nested, `a.0` the first item of a list, `a.-1` appends to it, `a\\.b` is a name with a dot. A value
    on the path that is neither an object nor a list is replaced.
    """
    if not (filters.strip_params or filters.set_params or filters.set_params_by_id):
        return body
    for name in _split_names(filters.strip_params):
        if steps := _parse_path(name):
            body = _remove_value(body, steps)
    for params in (filters.set_params, filters.set_params_by_id.get(requested, {})):
        body = _set_params(body, params)
    return body


def _split_names(names: str) -> Iterable[str]:
    return (name for part in names.split(",") if (name := part.strip()) and name != PROTECTED_KEY)


def _set_params(body: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    for path in sorted(params):
        if path != PROTECTED_KEY and (steps := _parse_path(path)):
            body = _set_value(body, steps, params[path])
    return body


def _parse_path(path: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", step) for step in STEP_PATTERN.findall(path)]


def _set_value(node: Any, steps: Sequence[str], value: Any) -> Any:
    """`node` with the value at the end of the path. Lists and objects along it are new, everything else is shared."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(node, list) or (not isinstance(node, dict) and _parse_index(step) is not None):
        return _set_item(node if isinstance(node, list) else [], step, rest, value)
    held: dict[str, Any] = node if isinstance(node, dict) else {}
    name = step.removeprefix(":")  # `:1` is a name that looks like a number
    return {**held, name: _set_value(held.get(name, MISSING), rest, value)}


def _set_item(items: list[Any], step: str, rest: Sequence[str], value: Any) -> Any:
    index = _parse_index(step)
    if index is None or index > MAX_LIST_INDEX:
        return items  # a list has no such place
    at = len(items) if index < 0 else index
    longer = [*items, *[None] * (at + 1 - len(items))]
    longer[at] = _set_value(items[at] if at < len(items) else MISSING, rest, value)
    return longer


def _remove_value(node: Any, steps: Sequence[str]) -> Any:
    """`node` less what is at the end of the path; `node` itself if there is nothing."""
    step, rest = steps[0], steps[1:]
    if isinstance(node, dict):
        name = step.removeprefix(":")
        if name not in node:
            return node
        if not rest:
            return {key: value for key, value in node.items() if key != name}
        changed = _remove_value(node[name], rest)
        return node if changed is node[name] else {**node, name: changed}
    index = _parse_index(step)
    if not isinstance(node, list) or index is None or not -1 <= index < len(node) or not node:
        return node
    at = index % len(node)
    if not rest:
        return [*node[:at], *node[at + 1 :]]
    changed = _remove_value(node[at], rest)
    return node if changed is node[at] else [*node[:at], changed, *node[at + 1 :]]


def _parse_index(step: str) -> int | None:
    return int(step) if step == "-1" or (step.isascii() and step.isdigit()) else None
