"""A fake of the Hugging Face hub: a real HTTP server on loopback with repositories from memory, and faults on demand.

It speaks what huggingface_hub 2.4 asks of `HF_ENDPOINT`: `/api/models/REPOSITORY`, and HEAD and GET of
`/REPOSITORY/resolve/REVISION/FILE` with ranges. Files of `LARGE` bytes and more are named by their SHA-256 and answered with
a redirect to another origin, as the hub does with what it keeps in Git LFS.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

LARGE = 10_000
PIECE = 16_384


@dataclass
class FakeRepository:
    """A model at the fake hub. Setting a field changes how it behaves from then on."""

    files: dict[str, bytes]
    revision: str = "a" * 40
    status: int = 200
    """Status of every answer about it; 403 means gated."""
    gated: bool = False
    """Everybody may list its files, and only who has a token may read them."""
    cut_after: int | None = None
    """The connection breaks at this byte of every large file; every later one breaks there at once."""
    claims: int = 0
    """Bytes that each file is said to have; 0 is the truth."""
    damaged: bool = False
    """The last byte of every file is wrong."""
    ignores_ranges: bool = False
    terse: bool = False
    """Does not tell sizes and hashes of files in its description, as some mirrors."""
    pace: float = 0.0
    """Seconds between two pieces of a file."""
    gate: Event | None = None
    """Large files stop half way until this is set."""


@dataclass
class FakeHub:
    """The server's side of what happened."""

    address: str = ""
    store: str = ""
    """Origin that large files are redirected to."""
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    served: int = 0
    """Bytes of files sent."""
    sending: int = 0
    """Files being sent now."""
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """Authorization headers by the origin that got them."""

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to use this hub and no other."""
        return {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "", "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def fake_hub(**repositories: FakeRepository) -> Iterator[FakeHub]:
    """A running fake hub; no thread, socket or connection is left afterwards."""
    hub = FakeHub(repositories={name.replace("__", "/"): repository for name, repository in repositories.items()})
    server, store = _HubServer(hub), _HubServer(hub)
    hub.address, hub.store = server.address, store.address
    threads = [Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02}) for each in (server, store)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for each, thread in zip((server, store), threads, strict=True):
            each.end()
            thread.join()


class _HubServer(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, hub: FakeHub):
        super().__init__(("127.0.0.1", 0), _HubExchange)
        self.hub = hub
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.ended = Event()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in the middle is part of the play."""

    def end(self) -> None:
        self.ended.set()
        self.shutdown()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()  # waits for the threads


class _HubExchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        if token := self.headers.get("authorization"):
            hub.tokens.setdefault(self.server.address, set()).add(token)
        path = urlsplit(self.path).path
        if found := re.fullmatch(r"/api/models/(.+?)(?:/revision/[^/]+)?", path):
            self._describe(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/(resolve|stored)/([^/]+)/(.+)", path):
            self._send_file(found[1], found[4], redirects=found[2] == "resolve")
        else:
            self._refuse(404, "EntryNotFound")

    def _describe(self, name: str) -> None:
        repository = self.server.hub.repositories.get(name)
        if not repository:
            self._refuse(404, "RepoNotFound")
        elif self._check_authorization(repository):
            siblings = [_describe_file(file, data, repository) for file, data in repository.files.items()]
            gated = "auto" if repository.gated else False
            body = {"id": name, "modelId": name, "sha": repository.revision, "siblings": siblings, "gated": gated}
            self._send(200, json.dumps(body).encode(), {"content-type": "application/json"})

    def _check_authorization(self, repository: FakeRepository) -> bool:
        codes = {401: "", 403: "GatedRepo", 404: "RepoNotFound"}
        if repository.status != 200:
            self._refuse(repository.status, codes.get(repository.status, ""))
        return repository.status == 200

    def _send_file(self, name: str, file: str, *, redirects: bool) -> None:
        repository = self.server.hub.repositories[name]
        if repository.gated and redirects and not self.headers.get("authorization"):
            self._refuse(401, "GatedRepo")
            return
        if not self._check_authorization(repository):
            return
        data = repository.files.get(file)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"etag": f'"{_compute_hash(data)}"', "x-repo-commit": repository.revision, "accept-ranges": "bytes"}
        if redirects and len(data) >= LARGE:
            linked = {"x-linked-size": str(len(data)), "x-linked-etag": headers["etag"]}
            self._send(302, b"", linked | headers | {"location": f"{self.server.hub.store}/{name}/stored/x/{file}"})
        else:
            self._send_content(repository, data, headers)

    def _send_content(self, repository: FakeRepository, data: bytes, headers: dict[str, str]) -> None:
        total, first = len(data), 0
        if repository.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if (wanted := self.headers.get("range")) and not repository.ignores_ranges:
            self.server.hub.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers = headers | {"content-range": f"bytes {first}-{total - 1}/{total}"}
        self.send_response(206 if "content-range" in headers else 200)
        for key, value in (headers | {"content-length": str(total - first)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.server.hub.sending += 1
            try:
                self._send_slowly(repository, data, first)
            finally:
                self.server.hub.sending -= 1

    def _send_slowly(self, repository: FakeRepository, data: bytes, first: int) -> None:
        large = len(data) >= LARGE
        for start in range(first, len(data), PIECE):
            piece = data[start : start + PIECE]
            if large and repository.gate and start >= len(data) // 2:
                while not (repository.gate.wait(0.02) or self.server.ended.is_set()):
                    pass
            if large and repository.cut_after is not None:
                piece = piece[: max(0, repository.cut_after - start)]
            self.wfile.write(piece)
            self.server.hub.served += len(piece)
            if large and repository.cut_after is not None and start + len(piece) >= repository.cut_after:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if repository.pace:
                time.sleep(repository.pace)

    def _refuse(self, status: int, code: str) -> None:
        headers = {"x-error-code": code} if code else {}
        self._send(status, b'{"error": "no"}', headers | {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _describe_file(name: str, data: bytes, repository: FakeRepository) -> dict[str, Any]:
    if repository.terse:
        return {"rfilename": name}
    sibling: dict[str, Any] = {"rfilename": name, "size": repository.claims or len(data), "blobId": _compute_git_hash(data)}
    if len(data) >= LARGE:
        sibling["lfs"] = {"size": len(data), "sha256": _compute_hash(data), "pointerSize": 134}
    return sibling


def _compute_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else _compute_git_hash(data)


def _compute_git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
