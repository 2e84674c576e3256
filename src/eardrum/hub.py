"""Downloads a model from the Hugging Face hub: `python -m eardrum.hub REPOSITORY --cache DIR [--pattern P ...]`.

It is a separate process, so that the gateway neither imports the hub's library nor waits for it, and stopping a download means
ending a process. It writes a line of JSON to stdout per step: `{"plan": {files, total, present}}`, `{"progress": {file,
completed}}` (bytes of all files so far), and last `{"done": {"path"}}` or `{"failed": {...}}`. With `--list` it downloads
nothing and writes `{"listing": {files, config}}`.

Files land in the standard cache, in Hugging Face's layout:

models--OWNER--NAME/
    blobs/HASH, blobs/HASH.part     a file's content, or the part of it that has arrived
    snapshots/REVISION/FILE         links to the contents
    refs/main                       the newest revision

The library restarts an interrupted file from zero. Files of models are gigabytes, so here the part that has arrived is kept and
continued. A revision appears in the cache only when all its files are complete, so a model stays usable while it is updated.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, BinaryIO

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, get_hf_file_metadata, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # public, in an `__all__` that is computed
from msgspec import Struct

from eardrum.errors import EardrumError, HubAccessError, ModelNotFoundError, PullError, StorageFullError
from eardrum.process_messages import reserve_stdout, write_message

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 << 20
MAX_FILES = 20_000
"""Most files a repository may list: no model that an engine recognises has more."""

MAX_NAME_BYTES = 255
"""Bytes of a file's name on every file system in use."""

MIN_FREE_BYTES = 64 << 20
"""Bytes that must stay free on the disk."""


def main() -> None:
    """Download or list the repository named on the command line; exit code 1 if that fails."""
    arguments = _parse_arguments()
    reserve_stdout()
    if arguments.parent:
        Thread(target=_exit_with_parent, name="parent", daemon=True).start()
    try:
        if arguments.list:
            write_message({"listing": list_repository(arguments.repository)})
            return
        path = download_repository(arguments.repository, arguments.cache, arguments.pattern)
    except EardrumError as error:
        write_message({"failed": error.to_json()})
        sys.exit(1)
    write_message({"done": {"path": str(path)}})


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.hub", description="Download a model from the Hugging Face hub.")
    parser.add_argument("repository")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder of the Hugging Face cache")
    parser.add_argument("--pattern", action="append", default=[], help="download only files that match; repeatable")
    parser.add_argument("--list", action="store_true", help="list the repository's files and download nothing")
    parser.add_argument("--parent", action="store_true", help="exit when stdin closes")
    return parser.parse_args()


def _exit_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def list_repository(repository: str) -> dict[str, Any]:
    """List the repository's file names and read its config.json: engines recognise their models by the two.

    Raises:
        ModelNotFoundError, PullError: as `download_repository`.
    """
    repository, file = split_id(repository)
    info = _fetch_info(repository)
    files = [_check_name(s.rfilename) for s in info.siblings or () if file in ("", s.rfilename)]
    if len(files) > MAX_FILES:
        raise PullError(f"{repository} has {len(files)} files, more than the {MAX_FILES} of any model: check the name.")
    unfit = _find_unfit(files)  # listing succeeds: the engine may not need these files
    fit = [name for name in files if name not in unfit]
    return {"files": fit, "config": _fetch_config(repository, info.sha) if CONFIG_FILE in fit else {}}


def split_id(id: str) -> tuple[str, str]:
    """Split the id of a model into the repository and the one file that is wanted of it: `owner/model/ggml-base.bin`.

    The file is empty if all files are wanted.
    """
    owner, _, rest = id.partition("/")
    model, _, file = rest.partition("/")
    return (f"{owner}/{model}", file) if file else (id, "")


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
            f"The {CONFIG_FILE} of {repository} has {len(response.content):,} bytes, and at most {MAX_CONFIG_BYTES:,} are read: "
            "check that the repository holds a model."
        )
    try:
        config = response.json()
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def download_repository(repository: str, cache: Path, patterns: Sequence[str]) -> Path:
    """Download the repository's files that match `patterns` (all, if there are none) into `cache`; returns their folder.

    Raises:
        ModelNotFoundError: there is no such repository.
        PullError: the repository requires accepted terms or a token, or the hub cannot be reached.
        StorageFullError: the disk has no room.
    """
    id, (repository, file) = repository, split_id(repository)
    info = _fetch_info(repository)
    wanted = [s for s in info.siblings or () if _is_wanted(_check_name(s.rfilename), [file] if file else patterns)]
    if file and not wanted:
        raise ModelNotFoundError(f"The repository {repository} at the hub has no file {file}: check the name.")
    if not wanted:
        raise PullError(f"{repository} has no files that its engine reads ({', '.join(patterns)}): check the name.")
    for name, why in _find_unfit([s.rfilename for s in wanted]).items():
        raise PullError(f"{repository} cannot be stored: {name[:80]} {why}.")
    revision = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PullError(f"The hub named no valid revision of {repository}: check that HF_ENDPOINT is a Hugging Face hub.")
    try:
        files = [_describe_file(repository, revision, sibling) for sibling in wanted]
        if info.gated:  # anybody may list the files: ask for one before the download seems to begin
            get_hf_file_metadata(files[0].url)
        return _RepositoryDownload(id, revision, cache, files).run()
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise explain_error(error, repository) from error


def _fetch_info(repository: str) -> ModelInfo:
    try:
        return HfApi().model_info(repository, files_metadata=True, timeout=READ_TIMEOUT_S)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, httpx2.HTTPError) as error:
        raise explain_error(error, repository) from error  # any type of error: HF_ENDPOINT may name a server that is not a hub


def _describe_file(repository: str, revision: str, sibling: RepoSibling) -> HubFile:
    url = hf_hub_url(repository, sibling.rfilename, revision=revision)
    content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.size
    if not content or size is None:  # some mirrors of the hub leave them out of the list
        remote = get_hf_file_metadata(url)
        content, size = remote.etag, remote.size
    if not content or size is None or not re.fullmatch(r"\w[\w.-]*", content):
        raise PullError(
            f"The hub lists {sibling.rfilename} of {repository} without its size or hash: try again later, or check HF_ENDPOINT."
        )
    return HubFile(sibling.rfilename, url, HubBlob(content, size))


class _RepositoryDownload:
    """The download of one repository into the cache."""

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
                "free some space, or set model_dir (HF_HUB_CACHE) to another disk."
            )

    def _fetch_content(self, file: HubFile, progress: ProgressReporter) -> None:
        """Download the file's content into the blobs, unless it is there."""
        if self._cache.has_blob(file.blob):
            return
        self._cache.count_arrived(file.blob)  # deletes a part that is too long
        with self._cache.get_part_path(file.blob).open("ab") as part:
            progress.report(part.tell())
            download_file(file, part, progress)
        if not self._cache.complete_blob(file.blob):
            raise PullError(f"{file.name} of {self._repository} does not match the hub's checksum: pull the model again.")


def _check_name(name: str) -> str:
    """Check that a file of this name stays inside its folder; returns the name.

    Raises:
        PullError: it does not, or looks like an unfinished file.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name.endswith(PART_SUFFIX):
        raise PullError(f"The repository lists a file with an unsafe name, {name!r}: Eardrum does not download it.")
    return name


def _find_unfit(names: Sequence[str]) -> dict[str, str]:
    """Find files that a file system cannot store together; returns name and reason."""
    known, unfit = set(names), {}
    for name in names:
        path = PurePosixPath(name)
        above = next((str(parent) for parent in path.parents if str(parent) in known), "")
        if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts):
            unfit[name] = f"has a name longer than {MAX_NAME_BYTES} bytes"
        elif above:
            unfit[name] = f"is inside {above[:80]}, which is also a file"
    return unfit


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


PROGRESS_INTERVAL_S = 0.2
"""Shortest time between two progress messages."""

READ_TIMEOUT_S = 30.0
"""Longest wait for the next bytes of the hub."""

RETRY_PAUSES_S = (0.5, 1.0, 2.0)
"""Pauses between attempts that receive nothing. An attempt that receives bytes starts the list again."""


class HubFile(Struct, frozen=True):
    """A file to download: its name in the repository, its URL, and its content's hash and size."""

    name: str
    url: str
    blob: HubBlob


def download_file(file: HubFile, part: BinaryIO, progress: ProgressReporter) -> None:
    """Append the missing bytes, over as many connections as needed. Gives up when several in a row deliver nothing.

    Raises:
        httpx2.HTTPError: the hub cannot be reached, or refuses.
        OSError: the file cannot be written.
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
    """Append the bytes of one connection.

    Each connection starts at the hub's URL, not at the one it redirects to: the token goes to the hub only, and a redirect
    that has expired is replaced by a new one.
    """
    headers = build_hf_headers() | {"accept-encoding": "identity"}
    if part.tell():
        headers["range"] = f"bytes={part.tell()}-"
    with get_session().stream("GET", file.url, headers=headers, timeout=READ_TIMEOUT_S, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if part.tell() and response.status_code != 206:  # the server ignored the range
            part.seek(0)  # else its position would still be behind what was there
            part.truncate()
            progress.report(0)
        for data in response.iter_bytes():
            part.write(data)
            progress.report(part.tell())
    if part.tell() < file.blob.size:
        raise httpx2.RemoteProtocolError("the file ended too early")


def _is_transient(status: int) -> bool:
    """Whether a request with this status may succeed a moment later."""
    return status in (408, 429) or status >= 500


class ProgressReporter:
    """Writes the progress of the whole repository from the bytes of one file."""

    def __init__(self, file: str, before: int):
        self._file = file
        self._before = before
        self._reported_at = 0.0

    def report(self, bytes: int) -> None:
        """Write a progress message for `bytes` bytes of the file, unless the last message is recent."""
        if time.monotonic() - self._reported_at >= PROGRESS_INTERVAL_S:
            self._reported_at = time.monotonic()
            write_message({"progress": {"file": self._file, "completed": self._before + bytes}})


PART_SUFFIX = ".part"
"""Suffix of an incomplete content."""


class HubBlob(Struct, frozen=True):
    """A file's content: the hub's hash of it, and its size in bytes."""

    hash: str
    size: int


class RepositoryCache:
    """The cache of one repository, inside `folder`."""

    def __init__(self, folder: Path, repository: str):
        self.folder = folder
        self._home = folder / f"models--{repository.replace('/', '--')}"
        self.blobs = self._home / "blobs"

    def get_part_path(self, blob: HubBlob) -> Path:
        """The path of the content's incomplete part."""
        return self.blobs / (blob.hash + PART_SUFFIX)

    def has_blob(self, blob: HubBlob) -> bool:
        """Whether the cache has the whole content. A file of another size is the rest of a process that died while writing."""
        path = self.blobs / blob.hash
        return path.exists() and path.stat().st_size == blob.size

    def count_arrived(self, blob: HubBlob) -> int:
        """Count the bytes of the content that the cache has. Deletes a part that is too long."""
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
        """Publish the contents under their names, all at once; returns the folder. Deletes parts of other revisions."""
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
        """Create links in `folder` that are valid once the folder is at `snapshot`.

        A link, or a copy, that is there stays: `folder` may be a model in use. A new one is put in its place in one step.
        """
        for name, blob in files.items():
            link, content = folder / name, self.blobs / blob.hash
            target = os.path.relpath(content, (snapshot / name).parent)
            if str(link.readlink()) == target if link.is_symlink() else link.is_file() and link.stat().st_size == blob.size:
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._home, prefix=".") as place:
                new = Path(place, "file")
                try:
                    new.symlink_to(target)
                except OSError:  # the file system has no links
                    shutil.copyfile(content, new)
                new.replace(link)


def _has_hash(path: Path, hash: str) -> bool:
    """Whether the file has the hub's hash: SHA-256 for large files, git's for small ones. Other hashes are not checked."""
    with path.open("rb") as file:
        if len(hash) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == hash
        if len(hash) == 40:
            header = f"blob {path.stat().st_size}\0".encode()
            return hashlib.sha1(header + file.read(), usedforsecurity=False).hexdigest() == hash
    return True


def explain_error(error: Exception, repository: str) -> EardrumError:
    """Turn an error into one whose message names the cause and the remedy."""
    match error:
        case GatedRepoError():
            return HubAccessError(
                f"{repository} requires you to accept its terms: accept them on its page at the hub, then set HF_TOKEN, in "
                "Eardrum's environment, to a token of that account."
            )
        case RepositoryNotFoundError() | HFValidationError():
            return ModelNotFoundError(f"The hub has no model {repository}, or it is private: check the name, or set HF_TOKEN.")
        case OfflineModeIsEnabled():
            message = (
                f"Cannot download {repository}: HF_HUB_OFFLINE is set. Unset it, or copy the folder and `eardrum pull FOLDER`."
            )
        case HfHubHTTPError(response=httpx2.Response(status_code=401)):
            return HubAccessError(
                f"The hub rejected the token in HF_TOKEN: set a valid one or none, then pull {repository} again."
            )
        case HfHubHTTPError(response=httpx2.Response(status_code=403)):
            return HubAccessError(f"The token in HF_TOKEN has no access to {repository}: set a token that has.")
        case HfHubHTTPError():
            message = _describe_status(error.response.status_code, repository)
        case OSError(errno=errno.ENOSPC):
            return StorageFullError(
                f"The disk is full: free some space, then pull {repository} again. It continues where it stopped."
            )
        case OSError(filename=str(), strerror=str()):
            message = f"Cannot store {repository}: {error.strerror}: {error.filename}."
        case OSError() | httpx2.HTTPError():
            message = (
                f"Cannot reach the hub ({_summarize_error(error)}): check the connection and HF_ENDPOINT, then pull {repository} "
                "again. It continues where it stopped."
            )
        case _:
            message = f"HF_ENDPOINT does not answer like a Hugging Face hub ({_summarize_error(error)}): check its address."
    return PullError(message)


def _describe_status(status: int, repository: str) -> str:
    if status == 429:
        return f"The hub limits requests from this address: pull {repository} again later. It continues where it stopped."
    if status >= 500:
        return f"The hub failed with status {status}: pull {repository} again later. It continues where it stopped."
    return f"The hub refused {repository} with status {status}: check the name and HF_ENDPOINT."


def _summarize_error(error: Exception) -> str:
    """Shorten the error to one line: the hub library's messages are long."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


if __name__ == "__main__":
    main()
