"""Bytes to events and back. Pure, and bounded whatever the lengths in a frame say.

A frame is a line of JSON (`type`, perhaps `data`), then `data_length` bytes of JSON that go over the line's `data`, then
`payload_length` bytes. Source: the format of the `wyoming` package, 1.7 to 1.10.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eardrum import json_text
from eardrum.api.whole_text import check_whole
from eardrum.errors import InvalidRequestError

LINE = DATA = 1 << 20
"""Most bytes of a line, and of the JSON behind it: the names of everything in a house fit in."""
PAYLOAD = 1 << 30
"""Longest payload. It is not held but passed on as it comes; more is no length anybody means."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, or a piece of one: a long payload makes several with the same type and data."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    more: bool = False
    """Whether more of the payload is to come."""


class Frames:
    """Takes bytes as they come and gives the events in them."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._head: _Head | None = None

    @property
    def midway(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return bool(self._held) or self._head is not None

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events, or pieces of them, that `data` completes.

        Raises:
            InvalidRequestError: these are no frames, or one is longer than allowed. Nothing after it can be read.
        """
        self._held += data
        while event := self._next():
            yield event

    def _next(self) -> Event | None:
        if not self._head:
            line = self._line()
            if line is None:
                return None
            self._head = _Head(line)
        if self._head.data_left:
            if len(self._held) < self._head.data_left:
                return None
            self._head.add(self._taken(self._head.data_left))
        return self._piece(self._head)

    def _line(self) -> bytes | None:
        end = self._held.find(b"\n", 0, LINE + 1)
        if end < 0 and len(self._held) > LINE:
            raise InvalidRequestError(f"A line of more than {LINE} bytes is no Wyoming event.")
        return self._taken(end + 1) if end >= 0 else None

    def _piece(self, head: _Head) -> Event | None:
        if head.payload_left and not self._held:
            return None
        piece = self._taken(min(head.payload_left, len(self._held)))
        head.payload_left -= len(piece)
        if not head.payload_left:
            self._head = None
        return Event(head.type, head.data, piece, more=head.payload_left > 0)

    def _taken(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


class _Head:
    """The first part of a frame, and what is still to come of it."""

    def __init__(self, line: bytes):
        parsed = _parsed(line)
        kind = parsed.get("type")
        if not isinstance(kind, str):
            raise InvalidRequestError("A Wyoming event has a `type`, which is a text.")
        self.type = kind
        self.data = _object(parsed.get("data"))
        self.data_left = _length(parsed, "data_length", DATA)
        self.payload_left = _length(parsed, "payload_length", PAYLOAD)

    def add(self, block: bytes) -> None:
        self.data = {**self.data, **_parsed(block)}
        self.data_left = 0


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        parsed = json_text.parsed(text)
    except ValueError:
        raise InvalidRequestError("What came is no Wyoming event, which begins with a line of JSON.") from None
    check_whole(text, parsed)
    return _object(parsed)


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError("A Wyoming event and its `data` are JSON objects.")
    return value


def _length(parsed: dict[str, Any], name: str, most: int) -> int:
    length = parsed.get(name)
    if length is None:
        return 0
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= most:
        raise InvalidRequestError(f"The `{name}` of a Wyoming event is a number from 0 to {most}.")
    return length


def written(event: Event) -> bytes:
    """The event as a frame, its data behind the line as the `wyoming` package writes it."""
    data = json.dumps(event.data, ensure_ascii=False).encode() if event.data else b""
    lengths = {"data_length": len(data), "payload_length": len(event.payload)}
    head: dict[str, Any] = {"type": event.type} | {name: length for name, length in lengths.items() if length}
    return b"".join((json.dumps(head).encode(), b"\n", data, event.payload))
