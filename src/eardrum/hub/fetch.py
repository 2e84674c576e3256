"""One repository into the cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from eardrum.errors import PullError, StorageFullError
from eardrum.hub.cache import PART, Blob, RepositoryCache
from eardrum.hub.download import SILENCE_S, File, Progress, download
from eardrum.hub.lines import say
from eardrum.hub.words import worded

CONFIG = "config.json"
CONFIG_BYTES = 4 << 20
MOST_FILES = 20_000
"""What is looked at to find out what a repository is."""

LONGEST_NAME = 255
"""Bytes of a file's name on every file system in use."""

HEADROOM = 64 << 20
"""Bytes that must stay free on the disk."""


def listing(repository: str) -> dict[str, Any]:
    """The names of the repository's files, and what its config.json says: engines know their models by the two.

    Raises:
        ModelNotFoundError, PullError: as `fetch`.
    """
    info = _described(repository)
    files = [_safe(s.rfilename) for s in info.siblings or ()]
    if len(files) > MOST_FILES:
        raise PullError(f"{repository} has {len(files)} files, and no model that can be recognised has more than {MOST_FILES}.")
    unfit = _unfit(files)  # nobody has to store what an engine may not want
    fit = [name for name in files if name not in unfit]
    return {"files": fit, "config": _config(repository, info.sha) if CONFIG in fit else {}}


def _config(repository: str, revision: str | None) -> dict[str, Any]:
    """The repository's config.json; empty if that is not a JSON object."""
    url = hf_hub_url(repository, CONFIG, revision=revision)
    try:
        response = get_session().get(url, headers=build_hf_headers(), timeout=SILENCE_S)
        hf_raise_for_status(response)
    except (OSError, httpx2.HTTPError) as error:
        raise worded(error, repository) from error
    if len(response.content) > CONFIG_BYTES:
        raise PullError(f"The {CONFIG} of {repository} has {len(response.content):,} bytes, and no model's has more than a few.")
    try:
        config = response.json()
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def fetch(repository: str, cache: Path, patterns: Sequence[str]) -> Path:
    """Bring the repository's files that match `patterns` (all, if there are none) into `cache`; returns their folder.

    Raises:
        ModelNotFoundError: there is no such repository.
        PullError: it asks for a licence or a token, or the hub cannot be reached.
        StorageFullError: the disk has no room.
    """
    info = _described(repository)
    wanted = [s for s in info.siblings or () if _wanted(_safe(s.rfilename), patterns)]
    if not wanted:
        raise PullError(f"{repository} holds no files of a kind that its engine reads ({', '.join(patterns)}).")
    for name, why in _unfit([s.rfilename for s in wanted]).items():
        raise PullError(f"{repository} cannot be stored: {name[:80]} {why}.")
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


def _described(repository: str) -> ModelInfo:
    try:
        return HfApi().model_info(repository, files_metadata=True, timeout=SILENCE_S)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, httpx2.HTTPError) as error:
        raise worded(error, repository) from error  # not only the network: what answers may not be a hub at all


def _file(repository: str, revision: str, sibling: RepoSibling) -> File:
    url = hf_hub_url(repository, sibling.rfilename, revision=revision)
    content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.size
    if not content or size is None:  # mirrors of the hub may be sparing with what they tell
        remote = get_hf_file_metadata(url)
        content, size = remote.etag, remote.size
    if not content or size is None or not re.fullmatch(r"\w[\w.-]*", content):
        raise PullError(f"The hub does not say what {sibling.rfilename} of {repository} holds.")
    return File(sibling.rfilename, url, Blob(content, size))


class _Fetch:
    """One repository on its way into the cache."""

    def __init__(self, repository: str, revision: str, cache: Path, files: Sequence[File]):
        self._repository = repository
        self._revision = revision
        self._files = files
        self._cache = RepositoryCache(cache, repository)

    def run(self) -> Path:
        sizes = {file.blob: file.blob.size for file in self._files}  # two files may have one content
        total, present = sum(sizes.values()), sum(map(self._cache.arrived, sizes))
        say({"plan": {"files": len(self._files), "total": total, "present": present}})
        self._cache.blobs.mkdir(parents=True, exist_ok=True)
        with FileLock(self._cache.blobs / "eardrum.lock"):
            self._check_room(total - sum(map(self._cache.arrived, sizes)))
            completed = 0
            for file in {file.blob: file for file in self._files}.values():
                self._content(file, Progress(file.name, completed))
                completed += file.blob.size
            say({"progress": {"file": file.name, "completed": total}})
            return self._cache.publish(self._revision, {file.name: file.blob for file in self._files})

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._cache.blobs).free
        if missing and missing + HEADROOM > free:
            raise StorageFullError(
                f"{self._repository} needs {missing / 1e9:.1f} GB more, and {self._cache.folder} has {free / 1e9:.1f} GB free: "
                "make room, or set model_dir (HF_HUB_CACHE) to another disk."
            )

    def _content(self, file: File, progress: Progress) -> None:
        """Have the file's content among the blobs."""
        if self._cache.holds(file.blob):
            return
        self._cache.arrived(file.blob)  # throws away a part that is too long
        with self._cache.part(file.blob).open("ab") as part:
            progress.reach(part.tell())
            download(file, part, progress)
        if not self._cache.keep(file.blob):
            raise PullError(f"{file.name} of {self._repository} arrived damaged: pull it again.")


def _safe(name: str) -> str:
    """The name of a file that stays inside its folder.

    Raises:
        PullError: it does not, or could be taken for an unfinished file.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name.endswith(PART):
        raise PullError(f"The hub lists a file that will not be stored under its name: {name!r}.")
    return name


def _unfit(names: Sequence[str]) -> dict[str, str]:
    """Names of files that no disk can hold together, and why."""
    known, unfit = set(names), {}
    for name in names:
        path = PurePosixPath(name)
        above = next((str(parent) for parent in path.parents if str(parent) in known), "")
        if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in path.parts):
            unfit[name] = f"has a name of more than {LONGEST_NAME} bytes"
        elif above:
            unfit[name] = f"is inside {above[:80]}, which is a file as well"
    return unfit


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
