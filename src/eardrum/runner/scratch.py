"""Bytes put aside: in memory, and on the disk once they are many."""

from __future__ import annotations

import io
import os
import tempfile
from os import SEEK_SET
from typing import IO

from eardrum.errors import shortage


class Scratch:
    """A file that can be written, sought in and read. On the disk it has no name: it is gone with the process, whatever happens.

    It lies where `TMPDIR` says and nowhere else: Python would go on to other folders if that one is full, and to the working
    directory in the end. Nothing is buffered, so that a full disk is met where it is written to.
    """

    def __init__(self, in_memory: int, what: str):
        """`what` is what it is for, in the words of an error."""
        self._in_memory = in_memory
        self._what = what
        self._file: IO[bytes] = io.BytesIO()
        self._on_disk = False

    def write(self, data: bytes) -> None:
        """Put bytes at the current place.

        Raises:
            StorageFullError: there is no room.
            DescriptorsError: no more files can be opened.
        """
        try:
            if not self._on_disk and self._file.tell() + len(data) > self._in_memory:
                self._to_disk()
            _write_all(self._file, data)
        except OSError as error:
            if known := shortage(error, self._what):
                raise known from error
            raise

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to another place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current place."""
        return self._file.tell()

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def _to_disk(self) -> None:
        held, at = self._file, self._file.tell()
        assert isinstance(held, io.BytesIO)
        file = tempfile.TemporaryFile(prefix="eardrum-", dir=os.environ.get("TMPDIR"), buffering=0)  # noqa: SIM115
        try:
            _write_all(file, held.getvalue())
            file.seek(at)
        except BaseException:
            file.close()
            raise
        held.close()
        self._file, self._on_disk = file, True


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
