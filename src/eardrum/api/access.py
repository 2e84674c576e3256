"""What happens to every request: an id, one line in the log, and a civil end when the body was not read."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field

from eardrum.api.asgi import App, ClientGoneError, Message, Receive, Scope, Send
from eardrum.gateway.inventory import Model
from eardrum.types import Summary

log = logging.getLogger("eardrum.access")

HEAD = ("method", "path", "status")
"""What a line begins with, without names."""

LINGER_BYTES = 64 << 20
LINGER_S = 5.0
"""How much of an unwanted body is read after the answer. Closing at once would destroy the answer on its way."""


@dataclass(slots=True)
class Record:
    """What the log line says about a request; the edges fill in what they know."""

    id: str
    model: str = ""
    summary: Summary | None = None
    note: str = ""
    started: float = field(default_factory=time.monotonic)

    def about(self, model: Model, summary: Summary) -> None:
        """The request was a transcription."""
        self.model, self.summary = summary.model or model.id, summary


def record(scope: Scope) -> Record:
    """The log record of the request that this scope belongs to."""
    found = scope["eardrum.record"]
    assert isinstance(found, Record)
    return found


class Access:
    """Pure ASGI middleware around the whole application."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["eardrum.record"] = entry = Record(id=f"req_{uuid.uuid4().hex[:24]}")
        exchange = Exchange(entry, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGoneError:
            entry.note = "client left"
        except asyncio.CancelledError:
            entry.note = "cut off by shutdown"
            raise
        finally:
            _write(scope, entry, exchange.status)


class Exchange:
    """One request's receive and send, watched."""

    def __init__(self, entry: Record, receive: Receive, send: Send):
        self.status = 0
        self._entry = entry
        self._receive = receive
        self._send = send
        self._read = False  # the whole body has been received, or the client is gone

    async def receive(self) -> Message:
        """The next message from the client."""
        message = await self._receive()
        self._read = self._read or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass the message on, with the request id; an early answer also announces that the connection ends."""
        if message["type"].startswith("websocket."):
            self.status = message.get("status", self.status or 101)
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._entry.id.encode())]
            if not self._read and self.status >= 400:
                message["headers"].append((b"connection", b"close"))
        elif not message.get("more_body", False) and not self._read and self.status >= 400:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._read and size < LINGER_BYTES:
                    size += len((await self.receive()).get("body", b""))


def _write(scope: Scope, entry: Record, status: int) -> None:
    facts: dict[str, object] = {
        "request": entry.id,
        "method": scope.get("method", "SOCKET"),
        "path": scope["raw_path"].decode("latin-1"),  # as it came: decoded, it could forge lines of the log
        "status": status or 499,
    }
    if entry.model:
        facts["model"] = entry.model
    if entry.summary:
        facts |= {
            "audio_s": round(entry.summary.duration, 2),
            "windows": entry.summary.windows,
            "queue_s": round(entry.summary.queue_s, 3),
            "decode_s": round(entry.summary.decode_s, 3),
        }
        if entry.summary.dropped:
            facts["dropped"] = "; ".join(f"{item.text!r}: {item.reason}" for item in entry.summary.dropped[:3])
    facts["total_s"] = round(time.monotonic() - entry.started, 3)
    if entry.note:
        facts["note"] = entry.note
    level = logging.DEBUG if scope["path"] == "/health" else logging.INFO
    if log.isEnabledFor(level):
        line = logging.LogRecord(log.name, level, "", 0, _text(facts), None, None)  # nobody asks which line of code logs requests
        line.facts = facts
        log.handle(line)


def _text(facts: dict[str, object]) -> str:
    parts = [f"{facts['method']} {facts['path']} {facts['status']}"]
    for name, value in facts.items():
        if name not in HEAD:
            parts.append(f"{name}={json.dumps(value)}" if isinstance(value, str) and " " in value else f"{name}={value}")
    return " ".join(parts)
