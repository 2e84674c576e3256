"""Reads request bodies within limits, and multipart forms as they arrive: text fields into memory, the file into a spool."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope, get_header
from eardrum.api.disconnect import STALL_TIMEOUTS_KEY, StallTimeouts
from eardrum.config import LimitSettings
from eardrum.errors import ClientStalledError, EardrumError, InvalidRequestError, TooLargeError
from eardrum.gateway.places import SENDING_CLIENT, SendRateMeter
from eardrum.gateway.spool import Spool

MIN_BYTES_PER_S = 32
"""A slower upload counts as stalled. The lowest rate of any speech codec is ten times as high, and twice as high in silence."""

HEAD_BYTES, HEAD_LINES = 8 << 10, 16
"""Limits of one part's headers: bytes of a line, and number of lines. Only the name of a file is ever long."""

FormFields = dict[str, list[str]]
"""Text fields by name, with brackets, in the order of arrival."""


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
            self._timeout.reschedule(asyncio.get_running_loop().time())

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
        """Return the client's next message, unless this upload gave up its slot."""
        if self._error:
            raise self._error
        self._rate.start_waiting()
        try:
            async with asyncio.timeout(None) as self._timeout:
                return await self._stall_timeouts.receive_message(self._receive, self._stall_s)
        except TimeoutError:
            assert self._error
            raise self._error from None
        finally:
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


@dataclass(slots=True)
class FormPart:
    """A form's part that is being read."""

    name: str = ""
    is_file: bool = False
    content_type: str = ""
    value: bytearray = field(default_factory=bytearray)


class MultipartForm:
    """Parses a multipart form as it arrives: first `read_until_file`, then `read_file`."""

    def __init__(self, scope: Scope, body: RequestBody, limits: LimitSettings, *, file_field: str = "file"):
        self.fields: FormFields = {}
        self.file_content_type = ""
        self._body = body
        self._limits = limits
        self._file_field = file_field
        self._part = FormPart()
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._file_data = bytearray()
        self._file_begun = self._file_ended = self._is_complete = False
        _, options = parse_options_header(get_header(scope, b"content-type"))
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidRequestError("The form has no boundary in its content-type header.")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
                max_header_count=HEAD_LINES,
                max_header_size=HEAD_BYTES,
            )
        except FormParserError as error:
            raise InvalidRequestError(f"The form's boundary is not valid: {error}") from error

    async def read_until_file(self) -> bool:
        """Read until the file begins, and return whether there is one. `fields` then holds the fields before it.

        Raises:
            InvalidRequestError: the form is malformed, has too many fields, or a field is too long.
            EardrumError, ClientGoneError: as `RequestBody.read`.
        """
        while not self._file_begun and (chunk := await self._body.read()) is not None:
            self._feed(chunk)
        return self._file_begun

    async def read_file(self, spool: Spool) -> None:
        """Read the rest: the file into `spool` as it arrives, and the fields after it into `fields`."""
        finished = False
        while True:
            if self._file_data:
                data, self._file_data = bytes(self._file_data), bytearray()
                await spool.write(data)
            if self._file_ended and not finished:
                finished = True
                spool.finish()
            if (chunk := await self._body.read()) is None:
                break
            self._feed(chunk)
        if not self._is_complete:
            raise InvalidRequestError("The form ends in the middle: its closing boundary is missing.")

    def _feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequestError(f"The form cannot be parsed: {error}") from error

    def _on_part_begin(self) -> None:
        self._part = FormPart()
        self._headers = {}

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        self._part = FormPart(name, is_file=b"filename" in options or name == self._file_field)
        if self._part.is_file:
            if name != self._file_field:
                raise InvalidRequestError(
                    f"The audio belongs into the field {self._file_field!r}, not {name!r}.", param=self._file_field
                )
            if self._file_begun:
                raise InvalidRequestError("The form holds two files: send one per request.", param=self._file_field)
            self._file_begun = True
            self.file_content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        elif sum(map(len, self.fields.values())) >= self._limits.fields:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields (limits.fields).")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._file_data += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > self._limits.field_bytes:
            name, limit = self._part.name, self._limits.field_bytes
            raise InvalidRequestError(f"The field {name!r} is longer than {limit} bytes (limits.field_bytes).", param=name)

    def _on_part_end(self) -> None:
        if self._part.is_file:
            self._file_ended = True
        else:
            self.fields.setdefault(self._part.name, []).append(self._part.value.decode(errors="replace"))

    def _on_end(self) -> None:
        self._is_complete = True
