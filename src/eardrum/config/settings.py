"""Every setting, once: one field with a description, from which the reference page and the JSON schema are generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

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
from eardrum.errors import EardrumError
from eardrum.languages import language_code

PREFIX = "EARDRUM_"

# ruff: noqa: N815 -- some names are llama-swap's


class Model(Section):
    """One model: what runs it, where its weights are, and under which names clients find it."""

    engine: str = Field("", description="Engine that runs the model; empty finds the one that fits the files or the name.")
    source: str = Field(
        "", description="Directory or file of the weights, or a name as for `eardrum pull`; empty takes the model's own name."
    )
    aliases: tuple[str, ...] = Field((), description="Further names clients may use.")
    options: dict[str, Any] = Field({}, description="The engine's own options; see `eardrum engines`.")
    python: str = Field("", description="Interpreter that runs the engine, for libraries with an environment of their own.")
    fallback: tuple[str, ...] = Field((), description="Models to ask, in this order, when this one fails or is too busy.")
    batch: int = Field(0, ge=0, description="Windows decoded at once; 0 measures at load what is worth it.")
    max_requests: int = Field(0, ge=0, description="Requests at a time, waiting ones included; 0 is `limits.requests`.")
    ttl: float = Field(
        -1, ge=-1, description="Seconds without a request after which it is unloaded; 0 is never, -1 is `globalTTL`."
    )
    memory: str = Field("", description="What it needs, as in `2.1G`; empty is measured. See `memory` of the server.")
    cmd: str = Field("", description="Command that serves the model over HTTP; `${PORT}` is its port. No shell is involved.")
    cmdStop: str = Field("", description="Command that stops it, with `${PID}`; empty sends SIGTERM.")
    proxy: str = Field(
        "", description="Address at which the model is served; empty is `http://localhost:${PORT}` if there is a `cmd`."
    )
    env: tuple[str, ...] = Field((), description="Environment of the command, as `NAME=value`.")
    checkEndpoint: str = Field("/health", description="Path that answers 200 once the command serves; `none` does not ask.")
    unloadTimeout: float = Field(0, ge=0, description="Seconds it may take to end before it is killed; 0 is the server's.")
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
    healthCheckTimeout: float = without_effect(
        0, why="the server's counts for every model, as in llama-swap.", description="Seconds to become ready."
    )


class Limits(Section):
    """What one client may ask of the server."""

    upload_bytes: int = Field(4 << 30, gt=0, description="Largest body, counted as it arrives; past it 413.")
    json_bytes: int = Field(64 << 20, gt=0, description="Largest JSON body (`input_audio` in base64); past it 413.")
    fields: int = Field(100, gt=0, description="Most fields in a form; past it 400.")
    field_bytes: int = Field(64 << 10, gt=0, description="Largest text field in a form; past it 400.")
    audio_seconds: float = Field(24 * 3600, gt=0, description="Longest audio, counted as it is decoded; past it 400.")
    requests: int = Field(64, gt=0, description="Requests a model holds at a time, waiting ones included; past it 503.")
    stall_seconds: float = Field(60, gt=0, description="A client silent for so long in mid-upload is given up with 408.")


class Log(Section):
    """What the server says about itself."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level that is shown.")
    format: Literal["text", "json"] = Field("text", description="`text` for people, `json` for machines.")


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens the server to the network.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    default_model: str = Field(
        "", description="Model behind `whisper-1` and behind requests that name none; empty takes the best one present."
    )
    default_engine: str = Field(
        "", description="Take the default model among this engine's models, and let it run what several engines could."
    )
    default_language: str = Field("", description="Language assumed when a client names none; empty lets the model decide.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run, for models that do not set their own.")
    compute_type: str = Field("auto", description="Number format of the weights, for models that do not set their own.")
    model_dir: Path | None = Field(None, description="Folder searched for models; empty is the Hugging Face cache.")
    pull_missing: bool = Field(False, description="Fetch a model that an engine knows when a client first asks for it.")
    spool_dir: Path | None = Field(None, description="Folder for uploads in progress; empty is the system's.")
    globalTTL: float = Field(0, ge=0, description="Seconds without a request after which a model is unloaded; 0 is never.")
    start_seconds: float = Field(300, gt=0, description="A model that is not ready after so long has failed to load.")
    stop_seconds: int = Field(10, ge=0, description="Time that requests in progress have to finish when the server is stopped.")
    patience: float = Field(
        10, ge=0, description="A loaded model serves on until somebody has waited so many seconds for one it excludes."
    )
    memory: dict[str, str] = Field(
        {}, description="Pools of memory that models share, as in `cuda: 22G` or `cpu: 48G`; what fits stays loaded."
    )
    healthCheckTimeout: float = Field(120, description="Seconds a `cmd` has to become ready; at least 15.")
    unloadTimeout: float = Field(10, ge=0, description="Seconds a `cmd` may take to end before it is killed.")
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
    models: dict[str, Model] = Field({}, description="Models by the name clients use.")
    macros: dict[str, Scalar] = Field({}, description="Values that `${NAME}` stands for in everything below.")
    limits: Limits = Field(Limits(), description="What one client may ask of the server.")
    log: Log = Field(Log(), description="What the server says about itself.")
    logLevel: str = Field("", description="As `log.level`, which wins; `warn` is `warning`, and what is unknown `info`.")
    logTimeFormat: str = without_effect("", why="times are written in one way.", description="How times are written.")
    logToStdout: Literal["proxy", "upstream", "both", "none"] = without_effect(
        "proxy", why="what models say is kept apart, see `/logs`.", description="Whose output is shown."
    )
    logRequests: bool = without_effect(False, why="every request is one line of the log.", description="Log requests.")
    metricsMaxInMemory: int = without_effect(
        1000, why="requests are counted and not kept.", description="Requests remembered for the activity page."
    )
    captureBuffer: int = without_effect(
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

    @field_validator("default_language")
    @classmethod
    def _is_a_language(cls, spelled: str) -> str:
        try:
            return language_code(spelled) or ""
        except EardrumError as error:
            raise ValueError(error.message) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: it has merged the sources already."""
        return (init_settings,)
