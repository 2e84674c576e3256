"""Every setting, declared once: the reference page and the JSON schema are generated from these fields.

`find_secrets` lists the secret values among them, for redaction.
"""

import base64
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from eardrum.config.api_keys import ApiKeySettings
from eardrum.config.llama_swap import SettingsSection, SharedModelSettings, SharedSettings
from eardrum.errors import EardrumError
from eardrum.languages import parse_language
from eardrum.redaction import find_command_secrets, find_named_secrets, find_passwords, is_secret
from eardrum.subtitles import MAX_RULE_VALUES, NO_RULES, PRESETS, SubtitleRules
from eardrum.units import ByteSize, OptionalByteSize, OptionalSeconds, Seconds

ENVIRONMENT_PREFIX = "EARDRUM_"

LOOPBACK = "127.0.0.1"

FLEET_TTL_S = 300.0
"""Time without a request after which a model that may have no replicas has none."""

COMMAND_CONCURRENCY = 10
"""llama-swap's `concurrencyLimit` of a command that sets none."""


class SchedulingSettings(SettingsSection):
    """The settings of a model that the scheduler heeds: they reach it as this one object, with every request."""

    former_names: ClassVar = {"at_once": "max_concurrency"}
    unset_values: ClassVar = {"ttl": -1, "concurrency_limit": 0}
    former_unset_values: ClassVar = {"max_requests": 0, "max_concurrency": 0}

    ttl: OptionalSeconds = Field(
        None, ge=0, description="Seconds without a request after which the model is unloaded; 0: never, unset: `default_ttl`."
    )
    max_requests: int | None = Field(
        None,
        gt=0,
        description="Most requests that the model holds, waiting ones included; more get 503. Unset: `limits.requests`.",
    )
    concurrency_limit: int | None = Field(
        None, gt=0, description="As `max_requests`, but more get 429; unset: 10 for a `cmd` without `max_requests`."
    )
    max_concurrency: int | None = Field(
        None, gt=0, description="Requests that the model serves at a time, while others wait; unset: any number."
    )
    priority: int = Field(0, description="Models of a higher priority are started first.")


class RaySettings(SettingsSection):
    """The Ray cluster whose machines run replicas."""

    address: str = Field("", description="Address of the cluster's head, as in `10.0.0.1:6379`; empty: no cluster is used.")
    namespace: str = Field(
        "eardrum", min_length=1, description="Namespace of the replicas in the cluster; each server needs its own."
    )
    lease: Seconds = Field(
        120, ge=5, description="Time after which a replica ends if its server was killed and has not been started again."
    )


class ReplicaResources(SettingsSection):
    """The resources of a node that one replica takes."""

    num_cpus: float = Field(1, ge=0, description="CPU cores; fractions are allowed.")
    num_gpus: float = Field(0, ge=0, description="GPUs; with 0.5, two replicas share one.")
    memory: OptionalByteSize = Field(None, gt=0, description="Memory, as in `8G`; unset: it is not counted.")
    custom: dict[str, float] = Field({}, description="Resources that nodes were given by name, as in `fast_disk: 1`.")


class ReplicaSettings(SettingsSection):
    """The runners of a model: addresses of runners that others start, or a number that Ray runs."""

    addresses: tuple[str, ...] = Field(
        (), description="Addresses of the runners, as in `http://gpu1:8101`; empty: the server starts a runner itself."
    )
    token: str = Field(
        "",
        description="Token that the runners require, the same for all of them. With Ray, empty: a new one at each start.",
    )
    min: int | None = Field(
        None,
        ge=0,
        description="Fewest replicas that Ray runs, from the server's start on; 0: none until a request comes, and none again "
        "after `ttl` (here 5 minutes unless set). Unset: 1.",
    )
    max: int | None = Field(
        None,
        description="Most replicas that Ray runs; unset: `min`. With `min` or `max` Ray starts the runners, which needs `ray`.",
    )
    target_requests: int = Field(
        4, gt=0, description="Running and waiting requests for each replica, beyond which Ray runs one more."
    )
    scale_down_after: Seconds = Field(
        60, ge=0, description="Time for which fewer replicas must have sufficed before one is stopped."
    )
    resources: ReplicaResources = Field(
        ReplicaResources.model_construct(), description="Resources of a node that Ray reserves for each replica."
    )
    labels: dict[str, str] = Field(
        {}, description="Labels that a node must have to run a replica, as in `gpu: h100`; Ray's operators work, as in `'!h100'`."
    )
    python: str = Field(
        "", description="Python interpreter on the nodes that runs the replicas, with Eardrum installed; empty: that of Ray."
    )

    @property
    def runs_on_ray(self) -> bool:
        """Whether Ray starts the runners."""
        return self.min is not None or self.max is not None

    @property
    def fewest(self) -> int:
        """Replicas that Ray runs at least."""
        return 1 if self.min is None else self.min

    @property
    def most(self) -> int:
        """Replicas that Ray runs at most."""
        return max(self.fewest, 1) if self.max is None else self.max

    @property
    def summary(self) -> str:
        """The addresses, or the numbers on Ray, for people; empty without replicas."""
        return f"{self.fewest} to {self.most}, on Ray" if self.runs_on_ray else ", ".join(self.addresses)


class ModelSettings(SchedulingSettings, SharedModelSettings):
    """One model: its engine or command, its weights and its names."""

    former_names: ClassVar = {"batch": "batch_size"}
    former_unset_values: ClassVar = {"batch_size": 0}

    engine: str = Field("", description="Engine that runs the model; empty: the one that fits the files or the name.")
    source: str = Field(
        "", description="Folder or file of the weights, or a name as for `eardrum pull`; empty: the model's own name."
    )
    options: dict[str, Any] = Field(
        {},
        description="The engine's own options; see `eardrum engines`. With `cmd` or `proxy`: the paths of `transcriptions` and "
        "`translations`.",
    )
    python: str = Field(
        "", description="Python interpreter that runs the engine, for libraries that need a separate environment."
    )
    fallback: tuple[str, ...] = Field(
        (),
        description="Models to try, in this order, when this one fails or is too busy, as long as no part of the "
        "answer was sent.",
    )
    replicas: ReplicaSettings = Field(
        ReplicaSettings.model_construct(), description="Runners on this or other machines that serve the model together."
    )
    batch_size: int | None = Field(None, gt=0, description="Windows decoded together; unset: measured in idle time.")
    voice_names: dict[str, str] = Field(
        {},
        description="Names of voices that clients may use, and the model's own names, as in `alloy: af_heart`. Lists show them, "
        "and a `cmd` or `proxy` with them counts as a voice model.",
    )
    memory: str = Field(
        "", description="Memory that the model needs, as in `2.1G` or `cuda 6G`; empty: measured. See `memory` of the server."
    )


class LimitSettings(SettingsSection):
    """Limits of clients' requests."""

    former_names: ClassVar = {"audio_seconds": "audio_duration", "stall_seconds": "stall_timeout", "idle_seconds": "idle_timeout"}

    upload_bytes: ByteSize = Field(4 << 30, gt=0, description="Largest body, counted as it arrives; larger ones get 413.")
    json_bytes: ByteSize = Field(
        64 << 20, gt=0, description="Largest JSON body, with audio or images in base64; larger ones get 413."
    )
    json_text_bytes: ByteSize = Field(
        8 << 20, gt=0, description="Largest part of a JSON body that is not base64; larger ones get 413."
    )
    fields: int = Field(100, gt=0, description="Most fields in a form; more get 400.")
    field_bytes: ByteSize = Field(64 << 10, gt=0, description="Largest text field in a form; larger ones get 400.")
    reference_bytes: ByteSize = Field(
        4 << 20, gt=0, description="Largest recording of a known speaker in a form, as a data URL; larger ones get 400."
    )
    audio_duration: Seconds = Field(24 * 3600, gt=0, description="Longest audio, measured as it is decoded; longer gets 400.")
    speech_chars: int = Field(20_000, gt=0, description="Most characters of a text to speak; more get 400.")
    requests: int = Field(64, gt=0, description="Most requests that a model holds, waiting ones included; more get 503.")
    stall_timeout: Seconds = Field(
        60,
        gt=0,
        description="An upload or a Wyoming utterance in which nothing arrives for this long, or fewer than 32 bytes "
        "a second, ends with 408; a client that reads nothing of its answer for this long is "
        "disconnected.",
    )
    idle_timeout: Seconds = Field(
        90,
        gt=0,
        description="A connection without a request is closed after this time, and a request whose headers take longer gets 408.",
    )
    fetch_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts from which an `audio_url` is fetched: names, `*.name`, `*` for all public ones. "
        "Private addresses and networks must be listed themselves. Empty: none.",
    )

    @field_validator("fetch_hosts")
    @classmethod
    def _check_hosts(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        return check_hosts(listed)


def check_hosts(listed: tuple[str, ...]) -> tuple[str, ...]:
    """Check a list of hosts and networks.

    Raises:
        ValueError: an entry is neither.
    """
    for entry in listed:
        if "://" in entry or not entry.strip() or " " in entry:
            raise ValueError(f"{entry!r} is no host: write a name such as files.example.com, or a network such as 10.0.0.0/8")
    return listed


class LiveSettings(SettingsSection):
    """Live sessions."""

    former_names: ClassVar = {"sessions": "max_sessions", "idle_seconds": "idle_timeout"}

    max_sessions: int = Field(32, gt=0, description="Most live sessions of a model, paused ones included; more get 503.")
    idle_timeout: Seconds = Field(
        60, gt=0, description="A session without audio for this long no longer keeps its model from being unloaded."
    )


class WyomingSettings(SettingsSection):
    """The port for Home Assistant."""

    enabled: bool | None = Field(
        None,
        description="Serve Wyoming, the speech protocol of Home Assistant. It has no keys: with `api_keys` it is off "
        "unless this is true, or `clients` are listed.",
    )
    host: str = Field("", description="Address to listen on; empty is `host`, and with `api_keys` and no `clients` 127.0.0.1.")
    clients: tuple[str, ...] = Field(
        (), description="Addresses and networks that may connect, as in `192.168.1.20` or `10.0.0.0/8`; empty: all."
    )
    port: int = Field(10300, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    streaming: bool = Field(
        True, description="Send text during speech. Home Assistant does not read it yet: false saves the work."
    )
    zeroconf: str = Field(
        "",
        description="Name to announce on the network, by which Home Assistant discovers the server; empty: none. "
        "Needs `eardrum[zeroconf]`.",
    )
    supervisor: bool = Field(
        False,
        description="Announce the server to Home Assistant's Supervisor. Works only in an app of Home Assistant.",
    )

    @field_validator("clients")
    @classmethod
    def _check_clients(cls, clients: tuple[str, ...]) -> tuple[str, ...]:
        for client in clients:
            try:
                ip_network(client)
            except ValueError as error:
                raise ValueError(f"{error}: write an address or a network such as 192.168.1.0/24") from None
        return clients

    def is_enabled(self, keys: Sequence[object]) -> bool:
        """Check whether Wyoming is served. With API keys, it must be enabled explicitly, or its clients listed."""
        return not keys or bool(self.clients) if self.enabled is None else self.enabled

    def find_host(self, host: str, keys: Sequence[object]) -> str:
        """Return the address to listen on, for a server that listens on `host`."""
        return self.host or (host if self.clients or not keys else LOOPBACK)

    def admits(self, address: str) -> bool:
        """Check whether a client with this IP address may connect."""
        if not self.clients:
            return True
        try:
            client = ip_address(address)
        except ValueError:
            return False
        client = getattr(client, "ipv4_mapped", None) or client
        return any(client in ip_network(network) for network in self.clients)


class SubtitleSettings(SettingsSection):
    """Shape of the cues of srt and vtt, unless a request sets it. `subtitles: broadcast` sets the preset."""

    shorthand = "preset"

    preset: Literal["none", "broadcast"] = Field(
        "none",
        description="`broadcast`: two lines of 42 columns, 0.83 to 7 seconds, two frames between cues, 20 characters a "
        "second, broken where sentences and clauses end. Other settings of this section override it. `none`: a segment is a "
        "cue.",
    )
    max_line_width: int | None = Field(
        None,
        ge=0,
        le=MAX_RULE_VALUES["max_line_width"],
        description="Columns of a line; Chinese, Japanese and Korean letters take two. 0: any number.",
    )
    max_line_count: int | None = Field(
        None,
        ge=0,
        le=MAX_RULE_VALUES["max_line_count"],
        description="Lines of a cue. 0: a segment stays one cue, of as many lines as it takes.",
    )
    max_words_per_line: int | None = Field(
        None,
        ge=0,
        le=MAX_RULE_VALUES["max_words_per_line"],
        description="Words of a line; alone it makes a cue of each line. 0: any number.",
    )
    highlight_words: bool | None = Field(
        None, description="Repeat each cue for each of its words, underlined while it is spoken."
    )
    min_duration: float | None = Field(
        None,
        ge=0,
        le=MAX_RULE_VALUES["min_duration"],
        description="Seconds that a cue stays at least, if the next one leaves room.",
    )
    max_duration: float | None = Field(
        None, ge=0, le=MAX_RULE_VALUES["max_duration"], description="Seconds that a cue stays at most. 0: any number."
    )
    min_gap: float | None = Field(None, ge=0, le=MAX_RULE_VALUES["min_gap"], description="Seconds between cues.")
    max_characters_per_second: float | None = Field(
        None,
        ge=0,
        le=MAX_RULE_VALUES["max_characters_per_second"],
        description="Cues stay longer to be read at this speed, if the next one leaves room. 0: any speed.",
    )

    @property
    def shape(self) -> SubtitleRules:
        """The rules that these settings amount to."""
        return NO_RULES.with_changes(self.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def _check_durations(self) -> Self:
        if 0 < self.shape.max_duration < self.shape.min_duration:
            raise ValueError("min_duration is more than max_duration")
        return self


class JobSettings(SettingsSection):
    """Jobs: recordings that are transcribed at the lowest priority, and that survive restarts of the server."""

    dir: Path | None = Field(
        None, description="Folder of jobs and their files, for one server alone; empty: `~/.local/state/eardrum`."
    )
    database: str = Field(
        "",
        description="Address of a Postgres database, `postgresql://user:password@host/name`, whose jobs several servers share; "
        "they must share `jobs.dir` or `jobs.bucket`, too. Empty: SQLite in `jobs.dir`. Needs `eardrum[postgres]`.",
    )
    bucket: str = Field(
        "",
        description="Address of the bucket in which files are kept, and of a folder in it for them alone: `s3://bucket/folder`. "
        "Empty: in `jobs.dir`. Credentials come from the environment (`AWS_...`). Needs `eardrum[s3]`.",
    )
    max_concurrency: int = Field(
        2, gt=0, description="Recordings of jobs that a model, or each of its replicas, transcribes at a time."
    )
    max_items: int = Field(50_000, gt=0, description="Most recordings in a batch; a longer file fails.")
    keep: Seconds = Field(
        30 * 24 * 3600,
        gt=0,
        description="How long files, and ended jobs with their results, are kept unless a request sets another time.",
    )
    disk_bytes: OptionalByteSize = Field(
        None, gt=0, description="Size of all files of jobs, as in `500G`; more get 507. Unset: as much as `free_bytes` leaves."
    )
    free_bytes: ByteSize = Field(1 << 30, ge=0, description="Space on the disk that jobs leave free; further uploads get 507.")
    webhook_secret: str = Field(
        "",
        description="Secret that signs webhooks: `whsec_` and 24 to 64 bytes in base64. Empty: no webhooks are sent.",
    )
    webhook_hosts: tuple[str, ...] = Field(
        ("*",),
        description="Hosts to which webhooks are sent: names, `*.name`, `*` for all public ones. Private addresses and networks "
        "must be listed themselves.",
    )

    @field_validator("webhook_hosts")
    @classmethod
    def _check_hosts(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        return check_hosts(listed)

    @field_validator("webhook_secret")
    @classmethod
    def _check_secret(cls, secret: str) -> str:
        try:
            size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except ValueError:
            size = 0
        if secret and not (secret.startswith("whsec_") and 24 <= size <= 64):
            raise ValueError("not `whsec_` and 24 to 64 bytes in base64")
        return secret

    @field_validator("database")
    @classmethod
    def _check_database(cls, address: str) -> str:
        if address and not address.startswith(("postgresql://", "postgres://")):
            raise ValueError("not an address that begins with postgresql://")
        return address


class LogSettings(SettingsSection):
    """The server's log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level that is logged.")
    format: Literal["text", "json"] = Field("text", description="`text` for people, `json` for machines.")


class Settings(SharedSettings):
    """The whole configuration."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"patternProperties": {"^x-": {}}},  # the user's own names, for anchors
    )
    former_names: ClassVar = {
        "start_seconds": "start_timeout",
        "answer_seconds": "liveness_timeout",
        "batch_seconds": "batch_timeout",
        "stop_seconds": "shutdown_timeout",
        "realtime_rate": "realtime_sample_rate",
        "cache_dir": "timings_dir",
    }

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens the server to the network.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate and its chain; the server then speaks HTTPS only."
    )
    tls_key: Path | None = Field(
        None,
        description="PEM file with the certificate's private key, without a password; empty: it is in `tls_certificate`.",
    )
    models: dict[str, ModelSettings] = Field({}, description="Models by the names that clients use.")
    origins: tuple[str, ...] = Field(
        (),
        description="Web pages that may use `/api/` and WebSockets, in addition to those of this machine, such as "
        "`https://ui.example.com`; `*`: all.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Host names of this server, such as `stt.example.com` or `*.example.com`; `*`: any. Needed for "
        "public names if there are neither `api_keys` nor a certificate; addresses, `localhost` and names "
        "of private networks always work.",
    )
    api_keys: tuple[ApiKeySettings, ...] = Field(
        (),
        description="Keys, one of which every client must send, each a text or a section; empty: no key is needed.",
        json_schema_extra=lambda field: field.update(items={"anyOf": [field["items"], {"type": "string"}]}),
    )
    default_model: str = Field(
        "",
        description="Model behind `whisper-1` and behind requests without a model, or a folder that holds one; empty: "
        "the first of the config, else the largest on disk, else the first of a peer, else the embedded "
        "one.",
    )
    default_voice_model: str = Field(
        "",
        description="Model behind `tts-1`, and for texts to speak without a model; empty: chosen like `default_model`, among the "
        "voice models.",
    )
    default_engine: str = Field(
        "",
        description="Engine that runs models which several engines could run, and from whose models the default model is taken.",
    )
    default_language: str = Field(
        "",
        description="Language of requests that name none; empty: the model decides. Without `default_model`, the default model "
        "is one that supports this language, or English if it is empty.",
    )
    tingwu_hotwords: tuple[str, ...] = Field(
        (),
        description="Words that TingWu's routes expect in requests without hotwords; `/api/v1/hotwords` changes them.",
    )
    realtime_sample_rate: int = Field(
        24_000,
        ge=4_000,
        le=192_000,
        description="Hz of PCM in the Realtime API if the client does not name it; OpenAI's is always 24000.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of models that do not set their own.")
    compute_type: str = Field("auto", description="Number format of the weights of models that do not set their own.")
    model_dir: Path | None = Field(None, description="Folder of the models; empty: the Hugging Face cache.")
    pull_missing: bool = Field(False, description="Fetch a model that an engine knows when a client first asks for it.")
    spool_dir: Path | None = Field(
        None, description="Folder for uploads in progress and for temporary data of models; empty: the system's."
    )
    timings_dir: Path | None = Field(
        None,
        description="Folder for the batch sizes and thread counts that were measured; empty: `~/.cache/eardrum`.",
    )
    start_timeout: Seconds = Field(300, gt=0, description="A model that is not ready after this time has failed to load.")
    liveness_timeout: Seconds = Field(
        30,
        gt=0,
        description="A runner that does not answer liveness checks for this long is killed, and its requests are repeated in "
        "the next one. A separate thread answers them, even while the engine is busy. A command is not checked, since it may be "
        "too busy to answer, but it is killed if it is stopped (SIGSTOP) for this long.",
    )
    batch_timeout: Seconds = Field(
        600,
        gt=0,
        description="A runner whose engine takes longer than this for a single batch is killed in the same way, as on "
        "a hung GPU.",
    )
    shutdown_timeout: Seconds = Field(10, ge=0, description="Time for requests in progress when the server stops.")
    patience: Seconds = Field(
        10, ge=0, description="A loaded model makes room once a request has waited this long for a model that it excludes."
    )
    memory: dict[str, str] = Field(
        {}, description="Pools of memory that models share, as in `cuda: 22G` or `cpu: 48G`; models stay loaded while they fit."
    )
    limits: LimitSettings = Field(LimitSettings.model_construct(), description="Limits of clients.")
    live: LiveSettings = Field(LiveSettings.model_construct(), description="Live sessions: text during speech.")
    wyoming: WyomingSettings = Field(WyomingSettings.model_construct(), description="The port for Home Assistant.")
    subtitles: SubtitleSettings = Field(
        SubtitleSettings.model_construct(),
        description="Shape of the cues of srt and vtt, unless a request sets another one.",
        json_schema_extra=lambda field: field.update(anyOf=[{"$ref": field.pop("$ref")}, {"enum": [*PRESETS], "type": "string"}]),
    )
    jobs: JobSettings = Field(
        JobSettings.model_construct(), description="Recordings that are transcribed when there is time, and files for them."
    )
    ray: RaySettings = Field(
        RaySettings.model_construct(),
        description="Cluster whose machines run `replicas` with `min` or `max`. Needs `eardrum[ray]`.",
    )
    metrics: bool = Field(True, description="Serve `/metrics` for Prometheus.")
    page: bool = Field(True, description="Serve the web page at `/`.")
    log: LogSettings = Field(LogSettings.model_construct(), description="The server's log.")

    @field_validator("default_language")
    @classmethod
    def _check_language(cls, spelled: str) -> str:
        try:
            return parse_language(spelled) or ""
        except EardrumError as error:
            raise ValueError(error.message) from error

    def resolve_scheduling(self, model: ModelSettings | None = None) -> SchedulingSettings:
        """Resolve a model's scheduling settings: the server's values stand for those that the model does not set."""
        inherited: dict[str, Any] = {"ttl": self.default_ttl, "max_requests": self.limits.requests}
        if not model:
            return SchedulingSettings.model_construct(**inherited)
        values = {name: getattr(model, name) for name in SchedulingSettings.model_fields}
        if model.cmd and model.max_requests is None and model.concurrency_limit is None:
            inherited["concurrency_limit"] = COMMAND_CONCURRENCY
        if model.replicas.runs_on_ray:
            inherited["ttl"] = self._choose_fleet_ttl(model.replicas)
        values |= {name: value for name, value in inherited.items() if values[name] is None}
        return SchedulingSettings.model_construct(**values)

    def _choose_fleet_ttl(self, replicas: ReplicaSettings) -> float:
        """The time to live of a model on Ray that sets none: replicas below `min` are given up only where that is 0."""
        return (self.default_ttl or FLEET_TTL_S) if replicas.fewest == 0 else 0.0


def find_secrets(settings: Settings) -> Iterator[str]:
    """Find keys of clients and peers, passwords in addresses, and secrets in commands, environments and options."""
    yield from filter(None, (key.plain_key for key in settings.api_keys))
    yield from filter(None, (settings.jobs.webhook_secret, *find_passwords(settings.jobs.database)))
    for peer in settings.peers.values():
        yield from (peer.api_key, *find_passwords(peer.proxy))
    for model in settings.models.values():
        yield from _find_model_secrets(model)
    yield from (value for name, value in settings.macros.items() if isinstance(value, str) and is_secret(name))


def _find_model_secrets(model: ModelSettings) -> Iterator[str]:
    for text in (model.cmd, model.cmd_stop, model.proxy):
        yield from find_command_secrets(text)
    for variable in model.env:
        name, _, value = variable.partition("=")
        yield from (value,) if is_secret(name) else find_passwords(value)
    yield from find_named_secrets(model.options)
    if model.replicas.token:
        yield model.replicas.token
