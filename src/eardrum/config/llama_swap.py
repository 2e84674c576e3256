"""Settings shared with llama-swap, and the base class of all settings sections.

A llama-swap file is translated when it is read: `llama_swap_names` of a section maps llama-swap's names to the setting's own,
unless they only differ in spelling (`startPort` and `start_port`), and `unset_values` are its values for "not set".
"""

# Without `from __future__ import annotations`, here and in `settings.py`: pydantic would compile each annotation from its text
# again, which is 2 % of the start of the server.

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from eardrum.config.macros import ScalarValue
from eardrum.units import MEGABYTES, OptionalSeconds, Seconds

WITHOUT_EFFECT = "x-without-effect"
"""Marks settings in the schema that are accepted without effect, with the reason."""


class SettingsSection(BaseModel):
    """A part of the settings. Unknown names are refused.

    pydantic builds a section when it is first validated, as a part of `Settings`. So a section that is a default value is made
    by `model_construct`: its constructor would build every section on import, one by one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    shorthand: ClassVar[str] = ""
    """The setting that a text in place of the section sets, as in `subtitles: broadcast`."""

    llama_swap_names: ClassVar[dict[str, str]] = {}
    """llama-swap's names of settings that have another name here."""

    former_names: ClassVar[dict[str, str]] = {}
    """Earlier names of settings: they still work, with a warning that names the new one."""

    unset_values: ClassVar[dict[str, float]] = {}
    """Values of llama-swap that mean the same as leaving the setting out."""

    former_unset_values: ClassVar[dict[str, float]] = {}
    """The same for values of earlier versions: they still work, with a warning."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, data: Any) -> Any:
        return {cls.shorthand: data} if cls.shorthand and isinstance(data, str) else data


def declare_ignored(default: Any, *, why: str, description: str, **bounds: Any) -> Any:
    """Declare a setting that is checked but has no effect; setting it causes a warning with the reason."""
    return Field(default, description=f"{description} Without effect: {why}", json_schema_extra={WITHOUT_EFFECT: why}, **bounds)


MIN_INTERVAL_S = 5.0

DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(duration: str) -> float:
    """Parse a duration as Go writes it, `1h30m` or `500ms`, into seconds; a plain number is nanoseconds.

    Raises:
        ValueError: it is not one.
    """
    if duration.isdecimal():
        return int(duration) * 1e-9
    if not duration or DURATION.sub("", duration):
        raise ValueError(f"{duration!r} is not a duration such as `5s` or `1m30s`")
    return sum(float(number) * SECONDS[unit] for number, unit in DURATION.findall(duration))


def _check_interval(duration: str) -> str:
    if 0 < parse_duration(duration) < MIN_INTERVAL_S:
        raise ValueError(f"at least {MIN_INTERVAL_S:g}s")
    return duration


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class RequestFilters(SettingsSection):
    """Changes to JSON bodies that are sent to the upstream."""

    llama_swap_names: ClassVar = {"setParamsByID": "set_params_by_id"}

    strip_params: str = Field("", description="Parameters to remove, separated by commas; `model` stays.")
    set_params: dict[str, Any] = Field({}, description="Parameters to set; `a.b` is nested.")
    set_params_by_id: dict[str, dict[str, Any]] = Field(
        {}, description="As `set_params`, for requests that use this name of the model; each of these names becomes an alias."
    )


class UpstreamTimeouts(SettingsSection):
    """Time limits of a request to the upstream, in seconds; 0: no limit."""

    connect: Seconds = Field(30, ge=0, description="Time to connect.")
    keepalive: Seconds = Field(30, ge=0, description="Time between two probes of an idle connection.")
    response_header: Seconds = Field(0, ge=0, description="Time until the answer begins, once the body is sent; 0: any time.")
    tls_handshake: Seconds = Field(10, ge=0, description="Time for the TLS handshake.")
    expect_continue: Seconds = declare_ignored(
        1, why="bodies are sent without asking.", description="Time until the upstream asks for the body.", ge=0
    )
    idle_conn: Seconds = Field(90, ge=0, description="Time for which an unused connection is kept.")


class PeerTimeouts(UpstreamTimeouts):
    """Time limits of requests to a peer, with a limit for the start of the answer."""

    response_header: Seconds = Field(60, ge=0, description="Time until the answer begins, once the body is sent; 0: any time.")


class UpstreamCompat(SettingsSection):
    """Peculiarities of an upstream."""

    ignore_websockets: bool = Field(False, description="An open WebSocket does not keep the model from being unloaded.")


class DeclaredCapabilities(SettingsSection):
    """Capabilities of an upstream, for `/v1/models`."""

    llama_swap_names: ClassVar = {"in": "inputs", "out": "outputs"}

    inputs: tuple[Literal["text", "audio", "image"], ...] = Field(
        (), description="Kinds of data that the model takes: `text`, `audio`, `image`."
    )
    outputs: tuple[Literal["text", "audio", "image"], ...] = Field((), description="Kinds of data that the model returns.")
    tools: bool = Field(False, description="Whether it calls functions.")
    reranker: bool = Field(False, description="Whether it sorts documents.")
    context: int = Field(0, ge=0, description="Tokens of its context; 0: unknown.")


class GroupSettings(SettingsSection):
    """A group of models, with rules for which of them are unloaded."""

    swap: bool = Field(True, description="Only one member is loaded at a time.")
    exclusive: bool = Field(True, description="Loading a member unloads the models of other groups.")
    persistent: bool = Field(False, description="Other groups do not unload its members.")
    members: tuple[str, ...] = Field((), description="Models by their ids.")


class MatrixSettings(SettingsSection):
    """Sets of models that may be loaded together."""

    vars: dict[str, str] = Field({}, description="Short names for models.")
    evict_costs: dict[str, Annotated[int, Field(gt=0)]] = Field(
        {}, description="Cost of unloading a model when there is a choice; 1 by default."
    )
    sets: dict[str, str] = Field(min_length=1, description="Sets of models: `a & (b | c) & +other_set`.")


class RouterSettings(SettingsSection):
    """The rules of the router in use."""

    groups: dict[str, GroupSettings] = Field({}, description="For `use: group`.")
    matrix: MatrixSettings | None = Field(None, description="For `use: matrix`.")


class RouterSection(SettingsSection):
    """Choice between groups and matrix."""

    use: Literal["group", "matrix"] = Field("group", description="The section that applies.")
    settings: RouterSettings = Field(RouterSettings.model_construct(), description="The rules.")


class FifoSettings(SettingsSection):
    """First come, first served, with priorities."""

    priority: dict[str, int] = Field({}, description="Models whose waiting requests go first; higher is sooner.")


class SchedulerSettings(SettingsSection):
    """The settings of the scheduler in use."""

    fifo: FifoSettings = Field(FifoSettings.model_construct(), description="Its priorities.")


class SchedulerSection(SettingsSection):
    """Order in which waiting requests are served."""

    use: Literal["fifo"] = Field("fifo", description="`fifo` is the only scheduler.")
    settings: SchedulerSettings = Field(SchedulerSettings.model_construct(), description="Its settings.")


class RoutingSettings(SettingsSection):
    """Router and scheduler, as newer configs of llama-swap write them."""

    router: RouterSection = Field(RouterSection.model_construct(), description="Rules for unloading models.")
    scheduler: SchedulerSection = Field(SchedulerSection.model_construct(), description="Order of waiting requests.")


class ModelProfile(SettingsSection):
    """A profile: while it is active, names mean other models."""

    description: str = Field("", description="Description to show to people.")
    pins: dict[str, str | None] = Field(min_length=1, description="Requested name to model; empty: the name is refused.")


class SpilloverSettings(SettingsSection):
    """Settings of the strategy `spillover`."""

    spillover: int = Field(1, ge=1, description="Requests that a target holds before the next one is started.")


class ModelSelector(SettingsSection):
    """A name that stands for one of several models."""

    strategy: Literal["warm", "pin", "spillover"] = Field("warm", description="Rule by which the target is chosen.")
    targets: tuple[str, ...] = Field(min_length=1, description="Models in the order of preference.")
    settings: SpilloverSettings = Field(SpilloverSettings.model_construct(), description="For `spillover`.")
    name: str = Field("", description="Name to show to people.")
    description: str = Field("", description="Description to show to people.")
    unlisted: bool = Field(False, description="Left out of `/v1/models`, but usable.")
    metadata: dict[str, Any] = Field({}, description="Fields that `/v1/models` shows.")


class PeerServer(SettingsSection):
    """Another server whose models are offered here."""

    proxy: str = Field(description="Address of the peer.")
    api_key: str = Field("", description="Key that is sent to the peer.")
    models: tuple[str, ...] = Field(min_length=1, description="Models of the peer that are offered here.")
    filters: RequestFilters = Field(RequestFilters.model_construct(), description="As for models.")
    timeouts: PeerTimeouts = Field(PeerTimeouts.model_construct(), description="As for models.")


class StartupHooks(SettingsSection):
    """Actions at startup."""

    preload: tuple[str, ...] = Field((), description="Models to load, one after the other.")
    pull: tuple[str, ...] = Field((), description="Models to download, if they are not on this machine, before any is loaded.")


class ServerHooks(SettingsSection):
    """Actions at events."""

    on_startup: StartupHooks = Field(StartupHooks.model_construct(), description="When the server is up.")


class UpstreamRoutes(SettingsSection):
    """Settings of `/upstream/`."""

    ignore_paths: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] = Field(
        (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",), description="Paths that do not load a model: 409 if it is not loaded."
    )


class ActivityStore(SettingsSection):
    """The database of llama-swap's activity page."""

    path: str = Field(min_length=1, description="A file of SQLite.")


class ActivitySettings(SettingsSection):
    """Settings of llama-swap's activity page."""

    session_id: tuple[str, ...] = Field(
        ("X-Session-ID", "X-Litellm-Session-Id"), description="Headers that name a client's session."
    )


class UiSettings(SettingsSection):
    """Settings of llama-swap's web page."""

    activity: ActivitySettings = Field(ActivitySettings.model_construct(), description="Its page of past requests.")


class PerformanceSettings(SettingsSection):
    """Settings for recording the machine's load."""

    disabled: bool = Field(False, description="Record nothing.")
    every: Annotated[str, AfterValidator(_check_interval)] = Field("5s", description="Time between two records; at least 5s.")


class SharedModelSettings(SettingsSection):
    """Settings of a model that llama-swap has too."""

    unset_values: ClassVar = {"unload_timeout": 0}

    aliases: tuple[str, ...] = Field((), description="Further names that clients may use.")
    cmd: str = Field("", description="Command that serves the model over HTTP; `${PORT}` is its port. No shell is involved.")
    cmd_stop: str = Field("", description="Command that stops the model's command, with `${PID}`; empty: SIGTERM.")
    proxy: str = Field(
        "", description="Address at which the model is served; empty: `http://localhost:${PORT}` if there is a `cmd`."
    )
    env: tuple[str, ...] = Field((), description="Environment of the command, as `NAME=value`.")
    check_endpoint: str = Field(
        "/health", description="Path that answers 200 once the command is ready; `none`: nothing is requested."
    )
    unload_timeout: OptionalSeconds = Field(
        None,
        gt=0,
        description="Seconds that the command may take to end before it is killed; unset: the server's `unload_timeout`.",
    )
    unlisted: bool = Field(False, description="Left out of `/v1/models`, but usable.")
    use_model_name: str = Field("", description="Name of the model at the upstream.")
    name: str = Field("", description="Name to show to people.")
    description: str = Field("", description="Description to show to people.")
    filters: RequestFilters = Field(RequestFilters.model_construct(), description="Changes to JSON bodies.")
    metadata: dict[str, Any] = Field({}, description="Fields that `/v1/models` shows.")
    send_loading_state: bool | None = Field(None, description="Tell streaming chats that the model is being loaded.")
    timeouts: UpstreamTimeouts = Field(UpstreamTimeouts.model_construct(), description="Of exchanges with the upstream.")
    compat: UpstreamCompat = Field(UpstreamCompat.model_construct(), description="Peculiarities of the upstream.")
    capabilities: DeclaredCapabilities = Field(
        DeclaredCapabilities.model_construct(), description="Capabilities of the upstream."
    )
    macros: dict[str, ScalarValue] = Field(
        {}, description="As `macros` of the server, for this model; they override those of the same name."
    )
    health_check_timeout: OptionalSeconds = declare_ignored(
        None, why="the server's counts for every model, as in llama-swap.", description="Seconds to become ready."
    )


class SharedSettings(SettingsSection):
    """Settings of a server that llama-swap has too."""

    llama_swap_names: ClassVar = {"globalTTL": "default_ttl"}
    unset_values: ClassVar = {"unload_timeout": 0}

    default_ttl: Seconds = Field(
        0, ge=0, description="Seconds without a request after which a model without a `ttl` is unloaded; 0: never."
    )
    health_check_timeout: Seconds = Field(120, description="Seconds a `cmd` has to become ready; at least 15.")
    unload_timeout: Seconds = Field(10, gt=0, description="Seconds a `cmd` may take to end before it is killed.")
    start_port: int = Field(5800, ge=1, le=65535, description="First of the ports that `${PORT}` stands for.")
    send_loading_state: bool = Field(False, description="Tell streaming chats that their model is being loaded.")
    include_aliases_in_list: bool = Field(False, description="List aliases in `/v1/models` as separate models.")
    groups: dict[str, GroupSettings] = Field({}, description="Models, and the rules by which loading one unloads others.")
    matrix: MatrixSettings | None = Field(None, description="Sets of models that may be loaded together; instead of groups.")
    routing: RoutingSettings | None = Field(
        None, description="Groups, matrix and priorities as newer configs of llama-swap write them."
    )
    profiles: dict[str, ModelProfile] = Field({}, description="Sets of other models behind names, one of which may be active.")
    selectors: dict[str, ModelSelector] = Field({}, description="Names that stand for one of several models.")
    hooks: ServerHooks = Field(ServerHooks.model_construct(), description="Actions at events.")
    peers: dict[str, PeerServer] = Field({}, description="Other servers whose models are offered here.")
    upstream: UpstreamRoutes = Field(UpstreamRoutes.model_construct(), description="About `/upstream/`.")
    macros: dict[str, ScalarValue] = Field({}, description="Values that replace `${NAME}` in everything below.")
    log_level: str = Field("", description="As `log.level`, which wins; `warn` is `warning`, and unknown values are `info`.")
    log_time_format: str = declare_ignored("", why="times are written in one way.", description="How times are written.")
    log_to_stdout: Literal["proxy", "upstream", "both", "none"] = Field(
        "proxy",
        description="Output that is shown: the server's, the models', both or none. `/logs` has all of it.",
    )
    log_requests: bool = declare_ignored(False, why="every request is one line of the log.", description="Log requests.")
    metrics_max_in_memory: int = declare_ignored(
        1000, why="the last 1000 requests are kept.", description="Requests remembered for the activity page."
    )
    capture_buffer: Annotated[int, MEGABYTES] = declare_ignored(
        5, why="requests and answers are not kept.", description="Megabytes of requests and answers that are kept."
    )
    store: ActivityStore | None = declare_ignored(
        None, why="nothing is kept beyond a restart.", description="Where activity is kept."
    )
    ui: UiSettings = declare_ignored(
        UiSettings.model_construct(), why="Eardrum's page has no settings.", description="About llama-swap's page."
    )
    performance: PerformanceSettings = declare_ignored(
        PerformanceSettings(), why="the machine's load is not recorded.", description="About recording the machine's load."
    )
