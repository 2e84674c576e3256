"""The settings that llama-swap's configs have as well, at the top and for every model, under its names and with its defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from eardrum.config.llama_swap import (
    Compat,
    Declared,
    Filters,
    Group,
    Hooks,
    Matrix,
    Peer,
    Performance,
    Profile,
    Routing,
    Selector,
    Store,
    Timeouts,
    Ui,
    UpstreamRoutes,
)
from eardrum.config.macros import Scalar
from eardrum.config.sections import Section, without_effect
from eardrum.units import MEGABYTES, Seconds

# ruff: noqa: N815 -- the names are llama-swap's


class SharedModel(Section):
    """What a model of either can have."""

    aliases: tuple[str, ...] = Field((), description="Further names clients may use.")
    ttl: Seconds = Field(
        -1, ge=-1, description="Seconds without a request after which it is unloaded; 0 is never, -1 is `globalTTL`."
    )
    cmd: str = Field("", description="Command that serves the model over HTTP; `${PORT}` is its port. No shell is involved.")
    cmdStop: str = Field("", description="Command that stops it, with `${PID}`; empty sends SIGTERM.")
    proxy: str = Field(
        "", description="Address at which the model is served; empty is `http://localhost:${PORT}` if there is a `cmd`."
    )
    env: tuple[str, ...] = Field((), description="Environment of the command, as `NAME=value`.")
    checkEndpoint: str = Field("/health", description="Path that answers 200 once the command serves; `none` asks nothing.")
    unloadTimeout: Seconds = Field(0, ge=0, description="Seconds it may take to end before it is killed; 0 is the server's.")
    unlisted: bool = Field(False, description="Not in `/v1/models`, but usable.")
    useModelName: str = Field("", description="Name by which the upstream knows the model.")
    name: str = Field("", description="For people.")
    description: str = Field("", description="For people.")
    concurrencyLimit: int = Field(0, ge=0, description="As `max_requests`, past which the answer is 429; 0 is 10 for a `cmd`.")
    filters: Filters = Field(Filters(), description="What is changed in JSON bodies.")
    metadata: dict[str, Any] = Field({}, description="For `/v1/models`.")
    sendLoadingState: bool | None = Field(None, description="Tell streaming chats that the model is being loaded.")
    timeouts: Timeouts = Field(Timeouts(), description="Of exchanges with the upstream.")
    compat: Compat = Field(Compat(), description="What the upstream does its own way.")
    capabilities: Declared = Field(Declared(), description="What the upstream can do.")
    macros: dict[str, Scalar] = Field({}, description="As `macros` of the server, for this model; they win over those.")
    healthCheckTimeout: Seconds = without_effect(
        0, why="the server's counts for every model, as in llama-swap.", description="Seconds to become ready."
    )


class SharedSettings(BaseModel):
    """What a server of either can have."""

    globalTTL: Seconds = Field(0, ge=0, description="Seconds without a request after which a model is unloaded; 0 is never.")
    healthCheckTimeout: Seconds = Field(120, description="Seconds a `cmd` has to become ready; at least 15.")
    unloadTimeout: Seconds = Field(10, ge=0, description="Seconds a `cmd` may take to end before it is killed.")
    startPort: int = Field(5800, ge=1, le=65535, description="First of the ports that `${PORT}` stands for.")
    sendLoadingState: bool = Field(False, description="Tell streaming chats that their model is being loaded.")
    includeAliasesInList: bool = Field(False, description="List aliases in `/v1/models` as models of their own.")
    groups: dict[str, Group] = Field({}, description="Models that share a machine by rules.")
    matrix: Matrix | None = Field(None, description="Which models may be loaded together; instead of groups.")
    routing: Routing | None = Field(None, description="Groups, matrix and priorities as newer configs write them.")
    profiles: dict[str, Profile] = Field({}, description="Other models behind names, one profile at a time.")
    selectors: dict[str, Selector] = Field({}, description="Names that stand for one of several models.")
    hooks: Hooks = Field(Hooks(), description="What is done when something happens.")
    apiKeys: tuple[str, ...] = Field((), description="Keys, one of which every client must show; none lets everybody in.")
    peers: dict[str, Peer] = Field({}, description="Other servers whose models are offered here.")
    upstream: UpstreamRoutes = Field(UpstreamRoutes(), description="About `/upstream/`.")
    macros: dict[str, Scalar] = Field({}, description="Values that `${NAME}` stands for in everything below.")
    logLevel: str = Field("", description="As `log.level`, which wins; `warn` is `warning`, and what is unknown `info`.")
    logTimeFormat: str = without_effect("", why="times are written in one way.", description="How times are written.")
    logToStdout: Literal["proxy", "upstream", "both", "none"] = Field(
        "proxy",
        description="Whose output is shown: the server's, the models', both or nobody's. All is in `/logs`.",
    )
    logRequests: bool = without_effect(False, why="every request is one line of the log.", description="Log requests.")
    metricsMaxInMemory: int = without_effect(
        1000, why="the last 1000 requests are kept.", description="Requests remembered for the activity page."
    )
    captureBuffer: Annotated[int, MEGABYTES] = without_effect(
        5, why="what clients send is not kept.", description="Megabytes of requests and answers that are kept."
    )
    store: Store | None = without_effect(None, why="nothing is kept beyond a restart.", description="Where activity is kept.")
    ui: Ui = without_effect(Ui(), why="there is no activity page.", description="About the web page.")
    performance: Performance = without_effect(
        Performance(), why="the machine's load is not recorded.", description="About recording the machine's load."
    )

    @property
    def priorities(self) -> dict[str, int]:
        """How urgent requests for a model are; those not named have 0, and higher is sooner."""
        return self.routing.scheduler.settings.fifo.priority if self.routing else {}
