"""Macros: `${NAME}` stands for a value defined further up in the config."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any

from eardrum.config.diagnostics import ErrorCollector, KeyPath

MACRO_NAME = re.compile(r"[a-zA-Z0-9_-]+", re.ASCII)
MAX_NAME_LENGTH = 63
MACRO_REFERENCE = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}", re.ASCII)
RESERVED_NAMES = ("PORT", "PID", "MODEL_ID")

MAX_VALUE_LENGTH = 1 << 20
"""Limit in characters: macros that use other macros twice each would fill the memory."""

ScalarValue = str | int | float | bool


def read_macros(macros: Any, path: KeyPath, errors: ErrorCollector) -> dict[str, ScalarValue]:
    """Read the macros of a `macros:` section at `path`. Invalid names and values are errors."""
    if macros is None:
        return {}
    if not isinstance(macros, dict):
        errors.add(path, f"{errors.format_path(path)} must map names to values, as in `ctx: 8192`.")
        return {}
    for name, value in macros.items():
        if wrong := _find_problem(name, value):
            errors.add((*path, name), f"The macro {name} {wrong}.")
    return {name: value for name, value in macros.items() if not errors.has_error_at((*path, name))}


def _find_problem(name: str, value: Any) -> str:
    if not MACRO_NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        return f"needs another name: up to {MAX_NAME_LENGTH} letters, digits, `_` and `-`"
    if name in RESERVED_NAMES:
        return "has a name that is reserved: PORT, PID and MODEL_ID are given by the server"
    if not isinstance(value, ScalarValue):
        return "must be text, a number, true or false"
    return "contains itself" if isinstance(value, str) and f"${{{name}}}" in value else ""


def expand_macros(value: Any, macros: Mapping[str, ScalarValue], path: KeyPath, errors: ErrorCollector) -> Any:
    """Replace all macros in `value`, the last defined first and each once: a macro may use those defined before it.

    A text that is nothing but one macro becomes the macro's value, whatever its type. Names in maps stay as they are, except
    those below `filters.set_params_by_id`, which are names of models: there two must not become one. It is an error, too, if a
    value gets too long.
    """
    if isinstance(value, dict):
        names_too = path[-2:] == ("filters", "set_params_by_id")
        found: dict[str, Any] = {}
        written: dict[str, str] = {}
        for name, inner in value.items():
            new = format_scalar(_expand_text(name, macros, (*path, name), errors)) if names_too else name
            if new in found:
                errors.add(
                    (*path, name),
                    f"{name} and {written[new]} are both {new!r} below {errors.format_path(path)}: keep one of them.",
                )
                continue
            written[new] = name
            found[new] = expand_macros(inner, macros, (*path, name), errors)
            if new != name:
                errors.locations.copy((*path, name), (*path, new))
        return found
    if isinstance(value, list):
        return [expand_macros(inner, macros, (*path, position), errors) for position, inner in enumerate(value)]
    return _expand_text(value, macros, path, errors) if isinstance(value, str) and "${" in value else value


def _expand_text(value: str, macros: Mapping[str, ScalarValue], path: KeyPath, errors: ErrorCollector) -> ScalarValue:
    for name in reversed(list(macros)):
        slug = f"${{{name}}}"
        if value == slug:
            whole = macros[name]
            if not isinstance(whole, str):
                return whole
        replaced = value.replace(slug, format_scalar(macros[name]))
        if len(replaced) > MAX_VALUE_LENGTH:
            errors.add(
                path,
                f"{errors.format_path(path)} gets too long: its macros make it more than {MAX_VALUE_LENGTH} characters.",
            )
            break
        value = replaced
    return value


def find_unresolved(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Find the macros that a value still uses, with their paths."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if path[-2:] == ("filters", "set_params_by_id"):
                yield from find_unresolved(name, (*path, name))
            yield from find_unresolved(inner, (*path, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from find_unresolved(inner, (*path, position))
    elif isinstance(value, str):
        yield from ((path, name) for name in MACRO_REFERENCE.findall(value))


def describe_unknown_macro(name: str, known: Collection[str]) -> str:
    """Describe why a macro was not replaced: it does not exist, or is defined further down."""
    if name in known:
        return f"${{{name}}} is used before it is defined: a macro can use those that stand above it."
    if name == "PORT":
        return "${PORT} is only known to models whose `cmd` uses it."
    if name in RESERVED_NAMES:
        return f"${{{name}}} is not known here."
    close = difflib.get_close_matches(name, [*known, *RESERVED_NAMES], n=1)
    hint = f" Did you mean ${{{close[0]}}}?" if close else f" A variable of the environment is ${{env.{name}}}."
    return f"There is no macro ${{{name}}}.{hint}"


def format_scalar(value: ScalarValue) -> str:
    """Format a value inside a text as llama-swap does: 1.0 as `1`, a million as a float as `1e+06`."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf")
    exact = Decimal(repr(value)).normalize()
    sign, digits, shift = exact.as_tuple()
    assert isinstance(shift, int)
    exponent = len(digits) + shift - 1
    if not value or -5 < exponent < 6:
        return f"{exact:f}"
    fraction = f".{''.join(map(str, digits[1:]))}" if digits[1:] else ""
    return f"{'-' * sign}{digits[0]}{fraction}e{exponent:+03}"
