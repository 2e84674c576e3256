"""The store of jobs: the states and the changes between them, in transactions.

An item is claimed with a lease. The claim's number (`epoch`) is in every later write: an owner that was paused until its lease
was over writes nothing any more. Each finished window is a row, so the next owner continues after the last one. All times are
passed in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict

from eardrum.jobs.database import Row, Transaction
from eardrum.jobs.file_store import FileStore
from eardrum.jobs.records import (
    FINAL_STATUSES,
    SPEECH_ENDPOINT,
    AudioReference,
    DeliveryRecord,
    FileRecord,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
    NewItem,
    OpenItems,
    WindowRow,
    build_exhausted_error,
    dump_json,
)
from eardrum.jobs.tables import (
    count_open_items,
    exclude_values,
    expire_item_files,
    insert_delivery,
    insert_file,
    insert_items,
    insert_job,
    insert_windows,
    migrate_tables,
    read_delivery,
    read_item,
    read_job,
)
from eardrum.transcription import WindowCheckpoint

MAX_TRIES = 5
"""Claims without progress after which an item has failed: a recording that ends every process must not go round for ever."""

IDEMPOTENCY_S = 24 * 3600.0
"""Seconds for which a repeated request with the same `Idempotency-Key` gets the first one's job."""


class LeaseLostError(Exception):
    """The item, or the job, was claimed again or ended meanwhile: what its former owner wanted to write is void."""


class JobStore(FileStore):
    """Jobs in a database, and the records of their files."""

    async def open(self) -> None:
        """Open the database and bring it to this version. If no other server can use it, the leases of items and jobs end.

        Raises:
            ConfigError: the database cannot be used, or belongs to a newer version.
            StorageFullError: the disk is full.
            BusyError: another process uses the database.
        """
        await self.database.open()
        try:
            async with self.database.begin(exclusive=True) as tx:
                await migrate_tables(tx)
            if not self.database.shared:
                await self.end_leases()
        except BaseException:
            await self.database.close()
            raise

    async def close(self) -> None:
        """Close the database."""
        await self.database.close()

    async def add_job(self, job: JobRecord, item: NewItem | None = None, file: FileRecord | None = None) -> JobRecord:
        """Add a job: with its only item, whose audio may be `file`, or without items, which validation adds.

        Returns the job that is there already with the same `idempotency`.
        """
        async with self.database.begin(exclusive=True) as tx:
            if job.idempotency:
                await tx.execute(
                    "update job set idempotency = null where owner = ? and idempotency = ? and created_at < ?",
                    *(job.owner, job.idempotency, job.created_at - IDEMPOTENCY_S),
                )
                rows = await tx.fetch("select * from job where owner = ? and idempotency = ?", job.owner, job.idempotency)
                if rows:
                    return read_job(rows[0])
            if file:
                await insert_file(tx, file)
            job.times.setdefault(job.status, job.created_at)
            if item:
                job.total = job.open_items = 1
            await insert_job(tx, job)
            if item:
                await insert_items(tx, job.id, 0, [item])
        return job

    async def get_job(self, id: str, owner: str | None = None) -> JobRecord | None:
        """Return a job, if there is one and it belongs to `owner`."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select * from job where id = ?", id)
        found = read_job(rows[0]) if rows else None
        return found if found and owner in (None, found.owner) else None

    async def find_idempotent(self, owner: str, key: str, now: float) -> JobRecord | None:
        """Return the job of an earlier request with this `Idempotency-Key`."""
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select * from job where owner = ? and idempotency = ? and created_at >= ?", owner, key, now - IDEMPOTENCY_S
            )
        return read_job(rows[0]) if rows else None

    async def list_jobs(
        self, owner: str, *, kind: JobKind | None = None, after: JobRecord | None = None, limit: int
    ) -> list[JobRecord]:
        """List an owner's jobs, the newest first, after the job `after`."""
        sql, values = "select * from job where owner = ?", [owner]
        if kind:
            sql, values = f"{sql} and kind = ?", [*values, kind]
        return [read_job(row) for row in await self._fetch_page(sql, values, after, limit)]

    async def count_open_items(self, owner: str) -> int:
        """Return how many of an owner's items have not ended."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select coalesce(sum(open_items), 0) as items from job where owner = ?", owner)
        return int(rows[0]["items"])

    async def claim_job(self, statuses: Sequence[JobStatus], now: float, lease_s: float) -> JobRecord | None:
        """Claim the oldest job in one of these states, to validate it or to write its files.

        A job that is in progress, or being cancelled, is ready for its files once it has no open items.
        """
        missing = self._list_missing_files(now)
        is_ready = f"status in ({', '.join('?' * len(statuses))}) and lease_until <= ? and (open_items = 0 or status = ?)"
        is_ready, values = f"{is_ready} {exclude_values('input_file', missing)}", (*statuses, now, JobStatus.VALIDATING, *missing)
        async with self.database.begin(exclusive=True) as tx:
            rows = await tx.fetch(  # checked again in the locked row: its former owner may have written meanwhile
                f"update job set epoch = epoch + 1, lease_until = ? where {is_ready} and "
                f"id = (select id from job where {is_ready} order by created_at, id limit 1) returning *",
                *(now + lease_s, *values, *values),
            )
            if not rows:
                return None
            job = read_job(rows[0])
            if job.status is JobStatus.VALIDATING:
                await _remove_items(tx, job.id, now)
            elif job.status is JobStatus.IN_PROGRESS:
                await _set_status(tx, job, JobStatus.FINALIZING, now)
            return job

    async def add_items(self, job: JobRecord, first: int, items: Sequence[NewItem], now: float, lease_s: float) -> None:
        """Add items to a job that is being validated, with numbers from `first` on.

        Raises:
            LeaseLostError: another owner validates the job, or it was cancelled.
            DuplicateRowError: two items have one key.
        """
        failed = sum(item.error is not None for item in items)
        async with self.database.begin() as tx:
            changed = await tx.execute(
                "update job set lease_until = ?, total = total + ?, open_items = open_items + ?, failed = failed + ? "
                "where id = ? and epoch = ? and status = ?",
                *(now + lease_s, len(items), len(items) - failed, failed, job.id, job.epoch, JobStatus.VALIDATING),
            )
            if not changed:
                raise LeaseLostError
            await insert_items(tx, job.id, first, items)

    async def start_job(self, job: JobRecord, now: float) -> None:
        """Let the items of a validated job begin.

        Raises:
            LeaseLostError: another owner validates the job, or it was cancelled.
        """
        async with self.database.begin() as tx:
            await _check_job_claim(tx, job, JobStatus.VALIDATING)
            await _set_status(tx, job, JobStatus.IN_PROGRESS, now)
            await tx.execute("update job set lease_until = 0 where id = ?", job.id)

    async def renew_job(self, job: JobRecord, status: JobStatus, now: float, lease_s: float) -> None:
        """Renew the claim of a job that is still in the state in which it was claimed.

        Raises:
            LeaseLostError: it is not, or another owner has claimed it.
        """
        async with self.database.begin() as tx:
            if not await tx.execute(
                "update job set lease_until = ? where id = ? and epoch = ? and status = ?",
                *(now + lease_s, job.id, job.epoch, status),
            ):
                raise LeaseLostError

    async def finish_job(
        self,
        job: JobRecord,
        status: JobStatus,
        now: float,
        *,
        files: Sequence[FileRecord] = (),
        errors: Sequence[dict[str, Any]] = (),
        delivery: DeliveryRecord | None = None,
    ) -> None:
        """End a claimed job. `files` are its output and its errors. The recordings that only it has are deleted soon.

        Raises:
            LeaseLostError: another owner has claimed the job.
        """
        async with self.database.begin() as tx:
            await _check_job_claim(tx, job, JobStatus.VALIDATING if job.status is JobStatus.VALIDATING else None)
            if job.status is JobStatus.VALIDATING:
                await _remove_items(tx, job.id, now)
            else:
                await expire_item_files(tx, job.id, now)
            for file in files:
                await insert_file(tx, file)
            if files and job.endpoint == SPEECH_ENDPOINT:
                await expire_item_files(tx, job.id, files[0].expires_at, hidden=False)
            await tx.execute(
                "update job set output_file = ?, error_file = ?, errors = ?, ended_at = ? where id = ?",
                *(job.output_file, job.error_file, dump_json(list(errors)), now, job.id),
            )
            await _set_status(tx, job, status, now)
            if delivery:
                await insert_delivery(tx, delivery)

    async def cancel_job(self, id: str, now: float) -> JobRecord | None:
        """Cancel a job: items that wait are cancelled at once, those that run by their owners. Does nothing to an ended job."""
        async with self.database.begin(exclusive=True) as tx:
            rows = await tx.fetch("update job set epoch = epoch where id = ? returning *", id)  # locks it: its owner may end it
            if not rows:
                return None
            job = read_job(rows[0])
            if job.status in (JobStatus.VALIDATING, JobStatus.IN_PROGRESS):
                await tx.execute("update job set outcome = ?, lease_until = 0 where id = ?", JobStatus.CANCELLED, id)
                await _set_status(tx, job, JobStatus.CANCELLING, now)
                job.outcome = JobStatus.CANCELLED
                job.open_items -= await _end_waiting_items(tx, id, ItemStatus.CANCELLED)
            return job

    async def expire_jobs(self, now: float) -> list[str]:
        """Expire the waiting items of jobs whose deadline is over; returns the jobs. Their running items are cancelled."""
        async with self.database.begin(exclusive=True) as tx:
            rows = await tx.fetch(
                "select id from job where status = ? and outcome = '' and deadline <= ?", JobStatus.IN_PROGRESS, now
            )
            for row in rows:
                await tx.execute("update job set outcome = ? where id = ?", JobStatus.EXPIRED, row["id"])
                await _end_waiting_items(tx, row["id"], ItemStatus.EXPIRED)
        return [row["id"] for row in rows]

    async def delete_job(self, id: str) -> list[str]:
        """Delete an ended job with its results; returns the files that belonged to it alone."""
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select f.id from file f join item i on i.file = f.id join job j on j.id = i.job "
                "where j.id = ? and (f.hidden = 1 or j.endpoint = ?) "
                "union select output_file from job where id = ? and output_file <> '' "
                "union select error_file from job where id = ? and error_file <> ''",
                *(id, SPEECH_ENDPOINT, id, id),
            )
            await tx.execute_many("delete from file where id = ?", [(row["id"],) for row in rows])
            await tx.execute("delete from job where id = ?", id)
        return [row["id"] for row in rows]

    async def list_outdated_jobs(self, now: float, keep_s: float) -> list[str]:
        """List ended jobs whose results are not kept any longer. A job is kept as long as a file that it has written."""
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select id from job j where ended_at is not null and (expires_at <= ? or (expires_at is null and ended_at <= ?)) "
                "and not exists (select 1 from file f where f.id in (j.output_file, j.error_file) and f.expires_at > ?) "
                "and not exists (select 1 from item i join file f on f.id = i.file "
                "where j.endpoint = ? and i.job = j.id and f.expires_at > ?) limit 1000",
                *(now, now - keep_s, now, SPEECH_ENDPOINT, now),
            )
        return [row["id"] for row in rows]

    async def list_waiting_models(self, now: float, *, excluded_owners: Sequence[str] = ()) -> list[str]:
        """List the models that items wait for which could begin now."""
        missing = self._list_missing_files(now)
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select distinct i.model from item i join job j on j.id = i.job where i.status = ? and i.needs_fetch = 0 "
                f"and i.not_before <= ? and j.status = ? and j.outcome = '' {exclude_values('j.owner', excluded_owners)} "
                f"{exclude_values('i.file', missing)}",
                *(ItemStatus.QUEUED, now, JobStatus.IN_PROGRESS, *excluded_owners, *missing),
            )
        return [row["model"] for row in rows]

    async def count_open_by_model(self) -> dict[tuple[str, ItemStatus], OpenItems]:
        """Count the items that wait and that run, by model and state. Those of all servers on this store count."""
        async with self.database.begin() as tx:
            return await count_open_items(tx)

    async def claim_item(
        self,
        worker: str,
        now: float,
        lease_s: float,
        *,
        model: str | None = None,
        excluded_owners: Sequence[str] = (),
        excluded_models: Sequence[str] = (),
    ) -> ItemRecord | None:
        """Claim the next item for a model; without a model, the next one whose audio must be fetched.

        Owners take turns, so do the jobs of an owner, and a job's items come in their order.
        """
        which, values = ("i.needs_fetch = 1", []) if model is None else ("i.needs_fetch = 0 and i.model = ?", [model])
        missing = self._list_missing_files(now)
        which, values = f"{which} {exclude_values('i.model', excluded_models)}", [*values, *excluded_models]
        which, values = f"{which} {exclude_values('i.file', missing)}", [*values, *missing]
        waits = f"i.status = '{ItemStatus.QUEUED}' and {which} and i.not_before <= ?"
        async with self.database.begin(exclusive=True) as tx:
            jobs = await tx.fetch(
                "select j.id, j.owner from job j left join owner_turn o on o.owner = j.owner "
                f"where j.status = ? and j.outcome = '' {exclude_values('j.owner', excluded_owners)} "
                f"and exists (select 1 from item i where i.job = j.id and {waits}) "
                "order by coalesce(o.turn, 0), j.turn, j.created_at, j.id limit 1",
                *(JobStatus.IN_PROGRESS, *excluded_owners, *values, now),
            )
            if not jobs:
                return None
            job, owner = jobs[0]["id"], jobs[0]["owner"]
            (first,) = await tx.fetch(
                f"select i.n from item i where i.job = ? and {waits} order by i.n limit 1", job, *values, now
            )
            (row,) = await tx.fetch(
                "update item set status = ?, epoch = epoch + 1, tries = tries + 1, worker = ?, lease_until = ? "
                "where job = ? and n = ? returning *",
                *(ItemStatus.RUNNING, worker, now + lease_s, job, first["n"]),
            )
            (turn,) = await tx.fetch("select coalesce(max(turn), 0) + 1 as next from owner_turn")
            await tx.execute(
                "insert into owner_turn (owner, turn) values (?, ?) on conflict (owner) do update set turn = excluded.turn",
                *(owner, turn["next"]),
            )
            await tx.execute("update job set turn = ? where id = ?", turn["next"], job)
        return read_item(row, owner)

    async def renew_leases(self, worker: str, names: Sequence[tuple[str, int]], now: float, lease_s: float) -> list[str]:
        """Renew the leases of a worker's items; returns those of their jobs that are to be given up."""
        if not names:
            return []
        async with self.database.begin() as tx:
            for job, n in names:
                await tx.execute(
                    "update item set lease_until = ? where job = ? and n = ? and status = ? and worker = ?",
                    *(now + lease_s, job, n, ItemStatus.RUNNING, worker),
                )
            jobs = sorted({job for job, _ in names})
            listed = ", ".join("?" * len(jobs))
            rows = await tx.fetch(f"select id from job where id in ({listed}) and outcome <> ''", *jobs)
        return [row["id"] for row in rows]

    async def save_windows(
        self, item: ItemRecord, rows: Sequence[WindowRow], checkpoint: WindowCheckpoint, now: float, lease_s: float
    ) -> None:
        """Save finished windows of a claimed item, and where the next attempt is to continue.

        Raises:
            LeaseLostError: the item was claimed again, or has ended.
        """
        async with self.database.begin() as tx:
            changed = await tx.execute(
                "update item set windows = ?, until_s = ?, duration_s = ?, checkpoint = ?, tries = 0, lease_until = ?, "
                "recipe = ? where job = ? and n = ? and epoch = ? and status = ? and windows = ?",
                *(item.windows + len(rows), checkpoint.until, item.duration_s, dump_json(checkpoint.to_json()), now + lease_s),
                *(item.recipe, item.job, item.n, item.epoch, ItemStatus.RUNNING, item.windows),
            )
            if not changed:
                raise LeaseLostError
            await insert_windows(tx, item, rows)
        item.windows += len(rows)
        item.tries = 0
        item.until_s = checkpoint.until
        item.checkpoint = checkpoint

    async def restart_item(self, item: ItemRecord) -> None:
        """Forget the windows of a claimed item: the model that decoded them is another one now.

        Raises:
            LeaseLostError: the item was claimed again, or has ended.
        """
        async with self.database.begin() as tx:
            await _update_claimed(tx, item, "windows = 0, until_s = 0, checkpoint = ''")
            await tx.execute("delete from item_window where job = ? and item = ?", item.job, item.n)
        item.windows, item.until_s, item.checkpoint = 0, 0.0, None

    async def finish_item(
        self,
        item: ItemRecord,
        status: ItemStatus,
        result: dict[str, Any],
        rows: Sequence[WindowRow] = (),
        file: FileRecord | None = None,
    ) -> None:
        """End a claimed item with its summary, or its error, and with the last of its windows, or its audio in `file`.

        Raises:
            LeaseLostError: the item was claimed again, or has ended.
        """
        async with self.database.begin() as tx:
            await _update_claimed(
                tx,
                item,
                "status = ?, result = ?, windows = windows + ?, duration_s = ?, file = ?",
                *(status, dump_json(result), len(rows), item.duration_s, file.id if file else item.source.file),
            )
            await insert_windows(tx, item, rows)
            if file:
                await insert_file(tx, file)
            await _count_end(tx, item.job, status)

    async def release_item(
        self, item: ItemRecord, *, not_before: float = 0.0, counts: bool = True, source: AudioReference | None = None
    ) -> None:
        """Give a claimed item back, to be claimed again from `not_before` on. With a `source`, its audio is there now.

        Without `counts`, the claim is no try. An item of a job that ends, or with too many tries, ends instead.

        Raises:
            LeaseLostError: the item was claimed again, or has ended.
        """
        async with self.database.begin(exclusive=True) as tx:
            tries = item.tries if counts else max(item.tries - 1, 0)
            await _update_claimed(
                tx, item, "status = ?, worker = '', not_before = ?, tries = ?", ItemStatus.QUEUED, not_before, tries
            )
            if source:
                await tx.execute(
                    "update item set needs_fetch = 0, source = ?, file = ? where job = ? and n = ?",
                    *(dump_json(asdict(source)), source.file, item.job, item.n),
                )
            await _settle_returned_items(tx, [{"job": item.job, "n": item.n, "tries": tries, "model": item.model}])

    async def end_leases(self) -> None:
        """End the leases of items and jobs: no other server uses the store, so their owners are dead.

        Deliveries keep their times, by which their attempts are spread. One that was interrupted comes when its lease is over.
        """
        async with self.database.begin(exclusive=True) as tx:
            await tx.execute("update item set lease_until = 0 where status = ?", ItemStatus.RUNNING)
            await tx.execute("update job set lease_until = 0 where ended_at is null")

    async def requeue_lost_items(self, now: float) -> list[tuple[str, ItemStatus]]:
        """Queue the items again whose leases are over. Those of a job that ends, or with too many tries, end instead.

        Returns the models and the new states of all of them.
        """
        async with self.database.begin(exclusive=True) as tx:
            rows = await tx.fetch(
                "update item set status = ?, worker = '', not_before = 0 where status = ? and lease_until <= ? "
                "returning job, n, tries, model",
                *(ItemStatus.QUEUED, ItemStatus.RUNNING, now),
            )
            return await _settle_returned_items(tx, rows)

    async def get_item(self, job: str, n: int = 0) -> ItemRecord | None:
        """Return an item of a job."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select * from item where job = ? and n = ?", job, n)
        return read_item(rows[0]) if rows else None

    async def list_items(self, job: str, *, after: int = -1, limit: int = 100) -> list[ItemRecord]:
        """List a job's items in their order, after number `after`."""
        async with self.database.begin() as tx:
            rows = await tx.fetch("select * from item where job = ? and n > ? order by n limit ?", job, after, limit)
        return [read_item(row) for row in rows]

    async def list_windows(self, job: str, item: int, *, after: int = -1, limit: int = 100) -> list[tuple[int, WindowRow]]:
        """List the finished windows of an item, with their numbers, after number `after`."""
        async with self.database.begin() as tx:
            rows = await tx.fetch(
                "select n, body from item_window where job = ? and item = ? and n > ? order by n limit ?", job, item, after, limit
            )
        return [(row["n"], WindowRow(**json.loads(row["body"]))) for row in rows]

    async def sum_seconds(self, job: str) -> tuple[float, float]:
        """Return the seconds of audio that a job has finished, and those that are known to be in it."""
        async with self.database.begin() as tx:
            (row,) = await tx.fetch(
                "select coalesce(sum(case when status = 'done' then duration_s else until_s end), 0.0) as done, "
                "coalesce(sum(duration_s), 0.0) as whole from item where job = ?",
                job,
            )
        return float(row["done"]), float(row["whole"])

    async def take_item_file(self, item: ItemRecord) -> bool:
        """Delete the record of the file that belongs to an ended item alone; returns whether there was one."""
        async with self.database.begin() as tx:
            return bool(item.source.file and await tx.execute("delete from file where id = ? and hidden = 1", item.source.file))

    async def list_due_deliveries(self, now: float, lease_s: float) -> list[DeliveryRecord]:
        """Claim the deliveries whose time has come, for so long."""
        async with self.database.begin(exclusive=True) as tx:
            rows = await tx.fetch(
                "update delivery set next_at = ?, tries = tries + 1 where id in "
                "(select id from delivery where next_at <= ? order by next_at limit 20) returning *",
                *(now + lease_s, now),
            )
        return [read_delivery(row) for row in rows]

    async def delay_delivery(self, id: str, until: float) -> None:
        """Set when a delivery is tried again."""
        async with self.database.begin() as tx:
            await tx.execute("update delivery set next_at = ? where id = ?", until, id)

    async def remove_delivery(self, id: str) -> None:
        """Remove a delivery, which has arrived or is given up."""
        async with self.database.begin() as tx:
            await tx.execute("delete from delivery where id = ?", id)

    async def find_next_time(self, now: float) -> float | None:
        """Return when something becomes due by itself: an item or a delivery that waits, or a deadline."""
        async with self.database.begin() as tx:
            (row,) = await tx.fetch(
                "select (select min(not_before) from item where status = ? and not_before > ?) as item, "
                "(select min(next_at) from delivery) as delivery, "
                "(select min(deadline) from job where status = ? and outcome = '') as job",
                *(ItemStatus.QUEUED, now, JobStatus.IN_PROGRESS),
            )
        return min((time for time in row.values() if time is not None), default=None)


async def _check_job_claim(tx: Transaction, job: JobRecord, status: JobStatus | None = None) -> None:
    rows = await tx.fetch("update job set epoch = epoch where id = ? and epoch = ? returning status", job.id, job.epoch)
    if not rows or rows[0]["status"] in FINAL_STATUSES or (status and rows[0]["status"] != status):
        raise LeaseLostError


async def _remove_items(tx: Transaction, job: str, now: float) -> None:
    """Remove the items of a job that is being validated."""
    await expire_item_files(tx, job, now)
    await tx.execute("delete from item where job = ?", job)
    await tx.execute("update job set total = 0, open_items = 0, failed = 0 where id = ?", job)


async def _set_status(tx: Transaction, job: JobRecord, status: JobStatus, now: float) -> None:
    job.status = status
    job.times[status] = now
    await tx.execute("update job set status = ?, times = ? where id = ?", status, dump_json(job.times), job.id)


async def _update_claimed(tx: Transaction, item: ItemRecord, changes: str, *values: Any) -> None:
    """Change an item, if this claim of it is the last one.

    Raises:
        LeaseLostError: it is not.
    """
    where = "where job = ? and n = ? and epoch = ? and status = ?"
    changed = await tx.execute(f"update item set {changes} {where}", *values, item.job, item.n, item.epoch, ItemStatus.RUNNING)
    if not changed:
        raise LeaseLostError


async def _count_end(tx: Transaction, job: str, status: ItemStatus, count: int = 1) -> None:
    column = {ItemStatus.DONE: ", completed = completed + ?", ItemStatus.FAILED: ", failed = failed + ?"}.get(status, "")
    values = [count] if column else []
    await tx.execute(f"update job set open_items = open_items - ?{column} where id = ?", count, *values, job)


async def _end_waiting_items(tx: Transaction, job: str, status: ItemStatus) -> int:
    """End a job's waiting items; returns their number."""
    count = await tx.execute("update item set status = ? where job = ? and status = ?", status, job, ItemStatus.QUEUED)
    await _count_end(tx, job, status, count)
    return count


async def _settle_returned_items(tx: Transaction, returned: Sequence[Row]) -> list[tuple[str, ItemStatus]]:
    """End those of the items that were given back whose job ends, or that had too many tries; returns models and states."""
    settled: list[tuple[str, ItemStatus]] = []
    for item in returned:
        (job,) = await tx.fetch("select outcome from job where id = ?", item["job"])
        if not job["outcome"] and item["tries"] < MAX_TRIES:
            settled.append((item["model"], ItemStatus.QUEUED))
            continue
        status = ItemStatus(job["outcome"]) if job["outcome"] else ItemStatus.FAILED
        result = {} if job["outcome"] else build_exhausted_error(item["tries"])
        await tx.execute(
            "update item set status = ?, result = ? where job = ? and n = ?", status, dump_json(result), item["job"], item["n"]
        )
        await _count_end(tx, item["job"], status)
        settled.append((item["model"], status))
    return settled
