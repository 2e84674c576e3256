"""Fetches a model from the Hugging Face hub: `python -m eardrum.hub REPOSITORY --cache DIR [--pattern P ...]`.

A process of its own, so that the gateway neither imports the hub's library nor waits for it, and stopping a download is
ending a process. Says a line of JSON on stdout per step: `{"plan": {files, total, present}}`, `{"progress": {file, completed}}`
(bytes of all files so far), and last `{"done": {"path"}}` or `{"failed": {...}}`. With `--list` it fetches nothing and says
`{"listing": {files, model_type}}`.

What is fetched lands in the standard cache. The library starts a file over when it was cut off; files of models are
gigabytes, so here the part that arrived is kept beside the cache's own files and continued. A revision is seen in the
cache only when all its files are there, so a model that is being brought up to date stays usable.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, cast

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from eardrum.errors import EardrumError, PullError, StorageFullError
from eardrum.hub_cache import PART, Blob, RepositoryCache

EVERY_S = 0.2
"""Least time between two lines of progress."""

ANSWER_S = 30.0
"""How long the hub may take to describe a repository."""

HEADROOM = 64 << 20
"""Bytes that must stay free on the disk."""


def main() -> None:
    """Fetch, and say how it went."""
    arguments = _arguments()
    disable_progress_bars()
    if arguments.parent:
        Thread(target=_follow_parent, name="parent", daemon=True).start()
    try:
        if arguments.list:
            _say({"listing": listing(arguments.repository)})
            return
        path = fetch(arguments.repository, arguments.cache, arguments.pattern)
    except EardrumError as error:
        _say({"failed": error.to_json()})
        sys.exit(1)
    _say({"done": {"path": str(path)}})


def listing(repository: str) -> dict[str, Any]:
    """The names of the repository's files, and the `model_type` of its config.

    Raises:
        PullError: as `fetch`.
    """
    info = _described(repository)
    config = info.config if isinstance(info.config, dict) else {}
    return {"files": [_safe(s.rfilename) for s in info.siblings or ()], "model_type": str(config.get("model_type") or "")}


def fetch(repository: str, cache: Path, patterns: Sequence[str]) -> Path:
    """Bring the repository's files that match `patterns` (all, if there are none) into `cache`; returns their folder.

    Raises:
        PullError: there is no such repository, it asks for a licence or a token, or the hub cannot be reached.
        StorageFullError: the disk has no room.
    """
    info = _described(repository)
    wanted = [s for s in info.siblings or () if _wanted(_safe(s.rfilename), patterns)]
    if not wanted:
        raise PullError(f"{repository} holds no files of a kind that its engine reads ({', '.join(patterns)}).")
    revision = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PullError(
            f"What answers in place of the hub does not say which revision of {repository} it has: check HF_ENDPOINT."
        )
    try:
        files = [_file(repository, revision, sibling) for sibling in wanted]
        return _Fetch(repository, revision, cache, files).run()
    except (OSError, ValueError, httpx2.HTTPError) as error:
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
            says = _refused(error.response.status_code, repository)
        case OSError(errno=errno.ENOSPC):
            return StorageFullError(f"The disk is full: make room, then pull {repository} again; what has arrived is kept.")
        case OSError(filename=str(), strerror=str()):
            says = f"{repository} cannot be stored: {error.strerror}: {error.filename}."
        case OSError() | httpx2.HTTPError():
            says = f"The hub cannot be reached ({_line_of(error)}). Pull {repository} again later; what has arrived is kept."
        case _:
            says = f"What answers in place of the hub does not speak its language ({_line_of(error)}): check HF_ENDPOINT."
    return PullError(says)


def _refused(status: int, repository: str) -> str:
    if status == 401:
        return f"The hub does not accept the token in HF_TOKEN: set a valid one, or none, and pull {repository} again."
    if status == 403:
        return f"The token in HF_TOKEN may not read {repository}: set one that may."
    if status == 429:
        return f"The hub has had too many requests from here: pull {repository} again later; what has arrived is kept."
    if status >= 500:
        return f"The hub is out of order (status {status}). Pull {repository} again later; what has arrived is kept."
    return f"The hub refused {repository} with status {status}."


def _line_of(error: Exception) -> str:
    """The error in one short line: the hub's library is talkative."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _described(repository: str) -> ModelInfo:
    try:
        return HfApi().model_info(repository, files_metadata=True, timeout=ANSWER_S)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, httpx2.HTTPError) as error:
        raise worded(error, repository) from error  # not only the network: what answers may not be a hub at all


@dataclass(frozen=True, slots=True)
class _File:
    """A file to have: its name in the repository, where it is fetched from, and its content's place and size."""

    name: str
    url: str
    blob: Blob


def _file(repository: str, revision: str, sibling: RepoSibling) -> _File:
    url = hf_hub_url(repository, sibling.rfilename, revision=revision)
    content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.size
    if not content or size is None:  # mirrors of the hub may be sparing with what they tell
        remote = get_hf_file_metadata(url)
        content, size = remote.etag, remote.size
    if not content or size is None or not re.fullmatch(r"\w[\w.-]*", content):
        raise PullError(f"The hub does not say what {sibling.rfilename} of {repository} holds.")
    return _File(sibling.rfilename, url, Blob(content, size))


class _Fetch:
    """One repository on its way into the cache."""

    def __init__(self, repository: str, revision: str, cache: Path, files: Sequence[_File]):
        self._repository = repository
        self._revision = revision
        self._files = files
        self._cache = RepositoryCache(cache, repository)

    def run(self) -> Path:
        sizes = {file.blob: file.blob.size for file in self._files}  # two files may have one content
        total, present = sum(sizes.values()), sum(map(self._cache.arrived, sizes))
        _say({"plan": {"files": len(self._files), "total": total, "present": present}})
        self._cache.blobs.mkdir(parents=True, exist_ok=True)
        with FileLock(self._cache.blobs / "eardrum.lock"):
            self._check_room(total - sum(map(self._cache.arrived, sizes)))
            completed = 0
            for file in {file.blob: file for file in self._files}.values():
                self._content(file, Progress(file.name, completed))
                completed += file.blob.size
            _say({"progress": {"file": file.name, "completed": total}})
            return self._cache.publish(self._revision, {file.name: file.blob for file in self._files})

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._cache.blobs).free
        if missing and missing + HEADROOM > free:
            raise StorageFullError(
                f"{self._repository} needs {missing / 1e9:.1f} GB more, and {self._cache.folder} has {free / 1e9:.1f} GB free: "
                "make room, or set model_dir (HF_HUB_CACHE) to another disk."
            )

    def _content(self, file: _File, progress: Progress) -> None:
        """Have the file's content among the blobs."""
        if self._cache.holds(file.blob):
            return
        arrived = self._cache.arrived(file.blob)
        progress.update(arrived)
        with self._cache.part(file.blob).open("ab") as part:
            # By its address here and not by where that leads: the library then sends the token to nobody else, and asks
            # for a new one when the one of the store behind the hub has expired.
            http_get(
                file.url,
                part,
                resume_size=arrived,
                headers=build_hf_headers() | {"accept-encoding": "identity"},
                expected_size=file.blob.size,
                _tqdm_bar=cast(Any, progress),
            )
        if not self._cache.keep(file.blob):
            raise PullError(f"{file.name} of {self._repository} arrived damaged: pull it again.")


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


def _safe(name: str) -> str:
    """The name of a file that stays inside its folder.

    Raises:
        PullError: it does not, or could be taken for an unfinished file.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name.endswith(PART):
        raise PullError(f"The hub lists a file that will not be stored under its name: {name!r}.")
    return name


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _follow_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.hub", description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder of the hub's cache")
    parser.add_argument("--pattern", action="append", default=[], help="fetch only files like this; repeatable")
    parser.add_argument("--list", action="store_true", help="say what files there are, and fetch nothing")
    parser.add_argument("--parent", action="store_true", help="end when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
