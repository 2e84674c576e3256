"""The records of files: uploads, and what jobs have written. Their bytes are in a `BlobFolder`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eardrum.jobs.database import Database
from eardrum.jobs.records import FileRecord
from eardrum.jobs.tables import insert_file, is_file_in_use, read_file


class FileStore:
    """The files in a database."""

    def __init__(self, database: Database):
        self.database = database

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
        """List an owner's files, the newest first unless `ascending`, behind the file `after`."""
        sign, order = (">", "asc") if ascending else ("<", "desc")
        sql, values = "select * from file where owner = ? and hidden = 0", list[Any]([owner])
        if purpose:
            sql, values = f"{sql} and purpose = ?", [*values, purpose]
        if after:
            sql, values = f"{sql} and (created_at, id) {sign} (?, ?)", [*values, after.created_at, after.id]
        async with self.database.begin() as tx:
            rows = await tx.fetch(f"{sql} order by created_at {order}, id {order} limit ?", *values, limit)
        return [read_file(row) for row in rows]

    async def delete_file(self, id: str) -> bool:
        """Delete a file's record, unless a job still needs it; returns whether it was deleted."""
        async with self.database.begin() as tx:
            return not await is_file_in_use(tx, id) and await tx.execute("delete from file where id = ?", id) > 0

    async def list_expired_files(self, now: float) -> list[str]:
        """List files whose time is over."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select id from file where expires_at <= ? limit 1000", now)
        return [row["id"] for row in rows]

    async def list_file_ids(self) -> set[str]:
        """List all files."""
        async with self.database.begin() as tx:
            return {row["id"] for row in await tx.fetch("select id from file")}

    async def sum_bytes(self, owner: str | None = None) -> int:
        """Return the bytes of all files, or of an owner's."""
        where, values = ("", tuple[str, ...]()) if owner is None else (" where owner = ?", (owner,))
        async with self.database.begin() as tx:
            rows = await tx.fetch(f"select coalesce(sum(bytes), 0) as bytes from file{where}", *values)
        return int(rows[0]["bytes"])
