"""Forwards multipart forms byte for byte; only the value of `model` may change.

The form is parsed up to the field `model` and no further. What precedes it is held in a spool, which may be long when the
file is sent first; what follows is passed on as it arrives. So an upload takes constant memory however large it is, and an
upload for an unknown model is refused before it has arrived.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.multipart import parse_options_header

from eardrum.api.asgi import Scope, get_header
from eardrum.api.uploads import RequestBody
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError
from eardrum.gateway.spool import START_BYTES, Spool
from eardrum.gateway.upstreams.external import BodyStream

MODEL_FIELD = b"model"
MAX_HEAD_BYTES = 16 << 10
"""Bytes the headers of a part may take."""
LINE_BREAK = b"\r\n"


class ModelFieldParser:
    """Finds the field `model` in a form's bytes. Feed it until `over`; then `value` holds what was found, or None."""

    def __init__(self, boundary: bytes, limits: LimitSettings):
        self.is_done = False
        self.value: str | None = None
        self.place = (0, 0)
        """Where in the form's bytes the value begins and ends."""
        self._delimiter = LINE_BREAK + b"--" + boundary
        self._limits = limits
        self._parts = 0
        self._left: bytes = LINE_BREAK  # bytes not looked at yet; the first delimiter may lack what the others begin with
        self._at = -len(LINE_BREAK)  # where in the form they begin
        self._step = self._skip_part

    def feed(self, data: bytes) -> None:
        """Look at the next bytes.

        Raises:
            InvalidRequestError: this is no form, or more of one than is allowed.
        """
        self._left += data
        while not self.is_done and self._step():
            pass

    def _skip_part(self) -> bool:
        """Pass over a part, or over what precedes the first one."""
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
        self._drop(end)  # keeps the line break, so that a part without headers looks like one with them
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
        self.is_done, self.place = True, (self._at, self._at + end)
        self.value = self._left[:end].decode(errors="replace")
        return True

    def _drop(self, count: int) -> None:
        self._left, self._at = self._left[count:], self._at + count

    def _check_length(self, most: int, what: str) -> None:
        if len(self._left) > most + len(self._delimiter):
            raise InvalidRequestError(f"The form cannot be parsed: {what} takes more than {most} bytes.")


class ForwardedForm:
    """A form that is received and passed on at the same time. The spool takes what comes before `model`."""

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
        """Receive up to the field `model` and return its value; None if the form has none.

        Raises:
            EardrumError, ClientGoneError: as `Body.read`, or this is no form.
        """
        while not self._field.is_done and (chunk := await self._body.read()) is not None:
            self._field.feed(chunk)
            await self._spool.write(chunk)
        if not self._field.is_done:
            raise InvalidRequestError("The form ends in the middle: its closing boundary is missing.")
        return self._field.value

    async def read_beginning(self) -> None:
        """Receive so much that a model may be kept waiting for the rest."""
        while self._spool.size < START_BYTES and (chunk := await self._body.read()) is not None:
            await self._spool.write(chunk)

    def build_stream(self, model: str) -> BodyStream:
        """The form for the upstream, with another name for the model."""
        begin, end = self._field.place
        name = model.encode() if end > begin and model else b""
        size = self._size
        if name and size is not None:
            size += len(name) - (end - begin)
        return BodyStream(self._iterate_chunks((begin, end), name), size)

    async def _iterate_chunks(self, place: tuple[int, int], name: bytes) -> AsyncIterator[bytes]:
        async for chunk in _replace_bytes(self._iterate_received(), place, name) if name else self._iterate_received():
            yield chunk
        while (rest := await self._body.read()) is not None:
            if rest:
                yield rest

    async def _iterate_received(self) -> AsyncIterator[bytes]:
        self._spool.finish()
        async for chunk in self._spool.read():
            yield chunk


async def _replace_bytes(chunks: AsyncIterator[bytes], place: tuple[int, int], new: bytes) -> AsyncIterator[bytes]:
    """The chunks with the bytes at this place replaced by others. The place is not empty."""
    begin, end = place
    at = 0
    async for chunk in chunks:
        after = at + len(chunk)
        if after <= begin or at >= end:
            yield chunk
        else:
            middle = new if at <= begin else b""
            yield chunk[: max(0, begin - at)] + middle + chunk[max(0, end - at) :]
        at = after


def _is_text_field(lines: list[bytes], name: bytes) -> bool:
    """Whether these are the headers of a text field of that name."""
    for line in lines:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip())
            return options.get(b"name") == name and b"filename" not in options
    return False
