"""Records the gateway's processes on disk, so that the next gateway ends those that a killed one left behind.

Every gateway has a separate file and keeps it locked; the system releases the lock when the gateway ends, also when it is
killed. A process in an unlocked file is ended only if it is certainly the recorded one: it started at the recorded moment (the
same pid may be another process a day later), or it has the gateway's mark in its environment, which all descendants of the
gateway's processes inherit.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import json
import logging
import os
import secrets
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eardrum.gateway.processes import process_info

if TYPE_CHECKING:
    from psutil import Process

log = logging.getLogger(__name__)

MARK_VARIABLE = "STARTED_BY_EARDRUM"
"""Holds the marks of the gateways that started a process, outermost first: a gateway may be a command of another one."""

MARK_LENGTH = 32
"""Characters: long enough that no environment contains them by chance."""

ORPHAN_GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL for the processes of a killed gateway, and then until the gateway gives up."""

POLL_INTERVAL_S = 0.02


class ProcessRegistry:
    """The processes of this gateway. With a folder, they are recorded there in a file."""

    def __init__(self, folder: Path | None):
        self._folder = folder / f"eardrum-{os.getuid()}" if folder else None
        self._secret = secrets.token_hex(MARK_LENGTH // 2)
        self._numbers = itertools.count()
        self._alive: set[int] = set()
        self._file: int | None = None
        self._path = Path()

    def create_mark(self) -> str:
        """Make the mark of the next child: its environment is to end with it in `MARK_VARIABLE`."""
        return f"{self._secret}.{next(self._numbers)}."

    def add_process(self, pid: int, model: str) -> None:
        """Record a process that leads a group."""
        self._alive.add(pid)
        process = process_info.find_process(pid)
        self._write_entry({"pid": pid, "born": process_info.read_start_ticks(process) if process else None, "model": model})

    def remove_process(self, pid: int) -> None:
        """Record that the process and its descendants have ended."""
        self._alive.discard(pid)
        self._write_entry({"gone": pid})

    def kill_all(self) -> None:
        """Kill the groups of all processes without waiting. The next gateway ends processes that have left their group."""
        for pid in self._alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """Remove the file; all processes have ended."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        if self._folder:
            with suppress(OSError):  # missing, or not empty: another gateway's file is in it
                self._folder.rmdir()

    async def end_orphans(self) -> None:
        """End the processes that killed gateways left behind, and wait until they have ended."""
        if self._folder and self._folder.exists():
            await asyncio.to_thread(_end_orphans, self._folder)

    def _write_entry(self, entry: dict[str, Any]) -> None:
        try:
            if self._file is None and self._folder:
                self._path, self._file = _create_locked_file(self._folder)
                os.write(self._file, _format_entry({"mark": f"{self._secret}.", "here": process_info.identify_system()}))
            if self._file is not None:
                os.write(self._file, _format_entry(entry))
        except OSError as error:
            log.warning("%s: %s. If this server is killed, its models' processes keep running.", self._folder, error.strerror)
            self._folder = None


async def end_descendants(mark: str, group: set[Process], within_s: float) -> None:
    """Kill the descendants of an ended child: its process group and all processes with its mark. Wait until they have ended."""
    await asyncio.to_thread(_end_processes, lambda: process_info.find_marked(mark), 0.0, within_s, group)


def _create_locked_file(folder: Path) -> tuple[Path, int]:
    """Create a new file and lock it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_folder(folder)
    while True:
        file, name = tempfile.mkstemp(".jsonl", f"{os.getpid()}-", folder)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(name).st_ino == os.fstat(file).st_ino:  # noqa: PTH116 -- not deleted before it was locked
                return Path(name), file
        os.close(file)


def _check_folder(folder: Path) -> None:
    """Make sure that only this user can enter the folder: a file in it can have any process of this user ended."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "is not a folder that only this user can enter")


def _end_orphans(folder: Path) -> None:
    try:
        _check_folder(folder)
    except OSError as error:
        log.warning("%s: %s. Processes that a killed server may have left behind are not ended.", folder, error.strerror)
        return
    for path in folder.glob("*.jsonl"):
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its gateway runs
            entries = list(_parse_entries(file.read()))
            _end_recorded(entries)
            path.unlink(missing_ok=True)


def _end_recorded(entries: list[dict[str, Any]]) -> None:
    if not (mark := find_mark(entries)):
        return
    recorded = _list_recorded(entries)
    same_system = any(entry.get("here") == process_info.identify_system() for entry in entries)
    roots = recorded if same_system else {}

    def list_orphans() -> set[Process]:
        families = [
            process_info.list_family(pid)
            for pid, entry in roots.items()
            if (process := process_info.find_process(pid)) and process_info.read_start_ticks(process) == entry["born"]
        ]
        return {process for process in process_info.find_marked(mark).union(*families) if process.pid != os.getpid()}

    if orphans := list_orphans():
        models = ", ".join(sorted({entry["model"] for entry in recorded.values()})) or "models"
        log.warning(
            "A server that was killed has left processes of %s behind (%s): ending them.", models, _describe_processes(orphans)
        )
        _end_processes(list_orphans, ORPHAN_GRACE_S, ORPHAN_GRACE_S)


def find_mark(entries: list[dict[str, Any]]) -> str | None:
    """The mark of the gateway that wrote the entries; None if it is too short to be unique."""
    marks = (str(entry.get("mark", "")) for entry in entries)
    return next((mark for mark in marks if len(mark) >= MARK_LENGTH), None)


def _list_recorded(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The entries of processes that had not ended, by pid. A pid may occur again as another process."""
    left: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if "pid" in entry:
            left[entry["pid"]] = entry
        left.pop(entry.get("gone", 0), None)
    return left


def _end_processes(
    list_running: Callable[[], set[Process]], term_s: float, kill_s: float, others: Iterable[Process] = ()
) -> None:
    """Send SIGTERM, after `term_s` SIGKILL, and wait until all processes have ended that were listed at any time."""
    began = time.monotonic()
    sent: dict[Process, signal.Signals] = {}
    while (running := list_running().union(filter(process_info.is_alive, others))) and (
        waited := time.monotonic() - began
    ) < term_s + kill_s:
        number = signal.SIGTERM if waited < term_s else signal.SIGKILL
        for process in running:
            if sent.get(process) is not number:
                sent[process] = number
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, number)
        others = running
        time.sleep(POLL_INTERVAL_S)  # only children can be waited for
    if running:
        log.error("These processes do not end, even after SIGKILL: %s.", _describe_processes(running))


def _describe_processes(processes: Iterable[Process]) -> str:
    return ", ".join(f"{process_info.read_program_name(pid)} {pid}" for pid in sorted(process.pid for process in processes))


def _parse_entries(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        with suppress(ValueError):  # the gateway was killed while it wrote the line
            if isinstance(entry := json.loads(line), dict):
                yield entry


def _format_entry(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
