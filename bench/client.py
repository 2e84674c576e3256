"""A bare HTTP client: sends at a chosen speed, reads while it sends, and can hang up at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MODEL = "moonshine-tiny-en"
BOUNDARY = b"----bench"
LONGEST_LINE = 1 << 26
PIECE = 64 * 1024

Place = int | Path
"""A port of this machine, or a unix socket."""


class GeneratedFile(Protocol):
    """A file that is made while it is sent."""

    @property
    def size(self) -> int:
        """Bytes it will have."""

    def __iter__(self) -> Iterator[bytes]:
        """Those bytes, in pieces."""


@dataclass(frozen=True, slots=True)
class RequestBody:
    """What a request sends: its head's lines beyond the usual ones, and its bytes."""

    headers: str
    pieces: Iterable[bytes]
    size: int


def build_form(audio: bytes | GeneratedFile, **fields: str) -> RequestBody:
    """A multipart form with the fields before the file."""
    text = "".join(
        f'--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in ({"model": MODEL} | fields).items()
    )
    file = f'--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; name="file"; filename="audio"\r\n\r\n'
    first, last = (text + file).encode(), b"\r\n--" + BOUNDARY + b"--\r\n"
    size = len(audio) if isinstance(audio, bytes) else audio.size

    def pieces() -> Iterable[bytes]:
        yield first
        yield from _split_data(audio) if isinstance(audio, bytes) else audio
        yield last

    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n"
    return RequestBody(kind, pieces(), len(first) + size + len(last))


def build_plain(audio: bytes) -> RequestBody:
    """Nothing but the bytes: what a runner takes."""
    return RequestBody("x-eardrum-request: {}\r\n", _split_data(audio), len(audio))


@asynccontextmanager
async def open_exchange(
    place: Place, path: str, body: RequestBody | None = None, *, bytes_per_s: float = float("inf"), wanted: int = 200
) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request in the background and yield the answer's stream, behind its head. Leaving hangs up.

    Raises:
        RuntimeError: the answer's status is not the one that is wanted.
    """
    reader, writer = await _connect(place)
    sending = asyncio.ensure_future(_send(writer, path, body, bytes_per_s))
    try:
        status = await reader.readline()
        while (line := await reader.readline()).strip():
            pass
        if f" {wanted} ".encode() not in status:
            raise RuntimeError(f"{path}: {status!r} {line!r} {await reader.read(2000)!r}")
        yield reader
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def transcribe(port: int, audio: bytes | GeneratedFile, *, task: str = "transcriptions", **fields: str) -> bytes:
    """A server's whole answer; `task` is the last part of the path."""
    async with open_exchange(port, f"/v1/audio/{task}", build_form(audio, **fields)) as answer:
        return await answer.read()


async def transcribe_with_runner(socket: Path, audio: bytes) -> bytes:
    """A runner's whole answer.

    Raises:
        RuntimeError: it broke off.
    """
    async with open_exchange(socket, "/transcribe", build_plain(audio)) as answer:
        text = await answer.read()
    if b'"summary"' not in text:
        raise RuntimeError(f"The runner did not finish: {text[-500:]!r}")
    return text


async def get_runner_health(socket: Path) -> dict[str, Any]:
    """What a runner says of itself."""
    async with open_exchange(socket, "/health") as answer:
        health: dict[str, Any] = json.loads(await answer.read())
        return health


async def read_next_segment(answer: asyncio.StreamReader) -> None:
    """Read a stream of events up to the end of the next segment.

    Raises:
        RuntimeError: there is none.
    """
    while line := await answer.readline():
        if line.startswith(b"data:") and b"transcript.text.delta" in line:
            return
    raise RuntimeError("The stream ended before the next segment")


async def wait_for_quiet(socket: Path, for_s: float = 1.0) -> int:
    """Windows a runner has decoded, once it has decoded none for `for_s` seconds."""
    count, since = -1, 0.0
    clock = asyncio.get_running_loop().time
    while count < 0 or clock() - since < for_s:
        windows = (await get_runner_health(socket))["windows"]
        if windows != count:
            count, since = windows, clock()
        await asyncio.sleep(0.05)
    return count


async def _connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(place, Path):
        return await asyncio.open_unix_connection(str(place), limit=LONGEST_LINE)
    return await asyncio.open_connection("127.0.0.1", place, limit=LONGEST_LINE)


async def _send(writer: asyncio.StreamWriter, path: str, body: RequestBody | None, bytes_per_s: float) -> None:
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
    if body:
        head += f"{body.headers}Content-Length: {body.size}\r\n"
    writer.write(f"{head}\r\n".encode())
    clock = asyncio.get_running_loop().time
    started, sent = clock(), 0
    for piece in body.pieces if body else ():
        writer.write(piece)
        await writer.drain()
        sent += len(piece)
        if (ahead := sent / bytes_per_s - (clock() - started)) > 0:
            await asyncio.sleep(ahead)


def _split_data(data: bytes) -> Iterable[bytes]:
    view = memoryview(data)
    return (bytes(view[at : at + PIECE]) for at in range(0, len(data), PIECE))
