"""Macros, ports and command lines of a config.

`${NAME}` stands for a value that is defined further up, `${PORT}` for a port of the model. `split_command` splits a command
into words as llama-swap does: POSIX quoting, no shell, no variables, no wildcards. It differs from `shlex.split`: inside
double quotes `\\$` and `\\`` lose their backslash as in a shell, an open quote ends with the line, and a carriage return is
an ordinary character.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any

from msgspec import Struct, field
from pydantic.fields import FieldInfo

from eardrum.config.diagnostics import ErrorCollector, KeyPath
from eardrum.errors import ConfigError

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

    A text that is nothing but one macro becomes the macro's value, of any type. Names in maps stay as they are, except
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


PORT_MACRO, PID_NAME = "${PORT}", "PID"
DEFAULT_PROXY = f"http://localhost:{PORT_MACRO}"
FIRST_PORT = 5800

SettingsTree = dict[str, Any]


def resolve_macros(
    tree: SettingsTree, errors: ErrorCollector, known: PortReservations, fields: Mapping[str, FieldInfo]
) -> tuple[SettingsTree, dict[str, int]]:
    """Expand all macros in the tree, and assign ports to the models that use one.

    `fields` are the top-level settings: what stands below other names may be a template for anchors, and keeps its
    macros. It is an error if a macro is wrong, unknown or used before it is defined.
    """
    globals_ = read_macros(tree.get("macros"), ("macros",), errors)
    done: SettingsTree = {}
    for name, value in tree.items():
        done[name] = value if name in ("macros", "models") else expand_macros(value, globals_, (name,), errors)
        if name in fields and name not in ("macros", "models"):
            _check_unresolved(done[name], (name,), errors, globals_)
    models = tree.get("models")
    if not isinstance(models, dict):
        return done, {}
    entries = {id: _expand_model_macros(id, models[id], globals_, errors) for id in models if _is_valid_model_name(id, errors)}
    given = _assign_ports(done, [id for id, entry in entries.items() if _uses_port(entry, "cmd")], known, fields, errors)
    for id, entry in entries.items():
        scope = _build_scope(id, entry, globals_, errors)
        if id not in given and isinstance(entry, dict):
            _check_unresolved(entry.get("cmd"), ("models", id, "cmd"), errors, scope)
        entries[id] = _expand_port(id, entry, given.get(id), errors)
        _check_unresolved(entries[id], ("models", id), errors, scope)
    return done | {"models": entries}, given


def _assign_ports(
    tree: SettingsTree,
    needing: Collection[str],
    known: PortReservations,
    fields: Mapping[str, FieldInfo],
    errors: ErrorCollector,
) -> dict[str, int]:
    """Assign ports to models, apart from the server's own ports."""
    start = tree.get("start_port")
    known = PortReservations(known.assigned, {*known.excluded, *_list_own_ports(tree, fields)})
    try:
        return assign_ports(needing, start if isinstance(start, int) else FIRST_PORT, known)
    except ConfigError as error:
        path: KeyPath = ("start_port",)
        errors.add_exception(errors.locations.build_error(path, f"{errors.format_path(path)} {error.message}"), path)
        return dict.fromkeys(needing, MAX_PORT)


def _list_own_ports(tree: SettingsTree, fields: Mapping[str, FieldInfo]) -> set[int]:
    """List the server's own ports; invalid values are left out."""
    wyoming = tree.get("wyoming")
    named = (
        tree.get("port", fields["port"].default),
        (wyoming if isinstance(wyoming, dict) else {}).get("port", fields["wyoming"].default.port),
    )
    return {port for port in named if isinstance(port, int)}


def _is_valid_model_name(id: str, errors: ErrorCollector) -> bool:
    if MACRO_REFERENCE.search(id):
        errors.add(("models", id), f"The name of a model cannot hold macros: {id}.")
        errors.incomplete = True
        return False
    return True


def _expand_model_macros(id: str, entry: Any, globals_: dict[str, ScalarValue], errors: ErrorCollector) -> Any:
    if not isinstance(entry, dict):
        return entry
    scope = _build_scope(id, entry, globals_, errors)
    entry = dict(entry)
    for name in ("cmd", "cmd_stop"):
        if isinstance(entry.get(name), str):
            entry[name] = strip_comments(entry[name])
    if entry.get("cmd") and not entry.get("proxy"):
        entry["proxy"] = DEFAULT_PROXY
    return {
        name: value if name == "macros" else expand_macros(value, scope, ("models", id, name), errors)
        for name, value in entry.items()
    }


def _build_scope(id: str, entry: Any, globals_: dict[str, ScalarValue], errors: ErrorCollector) -> dict[str, ScalarValue]:
    own = read_macros(entry.get("macros"), ("models", id, "macros"), errors) if isinstance(entry, dict) else {}
    return {"MODEL_ID": id, **globals_, **own}  # in a dict union, an existing name keeps its position


def _uses_port(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(name), str) and PORT_MACRO in entry[name]


def _expand_port(id: str, entry: Any, port: int | None, errors: ErrorCollector) -> Any:
    if port is not None:
        path: KeyPath = ("models", id)
        return {
            name: value if name == "macros" else expand_macros(value, {"PORT": port}, (*path, name), errors)
            for name, value in entry.items()
        }
    if _uses_port(entry, "proxy"):
        set_here = ("models", id, "proxy") in errors.locations
        which = "uses" if set_here else f"is not set and would be {DEFAULT_PROXY}, which uses"
        cure = "Let `cmd` listen on ${PORT}, or name the port in `proxy`."
        if not errors.has_error_at(("models", id, "cmd")):  # the error may be in the port
            errors.add(("models", id, "proxy"), f"The `proxy` of {id} {which} ${{PORT}}, but its `cmd` does not. {cure}")
        return {name: value for name, value in entry.items() if name != "proxy"}
    return entry


def _check_unresolved(value: Any, path: KeyPath, errors: ErrorCollector, scope: dict[str, ScalarValue]) -> None:
    entry = {name: inner for name, inner in value.items() if name != "macros"} if isinstance(value, dict) else value
    for where, name in [(where, name) for where, name in find_unresolved(entry, path) if not errors.has_error_at(where)]:
        if not (name == PID_NAME and where[-1] == "cmd_stop") and not _is_invalid_macro(name, where, errors):
            errors.add(where, f"{errors.format_path(where)}: {describe_unknown_macro(name, scope)}")


def _is_invalid_macro(name: str, where: KeyPath, errors: ErrorCollector) -> bool:
    """Check whether a macro is defined with an error, which is reported at its definition."""
    own = (*where[:2], "macros", name) if where[0] == "models" else ()
    return errors.has_error_at(("macros", name)) or errors.has_error_at(own)


MAX_PORT = 65535


class PortReservations(Struct, frozen=True):
    """Ports in use when a config is reloaded while models run."""

    assigned: Mapping[str, int] = field(default_factory=dict)
    """The port of each model, which it keeps, so that an added model does not move the others."""
    excluded: Collection[int] = ()
    """Ports that are not assigned, such as those of models that are still stopping."""


def assign_ports(models: Collection[str], start: int, known: PortReservations) -> dict[str, int]:
    """Assign a port to each model: the one it had, else the next from `start`, in the order of the models' names.

    Raises:
        ConfigError: there are not enough.
    """
    kept = {id: known.assigned[id] for id in models if id in known.assigned}
    free = _iterate_free(start, {*kept.values(), *known.excluded})
    return {id: kept.get(id) or next(free) for id in sorted(models)}


def _iterate_free(start: int, taken: Collection[int]) -> Iterator[int]:
    yield from (port for port in range(start, MAX_PORT + 1) if port not in taken)
    raise ConfigError(f"{start} is too high: the ports up to {MAX_PORT} are not enough for all models.")


BLANKS = " \t\n"
ESCAPED_IN_QUOTES = '"\\$`'


def split_command(command: str) -> list[str]:
    """The program and its arguments. Lines that are comments are left out, a line that ends in a backslash continues."""
    return list(_split_words("\n".join(_join_continuation(line) for line in strip_comments(command).split("\n"))))


def strip_comments(command: str) -> str:
    """The command without lines that begin with `#`; a `#` further right is part of the command."""
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def _join_continuation(line: str) -> str:
    trimmed = line.strip()
    return f"{trimmed[:-1]} " if trimmed.endswith("\\") else line


def _split_words(text: str) -> Iterator[str]:
    letters = iter(text)
    word: list[str] | None = None  # None between words; an empty pair of quotes is the word ''
    for letter in letters:
        if letter in BLANKS:
            if word is not None:
                yield "".join(word)
            word = None
            continue
        word = [] if word is None else word
        if letter == "'":
            word.extend(_read_single_quoted(letters))
        elif letter == '"':
            word.extend(_read_double_quoted(letters))
        else:
            word.append(next(letters, "") if letter == "\\" else letter)
    if word is not None:
        yield "".join(word)


def _read_single_quoted(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == "'":
            return
        yield letter


def _read_double_quoted(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == '"':
            return
        if letter == "\\":
            escaped = next(letters, "")
            yield escaped if escaped and escaped in ESCAPED_IN_QUOTES else f"\\{escaped}"
        else:
            yield letter
