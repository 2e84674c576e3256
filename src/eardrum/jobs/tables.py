"""The tables of the job store: their statements, and rows from and to records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict

from eardrum.errors import ConfigError
from eardrum.jobs.database import Row, Transaction
from eardrum.jobs.records import (
    OPEN_STATUSES,
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
    dump_json,
)
from eardrum.transcription import WindowCheckpoint

MIGRATIONS = (
    """
    create table file (
        id text primary key, owner text not null, purpose text not null, name text not null, bytes bigint not null,
        created_at double precision not null, expires_at double precision, hidden bigint not null);
    create index file_owner on file (owner, created_at, id);
    create table job (
        id text primary key, kind text not null, owner text not null, status text not null, outcome text not null,
        endpoint text not null, input_file text not null, output_file text not null, error_file text not null,
        body text not null, times text not null, errors text not null, total bigint not null, completed bigint not null,
        failed bigint not null, open_items bigint not null, created_at double precision not null,
        ended_at double precision, deadline double precision, expires_at double precision, idempotency text,
        turn bigint not null, epoch bigint not null, lease_until double precision not null);
    create index job_owner on job (owner, created_at, id);
    create index job_status on job (status);
    create unique index job_idempotency on job (owner, idempotency) where idempotency is not null;
    create table item (
        job text not null references job (id) on delete cascade, n bigint not null, key text not null, status text not null,
        model text not null, recipe text not null, file text not null, needs_fetch bigint not null, source text not null,
        request text not null, fields text not null, epoch bigint not null, worker text not null,
        lease_until double precision not null, not_before double precision not null, tries bigint not null,
        windows bigint not null, until_s double precision not null, duration_s double precision not null,
        checkpoint text not null, result text not null, primary key (job, n), unique (job, key));
    create index item_queue on item (status, needs_fetch, model, job, n);
    create index item_job on item (job, status, model, n);
    create index item_file on item (file);
    create table item_window (
        job text not null, item bigint not null, n bigint not null, body text not null, primary key (job, item, n),
        foreign key (job, item) references item (job, n) on delete cascade);
    create table owner_turn (owner text primary key, turn bigint not null);
    create table delivery (
        id text primary key, job text not null, url text not null, body text not null, created_at double precision not null,
        tries bigint not null, next_at double precision not null);
    """,
)
"""The statements that lead from each version of the store to the next one."""


async def migrate_tables(tx: Transaction) -> None:
    """Create the tables, or bring those of an older version to this one.

    Raises:
        ConfigError: they belong to a newer version.
    """
    await tx.execute("create table if not exists store_version (version bigint not null)")
    rows = await tx.fetch("select version from store_version")
    version = rows[0]["version"] if rows else 0
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"The store of jobs has version {version}, and this server knows {len(MIGRATIONS)}: "
            "update the server, or set jobs.dir to another folder."
        )
    for script in MIGRATIONS[version:]:
        for statement in filter(str.strip, script.split(";")):
            await tx.execute(statement)
    if version < len(MIGRATIONS):
        await tx.execute("delete from store_version")
        await tx.execute("insert into store_version (version) values (?)", len(MIGRATIONS))


def exclude_values(column: str, values: Sequence[str]) -> str:
    """Build the condition that leaves out rows with one of these values, which are its parameters; empty if there are none."""
    return f"and {column} not in ({', '.join('?' * len(values))})" if values else ""


async def expire_item_files(tx: Transaction, job: str, at: float | None, *, hidden: bool = True) -> None:
    """Let the files expire that belong to one item of the job each: hidden ones, which it reads, or those that it wrote."""
    await tx.execute(
        "update file set expires_at = ? where hidden = ? and id in (select file from item where job = ? and file <> '')",
        *(at, int(hidden), job),
    )


async def insert_file(tx: Transaction, file: FileRecord) -> None:
    """Add a file."""
    await tx.execute(
        "insert into file (id, owner, purpose, name, bytes, created_at, expires_at, hidden) values (?, ?, ?, ?, ?, ?, ?, ?)",
        *(file.id, file.owner, file.purpose, file.name, file.bytes, file.created_at, file.expires_at, int(file.hidden)),
    )


async def insert_job(tx: Transaction, job: JobRecord) -> None:
    """Add a job."""
    values: dict[str, Any] = {
        **{name: getattr(job, name) for name in ("id", "kind", "owner", "status", "outcome", "endpoint", "input_file")},
        **{name: getattr(job, name) for name in ("output_file", "error_file", "total", "completed", "failed", "open_items")},
        **{name: dump_json(getattr(job, name)) for name in ("body", "times", "errors")},
        **{name: getattr(job, name) for name in ("created_at", "deadline", "expires_at", "idempotency")},
        "turn": 0,
        "epoch": 0,
        "lease_until": 0.0,
    }
    await tx.execute(f"insert into job ({', '.join(values)}) values ({', '.join('?' * len(values))})", *values.values())


async def insert_items(tx: Transaction, job: str, first: int, items: Sequence[NewItem]) -> None:
    """Add items to a job, with numbers from `first` on."""
    rows = [
        (
            *(job, n, item.key, ItemStatus.FAILED if item.error else ItemStatus.QUEUED, item.model, "", item.source.file),
            *(int(bool(item.source.url)), dump_json(asdict(item.source))),
            *(dump_json(item.request), dump_json(item.fields), dump_json(item.error) if item.error else "{}"),
        )
        for n, item in enumerate(items, first)
    ]
    await tx.execute_many(
        "insert into item (job, n, key, status, model, recipe, file, needs_fetch, source, request, fields, result, "
        "epoch, worker, lease_until, not_before, tries, windows, until_s, duration_s, checkpoint) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', 0, 0, 0, 0, 0, 0, '')",
        rows,
    )


async def insert_windows(tx: Transaction, item: ItemRecord, rows: Sequence[WindowRow]) -> None:
    """Add finished windows of an item after those that it has."""
    if rows:
        await tx.execute_many(
            "insert into item_window (job, item, n, body) values (?, ?, ?, ?)",
            [(item.job, item.n, n, row.to_text()) for n, row in enumerate(rows, item.windows)],
        )


async def insert_delivery(tx: Transaction, delivery: DeliveryRecord) -> None:
    """Add the delivery of a webhook."""
    await tx.execute(
        "insert into delivery (id, job, url, body, created_at, tries, next_at) values (?, ?, ?, ?, ?, 0, 0)",
        *(delivery.id, delivery.job, delivery.url, delivery.body, delivery.created_at),
    )


def read_file(row: Row) -> FileRecord:
    """Read a row."""
    return FileRecord(**{**row, "hidden": bool(row["hidden"])})


def read_job(row: Row) -> JobRecord:
    """Read a row."""
    names = ("id", "owner", "endpoint", "created_at", "input_file", "output_file", "error_file", "outcome", "total", "completed")
    more = ("failed", "open_items", "deadline", "expires_at", "idempotency", "epoch")
    return JobRecord(
        **{name: row[name] for name in (*names, *more)},
        **{name: json.loads(row[name]) for name in ("body", "times", "errors")},
        kind=JobKind(row["kind"]),
        status=JobStatus(row["status"]),
    )


def read_item(row: Row, owner: str = "") -> ItemRecord:
    """Read a row; `owner` is its job's."""
    names = ("job", "n", "key", "model", "recipe", "epoch", "tries", "windows", "until_s", "duration_s")
    return ItemRecord(
        **{name: row[name] for name in names},
        **{name: json.loads(row[name] or "{}") for name in ("request", "fields", "result")},
        status=ItemStatus(row["status"]),
        source=AudioReference(**json.loads(row["source"])),
        checkpoint=WindowCheckpoint.from_json(json.loads(row["checkpoint"])) if row["checkpoint"] else None,
        owner=owner,
    )


def read_delivery(row: Row) -> DeliveryRecord:
    """Read a row."""
    return DeliveryRecord(**{name: row[name] for name in ("id", "job", "url", "body", "created_at", "tries")})


async def count_open_items(tx: Transaction) -> dict[tuple[str, ItemStatus], OpenItems]:
    """Count the items that wait and that run, by model and state: an index has all of that but the ages of the jobs."""
    rows = await tx.fetch(
        "select q.model, q.status, sum(q.items) as items, min(j.created_at) as oldest from "
        "(select model, status, job, count(*) as items from item where status in (?, ?) group by model, status, job) q "
        "join job j on j.id = q.job group by q.model, q.status",
        *OPEN_STATUSES,
    )
    return {(row["model"], ItemStatus(row["status"])): OpenItems(int(row["items"]), row["oldest"]) for row in rows}
