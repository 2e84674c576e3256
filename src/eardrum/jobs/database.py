"""Databases behind the job store: a few statements of SQL in transactions. SQLite from the standard library is the default.

Statements are written with `?` for parameters, and in the part of SQL that SQLite and Postgres share.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from eardrum.concurrency import drop_error
from eardrum.errors import BusyError, ConfigError, StorageFullError

T = TypeVar("T")
Row = dict[str, Any]

LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for another process that has the file locked, such as a backup."""


class Transaction(ABC):
    """Statements that take effect together, or not at all."""

    @abstractmethod
    async def fetch(self, sql: str, *values: Any) -> list[Row]:
        """Run a statement and return its rows."""

    @abstractmethod
    async def execute(self, sql: str, *values: Any) -> int:
        """Run a statement and return the number of rows that it changed."""

    @abstractmethod
    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values.

        Raises:
            DuplicateRowError: a row breaks a rule of uniqueness. The transaction is over.
        """


class DuplicateRowError(Exception):
    """A row with this unique value is there already."""


class Database(ABC):
    """A database. `begin` is its only operation."""

    shared = False
    """Whether other servers may use it at the same time."""

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            EardrumError: the database cannot be used; the message says why.
        """

    @abstractmethod
    def begin(self, *, exclusive: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction, which an exception rolls back. An `exclusive` one waits for other exclusive ones.

        Raises:
            StorageFullError: the disk is full.
            BusyError: another process keeps the database locked.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""


class SqliteDatabase(Database):
    """A SQLite file with a write-ahead log, which no other process can open. One thread has the only connection."""

    def __init__(self, path: Path):
        self._path = path
        self._pool = ThreadPoolExecutor(1, "eardrum-jobs")
        self._turn = asyncio.Lock()
        self._connection: sqlite3.Connection

    async def open(self) -> None:
        try:
            await self._run(self._connect)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise

    def _connect(self) -> None:
        with suppress(OSError):
            self._path.touch(mode=0o600)  # its log gets the same mode; the transcripts in them are the owner's alone
        with _translate_errors(self._path):
            self._connection = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            try:
                for pragma in ("locking_mode = exclusive", "journal_mode = wal", "synchronous = full", "foreign_keys = on"):
                    self._connection.execute(f"pragma {pragma}").fetchall()
            except sqlite3.Error:
                self._connection.close()  # else it would keep its locks, and every later attempt would fail
                raise

    @asynccontextmanager
    async def begin(self, *, exclusive: bool = False) -> AsyncIterator[Transaction]:
        async with self._turn:
            try:
                await self._finish(lambda: self._connection.execute("begin immediate"))
                yield SqliteTransaction(self)
                await self._finish(self._connection.commit)
            except BaseException:  # a caller may be cancelled when the transaction has just begun
                await self._finish(self._connection.rollback)
                raise

    async def run_statement(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a statement in the database's thread. If the caller is cancelled, the rollback waits for it there."""
        return await self._run(lambda: work(self._connection))

    async def _finish(self, work: Callable[[], object]) -> None:
        """Run `work` to its end, also if the caller is cancelled meanwhile: a transaction must not stay open."""
        task = asyncio.ensure_future(self._run(work))
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            drop_error(task)
            raise asyncio.CancelledError
        task.result()

    async def _run(self, work: Callable[[], T]) -> T:
        def run() -> T:
            with _translate_errors(self._path):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    async def close(self) -> None:
        async with self._turn:
            await self._run(self._connection.close)
        self._pool.shutdown()


class SqliteTransaction(Transaction):
    """A transaction of SQLite."""

    def __init__(self, database: SqliteDatabase):
        self._database = database

    async def fetch(self, sql: str, *values: Any) -> list[Row]:
        return await self._database.run_statement(lambda connection: [dict(row) for row in connection.execute(sql, values)])

    async def execute(self, sql: str, *values: Any) -> int:
        return await self._database.run_statement(lambda connection: connection.execute(sql, values).rowcount)

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        await self._database.run_statement(lambda connection: connection.executemany(sql, rows))


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Translate SQLite's errors into errors for clients."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate_error(error, path) from error


def _translate_error(error: sqlite3.Error, path: Path) -> Exception:
    if isinstance(error, sqlite3.IntegrityError):
        return DuplicateRowError(str(error))
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        return StorageFullError(f"There is no room left for jobs in {path.parent}: free some space, or set jobs.dir.")
    if name.startswith("SQLITE_BUSY"):
        return BusyError(f"Another server, or another process, uses {path}: end it, or set jobs.dir.", retry_after=5.0)
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return ConfigError(f"{path} is damaged or no database of jobs ({error}): restore it, or move it away.")
    return ConfigError(f"The database of jobs {path} cannot be used: {error}.")
