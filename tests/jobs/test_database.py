"""The SQLite file: newer, older, damaged, locked and full stores."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eardrum.errors import BusyError, ConfigError, StorageFullError
from eardrum.jobs import database
from eardrum.jobs.database import SqliteDatabase
from eardrum.jobs.records import FileRecord
from eardrum.jobs.store import JobStore
from eardrum.jobs.tables import MIGRATIONS


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[JobStore]:
    store = JobStore(SqliteDatabase(path))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def run_sql(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(sql).fetchall()
    finally:
        connection.close()


def list_modes(folder: Path) -> list[int]:
    return [file.stat().st_mode & 0o777 for file in folder.iterdir()]


async def test_a_store_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_store(path) as store:
        await store.add_file(FileRecord("file-1", "", "batch", "x", 1, 1.0))
    async with open_store(path) as store:
        assert await store.get_file("file-1")
        assert list_modes(tmp_path) == [0o600, 0o600], "the file and its log are the owner's alone"
    assert run_sql(path, "select version from store_version") == [(len(MIGRATIONS),)]


async def test_a_newer_store_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_store(path):
        pass
    run_sql(path, "update store_version set version = 99")
    with pytest.raises(ConfigError, match="has version 99"):
        async with open_store(path):
            pass
    assert run_sql(path, "select version from store_version") == [(99,)]


async def test_an_older_store_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "s"
    run_sql(path, "create table store_version (version bigint not null)")
    async with open_store(path) as store:
        await store.add_file(FileRecord("file-1", "", "batch", "x", 1, 1.0))


async def test_a_migration_that_fails_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    async with open_store(path) as store:
        await store.add_file(FileRecord("file-1", "", "batch", "x", 1, 1.0))
    monkeypatch.setattr("eardrum.jobs.tables.MIGRATIONS", (*MIGRATIONS, "alter table file add column more text; nonsense"))
    with pytest.raises(ConfigError, match="cannot be used"):
        async with open_store(path):
            pass
    monkeypatch.undo()
    async with open_store(path) as store:
        assert await store.get_file("file-1")
    assert "more" not in str(run_sql(path, "select sql from sqlite_master where name = 'file'"))


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"something else " * 1000)
    with pytest.raises(ConfigError, match="damaged or no database"):
        async with open_store(path):
            pass
    with pytest.raises(ConfigError, match="cannot be used"):
        async with open_store(tmp_path / "nowhere" / "s"):
            pass


async def test_a_second_server_on_one_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.1)
    async with open_store(path):
        with pytest.raises(BusyError, match="Another server"):
            async with open_store(path):
                pass
    async with open_store(path):
        pass


async def test_a_full_disk_is_507_and_nothing_is_half_written(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s") as store:
        async with store.database.begin() as tx:
            await tx.fetch("pragma max_page_count = 1")
        large = FileRecord("file-large", "", "batch", "x" * 100_000, 1, 1.0)
        with pytest.raises(StorageFullError, match="no room left for jobs"):
            await store.add_file(large)
        assert await store.get_file("file-large") is None
        async with store.database.begin() as tx:
            await tx.fetch("pragma max_page_count = 1000000")
        await store.add_file(FileRecord("file-after", "", "batch", "x", 1, 1.0))
