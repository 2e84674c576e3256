"""Reads request bodies within limits of size, time and rate, and JSON in them without blocking the event loop for long.

The JSON parser holds the GIL from the first byte to the last, in whichever thread it runs. So the number of values, names and
brackets and the size of the text are limited. Audio and images in base64 are not: they are mostly copied.

JSON escapes can name half a surrogate pair (U+D800 to U+DFFF). UTF-8 cannot encode that, so it would break the response, the
log line or the upstream request that repeats it: `check_surrogates` refuses it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

from eardrum import bounded_json
from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope, get_header
from eardrum.config import LimitSettings
from eardrum.errors import ClientStalledError, EardrumError, InvalidRequestError, TooLargeError
from eardrum.gateway.places import SENDING_CLIENT, SendRateMeter
from eardrum.text import is_encodable

MIN_BYTES_PER_S = 32
"""A slower upload counts as stalled. The lowest rate of any speech codec is ten times as high, and twice as high in silence."""

SMALL_BODY_BYTES = 1 << 20
"""Bytes of a body of settings, without audio or long text."""

BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{64,}")
"""A line of base64. Text has no words of this length."""


STALL_TIMEOUTS_KEY = "eardrum.waiting"
"""Scope key of the server's `StallTimeouts`."""


class StallTimeouts:
    """The timeouts of all waits for more of an upload, which end at once when the server shuts down."""

    def __init__(self) -> None:
        self.running: set[asyncio.Timeout] = set()
        self.shutdown_error: EardrumError | None = None
        """The error of incomplete uploads, once the server shuts down."""

    def stop_waiting(self, error: EardrumError) -> None:
        """Stop waiting for uploads: all incomplete ones, now and later, fail with this error."""
        self.shutdown_error = error
        for timeout in self.running:
            _expire(timeout)


class RequestBody:
    """A request's body. Enforces the limits of its size and of stalls while it arrives.

    `received` is set once the whole body has arrived. `param` is the field that a body which is too large is blamed on.
    """

    def __init__(
        self, scope: Scope, receive: Receive, limits: LimitSettings, *, limit: str = "upload_bytes", param: str | None = "file"
    ):
        self._receive = receive
        self._stall_timeouts = scope.get(STALL_TIMEOUTS_KEY) or StallTimeouts()
        self._has_arrived = scope.get("extensions", {}).get("eardrum.arrived")
        self._limit = limit
        self._param = param
        self._max: int = getattr(limits, limit)
        self._stall_s = limits.stall_timeout
        self._size = 0
        self._waited_s = 0.0
        self._bytes_while_waiting = 0
        self._rate = SendRateMeter()
        self._timeout: asyncio.Timeout | None = None
        self._error: EardrumError | None = None
        self.received = asyncio.Event()
        length = get_header(scope, b"content-length")
        if length.isdigit() and int(length) > self._max:
            self._refuse()
        SENDING_CLIENT.set(self)

    @property
    def is_slow(self) -> bool:
        """Whether the upload is so slow that it may lose its slot at the model to a waiting request."""
        return not self.received.is_set() and self._rate.is_slow

    def give_up_place(self) -> None:
        """Stop reading, because a waiting request takes this one's slot at the model."""
        self._error = ClientStalledError(
            "The upload was too slow to keep its slot at the model while other requests waited: send it again, and faster."
        )
        if self._timeout:
            _expire(self._timeout)

    async def read(self) -> bytes | None:
        """Return the next bytes, or None at the end.

        Raises:
            TooLargeError: more bytes arrived than allowed.
            ClientStalledError: the upload stalled, or was too slow.
            ShuttingDownError: the server shuts down.
            ClientGoneError: the client disconnected.
        """
        if self.received.is_set():
            return None
        if self._has_arrived and self._has_arrived["call"]():
            message = await self._receive()
        else:
            started = time.monotonic()
            message = await self._receive_message()
            self._check_rate(time.monotonic() - started, len(message.get("body", b"")))
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        if message.get("more_body", False):
            self._rate.record_bytes(len(chunk))
        else:
            self.received.set()
            SENDING_CLIENT.set(None)  # a complete request keeps its place
        self._size += len(chunk)
        if self._size > self._max:
            self._refuse()
        return chunk

    async def _receive_message(self) -> Message:
        """Wait for the client's next message, until the upload stalls, gives up its slot, or the server shuts down."""
        others = self._stall_timeouts
        if error := self._error or others.shutdown_error:
            raise error
        self._rate.start_waiting()
        self._timeout = timeout = asyncio.timeout(self._stall_s)
        try:
            async with timeout:
                others.running.add(timeout)
                return await self._receive()
        except TimeoutError:
            stalled = ClientStalledError(f"The upload stalled: no data arrived for {self._stall_s:g} s (limits.stall_timeout).")
            raise self._error or others.shutdown_error or stalled from None
        finally:
            others.running.discard(timeout)
            self._timeout = None

    def _check_rate(self, waited_s: float, size: int) -> None:
        """Treat an upload that trickles like one that stalls. Only time spent waiting for the client counts."""
        self._waited_s += waited_s
        self._bytes_while_waiting += size
        if self._waited_s < self._stall_s:
            return
        if self._bytes_while_waiting < MIN_BYTES_PER_S * self._waited_s and not self.received.is_set():
            raise ClientStalledError(
                f"The upload stalled: fewer than {MIN_BYTES_PER_S} bytes a second arrived for {self._waited_s:.0f} s."
            )
        self._waited_s, self._bytes_while_waiting = 0.0, 0

    def _refuse(self) -> NoReturn:
        raise TooLargeError(f"The request is larger than {self._max:,} bytes (limits.{self._limit}).", param=self._param)


def _expire(timeout: asyncio.Timeout) -> None:
    """End the wait now, unless it is over already."""
    if not timeout.expired():
        timeout.reschedule(asyncio.get_running_loop().time())


def open_body(scope: Scope, receive: Receive, limits: LimitSettings) -> RequestBody:
    """Open a JSON request's body.

    Raises:
        TooLargeError: the content length exceeds the limit.
    """
    return RequestBody(scope, receive, limits, limit="json_bytes", param=None)


def limit_small_body(limits: LimitSettings) -> LimitSettings:
    """Return the limits for a body of settings, which holds neither audio nor long text."""
    return limits.model_copy(update={"json_bytes": min(limits.json_bytes, SMALL_BODY_BYTES)})


async def receive_body(scope: Scope, receive: Receive, limits: LimitSettings) -> bytes:
    """Receive the whole body of a JSON request. Most are short and here already: nothing has to be limited then.

    Raises:
        TooLargeError: the body, or the part of it that is not base64, exceeds its limit.
        EardrumError, ClientGoneError: as `RequestBody.read`.
    """
    has_arrived = scope.get("extensions", {}).get("eardrum.arrived")
    if not has_arrived or not has_arrived["call"]():
        return await read_body(scope, open_body(scope, receive, limits), limits)
    first = await receive()
    if first["type"] == "http.request" and not first.get("more_body", False):
        data: bytes = first.get("body", b"")
        if len(data) <= min(limits.json_bytes, limits.json_text_bytes):
            return data
    return await read_body(scope, open_body(scope, _put_back(first, receive), limits), limits)


def _put_back(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that returns this message first."""
    waiting = [message]

    async def receive_next() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_next


async def read_body(scope: Scope, body: RequestBody, limits: LimitSettings) -> bytes:
    """Read the whole body.

    Raises:
        TooLargeError: the body, or the part of it that is not base64, exceeds its limit.
        EardrumError, ClientGoneError: as `RequestBody.read`.
    """
    length = get_header(scope, b"content-length")
    counts_text = not length.isdigit() or int(length) > limits.json_text_bytes
    first = await body.read() or b""
    if body.received.is_set() and not counts_text:
        return bytes(first)
    data, text = bytearray(), 0
    chunk: bytes | None = first
    while chunk is not None:
        data += chunk
        if counts_text:
            text += len(chunk) - sum(map(len, BASE64.findall(chunk)))
            if text > limits.json_text_bytes:
                raise TooLargeError(
                    f"The request has more than {limits.json_text_bytes:,} bytes of text (limits.json_text_bytes), "
                    "not counting audio and images in base64."
                )
        chunk = await body.read()
    return bytes(data)


def parse_json_body(data: bytes) -> Any:
    """Parse a body as JSON. A caller that decodes or logs its strings must also call `check_surrogates`.

    Raises:
        InvalidRequestError: the body is not valid JSON.
        TooLargeError: the body holds too many values.
    """
    try:
        return bounded_json.parse_json(data)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None


def parse_object(
    source: str | bytes,
    *,
    not_json: str = "The body is not valid JSON: {error}.",
    not_object: str = "The body must be a JSON object.",
    param: str | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Parse a body or a message as a JSON object with whole characters.

    Args:
        source: The JSON text.
        not_json: The error's message for invalid JSON; `{error}` in it stands for the parser's explanation.
        not_object: The error's message for JSON of another type.
        param: The field that JSON of another type is blamed on.
        parse_constant: Converts NaN and Infinity, which Python parses and JSON does not allow.

    Raises:
        InvalidRequestError: the text is not a JSON object, or a string holds half a surrogate pair.
        TooLargeError: the text holds too many values.
    """
    try:
        found = bounded_json.parse_json(source, parse_constant=parse_constant)
    except ValueError as error:
        raise InvalidRequestError(not_json.replace("{error}", str(error))) from None
    if not isinstance(found, dict):
        raise InvalidRequestError(not_object, param=param)
    check_surrogates(source, found)
    return found


def check_surrogates(source: str | bytes | bytearray, parsed: Any) -> None:
    """Check that strings in JSON hold whole characters. `source` is the JSON text: nearly always it has no such escape, and
    `parsed` need not be searched.

    Raises:
        InvalidRequestError: a string holds half a surrogate pair.
    """
    if _may_have_surrogates(source) and _has_surrogates(parsed):
        raise InvalidRequestError(
            "A string in the JSON holds half a character (a lone surrogate such as \\ud800): send whole characters."
        )


def _may_have_surrogates(source: str | bytes | bytearray) -> bool:
    if isinstance(source, str):
        return "\\ud" in source or "\\uD" in source
    return b"\\ud" in source or b"\\uD" in source


def _has_surrogates(root: Any) -> bool:
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii() and not is_encodable(value):  # isascii() is free: base64 is not searched
                return True
        elif isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False
