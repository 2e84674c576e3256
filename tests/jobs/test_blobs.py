"""Files on disk and in a bucket: their place, their end, and the room that they leave."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from eardrum.errors import BusyError, ConfigError, StorageFullError
from eardrum.jobs import blobs
from eardrum.jobs.blobs import ORPHAN_AGE_S, BlobFolder
from eardrum.jobs.bucket import BlobBucket
from tests.jobs.buckets import build_bucket_environment, run_bucket_server


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    with run_bucket_server() as address:
        yield address


@pytest.fixture(params=["folder", pytest.param("bucket", marks=[pytest.mark.slow, pytest.mark.jobs])])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobFolder:
    if request.param == "folder":
        made = BlobFolder(tmp_path / "files", 0)
    else:
        for name, value in build_bucket_environment(request.getfixturevalue("bucket_server")).items():
            monkeypatch.setenv(name, value)
        made = BlobBucket(f"s3://jobs/{tmp_path.name}", tmp_path / "files", 0)
    made.create()
    return made


async def read(folder: BlobFolder, id: str) -> bytes | None:
    try:
        async with folder.open_copy(id) as path:
            return path.read_bytes()
    except FileNotFoundError:
        return None


async def save(folder: BlobFolder, id: str, *parts: bytes) -> None:
    async with folder.open_writer() as writer:
        for part in parts:
            await writer.write(part)
        assert await read(folder, id) is None, "a file is there only when it is whole"
        await writer.save(id)


async def test_a_file_is_there_once_it_is_whole(folder: BlobFolder, tmp_path: Path) -> None:
    await save(folder, "file-abc", b"one ", b"two")
    assert await read(folder, "file-abc") == b"one two"
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0, "for the owner alone"
    await folder.remove("file-abc")
    await folder.remove("file-abc")
    assert await read(folder, "file-abc") is None
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


async def test_a_large_file_comes_back_as_it_was(folder: BlobFolder) -> None:
    data = os.urandom(20 << 20)
    await save(folder, "file-large", data[: 7 << 20], data[7 << 20 :])
    assert await read(folder, "file-large") == data


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


async def test_only_old_files_without_a_record_are_orphans(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "files", 0)
    folder.create()
    for id in ("file-known", "file-orphan", "file-young"):
        await save(folder, id)
    left = tmp_path / "files" / "left.part"
    left.touch()
    old = time.time() - ORPHAN_AGE_S - 5
    for path in (left, folder.find_path("file-known"), folder.find_path("file-orphan")):
        os.utime(path, (old, old))
    await folder.remove_orphans({"file-known"})
    assert not left.exists()
    assert [folder.find_path(id).exists() for id in ("file-known", "file-orphan", "file-young")] == [True, False, True]


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.parametrize("folder", ["bucket"], indirect=True)
async def test_orphans_of_a_bucket(folder: BlobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    await save(folder, "file-known", b"known")
    await save(folder, "file-orphan", b"orphan")
    await folder.remove_orphans({"file-known"})
    assert await read(folder, "file-orphan") == b"orphan", "it is young"
    monkeypatch.setattr("eardrum.jobs.bucket.ORPHAN_AGE_S", -60.0)
    monkeypatch.setattr(blobs, "ORPHAN_AGE_S", -60.0)
    async with folder.open_copy("file-known") as path:
        await folder.remove_orphans({"file-known"})
        assert path.read_bytes() == b"known", "a copy that is being read stays"
    assert [await read(folder, id) for id in ("file-known", "file-orphan")] == [b"known", None]


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.parametrize("folder", ["bucket"], indirect=True)
async def test_a_bucket_that_cannot_be_used(folder: BlobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is not the address of a bucket"):
        BlobBucket("nonsense", tmp_path / "other", 0)
    with pytest.raises(ConfigError, match="The bucket s3:"):
        BlobBucket("s3://nothing/here", tmp_path / "other", 0).create()
    bucket = BlobBucket("s3://nothing/here", tmp_path / "files", 0)
    with pytest.raises(ConfigError, match="is gone"):
        async with bucket.open_writer() as writer:
            await writer.save("file-x")
    assert list((tmp_path / "files").iterdir()) == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = BlobBucket("s3://jobs/x", tmp_path / "other", 0)
    with pytest.raises(ConfigError, match="cannot be used"):
        gone.create()
    with pytest.raises(BusyError, match="does not answer"):
        await read(gone, "file-x")
