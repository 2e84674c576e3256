"""Macros, ports and comments of a config, in llama-swap's order, on the tree as it was read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from eardrum.config import macros, ports, words
from eardrum.config.macros import Scalar
from eardrum.config.places import Errors, KeyPath, dotted
from eardrum.config.ports import Ports
from eardrum.config.settings import Settings, Wyoming
from eardrum.errors import ConfigError

PORT, PID = "${PORT}", "PID"
DEFAULT_PROXY = f"http://localhost:{PORT}"
FIRST_PORT = 5800
PORT_OF_SERVER, PORT_OF_WYOMING = Settings.model_fields["port"].default, Wyoming.model_fields["port"].default

Tree = dict[str, Any]


def resolved(tree: Tree, errors: Errors, known: Ports, names: Collection[str]) -> tuple[Tree, dict[str, int]]:
    """The tree with every macro replaced, and the port of every model that has one.

    `names` are the top-level settings there are: what stands below other names may be a template for anchors, and keeps its
    macros. It is an error if a macro is wrong, unknown or used before it is defined.
    """
    globals_ = macros.defined(tree.get("macros"), ("macros",), errors)
    done: Tree = {}
    for name, value in tree.items():
        done[name] = value if name in ("macros", "models") else macros.substituted(value, globals_, (name,), errors)
        if name in names and name not in ("macros", "models"):
            _check_left(done[name], (name,), errors, globals_)
    models = tree.get("models")
    if not isinstance(models, dict):
        return done, {}
    entries = {id: _with_macros(id, models[id], globals_, errors) for id in models if _is_a_name(id, errors)}
    given = _ports(done, [id for id, entry in entries.items() if _uses_port(entry, "cmd")], known, errors)
    for id, entry in entries.items():
        scope = _scope(id, entry, globals_, errors)
        if id not in given and isinstance(entry, dict):
            _check_left(entry.get("cmd"), ("models", id, "cmd"), errors, scope)
        entries[id] = _with_port(id, entry, given.get(id), errors)
        _check_left(entries[id], ("models", id), errors, scope)
    return done | {"models": entries}, given


def _ports(tree: Tree, needing: Collection[str], known: Ports, errors: Errors) -> dict[str, int]:
    """The ports of models, none of which is one of the server's own."""
    start = tree.get("startPort")
    known = Ports(known.held, {*known.avoided, *_own_ports(tree)})
    try:
        return ports.assigned(needing, start if isinstance(start, int) else FIRST_PORT, known)
    except ConfigError as error:
        errors.take(error, ("startPort",))
        return dict.fromkeys(needing, ports.HIGHEST)


def _own_ports(tree: Tree) -> set[int]:
    """The server's own ports, as far as they are ports."""
    wyoming = tree.get("wyoming")
    named = (tree.get("port", PORT_OF_SERVER), (wyoming if isinstance(wyoming, dict) else {}).get("port", PORT_OF_WYOMING))
    return {port for port in named if isinstance(port, int)}


def _is_a_name(id: str, errors: Errors) -> bool:
    if macros.USED.search(id):
        errors.add(("models", id), f"The name of a model cannot hold macros: {id}.")
        errors.incomplete = True
        return False
    return True


def _with_macros(id: str, entry: Any, globals_: dict[str, Scalar], errors: Errors) -> Any:
    if not isinstance(entry, dict):
        return entry
    scope = _scope(id, entry, globals_, errors)
    entry = dict(entry)
    for name in ("cmd", "cmdStop"):
        if isinstance(entry.get(name), str):
            entry[name] = words.without_comments(entry[name])
    if entry.get("cmd") and not entry.get("proxy"):
        entry["proxy"] = DEFAULT_PROXY
    return {
        name: value if name == "macros" else macros.substituted(value, scope, ("models", id, name), errors)
        for name, value in entry.items()
    }


def _scope(id: str, entry: Any, globals_: dict[str, Scalar], errors: Errors) -> dict[str, Scalar]:
    own = macros.defined(entry.get("macros"), ("models", id, "macros"), errors) if isinstance(entry, dict) else {}
    return {"MODEL_ID": id, **globals_, **own}  # a name that is there already keeps its position


def _uses_port(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(name), str) and PORT in entry[name]


def _with_port(id: str, entry: Any, port: int | None, errors: Errors) -> Any:
    if port is not None:
        path: KeyPath = ("models", id)
        return {
            name: value if name == "macros" else macros.substituted(value, {"PORT": port}, (*path, name), errors)
            for name, value in entry.items()
        }
    if _uses_port(entry, "proxy"):
        set_here = ("models", id, "proxy") in errors.places
        which = "uses" if set_here else f"is not set and would be {DEFAULT_PROXY}, which uses"
        cure = "Let `cmd` listen on ${PORT}, or name the port in `proxy`."
        if not errors.at(("models", id, "cmd")):  # where it may be meant
            errors.add(("models", id, "proxy"), f"The `proxy` of {id} {which} ${{PORT}}, but its `cmd` does not. {cure}")
        return {name: value for name, value in entry.items() if name != "proxy"}
    return entry


def _check_left(value: Any, path: KeyPath, errors: Errors, scope: dict[str, Scalar]) -> None:
    entry = {name: inner for name, inner in value.items() if name != "macros"} if isinstance(value, dict) else value
    for where, name in [(where, name) for where, name in macros.left(entry, path) if not errors.at(where)]:
        if not (name == PID and where[-1] == "cmdStop") and not _is_a_bad_one(name, where, errors):
            errors.add(where, f"{dotted(where)}: {macros.unknown(name, scope)}")


def _is_a_bad_one(name: str, where: KeyPath, errors: Errors) -> bool:
    """Whether the macro is there, but is wrong: that was told where it is defined."""
    own = (*where[:2], "macros", name) if where[0] == "models" else ()
    return errors.at(("macros", name)) or errors.at(own)
