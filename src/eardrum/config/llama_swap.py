"""The parts of the settings that come from llama-swap, under its names and with its defaults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field

from eardrum.config.sections import Section, without_effect
from eardrum.units import Seconds

# ruff: noqa: N815 -- the names are llama-swap's

SHORTEST_EVERY_S = 5.0

DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    """Seconds of a duration as Go writes it: `1h30m`, `500ms`; a number alone is nanoseconds.

    Raises:
        ValueError: it is not one.
    """
    if duration.isdecimal():
        return int(duration) * 1e-9
    if not duration or DURATION.sub("", duration):
        raise ValueError(f"{duration!r} is not a duration such as `5s` or `1m30s`")
    return sum(float(number) * SECONDS[unit] for number, unit in DURATION.findall(duration))


def _not_too_often(duration: str) -> str:
    if 0 < seconds(duration) < SHORTEST_EVERY_S:
        raise ValueError(f"at least {SHORTEST_EVERY_S:g}s")
    return duration


def _pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class Filters(Section):
    """What is changed in a JSON body on its way to the upstream."""

    stripParams: str = Field(
        "",
        validation_alias=AliasChoices("stripParams", "strip_params"),
        description="Parameters to take out, separated by commas; `model` stays.",
    )
    setParams: dict[str, Any] = Field({}, description="Parameters to set; `a.b` is nested.")
    setParamsByID: dict[str, dict[str, Any]] = Field(
        {}, description="As `setParams`, for requests that name the model so; every name is an alias."
    )


class Timeouts(Section):
    """Seconds that parts of an exchange with the upstream may take; 0 is any time."""

    connect: Seconds = Field(30, ge=0, description="Until it is connected.")
    keepalive: Seconds = Field(30, ge=0, description="Between two probes of an idle connection.")
    responseHeader: Seconds = Field(0, ge=0, description="Until the answer begins.")
    tlsHandshake: Seconds = Field(10, ge=0, description="For the handshake.")
    expectContinue: Seconds = without_effect(
        1, why="bodies are sent without asking.", description="Until it says that it wants the body.", ge=0
    )
    idleConn: Seconds = Field(90, ge=0, description="An unused connection is kept.")


class PeerTimeouts(Timeouts):
    """As for models, but a peer has to begin to answer."""

    responseHeader: Seconds = Field(60, ge=0, description="Until the answer begins.")


class Compat(Section):
    """For upstreams with habits."""

    ignoreWebsockets: bool = Field(False, description="An open WebSocket does not keep the model from being unloaded.")


class Declared(Section):
    """What an upstream can do, for `/v1/models`."""

    inputs: tuple[Literal["text", "audio", "image"], ...] = Field((), alias="in", description="What it takes.")
    outputs: tuple[Literal["text", "audio", "image"], ...] = Field((), alias="out", description="What it gives.")
    tools: bool = Field(False, description="Whether it calls functions.")
    reranker: bool = Field(False, description="Whether it sorts documents.")
    context: int = Field(0, ge=0, description="Tokens of its context; 0 is not said.")


class Group(Section):
    """Models that share a machine by rules."""

    swap: bool = Field(True, description="One member at a time.")
    exclusive: bool = Field(True, description="Loading a member unloads the models of other groups.")
    persistent: bool = Field(False, description="Other groups do not unload its members.")
    members: tuple[str, ...] = Field((), description="Models by their ids.")


class Matrix(Section):
    """Which models may be loaded together, as sets."""

    vars: dict[str, str] = Field({}, description="Short names for models.")
    evict_costs: dict[str, Annotated[int, Field(gt=0)]] = Field(
        {}, description="What unloading a model costs when there is a choice; 1 if not said."
    )
    sets: dict[str, str] = Field(min_length=1, description="Sets of models: `a & (b | c) & +other_set`.")


class RouterSettings(Section):
    """The rules of the router in use."""

    groups: dict[str, Group] = Field({}, description="For `use: group`.")
    matrix: Matrix | None = Field(None, description="For `use: matrix`.")


class Router(Section):
    """Which rules decide what is unloaded."""

    use: Literal["group", "matrix"] = Field("group", description="Which of the two counts.")
    settings: RouterSettings = Field(RouterSettings(), description="The rules.")


class Fifo(Section):
    """First come, first served, but for priorities."""

    priority: dict[str, int] = Field({}, description="Models whose waiting requests go first; higher is sooner.")


class SchedulerSettings(Section):
    """The settings of the order in use."""

    fifo: Fifo = Field(Fifo(), description="Its priorities.")


class Order(Section):
    """In which order waiting requests are served."""

    use: Literal["fifo"] = Field("fifo", description="The only one there is.")
    settings: SchedulerSettings = Field(SchedulerSettings(), description="Its settings.")


class Routing(Section):
    """Rules and order, as newer configs write them."""

    router: Router = Field(Router(), description="What is unloaded for what.")
    scheduler: Order = Field(Order(), description="Who is next.")


class Profile(Section):
    """Other models behind names, while it is active."""

    description: str = Field("", description="For people.")
    pins: dict[str, str | None] = Field(min_length=1, description="Requested name to model; empty refuses the name.")


class Spillover(Section):
    """How full a target gets."""

    spillover: int = Field(1, ge=1, description="Requests a target holds before the next one is started.")


class Selector(Section):
    """A name that stands for one of several models."""

    strategy: Literal["warm", "pin", "spillover"] = Field("warm", description="How the target is chosen.")
    targets: tuple[str, ...] = Field(min_length=1, description="Models in the order of preference.")
    settings: Spillover = Field(Spillover(), description="For `spillover`.")
    name: str = Field("", description="For people.")
    description: str = Field("", description="For people.")
    unlisted: bool = Field(False, description="Not in `/v1/models`.")
    metadata: dict[str, Any] = Field({}, description="For `/v1/models`.")


class Peer(Section):
    """Another server whose models are offered here."""

    proxy: str = Field(description="Its address.")
    apiKey: str = Field("", description="The key sent to it.")
    models: tuple[str, ...] = Field(min_length=1, description="Its models.")
    filters: Filters = Field(Filters(), description="As for models.")
    timeouts: PeerTimeouts = Field(PeerTimeouts(), description="As for models.")


class OnStartup(Section):
    """What is done once the server is up."""

    preload: tuple[str, ...] = Field((), description="Models to load, one after the other.")


class Hooks(Section):
    """What is done when something happens."""

    on_startup: OnStartup = Field(OnStartup(), description="When the server is up.")


class UpstreamRoutes(Section):
    """About `/upstream/`."""

    ignorePaths: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",), description="Paths that do not load a model that is not up: 409."
    )


class Store(Section):
    """Where llama-swap keeps its activity page."""

    path: str = Field(min_length=1, description="A file of SQLite.")


class Activity(Section):
    """About the activity page."""

    session_id: tuple[str, ...] = Field(
        ("X-Session-ID", "X-Litellm-Session-Id"), description="Headers that name a client's session."
    )


class Ui(Section):
    """About the web page."""

    activity: Activity = Field(Activity(), description="Its page of past requests.")


class Performance(Section):
    """About recording the machine's load."""

    disabled: bool = Field(False, description="Record nothing.")
    every: Annotated[str, AfterValidator(_not_too_often)] = Field("5s", description="Time between two records; at least 5s.")
