"""Macros, ports and comments of a config, in llama-swap's order, on the tree as it was read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from eardrum.config import macros, ports, words
from eardrum.config.macros import Scalar
from eardrum.config.places import KeyPath, Places, dotted
from eardrum.config.ports import Ports

PORT, PID = "${PORT}", "PID"
DEFAULT_PROXY = f"http://localhost:{PORT}"
FIRST_PORT = 5800

Tree = dict[str, Any]


def resolved(tree: Tree, places: Places, known: Ports, names: Collection[str]) -> tuple[Tree, dict[str, int]]:
    """The tree with every macro replaced, and the port of every model that has one.

    `names` are the top-level settings there are: what stands below other names may be a template for anchors, and keeps its
    macros.

    Raises:
        ConfigError: a macro is wrong, unknown or used before it is defined; the message names the line.
    """
    globals_ = macros.defined(tree.get("macros"), ("macros",), places)
    done: Tree = {}
    for name, value in tree.items():
        done[name] = value if name in ("macros", "models") else macros.substituted(value, globals_, (name,), places)
        if name in names and name not in ("macros", "models"):
            _check_left(done[name], (name,), places, globals_)
    models = tree.get("models")
    if not isinstance(models, dict):
        return done, {}
    entries = {id: _with_macros(id, models[id], globals_, places) for id in models}
    start = done.get("startPort")
    needing = [id for id, entry in entries.items() if _uses_port(entry, "cmd")]
    given = ports.assigned(needing, start if isinstance(start, int) else FIRST_PORT, known)
    for id, entry in entries.items():
        scope = _scope(id, entry, globals_)
        if id not in given and isinstance(entry, dict):
            _check_left(entry.get("cmd"), ("models", id, "cmd"), places, scope)
        entries[id] = _with_port(id, entry, given.get(id), places)
        _check_left(entries[id], ("models", id), places, scope)
    return done | {"models": entries}, given


def _with_macros(id: str, entry: Any, globals_: dict[str, Scalar], places: Places) -> Any:
    if macros.USED.search(id):
        raise places.error(("models", id), f"The name of a model cannot hold macros: {id}.")
    if not isinstance(entry, dict):
        return entry
    macros.defined(entry.get("macros"), ("models", id, "macros"), places)
    entry = dict(entry)
    for name in ("cmd", "cmdStop"):
        if isinstance(entry.get(name), str):
            entry[name] = words.without_comments(entry[name])
    if entry.get("cmd") and not entry.get("proxy"):
        entry["proxy"] = DEFAULT_PROXY
    scope = _scope(id, entry, globals_)
    return {
        name: value if name == "macros" else macros.substituted(value, scope, ("models", id, name), places)
        for name, value in entry.items()
    }


def _scope(id: str, entry: Any, globals_: dict[str, Scalar]) -> dict[str, Scalar]:
    own = entry.get("macros") if isinstance(entry, dict) else None
    return {"MODEL_ID": id, **globals_, **(own or {})}  # a name that is there already keeps its position


def _uses_port(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(name), str) and PORT in entry[name]


def _with_port(id: str, entry: Any, port: int | None, places: Places) -> Any:
    if port is not None:
        path: KeyPath = ("models", id)
        return {
            name: value if name == "macros" else macros.substituted(value, {"PORT": port}, (*path, name), places)
            for name, value in entry.items()
        }
    if _uses_port(entry, "proxy"):
        set_here = ("models", id, "proxy") in places
        which = "uses" if set_here else f"is not set and would be {DEFAULT_PROXY}, which uses"
        cure = "Let `cmd` listen on ${PORT}, or name the port in `proxy`."
        raise places.error(("models", id, "proxy"), f"The `proxy` of {id} {which} ${{PORT}}, but its `cmd` does not. {cure}")
    return entry


def _check_left(value: Any, path: KeyPath, places: Places, scope: dict[str, Scalar]) -> None:
    entry = {name: inner for name, inner in value.items() if name != "macros"} if isinstance(value, dict) else value
    for where, name in macros.left(entry, path):
        if not (name == PID and where[-1] == "cmdStop"):
            raise places.error(where, f"{dotted(where)}: {macros.unknown(name, scope)}")
