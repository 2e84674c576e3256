"""Files on disk: their place, their end, and the room that they leave."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from eardrum.errors import StorageFullError
from eardrum.jobs import blobs
from eardrum.jobs.blobs import ORPHAN_AGE_S, BlobFolder


@pytest.fixture
def folder(tmp_path: Path) -> BlobFolder:
    made = BlobFolder(tmp_path / "files", 0)
    made.create()
    return made


async def test_a_file_has_its_place_only_when_it_is_whole(folder: BlobFolder, tmp_path: Path) -> None:
    async with folder.open_writer() as writer:
        await writer.write(b"one ")
        await writer.write(b"two")
        assert not folder.find_path("file-abc").exists()
        await writer.save("file-abc")
    assert folder.find_path("file-abc").read_bytes() == b"one two"
    assert writer.size == 7
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0, "for the owner alone"
    await folder.remove("file-abc")
    await folder.remove("file-abc")
    assert not folder.find_path("file-abc").exists()


async def test_what_was_not_saved_is_gone(folder: BlobFolder, tmp_path: Path) -> None:
    async with folder.open_writer() as writer:
        await writer.write(b"half")
    assert list((tmp_path / "files").iterdir()) == []


async def test_a_disk_that_is_nearly_full_takes_no_more(folder: BlobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10 << 20
    monkeypatch.setattr(blobs, "CHECK_BYTES", 1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    folder._free_bytes = 5 << 20
    async with folder.open_writer() as writer:
        await writer.write(bytes(2 << 20))
        free = 4 << 20
        with pytest.raises(StorageFullError, match="free_bytes"):
            await writer.write(b"more")
    with pytest.raises(StorageFullError):
        async with folder.open_writer():
            pass


async def test_only_old_files_without_a_record_are_orphans(folder: BlobFolder) -> None:
    for id in ("file-known", "file-orphan", "file-young"):
        async with folder.open_writer() as writer:
            await writer.save(id)
    left = folder._folder / "left.part"
    left.touch()
    old = time.time() - ORPHAN_AGE_S - 5
    for path in (left, folder.find_path("file-known"), folder.find_path("file-orphan")):
        os.utime(path, (old, old))
    await folder.remove_orphans({"file-known"})
    assert not left.exists()
    assert [folder.find_path(id).exists() for id in ("file-known", "file-orphan", "file-young")] == [True, False, True]
