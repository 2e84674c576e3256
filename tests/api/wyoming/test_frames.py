"""Bytes to events, however they are cut, and what is no frame."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wyoming.event import Event as TheirEvent
from wyoming.event import read_event, write_event

from eardrum.api.wyoming import protocol
from eardrum.api.wyoming.protocol import FrameDecoder, WyomingEvent, encode_event
from eardrum.errors import InvalidRequestError, TooLargeError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
EVENTS = st.builds(
    WyomingEvent,
    st.text(min_size=1),
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.binary(max_size=60),
)


def decode_pieces(pieces: list[bytes]) -> list[WyomingEvent]:
    """The events of bytes that come in these pieces, each event whole again."""
    reader, whole, payload = FrameDecoder(), [], b""
    for piece in pieces:
        for event in reader.feed(piece):
            payload += event.payload
            if not event.more:
                whole.append(WyomingEvent(event.type, event.data, payload))
                payload = b""
    assert not reader.is_midway
    return whole


@given(st.lists(EVENTS, max_size=4), st.lists(st.integers(0, 2000)))
def test_however_the_bytes_are_cut_the_events_are_the_same(events: list[WyomingEvent], cuts: list[int]) -> None:
    stream = b"".join(map(encode_event, events))
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    assert decode_pieces([stream[start:end] for start, end in pairwise(places)]) == events
    assert decode_pieces([bytes([byte]) for byte in stream]) == events


def test_the_data_may_be_in_the_line_behind_it_or_both() -> None:
    inline = b'{"type": "transcribe", "data": {"language": "en", "name": "a"}}\n'
    both = b'{"type": "transcribe", "data": {"language": "en", "name": "a"}, "data_length": 13}\n{"name": "b"}'
    assert decode_pieces([inline]) == [WyomingEvent("transcribe", {"language": "en", "name": "a"})]
    assert decode_pieces([both]) == [WyomingEvent("transcribe", {"language": "en", "name": "b"})]


def test_nothing_is_as_good_as_no_data() -> None:
    line = b'{"type": "describe", "data": null, "data_length": null, "payload_length": 0, "version": "1.10.2"}\n'
    assert decode_pieces([line]) == [WyomingEvent("describe")]


def test_a_payload_goes_on_as_it_comes() -> None:
    reader = FrameDecoder()
    assert list(reader.feed(b'{"type": "audio-chunk", "payload_length": 6}\nab')) == [
        WyomingEvent("audio-chunk", {}, b"ab", more=True)
    ]
    assert reader.is_midway
    assert list(reader.feed(b"cdef{")) == [WyomingEvent("audio-chunk", {}, b"cdef")]
    assert reader.is_midway


@given(EVENTS)
def test_the_official_package_reads_what_we_write_and_writes_what_we_read(event: WyomingEvent) -> None:
    with_file = BinaryPipe()
    write_event(TheirEvent(event.type, dict(event.data), event.payload or None), with_file)
    assert decode_pieces([with_file.data]) == [event]
    theirs = read_event(BinaryPipe(encode_event(event)))
    assert theirs
    assert (theirs.type, theirs.data, theirs.payload or b"") == (event.type, event.data, event.payload)


class BinaryPipe:
    """A binary file, of which the package uses this much."""

    def __init__(self, data: bytes = b""):
        self.data = data

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, lines: Any) -> None:
        self.data += b"".join(lines)

    def flush(self) -> None:
        pass

    def read(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def readline(self) -> bytes:
        return self.read(self.data.index(b"\n") + 1)


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"{}\n",
        b'{"type": 1}\n',
        b'{"type": "a", "data": []}\n',
        b'{"type": "a", "data_length": -1}\n',
        b'{"type": "a", "data_length": true}\n',
        b'{"type": "a", "data_length": "3"}\n',
        b'{"type": "a", "payload_length": 1.5}\n',
        b'{"type": "a", "payload_length": 99999999999999999999}\n',
        b'{"type": "a", "data_length": 1048577}\n',
        b'{"type": "a", "data_length": 3}\n[1]',
        b'{"type": "a", "data_length": 3}\nabc',
        b'{"type": "a", "x": ' + b"1" * 5000 + b"}\n",
    ],
)
def test_what_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        list(FrameDecoder().feed(line))


def test_an_endless_line_is_refused_before_it_ends() -> None:
    reader = FrameDecoder()
    assert list(reader.feed(b" " * protocol.MAX_LINE_BYTES)) == []
    with pytest.raises(InvalidRequestError, match="1048576 bytes"):
        list(reader.feed(b" "))


@pytest.mark.parametrize(
    "sent",
    [
        b'{"type": "\\ud800"}\n',
        b'{"type": "transcribe", "data": {"name": "\\udfff"}}\n',
        b'{"type": "transcribe", "data_length": 20}\n{"language":"\\uD800"}',
    ],
)
def test_half_a_character_is_no_event(sent: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        list(FrameDecoder().feed(sent))


@pytest.mark.parametrize(
    "inside", [b"[" * 500 + b"]" * 500, b"[" * 200_000, b"{" + b'"a":0,' * 150_000 + b'"a":0}', b"[" + b"[]," * 250_000 + b"1]"]
)
def test_what_is_too_deep_or_too_much_is_refused(inside: bytes) -> None:
    for frame in (
        b'{"type": "transcribe", "data": {"x": ' + inside + b"}}\n",
        b'{"type": "transcribe", "data_length": %d}\n{"x": %b}' % (len(inside) + 7, inside),
    ):
        with pytest.raises((InvalidRequestError, TooLargeError)):
            list(FrameDecoder().feed(frame))


def test_a_whole_one_is() -> None:
    (event,) = FrameDecoder().feed(b'{"type": "transcribe", "data": {"name": "\\ud83d\\ude00 \\\\ud800"}}\n')
    assert event.data == {"name": "\U0001f600 \\ud800"}
