"""Server-sent events out of bytes that come in any pieces. Pure."""

from __future__ import annotations

import re

from eardrum.errors import UpstreamError

EVENT_BYTES = 16 << 20
"""Longest event that is waited for."""

END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
"""End of a line. A `\\r` at the end of what has come may be half of a `\\r\\n`."""


class Events:
    """The data of each event, comments and other fields left out."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that `piece` completes.

        Raises:
            UpstreamError: an event without end.
        """
        self._line += piece
        found: list[str] = []
        at = 0
        for end in END.finditer(self._line, max(0, len(self._line) - len(piece) - 1)):
            found += self._take(bytes(self._line[at : end.start()]))
            at = end.end()
        del self._line[:at]
        if len(self._line) + self._size > EVENT_BYTES:
            raise UpstreamError(f"The server behind the model sent an event of more than {EVENT_BYTES} bytes.")
        return found

    def end(self) -> list[str]:
        """What was still open when the stream ended."""
        line = bytes(self._line).removesuffix(b"\r")
        self._line.clear()
        return [*self._take(line), *self._take(b"")]

    def _take(self, line: bytes) -> list[str]:
        if not line:
            text = "\n".join(self._data)
            self._data, self._size = [], 0
            return [text] if text else []
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode(errors="replace"))
            self._size += len(value)
        return []
