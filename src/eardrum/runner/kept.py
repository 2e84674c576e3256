"""Bytes that are read as a stream and can be had again as a file, for containers of which FFmpeg must seek."""

from __future__ import annotations

import errno
import tempfile
from os import SEEK_END
from typing import IO, Protocol, cast

from eardrum.errors import StorageFullError

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
        self._kept: IO[bytes] | None = cast(IO[bytes], tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="eardrum-"))  # noqa: SIM115
        self.size = 0
        """Bytes read so far."""
        self.ended = False
        """Whether the last byte was read."""

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end. Called by PyAV.

        Raises:
            StorageFullError: there is no room to keep them.
        """
        chunk = self._source.read(size)
        self.size += len(chunk)
        self.ended = not chunk
        if self._kept:
            _write(self._kept, chunk)
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

    def to_file(self) -> IO[bytes]:
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


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageFullError("There is no room left for a file that must be read from a disk: free some.") from error
