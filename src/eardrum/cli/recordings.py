"""Finds the recordings that arguments name, and plans and writes their output files.

Inputs are files, folders, patterns, pipes and stdin. Output names are unique, and an output file is either complete or absent.
"""

from __future__ import annotations

import glob
import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from msgspec import Struct

from eardrum.errors import ConfigError
from eardrum.gateway.models.store import expand_home

STDIN = "-"

MEDIA_SUFFIXES = {
    "3g2", "3gp", "aac", "ac3", "adts", "aif", "aifc", "aiff", "alac", "amr", "ape", "asf", "au", "avi", "awb", "caf", "dts",
    "eac3", "f4a", "f4v", "flac", "flv", "gsm", "m2ts", "m4a", "m4b", "m4r", "m4v", "mka", "mkv", "mov", "mp2", "mp3", "mp4",
    "mpeg", "mpg", "mpga", "mts", "mxf", "oga", "ogg", "ogv", "ogx", "opus", "ra", "rm", "rmvb", "snd", "spx", "tak", "ts",
    "tta", "vob", "w64", "wav", "weba", "webm", "wma", "wmv", "wv",
}  # fmt: skip
"""Suffixes of the files taken from a folder. A file named on the command line may have any name."""


class InputRecording(Struct, frozen=True):
    """One recording to transcribe."""

    path: Path
    """The file or pipe; `-` is stdin."""
    relative_path: PurePath
    """The path below the folder named on the command line, or the bare name of a file named there."""
    is_piped: bool = False
    """Whether it can be read only once, as it arrives."""

    @property
    def name(self) -> str:
        """The name for messages."""
        return "stdin" if self.path == Path(STDIN) else str(self.path)


class InputFailure(Struct, frozen=True):
    """An input that failed, with the reason as a sentence."""

    name: str
    reason: str


def find_recordings(inputs: Iterable[str]) -> tuple[list[InputRecording], list[InputFailure]]:
    """Find all recordings, each once and in the order of the inputs; returns them and the inputs that failed."""
    recordings: dict[str, InputRecording] = {}
    failures: list[InputFailure] = []
    for name in inputs:
        for found in _expand_input(name):
            if isinstance(found, InputFailure):
                failures.append(found)
            else:
                is_stdin = found.is_piped and found.path == Path(STDIN)  # files may be named `-` and `stdin`
                recordings.setdefault(STDIN if is_stdin else make_absolute(found.path), found)
    return list(recordings.values()), failures


def _expand_input(name: str) -> Iterator[InputRecording | InputFailure]:
    if name == STDIN:
        yield InputRecording(Path(STDIN), PurePath("stdin"), is_piped=True)
        return
    path = expand_home(name)
    if os.path.lexists(path) or not glob.has_magic(name):
        yield from _find_named(path)
        return
    matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 -- takes absolute patterns too; some shells leave patterns to programs, and quoted ones arrive as they are
    if not matching:
        yield InputFailure(name, "No file matches this pattern.")
    for match in matching:
        yield from _find_named(Path(match))


def _find_named(path: Path) -> Iterator[InputRecording | InputFailure]:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        yield InputFailure(str(path), _describe_unreadable(path, error))
        return
    if stat.S_ISDIR(mode):
        yield from _walk_folder(path)
    else:
        yield InputRecording(path, PurePath(path.name), is_piped=not stat.S_ISREG(mode))


def _walk_folder(folder: Path) -> Iterator[InputRecording | InputFailure]:
    """Yield the media files in a folder and its subfolders, except hidden ones. Links are followed, each folder once."""
    entered: set[tuple[int, int]] = set()
    failures: list[InputFailure] = []
    empty = True
    walk = os.walk(folder, followlinks=True, onerror=lambda error: failures.append(_describe_closed_folder(error)))
    for place, folders, files in walk:
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and PurePath(name).suffix[1:].lower() in MEDIA_SUFFIXES:
                empty = False
                path = Path(place, name)
                yield _check_file(path, PurePath(path.relative_to(folder)))
    yield from failures
    if empty and not failures:
        yield InputFailure(str(folder), "This folder has no audio or video file.")


def _check_file(path: Path, below: PurePath) -> InputRecording | InputFailure:
    """Accept files only: opening a pipe in a folder could block for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return InputFailure(str(path), _describe_unreadable(path, error))
    return (
        InputRecording(path, below)
        if stat.S_ISREG(mode)
        else InputFailure(str(path), "This is a pipe or device: name it on the command line to read from it.")
    )


def make_absolute(path: Path) -> str:
    """Make a path absolute and remove `..`; links stay."""
    return os.path.normpath(path.absolute())


def _describe_closed_folder(error: OSError) -> InputFailure:
    return InputFailure(str(error.filename), f"This folder cannot be read: {error.strerror}.")


def _describe_unreadable(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"The link is broken: {path.readlink()} does not exist." if path.is_symlink() else f"There is no file {path}."
    return f"It cannot be read: {getattr(error, 'strerror', None) or error}."


SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json", "verbose_json": ".json"}
VERBOSE_BESIDE_JSON = ".verbose.json"

PROBE_DATA = bytes(4096)
"""Written to the output folder before a recording is decoded: the disk must have room for it."""

OutputFiles = Mapping[str, Path]
"""The output files of one recording, by format."""


def plan_outputs(recordings: Sequence[InputRecording], formats: Sequence[str], folder: Path) -> list[OutputFiles]:
    """Plan the output files of every recording in the folder. No two are the same.

    A name is as short as possible: the recording's path below its input folder, without suffix. Recordings that would share
    a name keep their folders, and if that is not enough their suffixes (`a.mp3.srt`, `a.wav.srt`).

    Raises:
        ConfigError: two recordings have the same name.
    """
    parents = [Path(make_absolute(recording.path.parent)) for recording in recordings]
    try:
        common = os.path.commonpath(parents)
    except ValueError:  # on several drives
        common = ""
    relative = [parent.relative_to(common or parent.anchor) for parent in parents]
    ways: list[Callable[[int], PurePath]] = [
        lambda n: recordings[n].relative_path.with_suffix(""),
        lambda n: relative[n] / recordings[n].relative_path.stem,
        lambda n: relative[n] / recordings[n].relative_path.name,
    ]
    names = [ways[0](n) for n in range(len(recordings))]
    for way in ways[1:]:
        count = Counter(names)
        names = [way(n) if count[name] > 1 else name for n, name in enumerate(names)]
    suffixes = {format: _choose_suffix(format, formats) for format in formats}
    targets: list[OutputFiles] = [
        {format: folder / name.with_name(name.name + suffixes[format]) for format in formats} for name in names
    ]
    _check_conflicts(recordings, targets)
    return targets


def list_existing(targets: Iterable[OutputFiles]) -> list[Path]:
    """List the output files that exist. Other things of that name, and names too long, become errors later."""
    return [path for each in targets for path in each.values() if os.path.isfile(path)]  # noqa: PTH113 -- Path.is_file raises errors


def check_writable(target: Path) -> None:
    """Check that an output file can be written, before the recording is transcribed.

    Raises:
        OSError: it cannot.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise FileExistsError(0, "something that is not a file has this name")
    with tempfile.TemporaryFile(dir=target.parent) as probe:
        probe.write(PROBE_DATA)
        probe.flush()


def write_result(target: Path, text: str, *, replace: bool) -> None:
    """Write a file completely or not at all. An existing file is replaced only if `replace` is set.

    Raises:
        OSError: the file cannot be written; the incomplete part is deleted.
    """
    target = Path(os.path.realpath(target))  # a link stays, its target is written
    part = target.with_name(f".eardrum-{os.getpid()}-{secrets.token_hex(4)}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())  # some file systems report only here that they are full
        if replace:
            part.replace(target)
        else:
            _publish_file(part, target)
    finally:
        part.unlink(missing_ok=True)


def _publish_file(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # the file system has no links
        if os.path.lexists(target):
            raise FileExistsError(0, "another program has created it meanwhile") from None
        part.rename(target)


def _choose_suffix(format: str, formats: Sequence[str]) -> str:
    return VERBOSE_BESIDE_JSON if format == "verbose_json" and "json" in formats else SUFFIXES[format]


def _check_conflicts(recordings: Sequence[InputRecording], targets: Sequence[OutputFiles]) -> None:
    owners: dict[Path, InputRecording] = {}
    inputs = {os.path.realpath(recording.path) for recording in recordings}
    for recording, each in zip(recordings, targets, strict=True):
        for path in each.values():
            if os.path.realpath(path) in inputs:
                raise ConfigError(f"The text of {recording.name} would overwrite the recording {path}: use another --output-dir.")
            if other := owners.get(path):
                raise ConfigError(
                    f"{other.name} and {recording.name} would both be written to {path}: rename one, or run the command twice."
                )
            owners[path] = recording
