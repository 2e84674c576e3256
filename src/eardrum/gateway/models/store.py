"""The folder with the models' files: plain directories, and the layout of the Hugging Face cache."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from eardrum.errors import ConfigError, PullError, StorageFullError

IMPORT_REVISION = "imported"
"""Revision of models that did not come from the hub."""

CACHE_PREFIX = "models--"
"""Prefix of the models' folders in the Hugging Face cache."""

UNFINISHED_PATTERNS = ("*.part", "*.incomplete")
"""Partial files of Eardrum's downloads and of the hub's own tools."""

MAX_ID_BYTES = 200
"""Longest id of a model: it becomes part of the name of a folder, which may have 255 bytes."""


def find_hub_cache() -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it.

    Raises:
        ConfigError: the cache would be in the home folder, and this user has none.
    """
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    try:
        return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    except RuntimeError:
        raise ConfigError("This user has no home folder for the Hugging Face cache: set model_dir, HF_HOME or HOME.") from None


def is_model_id(name: str) -> bool:
    """Whether this may be the id of a model: `folder`, `owner/model` or `owner/model/file`, and no path out of the store."""
    parts = name.split("/")
    return (
        len(parts) <= 3
        and all(
            part and part.isprintable() and not part.startswith((".", "-", CACHE_PREFIX)) and "\\" not in part for part in parts
        )
        and len(name.encode(errors="replace")) <= MAX_ID_BYTES
    )


def is_written_as_path(name: str) -> bool:
    """Whether a model is given as the path of a folder or a file, not as a name."""
    return name.startswith((".", "/", "~")) or name.endswith("/")


def expand_home(name: str) -> Path:
    """Return the path that a name stands for, with `~` as the home folder. Names may begin with `~` and mean no user's home."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 -- Path.expanduser raises errors for those


def resolve_folder(folder: Path) -> tuple[Path, str]:
    """Return the folder with the files and the model's id. `folder` may be part of a Hugging Face cache, or a copy of one.

    Raises:
        ConfigError: it is part of a Hugging Face cache, without a complete model.
    """
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(CACHE_PREFIX):
        return folder, _parse_id(folder.parent.parent)
    if not folder.name.startswith(CACHE_PREFIX):
        return folder, folder.name
    source = ModelStore(folder.parent).find_files(_parse_id(folder))
    if not source:
        raise ConfigError(f"{folder} looks like a part of the Hugging Face cache, but contains no complete model.")
    return source, _parse_id(folder)


class ModelStore:
    """The models in one folder, by id: the name of a subfolder, or the id at the hub."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Yield ids and folders, sorted by folder. Only engines can tell whether the files are a model."""
        for id in self._list_ids():
            if source := self.find_files(id):
                yield id, source

    def find_files(self, id: str) -> Path | None:
        """The folder with a model's files, of the newest complete revision; None if there is none."""
        if not is_model_id(id):
            return None
        found: dict[Path, float] = {}
        with suppress(OSError):  # the model is being deleted, or cannot be read
            for path in (self._get_cache_path(id) / "snapshots").glob("*"):
                with suppress(OSError):
                    if S_ISDIR((status := path.stat()).st_mode):
                        found[path] = status.st_mtime
        return max(found, key=found.__getitem__) if found else self._find_plain(id)

    def is_unfinished(self, id: str) -> bool:
        """Whether a download or an import of this model is incomplete or running."""
        if not is_model_id(id):
            return False
        with suppress(OSError):  # it is being deleted
            blobs = self._get_cache_path(id) / "blobs"
            return self.is_partly_copied(id) or any(any(blobs.glob(pattern)) for pattern in UNFINISHED_PATTERNS)
        return False

    def is_partly_copied(self, id: str) -> bool:
        """Whether a copy of a folder into this model has begun, and has not ended."""
        return is_model_id(id) and (self._get_cache_path(id) / f".{IMPORT_REVISION}").is_dir()

    def compute_fingerprint(self) -> frozenset[tuple[str, int, int]]:
        """Return a value that differs once a model was added, removed or changed. Costs two calls of `stat` for each model."""
        try:
            with os.scandir(self.folder) as entries:
                return frozenset(
                    (entry.name, _read_change_time(entry.path), _read_change_time(f"{entry.path}/snapshots")) for entry in entries
                )
        except OSError:  # missing or not readable
            return frozenset()

    def list_unfinished(self) -> list[str]:
        """Ids of all models with an unfinished download."""
        return [id for id in self._list_ids() if self.is_unfinished(id)]

    def import_folder(self, directory: Path, id: str, on_copied: Callable[[int], None]) -> Path:
        """Copy a directory into the store. Until all files are copied, it is not a model.

        Args:
            directory: the files; hidden ones (`.git`) are left out.
            id: the id of the new model.
            on_copied: called with the size of each copied file.

        Raises:
            ConfigError: the id is invalid, or another model has it.
            PullError: a file cannot be copied.
            StorageFullError: there is not enough space.
        """
        if not is_model_id(id) or _parse_id(self._get_cache_path(id)) != id:  # `a--b` would be found as `a/b`
            raise ConfigError(f"A model cannot be called {id!r}: choose a name of letters and digits with --name.")
        if self.find_files(id):
            raise ConfigError(
                f"There is a model {id} already: `eardrum rm {shlex.quote(id)}` first, or choose another name with --name."
            )
        files = [path for path in directory.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(directory))]
        size, free = sum(path.stat().st_size for path in files), shutil.disk_usage(_find_existing(self.folder)).free
        if size > free:
            raise StorageFullError(
                f"{directory} takes {size / 1e9:.1f} GB, but {self.folder} has {free / 1e9:.1f} GB free: make room."
            )
        copying, snapshot = (
            self._get_cache_path(id) / f".{IMPORT_REVISION}",
            self._get_cache_path(id) / "snapshots" / IMPORT_REVISION,
        )
        try:
            with _hold_folder(copying, id):
                _copy_files(files, directory, copying, on_copied)
                snapshot.parent.mkdir(parents=True, exist_ok=True)
                copying.rename(snapshot)
        except OSError as error:
            raise _make_copy_error(error, directory, self.folder) from error
        finally:
            with suppress(OSError):  # if the copy failed, and no other file is in the folder
                self._get_cache_path(id).rmdir()
        return snapshot

    def remove_model(self, id: str) -> int:
        """Delete a model's files and unfinished downloads; returns the freed bytes.

        Raises:
            ConfigError: this user may not delete them.
        """
        try:
            return self._delete_files(id) if is_model_id(id) else 0
        except PermissionError as error:
            raise ConfigError(f"{id} cannot be deleted: {error.strerror}: {error.filename}.") from error

    def _delete_files(self, id: str) -> int:
        freed = 0
        for path in (self._get_cache_path(id), self._find_plain(id)):
            if path and path.is_symlink():  # the link's target is not part of the store
                path.unlink()
            elif path and path.is_dir():
                freed += measure_size(path)
                shutil.rmtree(path)
        with suppress(OSError):
            shutil.rmtree(self.folder / ".locks" / self._get_cache_path(id).name)
        return freed

    def contains(self, source: Path) -> bool:
        """Whether a path is in the store."""
        return self.folder.resolve() in source.resolve().parents

    def _list_ids(self) -> Iterator[str]:
        try:
            directories = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError:
            raise ConfigError(
                f"The folder of models, {self.folder}, cannot be read: set model_dir, or change its permissions."
            ) from None
        for directory in directories:
            yield _parse_id(directory)

    def _find_plain(self, id: str) -> Path | None:
        plain = self.folder / id
        return plain if "/" not in id and os.path.isdir(plain) else None  # noqa: PTH112 -- Path.is_dir raises without permission

    def _get_cache_path(self, id: str) -> Path:
        return self.folder / f"{CACHE_PREFIX}{id.replace('/', '--')}"


def measure_size(source: Path) -> int:
    """Bytes of the files at a path; files with several links count once."""
    return sum({(status.st_dev, status.st_ino): status.st_size for status in list_file_states(source)}.values())


def list_file_states(source: Path) -> list[os.stat_result]:
    """States of the files at a path. Files that vanish meanwhile, as while a model is deleted, or cannot be read are left out."""
    states = []
    for path in [source, *(Path(folder, name) for folder, _, names in os.walk(source) for name in names)]:
        with suppress(OSError):
            if S_ISREG((status := path.stat()).st_mode):
                states.append(status)
    return states


def _read_change_time(path: str) -> int:
    """When an entry of a folder was added or removed, in nanoseconds; 0 without a folder."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def _parse_id(folder: Path) -> str:
    name = folder.name
    return name.removeprefix(CACHE_PREFIX).replace("--", "/") if name.startswith(CACHE_PREFIX) else name


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _find_existing(folder: Path) -> Path:
    return folder if folder.exists() else _find_existing(folder.parent)


@contextmanager
def _hold_folder(folder: Path, id: str) -> Iterator[None]:
    """Have an empty folder that no other process uses, for the block. What is left in it at the end is deleted.

    Raises:
        ConfigError: another process copies into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{id} is being copied by another process: wait for its end.") from None
        try:
            for left in folder.iterdir():  # by a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _copy_files(files: Sequence[Path], source: Path, target: Path, on_copied: Callable[[int], None]) -> None:
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        on_copied(path.stat().st_size)


def _make_copy_error(error: OSError, directory: Path, folder: Path) -> PullError | StorageFullError:
    if error.errno == errno.ENOSPC:
        return StorageFullError(f"The disk of {folder} is full: make room, then pull {directory} again.")
    return PullError(f"{directory} cannot be copied to {folder}: {error.strerror}: {error.filename}.")
