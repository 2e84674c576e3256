"""A runner's application on TCP: requires the token, reports the state of the process, and refuses new requests while it drains.

Every request shows the token as `Authorization: Bearer TOKEN`, if the runner has one. A gateway asks `GET /health` every second.
A runner that drains answers it with the status `draining` and new requests with 503, until the last one has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from typing import Any

from eardrum import __version__
from eardrum.errors import EardrumError, ShuttingDownError, UnauthorizedError
from eardrum.runner.app import Receive, RunnerApp, Scope, Send, get_header
from eardrum.runner.speech_app import SpeechApp


class NetworkApp:
    """The ASGI application around that of a model."""

    def __init__(
        self, app: RunnerApp | SpeechApp, details: dict[str, Any], *, token: str = "", get_batch_age: Callable[[], float]
    ):
        """Answer `GET /health` with these details. `get_batch_age` returns the seconds since the running batch began."""
        self._app = app
        self._details = {"instance": uuid.uuid4().hex, "version": __version__, **details}
        self._expected = _hash_header(f"Bearer {token}") if token else b""
        self._get_batch_age = get_batch_age
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return
        if self._expected and not hmac.compare_digest(_hash_header(get_header(scope, b"authorization")), self._expected):
            await _send_json(send, 401, {"error": UnauthorizedError("This runner requires its token.").to_json()})
        elif scope["path"] == "/health":
            await _send_json(send, 200, self._describe_health())
        elif self.is_draining and scope["method"] == "POST":
            await _send_json(send, 503, {"error": _make_draining_error().to_json()})
        else:
            await self._serve_request(scope, receive, send)

    async def drain(self, within_s: float) -> None:
        """Refuse new requests, and wait until running ones have ended, or until the time is over."""
        self.is_draining = True
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    def _describe_health(self) -> dict[str, Any]:
        state = {"requests": self._requests, "batch_s": self._get_batch_age()}
        draining = {"status": "draining"} if self.is_draining else {}
        return self._details | self._app.describe_health() | state | draining


def _make_draining_error() -> EardrumError:
    return ShuttingDownError("This runner is draining: send the request to another one.", retry_after=1.0)


def _hash_header(value: str) -> bytes:
    """Hash a header, so that comparing takes the same time for any value."""
    return hashlib.sha256(value.encode()).digest()


async def _send_json(send: Send, status: int, content: dict[str, Any]) -> None:
    """Send a small answer. The body of a refused request is not read, so its connection ends."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    headers += [(b"connection", b"close")] if status >= 400 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode() + b"\n"})
