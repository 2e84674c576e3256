"""Runs the gateway: binds its ports, prints the banner, reloads the config and shuts down in order."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType

import uvicorn

from eardrum import logging_setup, tls, tracing
from eardrum.api.request_log import RequestLogMiddleware
from eardrum.api.wyoming.server import WyomingServer
from eardrum.client import EardrumClient, get_reachable_host
from eardrum.concurrency import run_until_first
from eardrum.config import Settings
from eardrum.config.api_keys import KeyScope
from eardrum.engines import registry
from eardrum.errors import ConfigError, EardrumError
from eardrum.gateway.logs import LogBufferHandler
from eardrum.gateway.processes.orphans import MARK_VARIABLE
from eardrum.gateway.scheduler import make_shutdown_error
from eardrum.gateway.service import Service, preload_models, pull_models
from eardrum.gateway.upstreams.external import MAX_MESSAGE_BYTES
from eardrum.memory_trimming import trim_memory_regularly
from eardrum.server.app import create_app
from eardrum.server.reload import ConfigSource
from eardrum.server.uvicorn_http import UvicornHttpProtocol
from eardrum.server.uvicorn_websocket import UvicornWebSocketProtocol
from eardrum.uvicorn_server import IdleServer

log = logging.getLogger(__name__)

SILENT_LEVEL = logging.CRITICAL + 1
"""The level of a log that shows nothing."""

FINAL_RESPONSE_S = 3
"""Seconds to tell clients that there is no more time, once that for finishing requests is over."""


def run_gateway(settings: Settings, source: ConfigSource | None = None, *, watch: bool = False, sample: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: the configuration.
        source: where it came from; it is read again at SIGHUP.
        watch: and when a file of it has changed.
        sample: transcribe the shipped recording through the server once it is up, and print the text.

    Raises:
        ConfigError: the port cannot be had, or the certificate cannot be used.
    """
    encryption = tls.create_server_context(settings.tls_certificate, settings.tls_key)
    tracing.start_tracing("eardrum")
    service = Service(settings)
    service.settings_source = source
    listening = bind_socket(settings.host, settings.port, "choose another with --port")
    wyoming = create_wyoming_server(service)
    app = create_app(service)
    uvicorn_config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=UvicornHttpProtocol,
        ws=UvicornWebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # memory and CPU for each socket, and audio does not shrink
        timeout_keep_alive=math.ceil(settings.limits.idle_timeout),
        ssl_context_factory=(lambda *_: encryption) if encryption else None,
    )
    with listening, _record_logs(service), as_file(files("eardrum") / "sample.ogg") as recording:
        for failed in registry.list_broken():
            log.warning("%s", failed)
        log.info("The default model is %s: %s.", service.catalog.default.id, service.catalog.why_default)
        host, port = listening.getsockname()[:2]
        address = f"{'https' if encryption else 'http'}://{get_reachable_host(host)}:{port}"

        async def greet() -> None:
            print(build_banner(service, address, recording, wyoming), flush=True)
            if sample:
                print(f"The shipped recording says:\n\n    {await transcribe_sample(service, address, recording)}\n", flush=True)

        GatewayServer(uvicorn_config, app, service, greet, source if watch else None, wyoming).run(sockets=[listening])


class GatewayServer(IdleServer):
    """Calls `greet` once the server answers, loads what is wanted from the start, reads the config again when told to, and ends
    in order."""

    def __init__(
        self,
        settings: uvicorn.Config,
        app: RequestLogMiddleware,
        service: Service,
        greet: Callable[[], Coroutine[None, None, None]],
        watched: ConfigSource | None = None,
        wyoming: WyomingServer | None = None,
    ):
        super().__init__(settings)
        self._app = app
        self._service = service
        self._greet = greet
        self._watched_source = watched
        self._wyoming = wyoming
        self._tasks: set[asyncio.Task[None]] = set()
        self._force_exit_event = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one begins the shutdown, a second one forces the exit."""
        super().handle_exit(sig, frame)
        if self.force_exit and self._loop:
            self._loop.call_soon_threadsafe(self._force_exit_event.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open for business, then say so."""
        await super().startup(sockets)
        if self.started:
            if self._wyoming:
                await self._wyoming.start()
            gc.freeze()  # what is here now stays: looking through it again and again would cost time
            self._start_task(self._greet())
            self._start_task(self._prepare_models())
            self._start_task(trim_memory_regularly())
            if self._service.settings_source and hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._schedule_reload)
            if self._watched_source:
                self._start_task(self._watched_source.watch(self._schedule_reload))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests and let those in progress finish.

        After `shutdown_timeout`, end them with an answer, and stop the models. Cut off what has not ended `FINAL_RESPONSE_S`
        later.

        End endless streams first: the shutdown would wait for them. Live sessions send their last texts, for which their
        WebSockets must be open still.
        """
        for task in self._tasks:
            task.cancel()
        self._service.end_followers()
        if self._wyoming:
            self._add_shutdown_task(self._wyoming.close())
        loop = asyncio.get_running_loop()
        over = loop.time() + self._service.settings.shutdown_timeout
        end = loop.call_at(over, self._end_requests)
        try:
            await self._end_sessions(over + FINAL_RESPONSE_S)
            self.config.timeout_graceful_shutdown = max(1, math.ceil(over + FINAL_RESPONSE_S - loop.time()))
            await super().shutdown(sockets)
        finally:
            end.cancel()
            if self.force_exit:  # do not wait for the models' own shutdown
                self._service.kill_all()

    async def _end_sessions(self, until: float) -> None:
        for server in self.servers:
            server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await run_until_first(self._service.live_sessions.end_all(), self._force_exit_event.wait())

    async def _prepare_models(self) -> None:
        await pull_models(self._service)
        await preload_models(self._service)

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _add_shutdown_task(self, work: Coroutine[None, None, None]) -> None:
        """Stop the models only when this is done, as if it were a request."""
        task = asyncio.create_task(work)
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def _schedule_reload(self) -> None:
        self._start_task(self._reload_config())

    async def _reload_config(self) -> None:
        try:
            await self._service.reload_config()
        except EardrumError as error:
            log.error("The config was not reloaded, and the old one stays in use: %s", error.message)

    def _end_requests(self) -> None:
        self._app.end_uploads(make_shutdown_error())
        self._ending = asyncio.create_task(self._service.shutdown(force=True))


@contextmanager
def _record_logs(service: Service) -> Iterator[None]:
    """Keep what the server logs, in the form in which it is shown."""
    root = logging.getLogger()
    if service.settings.log_to_stdout in ("upstream", "none"):
        for handler in root.handlers:
            handler.setLevel(SILENT_LEVEL)
    formatter = (root.handlers[0].formatter if root.handlers else None) or logging_setup.TextLogFormatter()
    recorder = LogBufferHandler(service.logs.server, formatter)
    root.addHandler(recorder)
    try:
        yield
    finally:
        root.removeHandler(recorder)


def create_wyoming_server(service: Service) -> WyomingServer | None:
    """The server for Home Assistant, if the config enables it.

    Raises:
        ConfigError: its port cannot be had, or it cannot be announced.
    """
    settings = service.settings.wyoming
    if not settings.is_enabled(service.settings.api_keys):
        if settings.enabled is None:
            log.warning(
                "Wyoming is off: its protocol cannot carry API keys. To serve it without a key, list the addresses that may "
                "connect in wyoming.clients, or set wyoming.enabled: true."
            )
        return None
    if settings.enabled is None and MARK_VARIABLE in os.environ:
        return None  # this server is a model of another, which has the port
    host = settings.find_host(service.settings.host, service.settings.api_keys)
    if service.settings.api_keys:
        admitted = f"clients at {', '.join(settings.clients)}" if settings.clients else "every client that can connect"
        log.warning("Wyoming is open to %s, at port %d of %s: its protocol cannot carry API keys.", admitted, settings.port, host)
    advice = "choose another for Home Assistant with --wyoming-port, or switch Wyoming off with --no-wyoming"
    try:
        listening = bind_socket(host, settings.port, advice)
    except ConfigError as error:
        if settings.enabled or "port" in settings.model_fields_set:
            raise
        log.warning("Wyoming is off, so Home Assistant cannot use this server. %s", error.message)
        return None
    return WyomingServer(service, listening)


def bind_socket(host: str, port: int, advice: str) -> socket.socket:
    """A socket that has the port, and does not take connections yet. `advice` is what to do if another program has it.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"Port {port} on {host} is taken: stop the program that uses it, or {advice}.") from None
        raise ConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from None
    return listening


def build_banner(service: Service, address: str, recording: Path, wyoming: WyomingServer | None) -> str:
    """Build the text at start: addresses, models, and a command to try."""
    catalog = service.catalog
    lines = ["", f"Eardrum listens on {address}  (API: {address}/docs)"]
    if wyoming:
        lines.append(f"Home Assistant: {wyoming.host} port {wyoming.port}  (Wyoming)")
    lines += ["", "Models"]
    for model in catalog:
        languages = ", ".join(model.capabilities.languages) or "many languages"
        has_languages = model.is_speech_model or (model.is_voice_model and not model.is_external)
        facts = [model.engine, languages, model.origin] if has_languages else [model.engine, model.origin]
        if model.is_voice_model:
            facts.insert(1, "speaks")
        if model.needs_download:
            facts.append(f"not on this machine: `{model.format_pull_command()}`")
        elif not model.is_runnable:
            facts.append(f"cannot run yet: {model.card.install_here}")
        mark = " (default)" if model.id == catalog.default.id else ""
        lines.append(f"  {model.id}{mark}  ({', '.join(facts)})")
    if catalog.default.origin == "embedded":
        lines += [
            "",
            "For other languages, or better text: `eardrum pull small`, or large-v3-turbo with a GPU; see `eardrum engines`.",
        ]
    lines += ["", "Try it:", f"  {_build_curl_command(service, address, recording)}", ""]
    return "\n".join(lines)


def _build_curl_command(service: Service, address: str, recording: Path) -> str:
    """A command for a shell that has the recording transcribed."""
    curl = ["curl"]
    if address.startswith("https"):
        curl.append("-k")  # the certificate may be for another name than the machine has for itself
    if service.settings.api_keys:
        key = find_plain_key(service)
        # Whoever started the server on a terminal may see its key; in a log it would be there for others.
        header = f"Authorization: Bearer {key}"
        curl += ["-H", shlex.quote(header) if key and sys.stdout.isatty() else '"Authorization: Bearer $EARDRUM_KEY"']
    curl += [f"{address}/v1/audio/transcriptions", "-F", shlex.quote(f"file=@{recording}")]
    return " ".join(curl)


def find_plain_key(service: Service) -> str:
    """Return a key that may transcribe, if the config holds one and not only its hash."""
    usable = (key.plain_key for key in service.settings.api_keys if KeyScope.TRANSCRIBE in key.scopes and key.plain_key)
    return next(usable, "")


async def transcribe_sample(service: Service, address: str, recording: Path) -> str:
    """The text of a recording, by way of the port, as any client gets it."""
    certificate = service.settings.tls_certificate
    trust = tls.create_client_context(certificate, by_any_name=True) if certificate else None
    async with EardrumClient(address, find_plain_key(service), trust) as client:
        return (await client.transcribe(recording, {"response_format": ["text"]})).body.strip()
