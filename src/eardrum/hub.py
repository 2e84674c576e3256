"""Fetches a model from the Hugging Face hub: `python -m eardrum.hub REPOSITORY --cache DIR [--pattern P ...]`.

A process of its own, so that the gateway neither imports the hub's library nor waits for it, and stopping a download is
ending a process. Says a line of JSON on stdout per step: `{"plan": {files, total, present}}`, `{"progress": {file, completed}}`
(bytes of all files so far), and last `{"done": {"path"}}` or `{"failed": {...}}`.

What is fetched lands in the standard cache. The library starts a file over when it was cut off; files of models are
gigabytes, so here the part that arrived is kept beside the cache's own files and continued.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Thread
from typing import Any, cast

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from eardrum.errors import EardrumError, PullError, StorageFullError

PART = ".part"
"""Ending of a file that is not whole yet."""

EVERY_S = 0.2
"""Least time between two lines of progress."""

HEADROOM = 64 << 20
"""Bytes that must stay free on the disk."""


def main() -> None:
    """Fetch, and say how it went."""
    arguments = _arguments()
    disable_progress_bars()
    if arguments.parent:
        Thread(target=_follow_parent, name="parent", daemon=True).start()
    try:
        path = fetch(arguments.repository, arguments.cache, arguments.pattern, arguments.revision)
    except EardrumError as error:
        _say({"failed": error.to_json()})
        sys.exit(1)
    _say({"done": {"path": str(path)}})


def fetch(repository: str, cache: Path, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Bring the repository's files that match `patterns` (all, if there are none) into `cache`; returns their folder.

    Raises:
        PullError: there is no such repository, it asks for a licence or a token, or the hub cannot be reached.
        StorageFullError: the disk has no room.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        files = {s.rfilename: s.size or 0 for s in info.siblings or () if _wanted(s.rfilename, patterns)}
        if not files:
            raise PullError(f"{repository} holds no files of a kind that its engine reads ({', '.join(patterns)}).")
        return _Fetch(repository, info.sha or "main", cache, files).run()
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        raise worded(error, repository) from error


def worded(error: Exception, repository: str) -> EardrumError:
    """What went wrong, and what to do."""
    match error:
        case GatedRepoError():
            says = f"{repository} asks to accept its terms: do so on its page at the hub, then set HF_TOKEN."
        case RepositoryNotFoundError() | HFValidationError():
            says = f"The hub has no model {repository}, or it is private: check the name, or set HF_TOKEN."
        case OfflineModeIsEnabled():
            says = f"{repository} cannot be fetched: HF_HUB_OFFLINE is set. Unset it, or `eardrum pull FOLDER` from a copy."
        case HfHubHTTPError():
            says = f"The hub refused {repository}: {error}"
        case OSError(errno=errno.ENOSPC):
            return StorageFullError(f"The disk is full: make room, then pull {repository} again; what has arrived is kept.")
        case OSError(filename=str(), strerror=str()):
            says = f"{repository} cannot be stored: {error.strerror}: {error.filename}."
        case _:
            says = f"The hub cannot be reached ({error}). Pull {repository} again later; what has arrived is kept."
    return PullError(says)


class _Fetch:
    """One repository on its way into the cache."""

    def __init__(self, repository: str, revision: str, cache: Path, files: dict[str, int]):
        self._repository = repository
        self._revision = revision
        self._cache = cache
        self._files = files
        self._blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"

    def run(self) -> Path:
        self._blobs.mkdir(parents=True, exist_ok=True)
        with FileLock(self._blobs / "eardrum.lock"):
            present = sum(path.stat().st_size for path in self._blobs.iterdir())
            total = sum(self._files.values())
            _say({"plan": {"files": len(self._files), "total": total, "present": min(present, total)}})
            self._check_room(total - present)
            completed = 0
            for name, size in self._files.items():
                file = self._one(name, Progress(name, completed))
                completed += size
        _say({"progress": {"file": name, "completed": total}})
        return file.parents[len(Path(name).parts) - 1]

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._blobs).free
        if missing + HEADROOM > free:
            raise StorageFullError(
                f"{self._repository} needs {missing / 1e9:.1f} GB more, and {self._cache} has {free / 1e9:.1f} GB free: "
                "make room, or set model_dir (HF_HUB_CACHE) to another disk."
            )

    def _one(self, name: str, progress: Progress) -> Path:
        """Have the file's content in the cache, then let the hub's library link it into the snapshot."""
        url = hf_hub_url(self._repository, name, revision=self._revision)
        remote = get_hf_file_metadata(url)
        if remote.etag and remote.size:
            blob = self._blobs / remote.etag
            if not blob.exists():
                self._content(blob, remote.location, remote.size, progress)
        return Path(hf_hub_download(self._repository, name, revision=self._revision, cache_dir=self._cache))

    def _content(self, blob: Path, location: str, size: int, progress: Progress) -> None:
        part = blob.with_name(blob.name + PART)
        arrived = part.stat().st_size if part.exists() else 0
        if arrived > size:
            part.unlink()
            arrived = 0
        progress.update(arrived)
        with part.open("ab") as file:
            http_get(
                location,
                file,
                resume_size=arrived,
                headers=build_hf_headers(),
                expected_size=size,
                _tqdm_bar=cast(Any, progress),
            )
        if len(blob.name) == 64 and _sha256(part) != blob.name:  # large files are named by their SHA-256
            part.unlink()
            raise PullError(f"A file of {self._repository} arrived damaged: pull it again.")
        part.rename(blob)


class Progress:
    """What the hub's library takes for a progress bar: turns the bytes of one file into lines about the whole."""

    def __init__(self, file: str, before: int):
        self._file = file
        self._completed = before
        self._said = 0.0

    def update(self, bytes: float = 1) -> None:
        """So many more have arrived. A line, unless the last one is fresh."""
        self._completed += int(bytes)
        if time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            _say({"progress": {"file": self._file, "completed": self._completed}})


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _follow_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.hub", description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the hub's cache")
    parser.add_argument("--pattern", action="append", default=[], help="fetch only files like this; repeatable")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--parent", action="store_true", help="end when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # its chunks would bypass what arrived before
    main()
