"""Postgres behind the job store, so that several servers share their jobs. Needs the package `asyncpg`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import asyncpg

from eardrum.errors import BusyError, ConfigError, StorageFullError
from eardrum.jobs.database import Database, DuplicateRowError, Row, Transaction

MAX_CONNECTIONS = 4
CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0

TRANSIENT_ERRORS = (
    *(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError),
    *(asyncpg.OperatorInterventionError, asyncpg.TransactionRollbackError, asyncpg.InsufficientResourcesError),
)
"""Errors of the server or the way to it, after which the same statement may succeed."""

EXCLUSIVE_LOCK = 0x656172
"""Number of the lock that exclusive transactions take."""


class PostgresDatabase(Database):
    """A database of Postgres 12 or later."""

    shared = True

    def __init__(self, address: str):
        self._address = address
        self._pool: Any = None

    async def open(self) -> None:
        try:
            self._pool = await asyncpg.create_pool(
                self._address,
                min_size=1,
                max_size=MAX_CONNECTIONS,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
            )
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ConfigError(f"The database {self._address} (jobs.database) cannot be used: {error}.") from error

    @asynccontextmanager
    async def begin(self, *, exclusive: bool = False) -> AsyncIterator[Transaction]:
        try:
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection, connection.transaction():
                if exclusive:
                    await connection.execute("select pg_advisory_xact_lock($1)", EXCLUSIVE_LOCK)
                yield PostgresTransaction(connection)
        except asyncpg.DiskFullError as error:
            raise StorageFullError("There is no room left for jobs: the disk of their database is full.") from error
        except TRANSIENT_ERRORS as error:
            raise BusyError(f"The database of jobs failed: {str(error) or type(error).__name__}.", retry_after=5.0) from error

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT_S)
        except TRANSIENT_ERRORS:  # it cannot be reached
            self._pool.terminate()


class PostgresTransaction(Transaction):
    """A transaction of Postgres."""

    def __init__(self, connection: Any):
        self._connection = connection

    async def fetch(self, sql: str, *values: Any) -> list[Row]:
        return [dict(row) for row in await self._connection.fetch(number_parameters(sql), *values)]

    async def execute(self, sql: str, *values: Any) -> int:
        status: str = await self._connection.execute(number_parameters(sql), *values)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        try:
            await self._connection.executemany(number_parameters(sql), rows)
        except asyncpg.UniqueViolationError as error:
            raise DuplicateRowError(str(error)) from error


@lru_cache(maxsize=256)
def number_parameters(sql: str) -> str:
    """Number the parameters as Postgres requires: `$1` for the first `?`."""
    numbers = iter(range(1, 1000))
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)
