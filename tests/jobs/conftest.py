"""The store of jobs on each database that it can have. The tests are the same for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eardrum.jobs.database import SqliteDatabase
from eardrum.jobs.store import JobStore
from tests.jobs.databases import create_postgres_store, run_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[None]:
    """A running Postgres."""
    with run_postgres():
        yield


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.slow, pytest.mark.jobs])])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """An empty store."""
    if request.param == "sqlite":
        made = JobStore(SqliteDatabase(tmp_path / "jobs.sqlite"))
        await made.open()
    else:
        request.getfixturevalue("postgres")
        made = await create_postgres_store()
    try:
        yield made
    finally:
        await made.close()
