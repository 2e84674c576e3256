"""Bytes that are read as a stream and can be had again as a file, for containers of which FFmpeg must seek."""

from __future__ import annotations

from os import SEEK_END
from typing import Protocol

from eardrum.errors import EardrumError
from eardrum.runner.scratch import Scratch

IN_MEMORY = 1 << 20
"""Bytes kept before they go to the disk: most containers show their first samples before that."""

CHUNK = 1 << 20


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int) -> bytes:
        """Block until there are bytes; at most `size` of them, b"" at the end."""


class KeptStream:
    """Passes bytes on, and keeps what was read until it is told that nobody will want it again.

    FFmpeg takes it for a pipe, as it has no `seek`. Close it in the end.
    """

    def __init__(self, source: Readable):
        self._source = source
        self._kept: Scratch | None = Scratch(IN_MEMORY, "for a recording that must be put aside while it is decoded")
        self.failure: EardrumError | None = None
        """Why bytes could not be kept: FFmpeg may take that for the end of the file."""
        self.size = 0
        """Bytes read so far."""
        self.ended = False
        """Whether the last byte was read."""

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end. Called by PyAV.

        Raises:
            StorageFullError, DescriptorsError: there is no room to keep them.
        """
        chunk = self._source.read(size)
        self.size += len(chunk)
        self.ended = not chunk
        if self._kept:
            try:
                self._kept.write(chunk)
            except EardrumError as error:
                self.failure = error
                raise
        return chunk

    def head(self, size: int) -> bytes:
        """The first bytes, as far as they were read and are kept."""
        if not self._kept:
            return b""
        self._kept.seek(0)
        head = self._kept.read(size)
        self._kept.seek(0, SEEK_END)
        return head

    def forget(self) -> None:
        """It is not wanted again: from now on nothing is kept."""
        if self._kept:
            self._kept.close()
            self._kept = None

    def to_file(self) -> Scratch:
        """Wait for all bytes and give them as a file that can seek, from the start. It is closed with the stream."""
        assert self._kept
        while self.read(CHUNK):
            pass
        self._kept.seek(0)
        return self._kept

    def drain(self, size: int) -> None:
        """Read on to the end, or until so many bytes were read, and drop them."""
        self.forget()
        while self.size < size and self.read(CHUNK):
            pass

    close = forget
