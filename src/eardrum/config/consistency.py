"""Checks the config as a whole and fills in defaults that depend on other settings: names, groups or matrix, ports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations
from urllib.parse import urlsplit

from eardrum.config import matrix
from eardrum.config.diagnostics import ErrorCollector, KeyPath
from eardrum.config.llama_swap import GroupSettings, MatrixSettings, UpstreamRoutes
from eardrum.config.macros import split_command
from eardrum.config.setting_names import find_nearest
from eardrum.config.settings import LogSettings, ModelSettings, Settings
from eardrum.runner_access import find_token_problem, is_loopback

MIN_START_S = 15
LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
WILDCARD_HOSTS = ("", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound
"""Hosts to listen on that mean all addresses of the machine."""
IMAGE_SERVER_ID, IMAGE_SERVER_CONCURRENCY = "comfyui_auto", 50
"""llama-swap's name for the image server ComfyUI, whose page sends many requests at once and keeps a WebSocket open."""


def complete_settings(settings: Settings, errors: ErrorCollector) -> Settings:
    """Fill in values that depend on other settings. Contradictions and oddities become errors and warnings."""
    names, before = ConfigNames(settings, errors), len(errors.diagnostics)
    settings = resolve_rules(settings, names, errors)
    ruled = len(errors.diagnostics) == before
    settings = resolve_priorities(settings, names)
    check_profiles(settings, names)
    for id, targets in check_selectors(settings, names, errors):
        if ruled and not errors.incomplete:
            check_spillover(id, targets, settings, errors)
    if "" in settings.models:
        errors.add(("models", ""), "A model under `models:` has an empty name: no client could ask for it.")
    _check_fallbacks(settings, names, errors)
    _check_keys(settings, errors)
    _check_addresses(settings, errors)
    _check_replicas(settings, errors)
    _check_ray(settings, errors)
    _check_own_ports(settings, errors)
    _warn_of_log_level(settings, errors)
    _warn_of_port_clashes(settings, errors)
    _warn_of_oddities(settings, errors)
    return _fill_defaults(settings, names)


def _fill_defaults(settings: Settings, names: ConfigNames) -> Settings:
    settings = settings.model_copy(
        update={
            "health_check_timeout": max(settings.health_check_timeout, MIN_START_S),
            "log": _resolve_log(settings),
            "hooks": _resolve_preloads(settings, names),
            "upstream": settings.upstream if settings.upstream.ignore_paths else UpstreamRoutes(),
        }
    )
    return settings.model_copy(
        update={"models": {id: _fill_model_defaults(id, model, settings, names) for id, model in settings.models.items()}}
    )


def _fill_model_defaults(id: str, model: ModelSettings, settings: Settings, names: ConfigNames) -> ModelSettings:
    filled: dict[str, object] = {
        "aliases": tuple(names.aliases[id]),
        "unload_timeout": model.unload_timeout or settings.unload_timeout,
        "send_loading_state": settings.send_loading_state if model.send_loading_state is None else model.send_loading_state,
    }
    if id == IMAGE_SERVER_ID:
        filled["concurrency_limit"] = max(model.concurrency_limit or 0, IMAGE_SERVER_CONCURRENCY)
        filled["compat"] = model.compat.model_copy(update={"ignore_websockets": True})
    return model.model_copy(update=filled)


def _resolve_preloads(settings: Settings, names: ConfigNames) -> object:
    """Replace aliases in `preload` by ids, and add models that always have replicas on Ray.

    A name that is not under `models:` stays: the model may be on disk.
    """
    stripped = [name.strip() for name in settings.hooks.on_startup.preload]
    always = [id for id, model in settings.models.items() if model.replicas.runs_on_ray and model.replicas.fewest]
    preload = dict.fromkeys([*(names.find_model(name) or name for name in stripped if name), *always])
    start = settings.hooks.on_startup.model_copy(update={"preload": tuple(preload)})
    return settings.hooks.model_copy(update={"on_startup": start})


def _resolve_log(settings: Settings) -> LogSettings:
    if not settings.log_level or "level" in settings.log.model_fields_set:
        return settings.log
    return settings.log.model_copy(update={"level": LEVELS.get(settings.log_level.strip().lower(), "info")})


def _warn_of_log_level(settings: Settings, errors: ErrorCollector) -> None:
    if not settings.log_level:
        return
    path, written = ("log_level",), errors.format_path(("log_level",))
    if "level" in settings.log.model_fields_set:
        errors.add_warning(path, f"{written} has no effect: log.level is set too, to {settings.log.level}.")
    elif settings.log_level.strip().lower() not in LEVELS:
        errors.add_warning(path, f"{written} {settings.log_level!r} is none of {', '.join(LEVELS)}: it is info.")


def _check_fallbacks(settings: Settings, names: ConfigNames, errors: ErrorCollector) -> None:
    """Refuse a model as its own fallback."""
    for id, model in settings.models.items():
        for position, name in enumerate(model.fallback):
            if names.find_model(name) == id:
                alias = "" if name == id else f" (as {name})"
                path = ("models", id, "fallback", position)
                errors.add(path, f"models.{id}.fallback names {id} itself{alias}, which cannot replace itself.")


def _check_keys(settings: Settings, errors: ErrorCollector) -> None:
    names: set[str] = set()
    for position, key in enumerate(settings.api_keys):
        path: KeyPath = ("api_keys", position)
        if not key.key or " " in key.key:
            what = "holds a space" if key.key else "is empty"
            errors.add(path, f"{errors.format_path(path)} {what}: no client could send it.")
        if key.name and key.name in names:
            errors.add(path, f"{errors.format_path(path)} is called {key.name}, as another key is.")
        names.add(key.name)


def _check_addresses(settings: Settings, errors: ErrorCollector) -> None:
    addresses: list[tuple[KeyPath, str]] = [(("models", id, "proxy"), model.proxy) for id, model in settings.models.items()]
    addresses += [(("peers", id, "proxy"), peer.proxy) for id, peer in settings.peers.items()]
    for path, address in addresses:
        if address or path[0] == "peers":
            _check_address(address, path, errors)


def _check_address(address: str, path: KeyPath, errors: ErrorCollector) -> None:
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    except ValueError:
        pass
    where = ".".join(map(str, path))
    shown = "" if "@" in address else f" (it is {address!r})"  # an address with a login may hold a password
    errors.add(path, f"{where} must be an address such as http://127.0.0.1:8080{shown}.")


def _check_replicas(settings: Settings, errors: ErrorCollector) -> None:
    owners: dict[str, str] = {}
    for id, model in settings.models.items():
        path: KeyPath = ("models", id, "replicas")
        for position, address in enumerate(model.replicas.addresses):
            where = (*path, "addresses", position)
            _check_address(address, where, errors)
            if set("@?#") & set(address):
                errors.add(where, f"{errors.format_path(where)} must be an address alone: the token stands in `token`.")
            if owner := owners.get(address.rstrip("/")):
                whose = "is there twice" if owner == id else f"is a replica of {owner} already, and a runner serves one model"
                errors.add(where, f"{errors.format_path(where)}: {address} {whose}.")
            owners[address.rstrip("/")] = id
        _check_replica_token(model, path, errors)
        _check_beside_replicas(id, model, errors)
        if model.replicas.runs_on_ray:
            _check_scaling(id, settings, errors)


def _check_replica_token(model: ModelSettings, path: KeyPath, errors: ErrorCollector) -> None:
    """Check that there is a token where runners require one."""
    token, where = model.replicas.token, (*path, "token")
    if token and (problem := find_token_problem(token)):
        errors.add(where, f"{errors.format_path(where)} {problem}.")
    if token and not (model.replicas.addresses or model.replicas.runs_on_ray):
        errors.add_warning(where, f"{errors.format_path(where)} has no effect: there are no `addresses`.")
    remote = [address for address in model.replicas.addresses if not is_loopback(_get_host(address))]
    if remote and not token:
        advice = "set it to the token that `eardrum runner` was given, as in `token: ${env.RUNNER_TOKEN}`"
        errors.add_warning(path, f"{errors.format_path(where)} is empty, but {remote[0]} is another machine's: {advice}.")


def _get_host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # an invalid address, which `_check_address` reports
        return ""


def _check_beside_replicas(id: str, model: ModelSettings, errors: ErrorCollector) -> None:
    """Report settings of a process beside runners on other machines."""
    replicas = model.replicas
    if not (replicas.addresses or replicas.runs_on_ray):
        for name in ("target_requests", "scale_down_after", "resources", "labels", "python"):
            if name in replicas.model_fields_set:
                path: KeyPath = ("models", id, "replicas", name)
                errors.add_warning(path, f"{errors.format_path(path)} has no effect: there is neither `min` nor `max`.")
        return
    for name in ("cmd", "proxy"):
        if getattr(model, name):
            errors.add(("models", id, name), f"models.{id} has both `{name}` and `replicas`: only one can serve the model.")
    on_ray = replicas.runs_on_ray
    advice = "set `replicas.python` or `replicas.resources`" if on_ray else "set it for the runners"
    for name in ("python", "memory") if on_ray else ("options", "python", "batch_size", "memory"):
        if getattr(model, name):
            errors.add_warning(("models", id, name), f"models.{id}.{name} has no effect with `replicas`: {advice}.")


def _check_scaling(id: str, settings: Settings, errors: ErrorCollector) -> None:
    """Check the replicas of a model that Ray runs."""
    model, path = settings.models[id], ("models", id, "replicas")
    replicas, most = model.replicas, (*path, "max")
    if replicas.addresses:
        errors.add(
            path, f"models.{id}.replicas has both `addresses` and `min` or `max`: either others start the runners, or Ray."
        )
    if replicas.max is not None and replicas.max < 1:
        errors.add(most, f"{errors.format_path(most)} is {replicas.max}: at least one replica must be allowed.")
    elif replicas.fewest > replicas.most:
        unset = "" if replicas.min is not None else " (its default)"
        errors.add(most, f"models.{id}.replicas: `min` is {replicas.fewest}{unset}, which is more than `max`, {replicas.most}.")
    if replicas.fewest and model.ttl:
        message = f"models.{id}.ttl unloads the model, and so ends its replicas, although replicas.min is {replicas.fewest}."
        errors.add_warning(("models", id, "ttl"), f"{message} Set `min: 0`, or leave `ttl` out.")
    if not settings.ray.address:
        errors.add(path, f"models.{id}.replicas: `min` and `max` need a cluster: set `ray.address`, as in 10.0.0.1:6379.")
    elif find_spec("ray") is None:
        errors.add(path, f"models.{id}.replicas: `min` and `max` need a package: pip install 'eardrum[ray]'.")


def _check_ray(settings: Settings, errors: ErrorCollector) -> None:
    """Check the cluster's address. Ray takes other words, such as `auto`, for whichever cluster it finds."""
    address, path = settings.ray.address, ("ray", "address")
    if not address:
        return
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address and "@" not in address:
            return
    except ValueError:
        pass
    errors.add(path, f"{errors.format_path(path)} must be HOST:PORT, as in 10.0.0.1:6379 (it is {address!r}).")


def _warn_of_port_clashes(settings: Settings, errors: ErrorCollector) -> None:
    """Warn of commands that listen on the same port and may run at the same time."""
    ports = {id: port for id, model in settings.models.items() if model.cmd and (port := get_local_port(model))}
    for one, other in combinations(ports, 2):
        if ports[one] == ports[other] and can_coexist(one, other, settings):
            advice = "Let their `cmd` use ${PORT}, or keep them apart by groups."
            errors.add_warning(("models", other, "cmd"), f"{one} and {other} both listen on port {ports[one]}. {advice}")


def _check_own_ports(settings: Settings, errors: ErrorCollector) -> None:
    """Refuse a port that two of the server, Wyoming and the commands would listen on."""
    wyoming = settings.wyoming
    own = {settings.port: "port"}
    if wyoming.is_enabled(settings.api_keys) and wyoming.port:
        if wyoming.port == settings.port and _hosts_overlap(settings.host, wyoming.find_host(settings.host, settings.api_keys)):
            path = ("wyoming", "port") if ("wyoming", "port") in errors.locations else ("port",)
            cure = "Choose another one for either, or switch Wyoming off: `wyoming.enabled: false`, `--no-wyoming`."
            errors.add(path, f"port and wyoming.port are both {wyoming.port}, and a port has one listener. {cure}")
        own.setdefault(wyoming.port, "wyoming.port")
    for id, model in settings.models.items():
        if model.cmd and (port := get_local_port(model)) and port in own:
            cure = "Let its `cmd` listen on ${PORT}, or choose another port for one of them."
            errors.add(("models", id, "cmd"), f"{id} listens on port {port}, which is the server's own ({own[port]}). {cure}")


def _hosts_overlap(one: str, other: str) -> bool:
    """Check whether two hosts to listen on share an address. Names are not resolved."""
    local = {"localhost": "127.0.0.1"}
    one, other = local.get(one, one), local.get(other, other)
    return one == other or not {one, other}.isdisjoint(WILDCARD_HOSTS)


def get_local_port(model: ModelSettings) -> int:
    """Find the local port on which a model's command listens; 0 if it listens on another machine.

    Its address tells; the command may name the port inside a container.
    """
    try:
        local = urlsplit(model.proxy)
        port = local.port or 0
    except ValueError:  # an invalid address, which `_check_address` reports
        return 0
    return port if local.hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0") else 0  # noqa: S104 -- as written


def _warn_of_oddities(settings: Settings, errors: ErrorCollector) -> None:
    places = errors.locations
    if (path := ("api_keys",)) in places and not settings.api_keys:
        errors.add_warning(path, f"{places.format_path(path)} is empty: every client that can connect has all rights.")
    if settings.health_check_timeout < MIN_START_S:
        path = ("health_check_timeout",)
        errors.add_warning(path, f"{places.format_path(path)} is at least {MIN_START_S} seconds.")
    for id, model in settings.models.items():
        _warn_of_odd_command(id, model, errors)


def _warn_of_odd_command(id: str, model: ModelSettings, errors: ErrorCollector) -> None:
    if model.cmd and not split_command(model.cmd):
        errors.add_warning(("models", id, "cmd"), f"The `cmd` of {id} is empty: requests for it will fail.")
    if not model.cmd and model.cmd_stop:
        path: KeyPath = ("models", id, "cmd_stop")
        errors.add_warning(path, f"{errors.format_path(path)} has no effect: {id} has no `cmd` that it could stop.")
    for position, variable in enumerate(model.env):
        if "=" not in variable:
            errors.add_warning(("models", id, "env", position), f"models.{id}.env[{position}] is not of the form NAME=value.")


class ConfigNames:
    """Looks up models by the names and aliases of one config, and reports contradictory names."""

    def __init__(self, settings: Settings, errors: ErrorCollector):
        self._settings = settings
        self._errors = errors
        self._owners: dict[str, str] = {}
        self.aliases: dict[str, list[str]] = {id: [] for id in settings.models}
        """The aliases of each model."""
        for id, model in settings.models.items():
            for position, alias in enumerate(model.aliases):
                self._register_alias(id, alias, ("models", id, "aliases", position))
        for id, model in settings.models.items():  # after all explicit aliases
            for alias in model.filters.set_params_by_id:
                self._register_parameter_alias(id, alias)
        for id, peer in settings.peers.items():
            for position, name in enumerate(peer.models):
                self._check_peer_model(id, name, ("peers", id, "models", position))

    def find_model(self, name: str) -> str | None:
        """Find the id of the model with this name or alias."""
        return name if name in self._settings.models else self._owners.get(name)

    def is_peer_model(self, name: str) -> bool:
        """Check whether a name is a peer's model: `peer/model`, or `model` if only one peer has it."""
        of_one = len(self._list_peers_with(name)) == 1
        return of_one or any(name == f"{id}/{model}" for id, peer in self._settings.peers.items() for model in peer.models)

    def _list_peers_with(self, model: str) -> list[str]:
        return [id for id, peer in self._settings.peers.items() if model in peer.models]

    def _check_peer_model(self, id: str, model: str, path: KeyPath) -> None:
        if self.find_model(model):
            self._warn(path, f"{model!r} is a model here; the one of the peer is {id}/{model}.")
        elif (others := self._list_peers_with(model)) and others[0] != id:
            self._warn(
                path, f"{model!r} is a model of {others[0]}, too: it is only found as {others[0]}/{model} and {id}/{model}."
            )

    def warn_of_peer_clash(self, selector: str, path: KeyPath) -> None:
        """Warn of a selector that hides a peer's model of the same name."""
        others = [f"{peer}/{selector}" for peer in self._list_peers_with(selector)]
        behind = f"; the one of the peer is {' or '.join(others)}" if others else ", which is then out of reach"
        self._warn(path, f"The selector {selector} has the name of a peer's model{behind}.")

    def report_unknown(self, name: str, path: KeyPath) -> None:
        """Report a name that no model has, or an alias where an id is needed."""
        if self._errors.incomplete:
            return
        if owner := self._owners.get(name):
            self._errors.add(path, f"{self._errors.format_path(path)}: {name!r} is an alias of {owner}: name the model itself.")
            return
        close = find_nearest(name, [*self._settings.models, *self._owners])
        hint = f"Did you mean {close}?" if close else f"If it is built in or on the disk, name it there, as in `{name}:`."
        self._errors.add(path, f"{self._errors.format_path(path)}: there is no model {name!r} under `models:`. {hint}")

    def _register_alias(self, id: str, alias: str, path: KeyPath) -> None:
        owner = self._owners.get(alias)
        if owner == id:
            self._warn(path, f"The alias {alias!r} of {id} is here twice.")
        elif owner:
            self._errors.add(path, f"The alias {alias!r} of {id} is already one of {owner}: a name means one model.")
        elif alias in self._settings.models:
            if alias != id:
                self._warn(path, f"The alias {alias!r} of {id} is also the name of a model, which is the one that it means.")
        else:
            self._owners[alias] = id
            self.aliases[id].append(alias)

    def _register_parameter_alias(self, id: str, alias: str) -> None:
        path: KeyPath = ("models", id, "filters", "set_params_by_id", alias)
        owner = self._owners.get(alias)
        if id in (alias, owner):
            return
        if owner or alias in self._settings.models:
            whose = f"one of {owner}" if owner else "the name of another model"
            self._errors.add(
                path,
                f"Names below {self._errors.format_path(path[:-1])} are aliases of {id}, but {alias!r} is {whose}.",
            )
            return
        self._owners[alias] = id
        self.aliases[id].append(alias)

    def _warn(self, path: KeyPath, message: str) -> None:
        self._errors.add_warning(path, message)


def check_profiles(settings: Settings, names: ConfigNames) -> None:
    """Report pins to unknown names."""
    for id, profile in settings.profiles.items():
        for pin, target in profile.pins.items():
            if target and not (names.find_model(target) or names.is_peer_model(target) or target in settings.selectors):
                names.report_unknown(target, ("profiles", id, "pins", pin))


def check_selectors(settings: Settings, names: ConfigNames, errors: ErrorCollector) -> Iterator[tuple[str, Sequence[str]]]:
    """Check selectors, and yield those of the strategy `spillover` with the ids of their local targets."""
    for id, selector in settings.selectors.items():
        path: KeyPath = ("selectors", id)
        if names.find_model(id):
            errors.add(path, f"The selector {id} has the name of a model: a name means one thing.")
        elif names.is_peer_model(id):
            names.warn_of_peer_clash(id, path)
        for position, target in enumerate(selector.targets):
            where = (*path, "targets", position)
            if target in settings.selectors and not names.is_peer_model(target):
                errors.add(
                    where,
                    f"{errors.format_path(where)}: {target!r} is a selector itself, and selectors choose among models.",
                )
            elif not names.find_model(target) and not names.is_peer_model(target):
                names.report_unknown(target, where)
        if selector.strategy == "spillover":
            targets = [names.find_model(target) or target for target in selector.targets]
            if twice := next((target for target in targets if targets.count(target) > 1), ""):
                errors.add((*path, "targets"), f"The selector {id} has the target {twice} twice.")
            yield id, [target for target in targets if target in settings.models]


def resolve_priorities(settings: Settings, names: ConfigNames) -> Settings:
    """Give models the `priority` that llama-swap's `routing.scheduler` lists for them by their names or aliases."""
    if not settings.routing:
        return settings
    models = dict(settings.models)
    for name, priority in settings.routing.scheduler.settings.fifo.priority.items():
        if id := names.find_model(name):
            models[id] = models[id].model_copy(update={"priority": priority})
        else:
            names.report_unknown(name, ("routing", "scheduler", "settings", "fifo", "priority", name))
    return settings.model_copy(update={"models": models})


NEW_RULES_PATH: KeyPath = ("routing", "router", "settings")


def resolve_rules(settings: Settings, names: ConfigNames, errors: ErrorCollector) -> Settings:
    """Set `groups` and `matrix` to the rules in force; one of them is empty.

    It is an error to have rules of both kinds, rules written both ways, or a member or word that is no model.
    """
    groups, chosen, path = _choose_rules(settings, errors)
    if chosen and not _is_valid_matrix(chosen, settings, path, errors):
        chosen = None
    _check_groups(groups, names, path, settings, errors)
    return settings.model_copy(update={"groups": groups, "matrix": chosen})


def _choose_rules(settings: Settings, errors: ErrorCollector) -> tuple[dict[str, GroupSettings], MatrixSettings | None, KeyPath]:
    router = settings.routing.router if settings.routing else None
    older = "groups" if settings.groups else "matrix"
    if settings.groups and settings.matrix:
        errors.add(("matrix",), "There are both `groups` and a `matrix`, and only one can decide: remove one of them.")
        return {}, None, NEW_RULES_PATH
    if settings.groups or settings.matrix:
        if router and (router.model_fields_set & {"use"} or router.settings.groups or router.settings.matrix):
            advice = f"move `{older}` below routing.router.settings, or remove routing.router"
            errors.add((older,), f"There is both `{older}` and routing.router: {advice}.")
        return settings.groups, settings.matrix, (older,)
    if router and router.use == "matrix":
        if not router.settings.matrix:
            errors.add(("routing", "router", "use"), "routing.router.use is matrix, but routing.router.settings has none.")
        return {}, router.settings.matrix, (*NEW_RULES_PATH, "matrix")
    return (dict(router.settings.groups) if router else {}), None, (*NEW_RULES_PATH, "groups")


def _check_groups(
    groups: Mapping[str, GroupSettings], names: ConfigNames, path: KeyPath, settings: Settings, errors: ErrorCollector
) -> None:
    of: dict[str, str] = {}
    for id, group in groups.items():
        for position, member in enumerate(group.members):
            where = (*path, id, "members", position)
            if member in of:
                again = "twice in the group" if of[member] == id else f"in the group {of[member]} and in"
                errors.add(where, f"The model {member} is {again} {id}: a model is in one group.")
            elif member not in settings.models:
                names.report_unknown(member, where)
            of[member] = id


def _is_valid_matrix(chosen: MatrixSettings, settings: Settings, path: KeyPath, errors: ErrorCollector) -> bool:
    """Check a matrix, and report its errors."""
    wrong = list(matrix.find_problems(chosen, settings.models))
    for error in wrong if not errors.incomplete else ():
        errors.add((*path, *error.path), error.message)
    return not wrong


def check_spillover(id: str, targets: Collection[str], settings: Settings, errors: ErrorCollector) -> None:
    """Refuse a selector whose targets unload each other: each request would load a model."""
    if len(targets) <= 1:
        return
    where: KeyPath = ("selectors", id, "targets")
    if settings.matrix:
        sets = matrix.parse_matrix(settings.matrix, settings.models).values()
        if not any(matrix.allows_together(expression, targets) for expression in sets):
            errors.add(where, f"No set of the matrix holds all targets of {id}, so they cannot spill over to each other.")
        return
    of = {member: name for name, group in settings.groups.items() for member in group.members}
    shared = {of.get(target, "") for target in targets}
    if len(shared) > 1 or shared == {""} or settings.groups[shared.pop()].swap:
        wish = "put them into one group with `swap: false`"
        errors.add(where, f"The targets of {id} evict each other, so they cannot spill over to each other: {wish}.")


def can_coexist(one: str, other: str, settings: Settings) -> bool:
    """Check whether groups or matrix allow both models to be loaded at the same time.

    Rules bind those they name, and commands that they do not: these share llama-swap's default group, or with a matrix run
    alone. With pools of `memory` it is these that decide about who is in no group.
    """
    if settings.matrix:
        sets = matrix.parse_matrix(settings.matrix, settings.models)
        named = {model for expression in sets.values() for model in matrix.list_models(expression)}
        bound = all(id in named or (settings.models[id].cmd and not settings.memory) for id in (one, other))
        return not bound or any(matrix.allows_together(expression, (one, other)) for expression in sets.values())
    of = {member: group for group in settings.groups.values() for member in group.members}
    if not settings.memory:
        of = {id: DEFAULT_GROUP for id, model in settings.models.items() if model.cmd} | of
    first, second = of.get(one), of.get(other)
    if not first or not second:
        return True
    if first is second:
        return not first.swap
    return not ((first.exclusive and not second.persistent) and (second.exclusive and not first.persistent))


DEFAULT_GROUP = GroupSettings.model_construct()
"""The group of commands that no group lists."""
