"""The records of files: uploads, and what jobs have written. Their bytes are in a `BlobFolder`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eardrum.errors import FileElsewhereError
from eardrum.jobs.database import Database, Row
from eardrum.jobs.records import OPEN_STATUSES, FileRecord, ItemStatus, JobRecord, JobStatus
from eardrum.jobs.tables import exclude_values, insert_file, read_file

IS_UNNEEDED = (
    "not exists (select 1 from item i where i.file = file.id and i.status in (?, ?)) "
    "and not exists (select 1 from job j where j.input_file = file.id and j.status = ?)"
)
"""The condition that no job that has not ended needs the file; its parameters are `NEEDS`."""
NEEDS = (*OPEN_STATUSES, JobStatus.VALIDATING)


ELSEWHERE_S = 1800.0
"""For so long a server leaves what needs a file that it lacks to other servers: it must not use up all tries alone."""


class FileStore:
    """The files in a database."""

    def __init__(self, database: Database):
        self.database = database
        self._missing: dict[str, float] = {}
        """Files that this server lacks although they have a record, and until when others are to look for them, by Unix time."""

    async def add_file(self, file: FileRecord) -> None:
        """Add a file whose bytes are on disk."""
        async with self.database.begin() as tx:
            await insert_file(tx, file)

    async def get_file(self, id: str, owner: str | None = None) -> FileRecord | None:
        """Return a file, if there is one and it belongs to `owner`."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select * from file where id = ?", id)
        found = read_file(rows[0]) if rows else None
        return found if found and owner in (None, found.owner) else None

    async def check_missing_file(self, id: str, now: float) -> None:
        """Check that a file that is missing on this server was deleted.

        Raises:
            FileElsewhereError: it has a record, so another server on this store may have it. This one claims nothing that
                needs it for a while.
        """
        if self.database.shared and await self.get_file(id):
            self._missing[id] = now + ELSEWHERE_S
            raise FileElsewhereError(
                f"The file {id} is missing on this server, although the database of jobs has its record: all servers must use "
                "the same folder (jobs.dir) or bucket (jobs.bucket). Is it mounted?"
            )

    def _list_missing_files(self, now: float) -> list[str]:
        self._missing = {id: until for id, until in self._missing.items() if now < until}
        return list(self._missing)

    async def find_files(self, owner: str, ids: Iterable[str]) -> set[str]:
        """Return those of the ids that are files of this owner."""
        wanted = sorted(set(ids))
        if not wanted:
            return set()
        listed = ", ".join("?" * len(wanted))
        async with self.database.begin() as tx:
            rows = await tx.fetch(f"select id from file where owner = ? and hidden = 0 and id in ({listed})", owner, *wanted)
        return {row["id"] for row in rows}

    async def list_files(
        self, owner: str, *, after: FileRecord | None = None, limit: int, ascending: bool = False, purpose: str = ""
    ) -> list[FileRecord]:
        """List an owner's files, the newest first unless `ascending`, after the file `after`."""
        sql, values = "select * from file where owner = ? and hidden = 0", [owner]
        if purpose:
            sql, values = f"{sql} and purpose = ?", [*values, purpose]
        return [read_file(row) for row in await self._fetch_page(sql, values, after, limit, ascending=ascending)]

    async def _fetch_page(
        self, sql: str, values: Sequence[Any], after: FileRecord | JobRecord | None, limit: int, *, ascending: bool = False
    ) -> list[Row]:
        """Fetch the rows of a query in the order of their creation, the newest first unless `ascending`, after a record."""
        sign, order = (">", "asc") if ascending else ("<", "desc")
        if after:
            sql, values = f"{sql} and (created_at, id) {sign} (?, ?)", [*values, after.created_at, after.id]
        async with self.database.begin() as tx:
            return await tx.fetch(f"{sql} order by created_at {order}, id {order} limit ?", *values, limit)

    async def delete_file(self, id: str) -> bool:
        """Delete a file's record, unless a job still needs it; returns whether it was deleted."""
        async with self.database.begin() as tx:
            return await tx.execute(f"delete from file where id = ? and {IS_UNNEEDED}", id, *NEEDS) > 0

    async def list_expired_files(self, now: float) -> list[str]:
        """List files, a thousand at most, whose time is over and that no job needs. Needed ones must not hide the others."""
        async with self.database.begin() as tx:
            rows = await tx.fetch(f"select id from file where expires_at <= ? and {IS_UNNEEDED} limit 1000", now, *NEEDS)
        return [row["id"] for row in rows]

    async def list_file_ids(self) -> set[str]:
        """List all files."""
        async with self.database.begin() as tx:
            return {row["id"] for row in await tx.fetch("select id from file")}

    async def list_stocked_models(self, least: int, *, excluded_owners: Sequence[str] = ()) -> list[str]:
        """List the models that at least so many items wait for whose audio was fetched, and is on the disk meanwhile."""
        others = exclude_values("j.owner", excluded_owners)
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select i.model from item i join file f on f.id = i.file join job j on j.id = i.job where i.status = ? "
                f"and i.needs_fetch = 0 and f.purpose = 'fetched' {others} group by i.model having count(*) >= ?",
                *(ItemStatus.QUEUED, *excluded_owners, least),
            )
        return [row["model"] for row in rows]

    async def sum_bytes(self, owner: str | None = None) -> int:
        """Return the bytes of all files, or of an owner's."""
        where, values = ("", tuple[str, ...]()) if owner is None else (" where owner = ?", (owner,))
        async with self.database.begin() as tx:
            rows = await tx.fetch(f"select coalesce(sum(bytes), 0) as bytes from file{where}", *values)
        return int(rows[0]["bytes"])
