"""Forwards multipart forms byte for byte; only the value of `model` may change.

The form is parsed up to the field `model` and no further. A spool holds everything before it, which is long when the file
comes first; the rest is forwarded as it arrives. So an upload of any size takes constant memory, and an upload for an unknown
model is refused early.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.multipart import parse_options_header

from eardrum.api.asgi import Scope, get_header
from eardrum.api.request_body import RequestBody
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError
from eardrum.gateway.spool import START_BYTES, Spool
from eardrum.gateway.upstreams.http_client import BodyStream

MODEL_FIELD = b"model"
MAX_HEAD_BYTES = 16 << 10
"""Maximum bytes of a part's headers."""
LINE_BREAK = b"\r\n"


class ModelFieldParser:
    """Finds the field `model` in a form's bytes. After `is_done`, `value` holds the field's value, or None."""

    def __init__(self, boundary: bytes, limits: LimitSettings):
        self.is_done = False
        self.value: str | None = None
        self.span = (0, 0)
        """Start and end of the value in the form's bytes."""
        self._delimiter = LINE_BREAK + b"--" + boundary
        self._limits = limits
        self._parts = 0
        self._left: bytes = LINE_BREAK  # unparsed bytes; the first delimiter may lack the line break of the others
        self._at = -len(LINE_BREAK)  # offset of `_left` in the form
        self._step = self._skip_part

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            InvalidRequestError: the bytes are not a form, or exceed its limits.
        """
        self._left += data
        while not self.is_done and self._step():
            pass

    def _skip_part(self) -> bool:
        """Skip a part, or the preamble before the first one."""
        found = self._left.find(self._delimiter)
        if found < 0:
            self._drop(max(0, len(self._left) - len(self._delimiter) + 1))
            return False
        self._drop(found + len(self._delimiter))
        self._step = self._read_delimiter
        return True

    def _read_delimiter(self) -> bool:
        if self._left.startswith(b"--"):
            self.is_done = True
            return True
        end = self._left.find(LINE_BREAK)
        if end < 0:
            self._check_length(MAX_HEAD_BYTES, "a line after its boundary")
            return False
        self._parts += 1
        if self._parts > self._limits.fields:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields before `model`: send `model` first.")
        self._drop(end)  # keeps the line break, so that a part without headers parses like one with them
        self._step = self._read_head
        return True

    def _read_head(self) -> bool:
        end = self._left.find(LINE_BREAK + LINE_BREAK)
        if end < 0:
            self._check_length(MAX_HEAD_BYTES, "the headers of a part")
            return False
        lines = self._left[:end].split(LINE_BREAK)
        self._drop(end + 2 * len(LINE_BREAK))
        self._step = self._read_value if _is_text_field(lines, MODEL_FIELD) else self._skip_part
        return True

    def _read_value(self) -> bool:
        end = self._left.find(self._delimiter)
        if end < 0:
            self._check_length(self._limits.field_bytes, "the field 'model'")
            return False
        self.is_done, self.span = True, (self._at, self._at + end)
        self.value = self._left[:end].decode(errors="replace")
        return True

    def _drop(self, count: int) -> None:
        self._left, self._at = self._left[count:], self._at + count

    def _check_length(self, limit: int, element: str) -> None:
        if len(self._left) > limit + len(self._delimiter):
            raise InvalidRequestError(f"The form cannot be parsed: {element} takes more than {limit} bytes.")


class ForwardedForm:
    """A form that is received and forwarded at the same time. The spool holds the bytes up to `model`."""

    def __init__(self, scope: Scope, body: RequestBody, limits: LimitSettings, spool: Spool):
        _, options = parse_options_header(get_header(scope, b"content-type"))
        if not (boundary := options.get(b"boundary")):
            raise InvalidRequestError("The form has no boundary in its content-type header.")
        length = get_header(scope, b"content-length")
        self._size = int(length) if length.isdigit() else None
        self._body = body
        self._field = ModelFieldParser(boundary, limits)
        self._spool = spool

    async def read_until_model(self) -> str | None:
        """Receive up to the field `model` and return its value, or None if the form has none.

        Raises:
            EardrumError, ClientGoneError: as `RequestBody.read`, or the body is not a form.
        """
        while not self._field.is_done and (chunk := await self._body.read()) is not None:
            self._field.feed(chunk)
            await self._spool.write(chunk)
        if not self._field.is_done:
            raise InvalidRequestError("The form ends in the middle: its closing boundary is missing.")
        return self._field.value

    async def read_beginning(self) -> None:
        """Receive as much as must have arrived before the request takes a slot at a model."""
        while self._spool.size < START_BYTES and (chunk := await self._body.read()) is not None:
            await self._spool.write(chunk)

    def build_stream(self, model: str) -> BodyStream:
        """Return the form for the upstream, with another model name unless `model` is empty."""
        start, end = self._field.span
        name = model.encode() if end > start and model else b""
        size = self._size
        if name and size is not None:
            size += len(name) - (end - start)
        return BodyStream(self._iterate_chunks((start, end), name), size)

    async def _iterate_chunks(self, span: tuple[int, int], name: bytes) -> AsyncIterator[bytes]:
        async for chunk in _replace_bytes(self._iterate_received(), span, name) if name else self._iterate_received():
            yield chunk
        while (rest := await self._body.read()) is not None:
            if rest:
                yield rest

    async def _iterate_received(self) -> AsyncIterator[bytes]:
        self._spool.finish()
        async for chunk in self._spool.read():
            yield chunk


async def _replace_bytes(chunks: AsyncIterator[bytes], span: tuple[int, int], new: bytes) -> AsyncIterator[bytes]:
    """Yield the chunks with the bytes of a non-empty span replaced."""
    start, end = span
    at = 0
    async for chunk in chunks:
        after = at + len(chunk)
        if after <= start or at >= end:
            yield chunk
        else:
            middle = new if at <= start else b""
            yield chunk[: max(0, start - at)] + middle + chunk[max(0, end - at) :]
        at = after


def _is_text_field(lines: list[bytes], name: bytes) -> bool:
    """Whether these headers belong to a text field with this name."""
    for line in lines:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip())
            return options.get(b"name") == name and b"filename" not in options
    return False
