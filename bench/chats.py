"""Clients of a chat API over bare connections that are kept open, so that the client costs next to nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHAT = {"model": "llm", "messages": [{"role": "user", "content": "What became of the hare? " * 8}], "temperature": 0.7}
FORM = b"multipart/form-data; boundary=bench"
PIECE = b"\x00" * (256 << 10)


def build_request(path: str, body: bytes, kind: bytes = b"application/json") -> bytes:
    """A request with its body."""
    return build_head(path, len(body), kind) + body


def build_head(path: str, size: int, kind: bytes) -> bytes:
    """A request up to its body."""
    lines = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\nContent-Type: ".encode()
    return lines + kind + b"\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"


CHATS_PATH = "/v1/chat/completions"
PLAIN = build_request(CHATS_PATH, json.dumps(CHAT).encode())
STREAMED = build_request(CHATS_PATH, json.dumps(CHAT | {"stream": True}).encode())


@asynccontextmanager
async def open_connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed with the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def measure_latencies(port: int, count: int, request: bytes = PLAIN) -> list[float]:
    """Seconds that each of so many chats took, one after the other over one connection."""
    taken = []
    async with open_connection(port) as (reader, writer):
        for _ in range(count):
            began = time.perf_counter()
            writer.write(request)
            await _read_answer(reader)
            taken.append(time.perf_counter() - began)
    return taken


async def measure_crowd(port: int, clients: int, count: int, request: bytes = PLAIN) -> float:
    """Seconds until so many clients had so many chats each."""
    began = time.perf_counter()
    await asyncio.gather(*(measure_latencies(port, count, request) for _ in range(clients)))
    return time.perf_counter() - began


async def read_streams(port: int, clients: int) -> None:
    """So many streams at once, read to their ends."""

    async def one() -> None:
        async with open_connection(port) as (reader, writer):
            writer.write(STREAMED)
            await reader.readuntil(b"data: [DONE]\n\n")

    await asyncio.gather(*(one() for _ in range(clients)))


async def measure_upload(port: int, size: int) -> float:
    """Seconds from the last byte of a form with a file of this size to the answer."""
    part = b'--bench\r\nContent-Disposition: form-data; name="model"\r\n\r\nllm\r\n'
    part += b'--bench\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    last = b"\r\n--bench--\r\n"
    async with open_connection(port) as (reader, writer):
        writer.write(build_head("/v1/images/edits", len(part) + size + len(last), FORM) + part)
        for at in range(0, size, len(PIECE)):
            writer.write(PIECE[: size - at])
            await writer.drain()
        writer.write(last)
        await writer.drain()
        began = time.perf_counter()
        said = json.loads(await _read_answer(reader))
        taken = time.perf_counter() - began
    if said["size"] < size:
        raise RuntimeError(f"Of {size} bytes {said['size']} arrived")
    return taken


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    top = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in top[:20]:
        raise RuntimeError(f"{top!r} {await reader.read(500)!r}")
    size = int(top.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(size)
