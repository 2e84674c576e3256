"""Which recordings the command line means: files, folders, patterns, pipes and stdin."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

STDIN = "-"

MEDIA = {
    "3g2", "3gp", "aac", "ac3", "adts", "aif", "aifc", "aiff", "alac", "amr", "ape", "asf", "au", "avi", "awb", "caf", "dts",
    "eac3", "f4a", "f4v", "flac", "flv", "gsm", "m2ts", "m4a", "m4b", "m4r", "m4v", "mka", "mkv", "mov", "mp2", "mp3", "mp4",
    "mpeg", "mpg", "mpga", "mts", "mxf", "oga", "ogg", "ogv", "ogx", "opus", "ra", "rm", "rmvb", "snd", "spx", "tak", "ts",
    "tta", "vob", "w64", "wav", "weba", "webm", "wma", "wmv", "wv",
}  # fmt: skip
"""Suffixes of what is taken from a folder. A file that is named itself may be called as it likes."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording that was asked for."""

    path: Path
    """The file or pipe; `-` is stdin."""
    below: PurePath
    """What it is called in the folder that was named, or the bare name of a file that was."""
    piped: bool = False
    """Whether it can be read once only, while it comes in."""

    @property
    def name(self) -> str:
        """What it is called to whoever asked for it."""
        return "stdin" if self.path == Path(STDIN) else str(self.path)


@dataclass(frozen=True, slots=True)
class Failure:
    """What was asked for and cannot be had, with the reason as a sentence."""

    name: str
    reason: str


def find_recordings(inputs: Iterable[str]) -> tuple[list[Recording], list[Failure]]:
    """All recordings that are meant, each once and in the order of the inputs, and what could not be found."""
    recordings: dict[str, Recording] = {}
    failures: list[Failure] = []
    for name in inputs:
        for found in _meant(name):
            if isinstance(found, Failure):
                failures.append(found)
            else:
                recordings.setdefault(STDIN if found.name == "stdin" else absolute(found.path), found)
    return list(recordings.values()), failures


def _meant(name: str) -> Iterator[Recording | Failure]:
    if name == STDIN:
        yield Recording(Path(STDIN), PurePath("stdin"), piped=True)
        return
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if os.path.lexists(path) or not glob.has_magic(name):
        yield from _named(path)
        return
    matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 -- takes absolute ones too; of shells that leave patterns to programs, or in quotes
    if not matching:
        yield Failure(name, "Nothing matches this pattern.")
    for match in matching:
        yield from _named(Path(match))


def _named(path: Path) -> Iterator[Recording | Failure]:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        yield Failure(str(path), _unreadable(path, error))
        return
    if stat.S_ISDIR(mode):
        yield from _inside(path)
    else:
        yield Recording(path, PurePath(path.name), piped=not stat.S_ISREG(mode))


def _inside(folder: Path) -> Iterator[Recording | Failure]:
    """What is in a folder and those below it, but for what is hidden. Links are followed, each folder is entered once."""
    entered: set[tuple[int, int]] = set()
    failures: list[Failure] = []
    empty = True
    walk = os.walk(folder, followlinks=True, onerror=lambda error: failures.append(_closed(error)))
    for place, folders, files in walk:
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and PurePath(name).suffix[1:].lower() in MEDIA:
                empty = False
                path = Path(place, name)
                yield _file_inside(path, PurePath(path.relative_to(folder)))
    yield from failures
    if empty and not failures:
        yield Failure(str(folder), "There is no audio or video file in this folder.")


def _file_inside(path: Path, below: PurePath) -> Recording | Failure:
    """Only files: a pipe that lies in a folder may have nobody who writes to it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Failure(str(path), _unreadable(path, error))
    return Recording(path, below) if stat.S_ISREG(mode) else Failure(str(path), "This is not a file: name it to read from it.")


def absolute(path: Path) -> str:
    """The path from the root, without `..`; links stay as they are."""
    return os.path.normpath(path.absolute())


def _closed(error: OSError) -> Failure:
    return Failure(str(error.filename), f"This folder cannot be read: {error.strerror}.")


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"It leads to nothing: {path.readlink()}." if path.is_symlink() else f"There is no file {path}."
    return f"It cannot be read: {getattr(error, 'strerror', None) or error}."
