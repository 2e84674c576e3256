"""An upload that is read while it is written."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from threading import Event, get_ident

import pytest

from eardrum.errors import StorageFullError
from eardrum.gateway import spool as module
from eardrum.gateway.spool import CHUNK_BYTES, MEMORY_BYTES, Spool, StoredFile


@pytest.fixture(params=[0, 4, 2 * CHUNK_BYTES + 1, MEMORY_BYTES])
def _memory_share(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an upload in the file, a little of it in memory, or most."""
    monkeypatch.setattr(module, "MEMORY_BYTES", request.param)


@pytest.fixture
def _no_memory_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)


async def read_all(source: Spool | StoredFile) -> bytes:
    return b"".join([chunk async for chunk in source.read()])


async def run_within(seconds: float, reading: AsyncIterator[bytes]) -> bytes:
    return await asyncio.wait_for(anext(reading), seconds)


@pytest.mark.usefixtures("_memory_share")
async def test_two_readers_follow_the_writer(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        one, other = spool.read(), spool.read()
        for piece in (b"abc", b"defg"):
            await spool.write(piece)
            for reading in (one, other):
                read = b""
                while len(read) < len(piece):  # what is in memory and what is in the file comes in two
                    read += await run_within(5, reading)
                assert read == piece
        waiting = asyncio.create_task(anext(one))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "read past the end"
        await spool.write(b"h")
        assert await asyncio.wait_for(waiting, 60) == b"h"
        spool.finish()
        assert await run_within(5, other) == b"h"
        for reading in (one, other):
            with pytest.raises(StopAsyncIteration):
                await run_within(5, reading)
        assert spool.size == 8


@pytest.mark.usefixtures("_memory_share")
async def test_a_late_reader_gets_everything(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        await spool.write(b"abc")
        await spool.write(b"def")
        assert b"abcdef".startswith(await run_within(5, spool.read()))
        spool.finish()
        assert await read_all(spool) == await read_all(spool) == b"abcdef"


async def test_an_empty_upload_ends(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        reading = asyncio.create_task(read_all(spool))
        await asyncio.sleep(0)
        spool.finish()
        assert await asyncio.wait_for(reading, 60) == b""


@pytest.mark.usefixtures("_memory_share")
async def test_big_writes_come_in_chunks(tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 17)
    with Spool(tmp_path) as spool:
        reading = asyncio.create_task(read_all(spool))
        for start in range(0, len(data), 1 << 19):
            await spool.write(data[start : start + (1 << 19)])
        spool.finish()
        assert await asyncio.wait_for(reading, 60) == data
        assert max([len(chunk) async for chunk in spool.read()]) <= CHUNK_BYTES


def list_entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def list_held_files(folder: Path) -> list[Path]:
    """Files of this process in `folder`, with or without a name."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.is_relative_to(folder)]


async def test_what_is_short_needs_no_file(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        await spool.write(bytes(MEMORY_BYTES))
        spool.finish()
        assert await read_all(spool) == bytes(MEMORY_BYTES)
        assert not list_held_files(tmp_path)


async def test_what_is_long_takes_no_more_memory(tmp_path: Path) -> None:
    piece = bytes(CHUNK_BYTES)
    with Spool(tmp_path) as spool:
        tracemalloc.start()
        try:
            for _ in range(8 * MEMORY_BYTES // CHUNK_BYTES):
                await spool.write(piece)
            assert tracemalloc.get_traced_memory()[0] < 1.5 * MEMORY_BYTES
        finally:
            tracemalloc.stop()


async def test_nothing_is_on_disk_by_name(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        await spool.write(bytes(MEMORY_BYTES) + b"secret")
        assert list_entries(tmp_path) == []
        assert list_held_files(tmp_path), "it is not in the folder it was told to use"
    assert not list_held_files(tmp_path)


@pytest.mark.usefixtures("_no_memory_share")
async def test_what_is_written_when_nobody_waits_any_more_reaches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused upload: its thread is late, and its file's number goes to whatever is opened next."""
    begun, go, write = Event(), Event(), os.write

    def late(fd: int, data: bytes) -> int:
        begun.set()
        assert go.wait(60)
        return write(fd, data)

    folder = tmp_path / "spools"
    folder.mkdir()
    with Spool(folder) as spool:
        writing = asyncio.create_task(spool.write(b"secret"))
        monkeypatch.setattr(os, "write", late)
        await asyncio.to_thread(begun.wait, 20)
        writing.cancel()
        await asyncio.wait([writing])
    with (tmp_path / "other").open("wb"):
        go.set()
        await asyncio.get_running_loop().shutdown_default_executor()
    assert (tmp_path / "other").read_bytes() == b""
    await asyncio.sleep(0)
    assert not list_held_files(folder)


class ThreadNotingFile(FileIO):
    """A file that notes which thread closes it."""

    closed_by = 0

    def close(self) -> None:
        ThreadNotingFile.closed_by = ThreadNotingFile.closed_by or get_ident()
        super().close()


@pytest.mark.parametrize("closed_aside", [True, False])
async def test_what_is_long_is_not_closed_by_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_aside: bool
) -> None:
    """Freeing the pages of gigabytes takes long enough for others to notice; those of a few megabytes cost less than a thread."""
    monkeypatch.setattr(ThreadNotingFile, "closed_by", 0)
    piece = bytes(MEMORY_BYTES)
    with Spool(tmp_path) as spool:
        for _ in range(8 if closed_aside else 2):
            await spool.write(piece)
        assert spool._file
        noted = ThreadNotingFile(os.dup(spool._file.fileno()), "r+")
        spool._file.close()
        spool._file = noted
        spool.finish()
        assert len(await read_all(spool)) == spool.size
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not list_held_files(tmp_path)
    assert (ThreadNotingFile.closed_by == get_ident()) is not closed_aside


async def test_what_was_left_is_not_opened_again(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for _ in range(9):
            await spool.write(bytes(MEMORY_BYTES))
    with pytest.raises(ValueError, match="over"):
        await spool.write(b"more")
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not list_held_files(tmp_path)


def test_it_can_be_left_without_a_loop(tmp_path: Path) -> None:
    async def filled() -> Spool:
        spool = Spool(tmp_path).__enter__()
        for _ in range(9):
            await spool.write(bytes(MEMORY_BYTES))
        return spool

    asyncio.run(filled()).__exit__(None, None, None)
    assert not list_held_files(tmp_path)


@pytest.mark.usefixtures("_no_memory_share")
async def test_a_full_disk_is_said_and_not_counted(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        await spool.write(b"abc")
        # The kernel's own full disk, in the place of the file.
        assert spool._file
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, spool._file.fileno())
        os.close(full)
        with pytest.raises(StorageFullError) as caught:
            await spool.write(b"def")
        assert caught.value.status == 507
        assert "spool_dir" in caught.value.message
        assert spool.size == 3


async def test_a_stored_file_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "audio"
    data = os.urandom(CHUNK_BYTES + 5)
    path.write_bytes(data)
    file = StoredFile(path)
    assert await read_all(file) == await read_all(file) == data
    path.unlink()
