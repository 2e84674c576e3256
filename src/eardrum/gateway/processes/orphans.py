"""Records the gateway's processes on disk, so that the next gateway ends those that a killed one left behind.

Every gateway has a file of its own and keeps it locked: the system releases the lock when the gateway is gone, however that
came. A process in an unlocked file is ended if it is surely the recorded one: it began at the recorded moment (a process id
alone means another process a day later), or it carries the gateway's mark in its environment, as everything does that was
started by what the gateway started.
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
from typing import Any

from eardrum.gateway.processes import process_info

log = logging.getLogger(__name__)

MARK_VARIABLE = "STARTED_BY_EARDRUM"
"""Marks of those that started a process, one after the other: a gateway may be a command of another one."""

MARK_LENGTH = 32
"""Letters that nobody's environment has by chance."""

ORPHAN_GRACE_S = 10.0
"""Time that what a gateway has left behind has to end."""

POLL_INTERVAL_S = 0.02


class ProcessRegistry:
    """The processes of this gateway. Without a folder they are known, but nowhere written down."""

    def __init__(self, parent: Path | None):
        self._folder = parent / f"eardrum-{os.getuid()}" if parent else None
        self._secret = secrets.token_hex(MARK_LENGTH // 2)
        self._numbers = itertools.count()
        self._alive: set[int] = set()
        self._file: int | None = None
        self._path = Path()

    def create_mark(self) -> str:
        """What the environment of the next child is to have in `VARIABLE`, and so that of everything it starts."""
        return f"{self._secret}.{next(self._numbers)}."

    def add_process(self, pid: int, model: str) -> None:
        """A process was started; it leads a group."""
        self._alive.add(pid)
        self._write_entry(
            {"pid": pid, "born": found.start_ticks if (found := process_info.read_process(pid)) else None, "model": model}
        )

    def remove_process(self, pid: int) -> None:
        """The process is gone, with all that it started."""
        self._alive.discard(pid)
        self._write_entry({"gone": pid})

    def kill_all(self) -> None:
        """Kill all processes there are, and wait for none. What hides from that is for the next gateway to end."""
        for pid in self._alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """No process is left."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        if self._folder:
            with suppress(OSError):  # there is none, or another gateway's file is in it
                self._folder.rmdir()

    async def end_orphans(self) -> None:
        """End what gateways have left behind that are gone, and wait until it is gone too."""
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
            log.warning("%s: %s. Should this server be killed, its models' processes stay.", self._folder, error.strerror)
            self._folder = None


async def end_strays(mark: str, known: set[process_info.ProcessInfo], within_s: float) -> None:
    """End all that are `known` and all that carry the mark of a child that has ended, and wait until they are gone."""
    await asyncio.to_thread(_end_processes, lambda: process_info.find_marked(mark), 0.0, within_s, known)


def _create_locked_file(folder: Path) -> tuple[Path, int]:
    """A new file, locked."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_folder(folder)
    while True:
        file, name = tempfile.mkstemp(".jsonl", f"{os.getpid()}-", folder)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(name).st_ino == os.fstat(file).st_ino:  # noqa: PTH116 -- not swept away before it was locked
                return Path(name), file
        os.close(file)


def _check_folder(folder: Path) -> None:
    """The folder must be ours alone: whoever could write there could have any process of ours ended."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "is not a folder that only this user can enter")


def _end_orphans(folder: Path) -> None:
    try:
        _check_folder(folder)
    except OSError as error:
        log.warning("%s: %s. Nothing is ended that a killed server may have left behind.", folder, error.strerror)
        return
    for path in folder.glob("*.jsonl"):
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails as long as its gateway lives
            entries = list(_parse_entries(file.read()))
            _end_recorded(entries)
            path.unlink(missing_ok=True)


def _end_recorded(entries: list[dict[str, Any]]) -> None:
    if not (mark := find_mark(entries)):
        return
    left = _list_remaining(entries)
    if not process_info.identify_system():
        log.warning("A server that was killed may have left processes behind: %s.", ", ".join(map(str, left)) or "none")
        return
    known = left if any(entry.get("here") == process_info.identify_system() for entry in entries) else {}

    def alive() -> set[process_info.ProcessInfo]:
        roots = [
            pid
            for pid, entry in known.items()
            if (found := process_info.read_process(pid)) and found.start_ticks == entry["born"]
        ]
        return {
            process
            for process in process_info.find_marked(mark).union(*map(process_info.list_family, roots))
            if process.pid != os.getpid()
        }

    if found := alive():
        models = ", ".join(sorted({entry["model"] for entry in left.values()})) or "models"
        log.warning(
            "A server that was killed has left processes of %s behind (%s): ending them.", models, _describe_processes(found)
        )
        _end_processes(alive, ORPHAN_GRACE_S, ORPHAN_GRACE_S)


def find_mark(entries: list[dict[str, Any]]) -> str | None:
    """The mark of the gateway that wrote them, if it is one that nobody else carries."""
    marks = (str(entry.get("mark", "")) for entry in entries)
    return next((mark for mark in marks if len(mark) >= MARK_LENGTH), None)


def _list_remaining(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was started and was not gone at the end. A number may have come back as another process."""
    left: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if "pid" in entry:
            left[entry["pid"]] = entry
        left.pop(entry.get("gone", 0), None)
    return left


def _end_processes(
    alive: Callable[[], set[process_info.ProcessInfo]],
    ask_s: float,
    insist_s: float,
    known: Iterable[process_info.ProcessInfo] = (),
) -> None:
    """Ask what is alive to end, kill what has not, and wait until all is gone that was ever seen."""
    began = time.monotonic()
    told: dict[process_info.ProcessInfo, signal.Signals] = {}
    while (left := alive().union(filter(process_info.is_alive, known))) and (
        waited := time.monotonic() - began
    ) < ask_s + insist_s:
        number = signal.SIGTERM if waited < ask_s else signal.SIGKILL
        for process in left:
            if told.get(process) is not number:
                told[process] = number
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, number)
        known = left
        time.sleep(POLL_INTERVAL_S)  # they are not our children: nobody tells us
    if left:
        log.error("These processes do not end: %s.", _describe_processes(left))


def _describe_processes(processes: Iterable[process_info.ProcessInfo]) -> str:
    return ", ".join(f"{process_info.read_program_name(pid)} {pid}" for pid in sorted(process.pid for process in processes))


def _parse_entries(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        with suppress(ValueError):  # cut off with its gateway
            if isinstance(entry := json.loads(line), dict):
                yield entry


def _format_entry(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
