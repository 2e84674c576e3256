"""The folder models are kept in: plain directories, and the layout of the Hugging Face cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from eardrum.errors import StorageFullError

IMPORTED = "imported"
"""Revision of models that did not come from the hub."""

UNFINISHED = "*.part"
"""Files of a download that was cut off."""


def default_folder() -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


class Store:
    """The models in one folder, by id: a directory's name, or the name at the hub."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Ids and where the files are, in the order of the names. Whether the files are a model is the engines' affair."""
        for directory in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            id = directory.name
            if id.startswith("models--"):
                id = id.removeprefix("models--").replace("--", "/")
            if source := self.find(id):
                yield id, source

    def find(self, id: str) -> Path | None:
        """The files of a model, the newest revision of them; None when there are none, or not all of them yet."""
        cached = self._cached(id)
        if any((cached / "blobs").glob(UNFINISHED)):
            return None
        snapshots = sorted((cached / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
        if snapshots:
            return snapshots[-1]
        plain = self.folder / id
        return plain if "/" not in id and not id.startswith(("models--", ".")) and plain.is_dir() else None

    def add(self, directory: Path, id: str) -> Path:
        """Copy a directory in, as if it had been fetched from the hub. What is half copied is not seen as a model.

        Raises:
            StorageFullError: it does not fit.
        """
        snapshot = self._cached(id) / "snapshots" / IMPORTED
        copying = self._cached(id) / f".{IMPORTED}"
        size, free = size_of(directory), shutil.disk_usage(_existing(self.folder)).free
        if size > free:
            raise StorageFullError(f"{directory} has {size / 1e9:.1f} GB, and {self.folder} {free / 1e9:.1f} GB free: make room.")
        shutil.rmtree(copying, ignore_errors=True)
        try:
            shutil.copytree(directory, copying)
        except BaseException:
            shutil.rmtree(copying, ignore_errors=True)
            raise
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        copying.rename(snapshot)
        os.utime(snapshot)  # its age says which revision is the newest
        (self._cached(id) / "refs").mkdir(exist_ok=True)
        (self._cached(id) / "refs" / "main").write_text(IMPORTED)
        return snapshot

    def remove(self, id: str) -> int:
        """Delete a model's files, also those of an unfinished download; returns the bytes that became free."""
        freed = 0
        for path in (self._cached(id), *([self.folder / id] if "/" not in id else [])):
            if path.is_dir():
                freed += size_of(path)
                shutil.rmtree(path)
        with suppress(OSError):
            shutil.rmtree(self.folder / ".locks" / self._cached(id).name)
        return freed

    def unfinished(self, id: str) -> bool:
        """Whether a download of this model was cut off."""
        return any((self._cached(id) / "blobs").glob(UNFINISHED))

    def _cached(self, id: str) -> Path:
        return self.folder / f"models--{id.replace('/', '--')}"


def size_of(source: Path) -> int:
    """Bytes of the files at a path; links count as what they link to only where nothing else holds it."""
    if source.is_file():
        return source.stat().st_size
    files = (path for path in source.rglob("*") if path.is_file())
    return sum({path.resolve(): path.stat().st_size for path in files}.values())


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
