"""What every edge calls: find a model, check that it can, transcribe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Set
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

from eardrum import redaction
from eardrum.config import Settings
from eardrum.config.secrets import secrets_of
from eardrum.errors import ConfigError
from eardrum.gateway import names
from eardrum.gateway.attempts import Attempts, Restart
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.changes import Changes, between, effective
from eardrum.gateway.copies import Copies
from eardrum.gateway.departures import Departures
from eardrum.gateway.events import Events, Topic
from eardrum.gateway.inventory import Model
from eardrum.gateway.lease import Lease
from eardrum.gateway.library import Library
from eardrum.gateway.logs import Logs
from eardrum.gateway.processes import memory
from eardrum.gateway.processes.lives import Lives
from eardrum.gateway.rulebook import Rulebook
from eardrum.gateway.scheduler import State
from eardrum.gateway.selection import Selection, Target
from eardrum.gateway.sessions import Sessions
from eardrum.gateway.spool import Source as Audio
from eardrum.gateway.spool import Spool, check_folder
from eardrum.gateway.status import ProcessStatus, status_of
from eardrum.gateway.supervisor import Supervisor
from eardrum.gateway.trials import Suspicion
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.types import Event, Placement, Request, Transcript

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where settings come from."""

    async def read(self, up: Set[str]) -> Settings:
        """Read them again; commands of the models in `up` hold their ports.

        Raises:
            ConfigError: they cannot be read, or make no sense.
        """
        ...


class Service:
    """The gateway behind its edges."""

    def __init__(self, settings: Settings):
        check_folder(settings.spool_dir)
        redaction.learn(secrets_of(settings))
        self.settings = settings
        self.source: Source | None = None
        """Where the settings came from, if they can be read again."""
        self._rereading = asyncio.Lock()
        self.catalog = Catalog(settings)
        self.library = Library(self.catalog)
        self.selection = Selection(settings)
        self.copies = Copies()
        """Names that clients have added."""
        self.events = Events()
        self.sessions = Sessions()
        self.logs = Logs(_shown if settings.logToStdout in ("upstream", "both") else None)
        self._supervisor = Supervisor(
            Lives(settings, self.logs),
            loaded=self.catalog.refine,
            changed=partial(self.events.changed, Topic.MODELS),
            rulebook=Rulebook(settings),
            patience=settings.patience,
        )
        self._attempts = Attempts(self.catalog, fetched=self.fetched, prepared=self.prepared, lease=self.lease)

    def begin(self) -> None:
        """What is done as soon as the server is up."""
        self._supervisor.sweep()

    async def reread(self) -> Changes:
        """Read the config again from where it came, and go by it.

        Raises:
            ConfigError: it cannot be read, or makes no sense. Then everything stays as it was.
        """
        if not self.source:
            raise ConfigError("This server does not know where its settings came from: start it again with other ones.")
        async with self._rereading:
            changes = await self.reload(await self.source.read(self._supervisor.up))
        log.info("The config was read again: %s.", changes)
        return changes

    async def reload(self, settings: Settings) -> Changes:
        """Go by other settings. Models that they do not change serve on without a pause.

        Raises:
            ConfigError: they make no sense. Then everything stays as it was.
        """
        settings, later = effective(self.settings, settings)
        catalog, rulebook = await asyncio.to_thread(lambda: (Catalog(settings), Rulebook(settings)))
        models = {model.id: model for model in catalog}
        changes = between({model.id: model for model in self.catalog}, models, later)
        if catalog.default.id != self.catalog.default.id:
            changes = replace(changes, default=catalog.default.id)
        redaction.learn(secrets_of(settings))
        self.settings = settings
        self.selection = Selection(settings)  # no profile is active after a reload, as in llama-swap
        self.catalog.adopt(catalog, models.keys() - changes.changed)
        self._supervisor.reconfigure(settings, rulebook, models, changes)
        self.events.changed(Topic.PROFILE)
        self.events.changed(Topic.MODELS)
        return changes

    def find(self, name: str, request: Request | None = None) -> Model:
        """The model that a client gets who asks for `name`, which may be a copy, a profile's or a selector's.

        A client that names none gets one that knows the language of its `request`.

        Raises:
            ModelNotFoundError: there is none; the message lists those there are, or says how to fetch it.
        """
        return self.catalog.find(self.meant(name), request)

    def named(self, name: str) -> Model | None:
        """The one model of this name, whatever profile and selectors make of it; without a look at what may have come since."""
        name = self.copies.get(name) or name
        return next((model for spelling in names.meanings(name) if (model := self.catalog.named(spelling))), None)

    def find_for_live(self, name: str, request: Request | None = None) -> Model:
        """The model that a client gets who asks for a live session with `name`.

        Raises:
            ModelNotFoundError: as `find`.
        """
        return self.catalog.for_live(self.meant(name), request)

    def meant(self, name: str) -> str:
        """The name of a model, or of an alias of it, that `name` stands for just now; most stand for themselves.

        Every edge takes every name that any edge lists: Ollama's has `:latest` behind names without a tag. OpenAI's dated names
        (`gpt-4o-mini-transcribe-2025-12-15`) mean what they do without the date, unless somebody has named a model so.

        A spillover selector counts the requests that the models hold: take the lease without waiting for anything in between.

        Raises:
            ModelNotFoundError: the active profile refuses the name.
        """
        return self.selection.meant(self.copies.get(name) or self._spelled(name), self._target)

    def activate(self, profile: str) -> None:
        """Make a profile the active one; an empty name is none.

        Raises:
            NotFoundError: there is no such profile.
        """
        if self.selection.activate(profile):
            self.events.changed(Topic.PROFILE)
            self.events.changed(Topic.MODELS)

    def spool(self) -> Spool:
        """Room for one upload."""
        return Spool(self.settings.spool_dir)

    def state(self, model: Model) -> State:
        """The model's state."""
        return self._supervisor.state(model)

    def load(self, model: Model) -> int:
        """Requests the model holds now."""
        return self._supervisor.load(model)

    @property
    def departures(self) -> Departures:
        """The models that have gone, why, and how often."""
        return self._supervisor.departures

    def since(self, model: Model) -> float:
        """Unix time since when the model's process serves; 0 if it does not."""
        running = self._supervisor.running(model)
        return running.since if running else 0.0

    def failure(self, model: Model) -> str:
        """Why the model cannot be used just now; empty if nothing is known against it."""
        return self._supervisor.failure(model)

    def silent_s(self, model: Model) -> float:
        """Seconds that the model's process owes a sign of life; 0 if it owes none."""
        running = self._supervisor.running(model)
        return running.life.silent_s if running else 0.0

    def placement(self, model: Model) -> Placement | None:
        """Where the model computes; None if it is not loaded."""
        running = self._supervisor.running(model)
        return running.life.placement if running else None

    def processes(self) -> list[ProcessStatus]:
        """The models whose processes run, in the catalog's order."""
        return [status for model in self.catalog if (status := status_of(model, self._supervisor, self.catalog))]

    async def memory(self) -> dict[str, dict[str, float]]:
        """Bytes that the models' processes take now, by model and pool (`cpu`, `cuda`, `cuda:0` ...), as far as can be seen."""
        return await memory.used({status.model.id: status.pid for status in self.processes() if status.pid})

    async def fetched(self, model: Model) -> Model:
        """The model with its files, which are fetched if need be and allowed.

        Raises:
            ModelNotFoundError: it is not here, and may not be fetched.
            PullError: it cannot be had.
        """
        return await self.library.fetched(model, may_pull=self.settings.pull_missing)

    async def load_model(self, model: Model) -> Model:
        """Start the model's process, unless it runs, and wait until it serves.

        Raises:
            EardrumError: it cannot be started, or fetched.
        """
        model = await self.fetched(model)
        async with self._supervisor.lease(model):
            return model

    def lease(
        self, model: Model, suspicion: Suspicion | None = None
    ) -> AbstractAsyncContextManager[RunnerUpstream | ForeignUpstream]:
        """The right to use the ready model for one request; see `Supervisor.lease`."""
        return self._supervisor.lease(model, suspicion)

    async def unload(self, model: Model, *, force: bool = False) -> None:
        """End the model's process, once it has finished what it has begun, or by force at once."""
        await self._supervisor.unload(model, force=force)

    def hold(self, model: Model, suspicion: Suspicion | None = None) -> Lease:
        """As `lease`, for requests that do not need the model all the time."""
        return self._supervisor.hold(model, suspicion)

    async def unload_all(self, *, force: bool = False) -> None:
        """End every model's process, each once it has finished what it has begun, or by force at once."""
        await asyncio.gather(*(self.unload(model, force=force) for model in self.catalog))

    def prepared(self, model: Model, request: Request) -> Request:
        """The request with the server's defaults, checked against what the model can do.

        Raises:
            UnsupportedFeatureError: the model cannot do what is asked.
        """
        self.catalog.check(model, request)
        if request.multilingual:
            return request
        return replace(request, language=request.language or self.settings.default_language or None)

    async def stream(self, model: Model, request: Request, audio: Audio) -> AsyncGenerator[Event, None]:
        """Events as they come, also while the audio is still coming in. Closing the iterator cancels the work.

        Raises:
            EardrumError: anything that went wrong, worded for the client.
        """
        request = replace(request, partial=True)
        async with aclosing(self._attempts.events(model, request, audio, restartable=False)) as events:
            async for event in events:
                assert not isinstance(event, Restart)
                yield event

    async def transcribe(self, model: Model, request: Request, audio: Audio) -> Transcript:
        """The whole transcript. Nothing is out before the end, so a failure at any time may be made good.

        Raises:
            EardrumError: anything that went wrong, worded for the client.
        """
        transcript = Transcript()
        async with aclosing(self._attempts.events(model, request, audio, restartable=True)) as events:
            async for event in events:
                if isinstance(event, Restart):
                    transcript = Transcript()
                else:
                    transcript.add(event)
        return transcript

    async def remove(self, model: Model) -> None:
        """Unload a model and delete its files, which must be the store's.

        Raises:
            InvalidRequestError: they are not, or it is the only model that can be the default one.
            ConfigError: the rights to do so are missing.
        """
        self.library.check_removable(model)
        await self.unload(model)
        await self.library.remove(model)

    def end_followers(self) -> None:
        """End what has no end of its own: the streams of changes and of logs."""
        self.events.close()
        self.logs.close()

    async def shutdown(self, *, at_once: bool = False) -> None:
        """Stop every model and every download; `at_once` without time for what the models are doing."""
        self.end_followers()
        await asyncio.gather(self._supervisor.shutdown(at_once=at_once), self.library.shutdown())

    def abandon(self) -> None:
        """End every model at once, for a server that has no time to shut down."""
        self._supervisor.abandon()

    def _spelled(self, name: str) -> str:
        """The name as what is here has it: exactly, or as one of those by which its weights are known; else without a tag."""
        spellings = names.meanings(name)
        exact = (spelling for spelling in spellings if self.selection.has(spelling) or self.catalog.has(spelling))
        if found := next(exact, ""):
            return found
        known = (spelling for spelling in spellings if self.catalog.named(spelling))
        return next(known, name.removesuffix(names.LATEST) or name)

    def _target(self, name: str) -> Target:
        model = self.catalog.named(name)
        return Target(name, self.state(model), self.load(model)) if model else Target(name)


def _shown(line: str) -> None:
    print(line, flush=True)
