"""Reads request bodies within limits, and multipart forms as they arrive: text fields into memory, the one file into a spool."""

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
from eardrum.gateway.slow_clients import SENDING_CLIENT, SendRateMeter
from eardrum.gateway.spool import Spool

MIN_BYTES_PER_S = 32
"""Bytes a second. Speech at the lowest rate of any codec has ten times as many, silence twice."""

HEAD_BYTES, HEAD_LINES = 8 << 10, 16
"""Of the headers of one part: the longest line, and how many there may be. A name of a file may be long, and nothing else is."""

FormFields = dict[str, list[str]]
"""Text fields by name, brackets kept, in the order they came."""


class RequestBody:
    """A request's body with its limits: bytes are counted as they arrive, and silence has an end.

    `received` is set once all of it is here.
    """

    def __init__(self, scope: Scope, receive: Receive, limits: LimitSettings, *, limit: str = "upload_bytes"):
        self._receive = receive
        self._waiting = scope.get(STALL_TIMEOUTS_KEY) or StallTimeouts()
        self._arrived = scope.get("extensions", {}).get("eardrum.arrived")
        self._limit = limit
        self._max: int = getattr(limits, limit)
        self._stall = limits.stall_seconds
        self._size = 0
        self._waited = 0.0
        self._waited_for = 0
        """Bytes that came in this time."""
        self._pace = SendRateMeter()
        self._patience: asyncio.Timeout | None = None
        self._over: EardrumError | None = None
        self.received = asyncio.Event()
        announced = get_header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self._max:
            self._refuse()
        SENDING_CLIENT.set(self)

    @property
    def is_slow(self) -> bool:
        """Whether so little of it comes that others may have its place at a model."""
        return not self.received.is_set() and self._pace.is_slow

    def give_up_place(self) -> None:
        """Read no more of it: another request gets its place."""
        self._over = ClientStalledError(
            "Too little of the upload came to hold a place at the model while others waited for one: send it faster, or again."
        )
        if self._patience:
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def read(self) -> bytes | None:
        """The next bytes, None at the end.

        Raises:
            TooLargeError: more bytes came than allowed.
            StalledError: the client fell silent, or nearly so.
            ShuttingDownError: the server has to end.
            ClientGoneError: the client hung up.
        """
        if self.received.is_set():
            return None
        here = self._arrived and self._arrived["call"]()
        if here:
            message = await self._receive()
        else:
            began = time.monotonic()
            message = await self._message()
            self._check_rate(time.monotonic() - began, len(message.get("body", b"")))
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if not message.get("more_body", False):
            self.received.set()
        chunk: bytes = message.get("body", b"")
        self._pace.record_bytes(len(chunk))
        self._size += len(chunk)
        if self._size > self._max:
            self._refuse()
        return chunk

    async def _message(self) -> Message:
        """What the client sends next, unless it is to give way."""
        if self._over:
            raise self._over
        self._pace.start_waiting()
        try:
            async with asyncio.timeout(None) as self._patience:
                return await self._waiting.receive_message(self._receive, self._stall)
        except TimeoutError:
            assert self._over
            raise self._over from None
        finally:
            self._patience = None

    async def wait_for_disconnect(self) -> NoReturn:
        """Wait for the client to hang up.

        Raises:
            ClientGoneError: it did.
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientGoneError

    def _check_rate(self, waited: float, size: int) -> None:
        """Give up one who drips as one who is silent. The time counts in which nobody but the client was waited for."""
        self._waited += waited
        self._waited_for += size
        if self._waited < self._stall:
            return
        if self._waited_for < MIN_BYTES_PER_S * self._waited and not self.received.is_set():
            message = f"Fewer than {MIN_BYTES_PER_S} bytes a second arrived for {self._waited:.0f} s in the middle of the upload."
            raise ClientStalledError(message)
        self._waited, self._waited_for = 0.0, 0

    def _refuse(self) -> NoReturn:
        param = "file" if self._limit == "upload_bytes" else None
        raise TooLargeError(f"The request is larger than {self._max:,} bytes (limits.{self._limit}).", param=param)


@dataclass(slots=True)
class FormPart:
    """The part of the form that is being read."""

    name: str = ""
    is_file: bool = False
    content_type: str = ""
    value: bytearray = field(default_factory=bytearray)


class MultipartForm:
    """One multipart form. First `until_file`, then `pour`."""

    def __init__(self, scope: Scope, body: RequestBody, limits: LimitSettings):
        self.fields: FormFields = {}
        self.file_content_type = ""
        self._body = body
        self._limits = limits
        self._part = FormPart()
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._file_data = bytearray()
        self._file_begun = self._file_ended = self._complete = False
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
            raise InvalidRequestError(f"The form's boundary cannot be used: {error}") from error

    async def read_until_file(self) -> bool:
        """Read until the file begins; True if it does. `fields` then holds the fields sent before it.

        Raises:
            InvalidRequestError: the form is malformed or has too many fields, or one that is too long.
            EardrumError, ClientGoneError: as `Body.read`.
        """
        while not self._file_begun and (chunk := await self._body.read()) is not None:
            self._feed(chunk)
        return self._file_begun

    async def read_file(self, spool: Spool) -> None:
        """Read the rest: the file into `spool`, as it comes, and the fields after it into `fields`."""
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
        if not self._complete:
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
        self._part = FormPart(name, is_file=b"filename" in options or name == "file")
        if self._part.is_file:
            if name != "file":
                raise InvalidRequestError(f"The audio belongs into the field 'file', not {name!r}.", param="file")
            if self._file_begun:
                raise InvalidRequestError("The form holds two files: send one per request.", param="file")
            self._file_begun = True
            self.file_content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        elif sum(map(len, self.fields.values())) >= self._limits.fields:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._file_data += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > self._limits.field_bytes:
            name, most = self._part.name, self._limits.field_bytes
            raise InvalidRequestError(f"The field {name!r} is longer than {most} bytes.", param=name)

    def _on_part_end(self) -> None:
        if self._part.is_file:
            self._file_ended = True
        else:
            self.fields.setdefault(self._part.name, []).append(self._part.value.decode(errors="replace"))

    def _on_end(self) -> None:
        self._complete = True
