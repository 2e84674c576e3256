"""What a config means once it is read as a whole: names, rules, ports, and defaults that depend on other settings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from urllib.parse import urlsplit

from eardrum.config import words
from eardrum.config.llama_swap import UpstreamRoutes
from eardrum.config.names import Names, check_profiles, checked_selectors, with_priorities
from eardrum.config.places import Errors, KeyPath, Places, Remark
from eardrum.config.settings import Log, Model, Settings
from eardrum.config.together import check_spillover, may_meet, with_rules

LEAST_START_S = 15
LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound
"""Hosts that stand for all addresses of a machine."""
IMAGES_ID, IMAGES_LIMIT = "comfyui_auto", 50
"""llama-swap's name for a server of images whose page asks for many things at once and holds a WebSocket open."""


def finished(settings: Settings, errors: Errors) -> tuple[Settings, list[Remark]]:
    """The settings with everything worked out, and what is odd about them. `errors` gets all that contradicts itself."""
    places, names, before = errors.places, Names(settings, errors), len(errors.found)
    settings = with_rules(settings, names, errors)
    ruled = len(errors.found) == before
    settings = with_priorities(settings, names)
    check_profiles(settings, names)
    for id, targets in checked_selectors(settings, names, errors):
        if ruled and not errors.incomplete:
            check_spillover(id, targets, settings, errors)
    if "" in settings.models:
        errors.add(("models", ""), "A model under `models:` has an empty name: no client could ask for it.")
    _check_fallbacks(settings, names, errors)
    _check_keys(settings, errors)
    _check_addresses(settings, errors)
    _check_own_ports(settings, errors)
    remarks = [*names.remarks, *_levels(settings, places), *_clashes(settings, places), *_odd(settings, places)]
    return _completed(settings, names), remarks


def _completed(settings: Settings, names: Names) -> Settings:
    unload = settings.unloadTimeout or type(settings).model_fields["unloadTimeout"].default
    settings = settings.model_copy(
        update={
            "healthCheckTimeout": max(settings.healthCheckTimeout, LEAST_START_S),
            "unloadTimeout": unload,
            "log": _log(settings),
            "hooks": _hooks(settings, names),
            "upstream": settings.upstream if settings.upstream.ignorePaths else UpstreamRoutes(),
        }
    )
    return settings.model_copy(update={"models": {id: _entry(id, names.of(id), settings) for id in settings.models}})


def _entry(id: str, model: Model, settings: Settings) -> Model:
    filled: dict[str, object] = {
        "unloadTimeout": model.unloadTimeout or settings.unloadTimeout,
        "sendLoadingState": settings.sendLoadingState if model.sendLoadingState is None else model.sendLoadingState,
    }
    if id == IMAGES_ID:
        filled["concurrencyLimit"] = max(model.concurrencyLimit, IMAGES_LIMIT)
        filled["compat"] = model.compat.model_copy(update={"ignoreWebsockets": True})
    return model.model_copy(update=filled)


def _hooks(settings: Settings, names: Names) -> object:
    """Preloads by id. What is not under `models:` stays: it may be on the disk."""
    stripped = [name.strip() for name in settings.hooks.on_startup.preload]
    preload = tuple(names.model(name) or name for name in stripped if name)
    start = settings.hooks.on_startup.model_copy(update={"preload": preload})
    return settings.hooks.model_copy(update={"on_startup": start})


def _log(settings: Settings) -> Log:
    if not settings.logLevel or "level" in settings.log.model_fields_set:
        return settings.log
    return settings.log.model_copy(update={"level": LEVELS.get(settings.logLevel.strip().lower(), "info")})


def _levels(settings: Settings, places: Places) -> Iterator[Remark]:
    if not settings.logLevel:
        return
    if "level" in settings.log.model_fields_set:
        yield places.remark(("logLevel",), f"logLevel has no effect: log.level is set too, to {settings.log.level}.")
    elif settings.logLevel.strip().lower() not in LEVELS:
        yield places.remark(("logLevel",), f"logLevel {settings.logLevel!r} is none of {', '.join(LEVELS)}: it is info.")


def _check_fallbacks(settings: Settings, names: Names, errors: Errors) -> None:
    """A model is not asked again where it has just failed."""
    for id, model in settings.models.items():
        for position, name in enumerate(model.fallback):
            if names.model(name) == id:
                alias = "" if name == id else f" (as {name})"
                path = ("models", id, "fallback", position)
                errors.add(path, f"models.{id}.fallback names {id} itself{alias}, which is no help when {id} fails.")


def _check_keys(settings: Settings, errors: Errors) -> None:
    for position, key in enumerate(settings.apiKeys):
        if not key or " " in key:
            what = "holds a space" if key else "is empty"
            errors.add(("apiKeys", position), f"apiKeys[{position}] {what}: no client could send it.")


def _check_addresses(settings: Settings, errors: Errors) -> None:
    addresses: list[tuple[KeyPath, str]] = [(("models", id, "proxy"), model.proxy) for id, model in settings.models.items()]
    addresses += [(("peers", id, "proxy"), peer.proxy) for id, peer in settings.peers.items()]
    for path, address in addresses:
        if address or path[0] == "peers":
            _check_address(address, path, errors)


def _check_address(address: str, path: KeyPath, errors: Errors) -> None:
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    except ValueError:
        pass
    where = ".".join(map(str, path))
    shown = "" if "@" in address else f" (it is {address!r})"  # there may be a password in it
    errors.add(path, f"{where} must be an address such as http://127.0.0.1:8080{shown}.")


def _clashes(settings: Settings, places: Places) -> Iterator[Remark]:
    """Commands that listen on one port and may be up at a time."""
    ports = {id: port for id, model in settings.models.items() if model.cmd and (port := port_of(model))}
    for one, other in combinations(ports, 2):
        if ports[one] == ports[other] and may_meet(one, other, settings):
            advice = "Let their `cmd` use ${PORT}, or keep them apart by groups."
            yield places.remark(("models", other, "cmd"), f"{one} and {other} both listen on port {ports[one]}. {advice}")


def _check_own_ports(settings: Settings, errors: Errors) -> None:
    """One port is for one listener: the server's own, that for Home Assistant, or a command."""
    wyoming = settings.wyoming
    own = {settings.port: "port"}
    if wyoming.serves(settings.apiKeys) and wyoming.port:
        if wyoming.port == settings.port and _meet(settings.host, wyoming.host or settings.host):
            path = ("wyoming", "port") if ("wyoming", "port") in errors.places else ("port",)
            cure = "Choose another one for either, or do without Home Assistant: `wyoming.enabled: false`, `--no-wyoming`."
            errors.add(path, f"port and wyoming.port are both {wyoming.port}, and a port has one listener. {cure}")
        own.setdefault(wyoming.port, "wyoming.port")
    for id, model in settings.models.items():
        if model.cmd and (port := port_of(model)) and port in own:
            cure = "Let its `cmd` listen on ${PORT}, or choose another port for one of them."
            errors.add(("models", id, "cmd"), f"{id} listens on port {port}, which is the server's own ({own[port]}). {cure}")


def _meet(one: str, other: str) -> bool:
    """Whether two hosts to listen on have an address in common, as far as their names tell."""
    local = {"localhost": "127.0.0.1"}
    one, other = local.get(one, one), local.get(other, other)
    return one == other or not {one, other}.isdisjoint(EVERYWHERE)


def port_of(model: Model) -> int:
    """The port of this machine where a model's command is found; 0 if it is on another.

    Its address tells; the command may name the port inside a container.
    """
    try:
        local = urlsplit(model.proxy)
        port = local.port or 0
    except ValueError:  # which is told elsewhere
        return 0
    return port if local.hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0") else 0  # noqa: S104 -- as written


def _odd(settings: Settings, places: Places) -> Iterator[Remark]:
    if ("apiKeys",) in places and not settings.apiKeys:
        yield places.remark(("apiKeys",), "apiKeys is empty: everybody who reaches the server is let in.")
    if settings.healthCheckTimeout < LEAST_START_S:
        yield places.remark(("healthCheckTimeout",), f"healthCheckTimeout is at least {LEAST_START_S} seconds.")
    for id, model in settings.models.items():
        if model.cmd and not words.split(model.cmd):
            yield places.remark(("models", id, "cmd"), f"The `cmd` of {id} is empty: requests for it will fail.")
        if not model.cmd and model.cmdStop:
            yield places.remark(("models", id, "cmdStop"), f"cmdStop has no effect: {id} has no `cmd` that it could stop.")
        for position, variable in enumerate(model.env):
            if "=" not in variable:
                path: KeyPath = ("models", id, "env", position)
                yield places.remark(path, f"models.{id}.env[{position}] is not of the form NAME=value.")
