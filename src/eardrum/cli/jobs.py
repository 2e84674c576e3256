"""The commands `jobs list`, `show`, `cancel`, `rm` and `export`: jobs of a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.processes import call_server, format_period
from eardrum.cli.recordings import SUFFIXES
from eardrum.cli.terminal import guard_stdout, print_table
from eardrum.errors import ConfigError

if TYPE_CHECKING:
    from eardrum.client import EardrumClient

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="IDS", help="Ids of jobs.")]


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Most jobs to list.")] = 100,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """List the jobs of a running server, the newest first."""
    jobs = asyncio.run(call_server(server, key, certificate, lambda client: client.list_jobs(limit)))
    if not jobs:
        print("There are no jobs.")
        return
    from rich.table import Table

    table = Table("job", "status", "created", "audio", "recordings", "failed", "file", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for job in jobs:
        counts = job.get("request_counts") or {"total": 1, "failed": int(job["status"] == "failed")}
        created = datetime.fromtimestamp(job["created_at"]).astimezone()
        table.add_row(
            job["id"],
            job["status"],
            f"{created:%Y-%m-%d %H:%M}",
            format_progress(job["progress"]),
            str(counts["total"]),
            str(counts["failed"]),
            job.get("file") or job.get("input_file_id") or "",
        )
    print_table(table)


def format_progress(progress: dict[str, Any]) -> str:
    """Format the audio of a job that is done, of how much."""
    whole = progress["of_seconds"]
    return format_period(progress["seconds"]) + (f" of {format_period(whole)}" if whole else "")


def show_job(id: JobArgument, server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """Show everything about a job, as JSON."""
    job = asyncio.run(call_server(server, key, certificate, lambda client: client.get_job(id)))
    print(json.dumps(job, indent=2, ensure_ascii=False))


def cancel_jobs(ids: JobsArgument, server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """Cancel jobs. Their finished parts stay readable."""

    async def cancel(client: EardrumClient) -> None:
        for id in ids:
            job = await client.cancel_job(id)
            print(f"{id}: {job['status']}")

    asyncio.run(call_server(server, key, certificate, cancel))


def remove_jobs(ids: JobsArgument, server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """Delete ended jobs with their results."""

    async def remove(client: EardrumClient) -> None:
        for id in ids:
            await client.delete_job(id)
            print(f"{id}: deleted")

    asyncio.run(call_server(server, key, certificate, remove))


def export_job(
    id: JobArgument,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", show_default="the job's own", help=f"Output format: {', '.join(SUFFIXES)}.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write, instead of stdout.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Write the finished part of a job that still runs.")] = False,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Write the result of a job: a transcript, or the result lines of a batch."""
    text = asyncio.run(call_server(server, key, certificate, lambda client: client.get_result(id, format, partial=partial)))
    if not output:
        with guard_stdout("the result"):
            print(text.removesuffix("\n"), flush=True)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}.") from None


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_jobs,
    "show": show_job,
    "cancel": cancel_jobs,
    "rm": remove_jobs,
    "export": export_job,
}
