"""The service behind every API: finds models, checks requests, transcribes, reports states, loads and unloads.

`ForwardedRequest` is the same for requests that a client's protocol passes through to an external upstream: it holds the
model's lease and retries where that does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from eardrum import redaction
from eardrum.concurrency import install_thread_pool
from eardrum.config import Settings
from eardrum.config.loading import ConfigExamination
from eardrum.config.settings import find_secrets
from eardrum.errors import (
    ConfigError,
    EardrumError,
    ModelNotFoundError,
    RunnerCrashedError,
    UpstreamDiedError,
    UpstreamHungUpError,
    UpstreamUnreachableError,
)
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.gateway.change_feed import ChangeFeed, ChangeTopic
from eardrum.gateway.fallback import FallbackPlan, TranscriptRestart, find_candidates
from eardrum.gateway.key_usage import AudioMeter, KeyRegistry, check_model_allowed
from eardrum.gateway.logs import GatewayLogs
from eardrum.gateway.metrics import GatewayMetrics, TranscriptionTimer
from eardrum.gateway.models import names
from eardrum.gateway.models.catalog import ConfigChanges, ModelCatalog, compare_models, defer_startup_settings
from eardrum.gateway.models.download import ModelLibrary
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import LiveSessionRegistry
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.crashes import CrashSuspicion
from eardrum.gateway.processes.launcher import ModelLauncher
from eardrum.gateway.processes.supervisor import ModelLease, ModelSupervisor, UnloadHistory
from eardrum.gateway.scheduler import ModelState, UnloadCause
from eardrum.gateway.scheduler.policies import PolicyFactory
from eardrum.gateway.selectors import ClientAliases, NameResolver, SelectorTarget
from eardrum.gateway.speakers import SpeakerDetector, UtteranceSpeakers, build_speaker_model
from eardrum.gateway.spool import AudioSource, Spool, check_spool_folder
from eardrum.gateway.upstreams.http_client import OutgoingRequest, UpstreamResponse
from eardrum.speakers import SpeakerTurns
from eardrum.transcription import (
    ModelPlacement,
    Segment,
    TextDelta,
    Transcript,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
)

if TYPE_CHECKING:
    from eardrum.gateway.upstreams.replicas import ReplicaStatus

log = logging.getLogger(__name__)


class SettingsSource(Protocol):
    """A source of settings that can be read again."""

    def read(self, up: Set[str]) -> AbstractAsyncContextManager[Settings]:
        """Read the settings again, for a block that applies them. The commands of the models in `up` keep their ports.

        Raises:
            ConfigError: the settings cannot be read, or are invalid.
        """
        ...

    async def check(self) -> ConfigExamination:
        """Read the settings and report errors and warnings, without any effect."""
        ...


class Service:
    """The gateway behind all APIs."""

    def __init__(self, settings: Settings):
        check_spool_folder(settings.spool_dir)
        redaction.add_secrets(find_secrets(settings))
        self.settings = settings
        self.settings_source: SettingsSource | None = None
        """The source of the settings, if they can be read again."""
        self._reload_lock = asyncio.Lock()
        self.catalog = ModelCatalog(settings)
        self.library = ModelLibrary(self.catalog)
        self.name_resolver = NameResolver(settings)
        self.client_aliases = ClientAliases(lambda name: name in self.name_resolver.selectors or self.catalog.defines(name))
        """Names that clients added."""
        self.change_feed = ChangeFeed()
        self.shutdown_callbacks: list[Callable[[], None]] = []
        """Called at the start of the shutdown: each ends endless streams, or work that another server can continue."""
        self.live_sessions = LiveSessionRegistry()
        self.api_keys = KeyRegistry(settings.api_keys)
        self.metrics = GatewayMetrics()
        self.logs = GatewayLogs(partial(print, flush=True) if settings.log_to_stdout in ("upstream", "both") else None)
        self._launcher = ModelLauncher(settings, self.logs)
        self._supervisor = ModelSupervisor(
            self._launcher,
            PolicyFactory(settings),
            settings.patience,
            find_current=self.catalog.find_current,
            on_loaded=self.catalog.update_capabilities,
            on_change=partial(self.change_feed.publish, ChangeTopic.MODELS),
            metrics=self.metrics,
        )
        self._speaker_detector = SpeakerDetector(build_speaker_model(settings), self.lease_model)

    def start(self) -> None:
        """Prepare the running event loop, and start the cleanup that runs once the server is up."""
        install_thread_pool()
        self._supervisor.sweep_orphans()

    async def reload_config(self) -> ConfigChanges:
        """Read the config again and apply it.

        Raises:
            ConfigError: it cannot be read, or is invalid. Then nothing changes.
        """
        if not self.settings_source:
            raise ConfigError("This server was started without a config that can be reloaded: restart it to change its settings.")
        async with self._reload_lock:
            with pause_garbage_collection():
                async with self.settings_source.read(self._supervisor.running_models.keys()) as settings:
                    changes = await self.apply_settings(settings)
        log.info("The config was read again: %s.", changes)
        return changes

    async def check_config(self) -> ConfigExamination:
        """Check the config as it is now, which may be another one than that in force. Without a source it is as it was."""
        return await self.settings_source.check() if self.settings_source else ConfigExamination()

    async def apply_settings(self, settings: Settings) -> ConfigChanges:
        """Apply other settings. Models that they do not change keep serving.

        Raises:
            ConfigError: the settings are invalid. Then nothing changes.
        """
        settings, later = defer_startup_settings(self.settings, settings)
        before = {model.id: model for model in self.catalog}

        def prepare() -> tuple[ModelCatalog, PolicyFactory, dict[str, Model], ConfigChanges]:
            catalog = ModelCatalog(settings)
            models = {model.id: model for model in catalog}
            policy_factory = PolicyFactory(settings)
            redaction.add_secrets(find_secrets(settings))
            return catalog, policy_factory, models, compare_models(before, models, later)

        catalog, policy_factory, models, changes = await asyncio.to_thread(prepare)  # takes a second for 2,000 models
        if catalog.default.id != self.catalog.default.id:
            changes = replace(changes, default=catalog.default.id)
        self.settings = settings
        self.api_keys.replace_keys(settings.api_keys)
        self.name_resolver = NameResolver(settings)  # no profile is active after a reload, as in llama-swap
        self.catalog.replace_with(catalog, models.keys() - changes.changed)
        self._speaker_detector.model = speakers = build_speaker_model(settings)
        self._supervisor.reconfigure(settings, policy_factory, models | {speakers.id: speakers}, changes)
        list(self.client_aliases)  # drops those whose names the config has now
        self.change_feed.publish(ChangeTopic.PROFILE)
        self.change_feed.publish(ChangeTopic.MODELS)
        return changes

    def find_model(self, name: str, request: TranscriptionRequest | None = None) -> Model:
        """Find the model for `name`, which may also be an alias, or a name of a profile or selector.

        Without a name it is a model that supports the language of the `request`.

        Raises:
            ModelNotFoundError: there is none; the message lists the models, or says how to download it.
        """
        return self.catalog.find_model(self.resolve_name(name), request)

    def find_named(self, name: str) -> Model | None:
        """Find the model of this name without profiles and selectors, and without rescanning the disk."""
        name = self.client_aliases.get(name) or name
        return next((model for spelling in names.list_meanings(name) if (model := self.catalog.find_named(spelling))), None)

    def find_live_model(self, name: str, request: TranscriptionRequest | None = None) -> Model:
        """Find the model for a live session with `name`.

        Raises:
            ModelNotFoundError: as `find_model`.
        """
        return self.catalog.find_live_model(self.resolve_name(name), request)

    def resolve_name(self, name: str) -> str:
        """Return the name or alias of the model that `name` currently stands for; most names stand for themselves.

        Every API accepts the names that any API lists: Ollama's adds `:latest` to names without a tag. OpenAI's dated names
        (`gpt-4o-mini-transcribe-2025-12-15`) mean the same as without the date, unless a model has that name.

        A spillover selector counts the requests that the models hold: acquire the lease without awaiting anything in between.

        Raises:
            ModelNotFoundError: the active profile refuses the name.
        """
        if self.catalog.has_name(name) and not self.client_aliases and not self.name_resolver.has(name):
            return name
        copied = "" if any(map(self.name_resolver.has, names.list_spellings(name))) else self.client_aliases.get(name)
        return self.name_resolver.resolve_name(copied or self._match_spelling(name), self._look_up_target)

    def activate_profile(self, profile: str) -> None:
        """Activate a profile; an empty name deactivates it.

        Raises:
            NotFoundError: there is no such profile.
        """
        if self.name_resolver.activate_profile(profile):
            self.change_feed.publish(ChangeTopic.PROFILE)
            self.change_feed.publish(ChangeTopic.MODELS)

    def create_spool(self) -> Spool:
        """Create the spool of one upload."""
        return Spool(self.settings.spool_dir)

    def get_state(self, model: Model) -> ModelState:
        """Return the model's state."""
        return self._supervisor.get_state(model)

    def count_requests(self, model: Model) -> int:
        """Return the number of requests that the model holds."""
        return self._supervisor.count_requests(model)

    def count_waiting(self, model: Model) -> int:
        """Return the number of requests that wait for the model."""
        return self._supervisor.count_waiting(model)

    @property
    def unload_history(self) -> UnloadHistory:
        """The unloaded models, with reasons and counts."""
        return self._supervisor.unload_history

    def get_ready_time(self, model: Model) -> float:
        """Return the Unix time at which the model's process was ready; 0 if it does not serve."""
        running = self._supervisor.get_running(model)
        return running.since if running else 0.0

    def get_failure(self, model: Model) -> str:
        """Return why the model cannot be used now; empty if it can."""
        return self._supervisor.get_failure(model)

    def get_unresponsive_s(self, model: Model) -> float:
        """Return for how many seconds the model's process has not responded; 0 if it responds."""
        running = self._supervisor.get_running(model)
        return running.instance.unresponsive_s if running else 0.0

    def get_placement(self, model: Model) -> ModelPlacement | None:
        """Return the device of the model; None if it is not loaded."""
        running = self._supervisor.get_running(model)
        return running.instance.placement if running else None

    def list_processes(self) -> list[ProcessStatus]:
        """List the models whose processes run, in the catalog's order, then those that it lacks."""
        return [status for model in self.list_present() if (status := self._get_process_status(model))]

    def _get_process_status(self, model: Model) -> ProcessStatus | None:
        """Return the state of the model's process; None if it does not serve, and has no replicas that are starting."""
        supervisor = self._supervisor
        running = supervisor.get_running(model)
        instance = running.instance if running else self._launcher.find_starting(model.id)
        if not instance:
            return None
        idle, ttl = supervisor.get_idle_time(model), supervisor.get_ttl(model)
        return ProcessStatus(
            model=model,
            state=supervisor.get_state(model),
            requests=supervisor.count_requests(model),
            pid=instance.pid,
            loaded_at=running.since if running else time.time(),
            placement=instance.placement,
            replicas=instance.replicas,
            default=model.id == self.catalog.default.id,
            ttl=ttl,
            ttl_remaining=max(0.0, ttl - idle) if ttl and idle is not None else None,
            unload_cause=supervisor.get_unload_cause(model),
        )

    def list_present(self) -> list[Model]:
        """List the catalog's models, then others that have a process: such as a removed one that finishes its requests."""
        known = {model.id: model for model in self.catalog}
        return list((known | self._supervisor.running_models | known).values())

    async def measure_memory(self) -> dict[str, dict[str, float]]:
        """Measure the bytes that the models' processes use, by model and pool (`cpu`, `cuda`, `cuda:0` ...)."""
        return await process_info.measure_memory({status.model.id: status.pid for status in self.list_processes() if status.pid})

    async def ensure_fetched(self, model: Model) -> Model:
        """Return the model with its files, downloading them if they are missing and the config allows it.

        Raises:
            ModelNotFoundError: the files are missing and must not be downloaded, or the client's key may not use the model.
            PullError: the download failed.
        """
        if not model.needs_download:
            return model
        check_model_allowed(model.id, model.aliases)  # the lease checks it too, but after the download
        return await self.library.fetch_missing(model, may_pull=self.settings.pull_missing)

    async def load_model(self, model: Model) -> Model:
        """Start the model's process, unless it runs, and wait until it serves.

        Raises:
            EardrumError: the model cannot be started or downloaded.
        """
        model = await self.ensure_fetched(model)
        async with self._supervisor.lease_model(model):
            return model

    def lease_model(self, model: Model, suspicion: CrashSuspicion | None = None) -> ModelLease:
        """Create a lease: the right of one request to use the model; see `ModelSupervisor.lease_model`."""
        return self._supervisor.lease_model(model, suspicion)

    async def unload_model(self, model: Model, *, force: bool = False) -> None:
        """End the model's process once it has finished its requests, or by force at once."""
        await self._supervisor.unload_model(model, force=force)

    async def unload_all(self, *, force: bool = False) -> None:
        """End every model's process once it has finished its requests, or by force at once."""
        await asyncio.gather(*(self.unload_model(model, force=force) for model in self.list_present()))

    def prepare_request(self, model: Model, request: TranscriptionRequest) -> TranscriptionRequest:
        """Check the request against the model's capabilities, and return it with the server's defaults.

        Raises:
            UnsupportedFeatureError: the model does not support the request.
        """
        self.catalog.check_request(model, request)
        return self._apply_defaults(request)

    def _apply_defaults(self, request: TranscriptionRequest) -> TranscriptionRequest:
        if request.multilingual or request.language_only or request.language or not self.settings.default_language:
            return request
        return replace(request, language=self.settings.default_language)

    async def stream_events(
        self, model: Model, request: TranscriptionRequest, audio: AudioSource
    ) -> AsyncGenerator[TranscriptionEvent, None]:
        """Yield events as they arrive, also while the upload continues. Closing the iterator cancels the work.

        Raises:
            EardrumError: any failure, worded for the client.
        """
        request = replace(request, partial=True)
        async with aclosing(self._stream_attempts(model, request, audio, restartable=False)) as events:
            async for event in events:
                assert not isinstance(event, TranscriptRestart)
                yield event

    async def find_turns(self, request: TranscriptionRequest, audio: AudioSource) -> SpeakerTurns:
        """Find the turns of the speakers in a recording.

        Raises:
            EardrumError: the audio cannot be decoded, or the speakers cannot be found.
        """
        return await self._speaker_detector.find_turns(request, audio)

    def create_utterance_speakers(self) -> UtteranceSpeakers:
        """Create what labels the utterances of one live session with speakers."""
        return UtteranceSpeakers(self._speaker_detector)

    async def transcribe(self, model: Model, request: TranscriptionRequest, audio: AudioSource) -> Transcript:
        """Return the whole transcript. Nothing is sent before the end, so a failure at any time allows another attempt.

        Raises:
            EardrumError: any failure, worded for the client.
        """
        transcript = Transcript()
        async with aclosing(self._stream_attempts(model, request, audio, restartable=True)) as events:
            async for event in events:
                if isinstance(event, TranscriptRestart):
                    transcript = Transcript()
                else:
                    transcript.add_event(event)
        return transcript

    async def _stream_attempts(
        self, model: Model, request: TranscriptionRequest, audio: AudioSource, *, restartable: bool
    ) -> AsyncGenerator[TranscriptionEvent | TranscriptRestart, None]:
        """Yield the events of one attempt after another until one succeeds.

        Once text has been sent, only a restartable reader is served again from the start.
        """
        if request.speakers:
            request = replace(request, times=True, words_if_any=True)
        meter = AudioMeter()
        with self.metrics.measure_transcription(model.label) as timer:
            attempts = self._run_attempts(model, request, audio, timer, restartable=restartable)
            if request.speakers:
                attempts = self._speaker_detector.label_events(attempts, request, audio)
            async with aclosing(attempts) as events:
                async for event in events:
                    if isinstance(event, TranscriptionSummary):
                        timer.record_summary(event)
                        meter.charge_until(event.duration)
                    elif isinstance(event, Segment | TextDelta):
                        timer.record_text()
                        if isinstance(event, Segment):  # a client that leaves before the end pays for what it got
                            meter.charge_until(event.end)
                    yield event

    async def _run_attempts(
        self, model: Model, request: TranscriptionRequest, audio: AudioSource, timer: TranscriptionTimer, *, restartable: bool
    ) -> AsyncGenerator[TranscriptionEvent | TranscriptRestart, None]:
        plan = FallbackPlan(find_candidates(self.catalog, model, request))
        while True:
            has_text = False
            timer.model = plan.model.label
            try:
                fetched = await self.ensure_fetched(plan.model)
                timer.model = fetched.label
                if fetched is not plan.model:  # its files may define other capabilities than its name
                    self.catalog.check_request(fetched, request)
                if isinstance(audio, Spool):
                    await audio.wait_for_start()
                async with (
                    self.lease_model(fetched, plan.suspicion) as lease,
                    aclosing(lease.upstream.transcribe(self._apply_defaults(request), audio)) as events,
                ):
                    async for event in events:
                        has_text = has_text or isinstance(event, Segment | TextDelta)
                        yield replace(event, model=fetched.id) if isinstance(event, TranscriptionSummary) else event
                return
            except EardrumError as error:
                plan.handle_failure(error, repeatable=restartable or not has_text)
            if has_text:
                yield TranscriptRestart()

    async def remove_model(self, model: Model) -> None:
        """Unload a model and delete its files, which must be in the store.

        Raises:
            InvalidRequestError: the files are elsewhere, or no other model can be the default one.
            ConfigError: the permission is missing.
        """
        self.library.check_removable(model)
        await self.unload_model(model)
        await self.library.remove_model(model)

    def end_followers(self) -> None:
        """End the endless streams: those of changes and of logs, and others."""
        for callback in self.shutdown_callbacks:
            callback()
        self.change_feed.close()
        self.logs.close()

    async def shutdown(self, *, force: bool = False) -> None:
        """Stop every model and every download; with `force` the models do not finish their requests."""
        self.end_followers()
        await asyncio.gather(self._supervisor.shutdown(force=force), self.library.shutdown())

    def kill_all(self) -> None:
        """Kill every model's process, for a server that has no time to shut down."""
        self._supervisor.kill_all()

    def _match_spelling(self, name: str) -> str:
        """Return the spelling that exists here: an exact name or one of the same weights; else the name without a tag."""
        if self.name_resolver.has(name) or self.catalog.has_name(name):
            return name
        spellings = names.list_meanings(name)
        exact = (spelling for spelling in spellings if self.name_resolver.has(spelling) or self.catalog.has_name(spelling))
        if found := next(exact, ""):
            return found
        known = (spelling for spelling in spellings if self.catalog.find_named(spelling))
        return next(known, name.removesuffix(names.LATEST_TAG) or name)

    def _look_up_target(self, name: str) -> SelectorTarget:
        model = self.catalog.find_named(name)
        return SelectorTarget(name, self.get_state(model), self.count_requests(model)) if model else SelectorTarget(name)


class ProcessStatus(Struct, frozen=True):
    """The current state of a model's process."""

    model: Model
    state: ModelState
    requests: int
    pid: int | None
    """None if another program runs the server."""
    loaded_at: float
    """Unix time."""
    default: bool
    ttl: float
    """Seconds without a request after which it is unloaded, as its last request set it; 0 means never."""
    ttl_remaining: float | None
    """Seconds until it is unloaded without another request; None while it works, or if it stays loaded."""
    unload_cause: UnloadCause | None = None
    """Why it is being unloaded, if it is."""
    placement: ModelPlacement = field(default_factory=ModelPlacement)
    replicas: Sequence[ReplicaStatus] = ()


async def preload_models(service: Service) -> None:
    """Load the configured models one after another. A model that fails to load is logged and skipped.

    Models may exclude each other, and two that load at the same time are both late.
    """
    for model in _find_startup_models(service, "preload", service.settings.hooks.on_startup.preload):
        log.info("Preloading %s.", model.id)
        try:
            await service.load_model(model)
        except EardrumError as error:
            log.error("Preloading %s failed: %s", model.id, error.message)


async def pull_models(service: Service) -> None:
    """Download the configured models that are missing. A model that cannot be downloaded is logged and skipped."""
    for model in _find_startup_models(service, "pull", service.settings.hooks.on_startup.pull):
        if model.needs_download:
            try:
                await service.library.fetch_missing(model, may_pull=True)
            except EardrumError as error:
                log.error("Downloading %s failed: %s", model.id, error.message)
            else:
                log.info("%s was downloaded.", model.id)


def _find_startup_models(service: Service, hook: str, listed: Iterable[str]) -> Iterator[Model]:
    for name in filter(None, map(str.strip, listed)):
        try:
            yield service.find_model(name)
        except ModelNotFoundError as error:
            log.warning("hooks.on_startup.%s: %s is skipped. %s", hook, name, error.message)


class ForwardedRequest:
    """The response of an external model to a request, as a context that keeps the model loaded. Leaving it early hangs up.

    If the upstream dies before it answers, it is started again and the request repeated if possible. Read the body inside the
    context, so that its errors are explained here.

    Raises:
        UpstreamDiedError: the upstream died; the message says how.
        EardrumError: as `ModelSupervisor.lease_model` and `Upstream.send_request`.
    """

    def __init__(self, service: Service, model: Model, request: OutgoingRequest):
        self._lease = service.lease_model(model)
        self._request = request
        self._response: UpstreamResponse
        self._disconnects = 0
        """Connections that broke."""
        self._refusals = 0
        self._hung_up = False
        """Whether the upstream had just closed a kept connection."""

    async def __aenter__(self) -> UpstreamResponse:
        while True:
            try:
                await self._lease.acquire()
                try:
                    self._response = await self._send()
                except BaseException as error:
                    await self._lease.release(error)
                    raise
            except RunnerCrashedError as error:
                is_suspect = self._disconnects > 1 or self._refusals > 1  # the request itself may kill the upstream
                if is_suspect or not self._request.is_repeatable:
                    raise
                log.warning("%s Trying once more.", error.sentence)
            else:
                return self._response

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._response.release()  # closes the connection if the answer was not read to its end
        await self._lease.release(error)

    async def _send(self) -> UpstreamResponse:
        """Send the request, at once over another connection if the upstream had just closed a kept one.

        An upstream that breaks a new connection may be dying: the release of the lease finds that out before the next attempt.
        """
        while True:
            try:
                return await self._lease.upstream.send_request(self._request)
            except UpstreamHungUpError:
                if self._hung_up or not self._request.is_repeatable:
                    self._disconnects += 1
                    raise
                self._hung_up = True
            except UpstreamUnreachableError:
                self._refusals += 1
                raise
            except UpstreamDiedError:
                self._disconnects += 1
                raise
