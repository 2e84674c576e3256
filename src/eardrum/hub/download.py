"""Downloads the files of one repository into the cache, over as many connections as it takes.

Errors of the hub become `EardrumError`s whose sentences say what to do. The cache has Hugging Face's layout, contents under
their hashes and revisions that link to them:

models--OWNER--NAME/
    blobs/HASH, blobs/HASH.part     a content, or the part of it that arrived
    snapshots/REVISION/FILE         links to the contents
    refs/main                       the newest revision
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

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
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from eardrum.errors import EardrumError, ModelNotFoundError, PullError, StorageFullError

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 << 20
MAX_FILES = 20_000
"""The files that identify the kind of a repository."""

MAX_NAME_BYTES = 255
"""Bytes of a file's name on every file system in use."""

MIN_FREE_BYTES = 64 << 20
"""Bytes that must stay free on the disk."""


def list_repository(repository: str) -> dict[str, Any]:
    """The names of the repository's files, and what its config.json says: engines know their models by the two.

    Raises:
        ModelNotFoundError, PullError: as `fetch`.
    """
    info = _fetch_info(repository)
    files = [_check_name(s.rfilename) for s in info.siblings or ()]
    if len(files) > MAX_FILES:
        raise PullError(f"{repository} has {len(files)} files, and no model that can be recognised has more than {MAX_FILES}.")
    unfit = _find_unfit(files)  # nobody has to store what an engine may not want
    fit = [name for name in files if name not in unfit]
    return {"files": fit, "config": _fetch_config(repository, info.sha) if CONFIG_FILE in fit else {}}


def _fetch_config(repository: str, revision: str | None) -> dict[str, Any]:
    """The repository's config.json; empty if that is not a JSON object."""
    url = hf_hub_url(repository, CONFIG_FILE, revision=revision)
    try:
        response = get_session().get(url, headers=build_hf_headers(), timeout=READ_TIMEOUT_S)
        hf_raise_for_status(response)
    except (OSError, httpx2.HTTPError) as error:
        raise explain_error(error, repository) from error
    if len(response.content) > MAX_CONFIG_BYTES:
        raise PullError(
            f"The {CONFIG_FILE} of {repository} has {len(response.content):,} bytes, and no model's has more than a few."
        )
    try:
        config = response.json()
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def download_repository(repository: str, cache: Path, patterns: Sequence[str]) -> Path:
    """Bring the repository's files that match `patterns` (all, if there are none) into `cache`; returns their folder.

    Raises:
        ModelNotFoundError: there is no such repository.
        PullError: it asks for a licence or a token, or the hub cannot be reached.
        StorageFullError: the disk has no room.
    """
    info = _fetch_info(repository)
    wanted = [s for s in info.siblings or () if _is_wanted(_check_name(s.rfilename), patterns)]
    if not wanted:
        raise PullError(f"{repository} holds no files of a kind that its engine reads ({', '.join(patterns)}).")
    for name, why in _find_unfit([s.rfilename for s in wanted]).items():
        raise PullError(f"{repository} cannot be stored: {name[:80]} {why}.")
    revision = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PullError(
            f"What answers in place of the hub does not say which revision of {repository} it has: check HF_ENDPOINT."
        )
    try:
        files = [_describe_file(repository, revision, sibling) for sibling in wanted]
        return _RepositoryDownload(repository, revision, cache, files).run()
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise explain_error(error, repository) from error


def _fetch_info(repository: str) -> ModelInfo:
    try:
        return HfApi().model_info(repository, files_metadata=True, timeout=READ_TIMEOUT_S)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, httpx2.HTTPError) as error:
        raise explain_error(error, repository) from error  # not only the network: what answers may not be a hub at all


def _describe_file(repository: str, revision: str, sibling: RepoSibling) -> HubFile:
    url = hf_hub_url(repository, sibling.rfilename, revision=revision)
    content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.size
    if not content or size is None:  # mirrors of the hub may be sparing with what they tell
        remote = get_hf_file_metadata(url)
        content, size = remote.etag, remote.size
    if not content or size is None or not re.fullmatch(r"\w[\w.-]*", content):
        raise PullError(f"The hub does not say what {sibling.rfilename} of {repository} holds.")
    return HubFile(sibling.rfilename, url, HubBlob(content, size))


class _RepositoryDownload:
    """One repository on its way into the cache."""

    def __init__(self, repository: str, revision: str, cache: Path, files: Sequence[HubFile]):
        self._repository = repository
        self._revision = revision
        self._files = files
        self._cache = RepositoryCache(cache, repository)

    def run(self) -> Path:
        sizes = {file.blob: file.blob.size for file in self._files}  # two files may have one content
        total, present = sum(sizes.values()), sum(map(self._cache.count_arrived, sizes))
        write_message({"plan": {"files": len(self._files), "total": total, "present": present}})
        self._cache.blobs.mkdir(parents=True, exist_ok=True)
        with FileLock(self._cache.blobs / "eardrum.lock"):
            self._check_disk_space(total - sum(map(self._cache.count_arrived, sizes)))
            completed = 0
            for file in {file.blob: file for file in self._files}.values():
                self._fetch_content(file, ProgressReporter(file.name, completed))
                completed += file.blob.size
            write_message({"progress": {"file": file.name, "completed": total}})
            return self._cache.publish(self._revision, {file.name: file.blob for file in self._files})

    def _check_disk_space(self, missing: int) -> None:
        free = shutil.disk_usage(self._cache.blobs).free
        if missing and missing + MIN_FREE_BYTES > free:
            raise StorageFullError(
                f"{self._repository} needs {missing / 1e9:.1f} GB more, and {self._cache.folder} has {free / 1e9:.1f} GB free: "
                "make room, or set model_dir (HF_HUB_CACHE) to another disk."
            )

    def _fetch_content(self, file: HubFile, progress: ProgressReporter) -> None:
        """Have the file's content among the blobs."""
        if self._cache.has_blob(file.blob):
            return
        self._cache.count_arrived(file.blob)  # throws away a part that is too long
        with self._cache.get_part_path(file.blob).open("ab") as part:
            progress.report(part.tell())
            download_file(file, part, progress)
        if not self._cache.complete_blob(file.blob):
            raise PullError(f"{file.name} of {self._repository} arrived damaged: pull it again.")


def _check_name(name: str) -> str:
    """The name of a file that stays inside its folder.

    Raises:
        PullError: it does not, or could be taken for an unfinished file.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name.endswith(PART_SUFFIX):
        raise PullError(f"The hub lists a file that will not be stored under its name: {name!r}.")
    return name


def _find_unfit(names: Sequence[str]) -> dict[str, str]:
    """Names of files that no disk can hold together, and why."""
    known, unfit = set(names), {}
    for name in names:
        path = PurePosixPath(name)
        above = next((str(parent) for parent in path.parents if str(parent) in known), "")
        if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts):
            unfit[name] = f"has a name of more than {MAX_NAME_BYTES} bytes"
        elif above:
            unfit[name] = f"is inside {above[:80]}, which is a file as well"
    return unfit


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


PROGRESS_INTERVAL_S = 0.2
"""Least time between two lines of progress."""

READ_TIMEOUT_S = 30.0
"""How long the hub may say nothing."""

RETRY_PAUSES_S = (0.5, 1.0, 2.0)
"""Before trying again, as long as nothing arrives. Whatever does arrive starts the count anew."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file to have: its name in the repository, where it is fetched from, and its content's place and size."""

    name: str
    url: str
    blob: HubBlob


def download_file(file: HubFile, part: BinaryIO, progress: ProgressReporter) -> None:
    """Append what is missing, over as many connections as it takes. Gives up when nothing arrives any more.

    Raises:
        httpx2.HTTPError: the hub cannot be reached, or refuses.
        OSError: the disk refuses.
    """
    pauses = iter(RETRY_PAUSES_S)
    while part.tell() < file.blob.size:
        before = part.tell()
        try:
            _append_bytes(file, part, progress)
        except httpx2.HTTPError as error:
            if isinstance(error, HfHubHTTPError) and not _is_transient(error.response.status_code):
                raise
            if part.tell() > before:
                pauses = iter(RETRY_PAUSES_S)
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)


def _append_bytes(file: HubFile, part: BinaryIO, progress: ProgressReporter) -> None:
    """One connection's worth.

    The file is asked for at its address here and not where that leads: so the token goes to the hub only, and an address
    of the store behind it that has expired is replaced by a fresh one.
    """
    headers = build_hf_headers() | {"accept-encoding": "identity"}
    if part.tell():
        headers["range"] = f"bytes={part.tell()}-"
    with get_session().stream("GET", file.url, headers=headers, timeout=READ_TIMEOUT_S, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if part.tell() and response.status_code != 206:  # the whole file comes
            part.truncate(0)
            progress.report(0)
        for data in response.iter_bytes():
            part.write(data)
            progress.report(part.tell())
    if part.tell() < file.blob.size:
        raise httpx2.RemoteProtocolError("the file ended too early")


def _is_transient(status: int) -> bool:
    """Whether a refusal may be over in a moment."""
    return status in (408, 429) or status >= 500


class ProgressReporter:
    """Turns the bytes of one file into lines about all of them."""

    def __init__(self, file: str, before: int):
        self._file = file
        self._before = before
        self._reported_at = 0.0

    def report(self, bytes: int) -> None:
        """So many bytes of the file are here. A line, unless the last one is fresh."""
        if time.monotonic() - self._reported_at >= PROGRESS_INTERVAL_S:
            self._reported_at = time.monotonic()
            write_message({"progress": {"file": self._file, "completed": self._before + bytes}})


PART_SUFFIX = ".part"
"""Ending of a content that is not whole yet."""


@dataclass(frozen=True, slots=True)
class HubBlob:
    """A content: the hub's hash of it, and its size in bytes."""

    hash: str
    size: int


class RepositoryCache:
    """One repository in the cache `folder`."""

    def __init__(self, folder: Path, repository: str):
        self.folder = folder
        self._home = folder / f"models--{repository.replace('/', '--')}"
        self.blobs = self._home / "blobs"

    def get_part_path(self, blob: HubBlob) -> Path:
        """Where what has arrived of the content is."""
        return self.blobs / (blob.hash + PART_SUFFIX)

    def has_blob(self, blob: HubBlob) -> bool:
        """Whether the content is here. One of another size is not it: an earlier attempt died while writing."""
        path = self.blobs / blob.hash
        return path.exists() and path.stat().st_size == blob.size

    def count_arrived(self, blob: HubBlob) -> int:
        """Bytes of the content that are here."""
        if self.has_blob(blob):
            return blob.size
        part = self.get_part_path(blob)
        size = part.stat().st_size if part.exists() else 0
        if size > blob.size:
            part.unlink()
            return 0
        return size

    def complete_blob(self, blob: HubBlob) -> bool:
        """Turn a complete part into the blob. Deletes it and returns False if its hash is wrong."""
        part = self.get_part_path(blob)
        if not _has_hash(part, blob.hash):
            part.unlink()
            return False
        part.rename(self.blobs / blob.hash)
        return True

    def publish(self, revision: str, files: Mapping[str, HubBlob]) -> Path:
        """Make the contents visible under their names, all at once; returns the folder. Parts of other revisions go."""
        snapshot = self._home / "snapshots" / revision
        snapshot.parent.mkdir(exist_ok=True)
        if snapshot.exists():  # fetched before, perhaps with fewer files
            self._link_files(snapshot, snapshot, files)
        else:
            with tempfile.TemporaryDirectory(dir=self._home, prefix=".") as folder:
                linked = Path(folder) / revision
                self._link_files(linked, snapshot, files)
                linked.rename(snapshot)
        refs = self._home / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(revision, encoding="ascii")
        os.utime(snapshot)  # its age says which revision is the newest
        for part in self.blobs.glob(f"*{PART_SUFFIX}"):
            part.unlink()
        return snapshot

    def _link_files(self, folder: Path, snapshot: Path, files: Mapping[str, HubBlob]) -> None:
        """Links in `folder` that are right once it is at `snapshot`."""
        for name, blob in files.items():
            link, content = folder / name, self.blobs / blob.hash
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(os.path.relpath(content, (snapshot / name).parent))
            except OSError:  # a file system without links
                shutil.copyfile(content, link)


def _has_hash(path: Path, hash: str) -> bool:
    """Whether the hub would give the file this hash: SHA-256 for large files, git's for small ones. Others are not known."""
    with path.open("rb") as file:
        if len(hash) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == hash
        if len(hash) == 40:
            header = f"blob {path.stat().st_size}\0".encode()
            return hashlib.sha1(header + file.read(), usedforsecurity=False).hexdigest() == hash
    return True


def explain_error(error: Exception, repository: str) -> EardrumError:
    """The error as a message that names the cause and the remedy."""
    match error:
        case GatedRepoError():
            says = f"{repository} asks to accept its terms: do so on its page at the hub, then set HF_TOKEN."
        case RepositoryNotFoundError() | HFValidationError():
            return ModelNotFoundError(f"The hub has no model {repository}, or it is private: check the name, or set HF_TOKEN.")
        case OfflineModeIsEnabled():
            says = f"{repository} cannot be fetched: HF_HUB_OFFLINE is set. Unset it, or `eardrum pull FOLDER` from a copy."
        case HfHubHTTPError():
            says = _describe_status(error.response.status_code, repository)
        case OSError(errno=errno.ENOSPC):
            return StorageFullError(f"The disk is full: make room, then pull {repository} again; what has arrived is kept.")
        case OSError(filename=str(), strerror=str()):
            says = f"{repository} cannot be stored: {error.strerror}: {error.filename}."
        case OSError() | httpx2.HTTPError():
            says = (
                f"The hub cannot be reached ({_summarize_error(error)}). Pull {repository} again later; what has arrived is kept."
            )
        case _:
            says = f"What answers in place of the hub does not speak its language ({_summarize_error(error)}): check HF_ENDPOINT."
    return PullError(says)


def _describe_status(status: int, repository: str) -> str:
    if status == 401:
        return f"The hub does not accept the token in HF_TOKEN: set a valid one, or none, and pull {repository} again."
    if status == 403:
        return f"The token in HF_TOKEN may not read {repository}: set one that may."
    if status == 429:
        return f"The hub has had too many requests from here: pull {repository} again later; what has arrived is kept."
    if status >= 500:
        return f"The hub is out of order (status {status}). Pull {repository} again later; what has arrived is kept."
    return f"The hub refused {repository} with status {status}."


def _summarize_error(error: Exception) -> str:
    """The error in one short line: the hub's library is talkative."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def write_message(message: dict[str, Any]) -> None:
    """Write one line of JSON and flush it: the reader waits for it."""
    print(json.dumps(message), flush=True)
