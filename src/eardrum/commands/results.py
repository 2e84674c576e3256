"""Where results go: names that differ, and files that are whole or not there."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from eardrum.commands.recordings import Recording, absolute
from eardrum.errors import ConfigError

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json", "verbose_json": ".json"}
VERBOSE_BESIDE_JSON = ".verbose.json"

PROBE = bytes(4096)
"""What a disk must have room for before a recording is decoded whose text goes there."""

Targets = Mapping[str, Path]
"""The files that one recording's text goes to, by format."""


def plan_targets(recordings: Sequence[Recording], formats: Sequence[str], folder: Path) -> list[Targets]:
    """The files for every recording, in the folder. No two are the same.

    A name is as short as it can be: that of the recording without its suffix, below the folders it was found in. Those
    that would share a name keep their folders, and if that does not help their suffixes (`a.mp3.srt`, `a.wav.srt`).

    Raises:
        ConfigError: two recordings cannot be told apart by their names.
    """
    parents = [Path(absolute(recording.path.parent)) for recording in recordings]
    try:
        common = os.path.commonpath(parents)
    except ValueError:  # they are on several drives
        common = ""
    relative = [parent.relative_to(common or parent.anchor) for parent in parents]
    ways: list[Callable[[int], PurePath]] = [
        lambda n: recordings[n].below.with_suffix(""),
        lambda n: relative[n] / recordings[n].below.stem,
        lambda n: relative[n] / recordings[n].below.name,
    ]
    names = [ways[0](n) for n in range(len(recordings))]
    for way in ways[1:]:
        count = Counter(names)
        names = [way(n) if count[name] > 1 else name for n, name in enumerate(names)]
    suffixes = {format: _suffix(format, formats) for format in formats}
    targets: list[Targets] = [
        {format: folder / name.with_name(name.name + suffixes[format]) for format in formats} for name in names
    ]
    _refuse_shared(recordings, targets)
    return targets


def existing(targets: Iterable[Targets]) -> list[Path]:
    """The files that are there already. What is no file is in the way, which is another matter, as is a name too long for one."""
    return [path for each in targets for path in each.values() if os.path.isfile(path)]  # noqa: PTH113 -- Path's raises errors


def check_writable(target: Path) -> None:
    """Find out what would keep a result from being written, before it costs anything to have one.

    Raises:
        OSError: there is something.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise FileExistsError(0, "something that is no file has this name")
    with tempfile.TemporaryFile(dir=target.parent) as probe:
        probe.write(PROBE)
        probe.flush()


def write_result(target: Path, text: str, *, replace: bool) -> None:
    """Write a file that is there as a whole or not at all, and in nobody's place unless `replace` says so.

    Raises:
        OSError: it cannot be written. What has been written of it is gone.
    """
    target = Path(os.path.realpath(target))  # a link stays one
    part = target.with_name(f".eardrum-{os.getpid()}-{secrets.token_hex(4)}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())  # some file systems only tell now that they are full
        if replace:
            part.replace(target)
        else:
            _give_name(part, target)
    finally:
        part.unlink(missing_ok=True)


def _give_name(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # of a file system without links
        if os.path.lexists(target):
            raise FileExistsError(0, "somebody else has written it meanwhile") from None
        part.rename(target)


def _suffix(format: str, formats: Sequence[str]) -> str:
    return VERBOSE_BESIDE_JSON if format == "verbose_json" and "json" in formats else SUFFIXES[format]


def _refuse_shared(recordings: Sequence[Recording], targets: Sequence[Targets]) -> None:
    owners: dict[Path, Recording] = {}
    inputs = {os.path.realpath(recording.path) for recording in recordings}
    for recording, each in zip(recordings, targets, strict=True):
        for path in each.values():
            if os.path.realpath(path) in inputs:
                raise ConfigError(f"The text of {recording.name} would be written over the recording {path}.")
            if other := owners.get(path):
                raise ConfigError(
                    f"{other.name} and {recording.name} would both be written to {path}: rename one, or transcribe them apart."
                )
            owners[path] = recording
