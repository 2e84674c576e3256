"""The Hugging Face cache of one repository, written: contents under their hashes, and revisions that link to them.

models--OWNER--NAME/
    blobs/HASH, blobs/HASH.part     a content, or what has arrived of it
    snapshots/REVISION/FILE         links to the contents
    refs/main                       the newest revision
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PART = ".part"
"""Ending of a content that is not whole yet."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A content: the hub's hash of it, and its size in bytes."""

    hash: str
    size: int


class RepositoryCache:
    """One repository in the cache `folder`."""

    def __init__(self, folder: Path, repository: str):
        self.folder = folder
        self._home = folder / f"models--{repository.replace('/', '--')}"
        self.blobs = self._home / "blobs"

    def part(self, blob: Blob) -> Path:
        """Where what has arrived of the content is."""
        return self.blobs / (blob.hash + PART)

    def holds(self, blob: Blob) -> bool:
        """Whether the content is here. One of another size is not it: an earlier attempt died while writing."""
        path = self.blobs / blob.hash
        return path.exists() and path.stat().st_size == blob.size

    def arrived(self, blob: Blob) -> int:
        """Bytes of the content that are here."""
        if self.holds(blob):
            return blob.size
        part = self.part(blob)
        size = part.stat().st_size if part.exists() else 0
        if size > blob.size:
            part.unlink()
            return 0
        return size

    def keep(self, blob: Blob) -> bool:
        """The part is whole: make it the content. If it is not what its hash says, it is thrown away, and False returned."""
        part = self.part(blob)
        if not _is(part, blob.hash):
            part.unlink()
            return False
        part.rename(self.blobs / blob.hash)
        return True

    def publish(self, revision: str, files: Mapping[str, Blob]) -> Path:
        """Make the contents visible under their names, all at once; returns the folder. Parts of other revisions go."""
        snapshot = self._home / "snapshots" / revision
        snapshot.parent.mkdir(exist_ok=True)
        if snapshot.exists():  # fetched before, perhaps with fewer files
            self._link(snapshot, snapshot, files)
        else:
            with tempfile.TemporaryDirectory(dir=self._home, prefix=".") as folder:
                linked = Path(folder) / revision
                self._link(linked, snapshot, files)
                linked.rename(snapshot)
        refs = self._home / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(revision, encoding="ascii")
        os.utime(snapshot)  # its age says which revision is the newest
        for part in self.blobs.glob(f"*{PART}"):
            part.unlink()
        return snapshot

    def _link(self, folder: Path, snapshot: Path, files: Mapping[str, Blob]) -> None:
        """Links in `folder` that are right once it is at `snapshot`."""
        for name, blob in files.items():
            link, content = folder / name, self.blobs / blob.hash
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(os.path.relpath(content, (snapshot / name).parent))
            except OSError:  # a file system without links
                shutil.copyfile(content, link)


def _is(path: Path, hash: str) -> bool:
    """Whether the hub would give the file this hash: SHA-256 for large files, git's for small ones. Others are not known."""
    with path.open("rb") as file:
        if len(hash) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == hash
        if len(hash) == 40:
            header = f"blob {path.stat().st_size}\0".encode()
            return hashlib.sha1(header + file.read(), usedforsecurity=False).hexdigest() == hash
    return True
