"""Runs the gateway: takes its ports, says how to use it, stays until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from types import FrameType

import uvicorn

from eardrum import tls
from eardrum.api.access import Access
from eardrum.api.wyoming.server import WyomingServer
from eardrum.app import create_app
from eardrum.client import reachable
from eardrum.config import Settings
from eardrum.engines import registry
from eardrum.errors import EardrumError
from eardrum.gateway.logs import Recorder
from eardrum.gateway.preload import preload
from eardrum.gateway.scheduler import shutting_down
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.foreign import MESSAGE
from eardrum.greeting import transcribed, welcome
from eardrum.http import Http
from eardrum.listening import bind, home_assistant
from eardrum.quiet import QuietServer
from eardrum.source import Source
from eardrum.websocket import WebSocket

log = logging.getLogger(__name__)

NOTHING = logging.CRITICAL + 1
"""The level of a log that shows nothing."""

ANSWER_S = 3
"""Seconds to tell clients that there is no more time, once that for finishing requests is over."""


def run(settings: Settings, source: Source | None = None, *, watch: bool = False, sample: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: the configuration.
        source: where it came from; it is read again at SIGHUP.
        watch: and when a file of it has changed.
        sample: transcribe the shipped recording through the server once it is up, and print the text.

    Raises:
        ConfigError: the port cannot be had, or the certificate cannot be used.
    """
    encryption = tls.serving(settings.tls_certificate, settings.tls_key)
    service = Service(settings)
    service.source = source
    listening = bind(settings.host, settings.port, "choose another with --port")
    wyoming = home_assistant(service)
    app = create_app(service)
    uvicorn_config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=Http,
        ws=WebSocket,
        ws_max_size=MESSAGE,
        ws_per_message_deflate=False,  # memory and CPU for each socket, and audio does not shrink
        timeout_keep_alive=math.ceil(settings.limits.idle_seconds),
        ssl_context_factory=(lambda *_: encryption) if encryption else None,
    )
    with listening, _recorded(service), as_file(files("eardrum") / "sample.ogg") as recording:
        for failed in registry.broken():
            log.warning("%s", failed)
        log.info("The default model is %s (%s).", service.catalog.default.id, service.catalog.why_default)
        host, port = listening.getsockname()[:2]
        address = f"{'https' if encryption else 'http'}://{reachable(host)}:{port}"

        async def greet() -> None:
            print(welcome(service, address, recording, wyoming), flush=True)
            if sample:
                print(f"The shipped recording says:\n\n    {await transcribed(service, address, recording)}\n", flush=True)

        Server(uvicorn_config, app, service, greet, source if watch else None, wyoming).run(sockets=[listening])


class Server(QuietServer):
    """Calls `greet` once the server answers, loads what is wanted from the start, reads the config again when told to, and ends
    in order."""

    def __init__(
        self,
        settings: uvicorn.Config,
        app: Access,
        service: Service,
        greet: Callable[[], Coroutine[None, None, None]],
        watched: Source | None = None,
        wyoming: WyomingServer | None = None,
    ):
        super().__init__(settings)
        self._app = app
        self._service = service
        self._greet = greet
        self._watched = watched
        self._wyoming = wyoming
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came to end it; a second one is from somebody who is in a hurry."""
        super().handle_exit(sig, frame)
        if self.force_exit and self._loop:
            self._loop.call_soon_threadsafe(self._hurry.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open for business, then say so."""
        await super().startup(sockets)
        if self.started:
            if self._wyoming:
                await self._wyoming.start()
            gc.freeze()  # what is here now stays: looking through it again and again would cost time
            self._begin(self._greet())
            self._begin(preload(self._service))
            if self._service.source and hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reread)
            if self._watched:
                self._begin(self._watched.watch(self._reread))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests, let those in progress finish, and after `stop_seconds` end them with an answer, and the models
        with them. What has not ended `ANSWER_S` later is cut off.

        What has no end is ended first: it would be waited for. Live sessions give their last texts, for which their WebSockets
        must be open still.
        """
        for task in self._tasks:
            task.cancel()
        self._service.end_followers()
        if self._wyoming:
            self._wait_for(self._wyoming.close())
        loop = asyncio.get_running_loop()
        over = loop.time() + self._service.settings.stop_seconds
        end = loop.call_at(over, self._end_requests)
        try:
            await self._end_sessions(over + ANSWER_S)
            self.config.timeout_graceful_shutdown = max(1, math.ceil(over + ANSWER_S - loop.time()))
            await super().shutdown(sockets)
        finally:
            end.cancel()
            if self.force_exit:  # somebody is in a hurry: the models' own ends are skipped
                self._service.abandon()

    async def _end_sessions(self, until: float) -> None:
        for server in self.servers:
            server.close()
        ending = {asyncio.create_task(self._service.sessions.end()), asyncio.create_task(self._hurry.wait())}
        within = until - asyncio.get_running_loop().time()
        await asyncio.wait(ending, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wait_for(self, work: Coroutine[None, None, None]) -> None:
        """Stop the models only when this is done, as if it were a request."""
        task = asyncio.create_task(work)
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def _reread(self) -> None:
        self._begin(self._try_to_reread())

    async def _try_to_reread(self) -> None:
        try:
            await self._service.reread()
            self.config.timeout_keep_alive = math.ceil(self._service.settings.limits.idle_seconds)
        except EardrumError as error:
            log.error("The config was not taken over, the old one stays in force: %s", error.message)

    def _end_requests(self) -> None:
        self._app.end_uploads(shutting_down())
        self._ending = asyncio.create_task(self._service.shutdown(at_once=True))


@contextmanager
def _recorded(service: Service) -> Iterator[None]:
    """Keep what the server logs, in the form in which it is shown."""
    root = logging.getLogger()
    if service.settings.logToStdout in ("upstream", "none"):
        for handler in root.handlers:
            handler.setLevel(NOTHING)
    recorder = Recorder(service.logs.server, root.handlers[0].formatter if root.handlers else None)
    root.addHandler(recorder)
    try:
        yield
    finally:
        root.removeHandler(recorder)
