"""A server that answers as one with a language model does, only at once: `python -m bench.llm_server PORT`.

Chats get a fixed answer, or a fixed number of events at a fixed pace; forms are counted. Raw ASGI, so that it is not what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvicorn

EVENTS = 400
PACE_S = 0.002
"""Between two events: 500 tokens a second, faster than most."""

MESSAGE = {"role": "assistant", "content": "Then the tortoise, who had never stopped, reached the tree. " * 12}
ANSWER = json.dumps({"id": "c-1", "object": "chat.completion", "choices": [{"index": 0, "message": MESSAGE}]}).encode()
DELTA = {"id": "c-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": " tortoise"}}]}
EVENT = b"data: " + json.dumps(DELTA).encode() + b"\n\n"


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The server."""
    if scope["type"] != "http":
        return
    chat = scope["path"].endswith("/chat/completions")
    body, size, more = b"", 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        body = message.get("body", b"") if chat else b""
        more = message.get("more_body", False)
    if chat and b'"stream"' in body:
        await _send_stream(send)
        return
    answer = ANSWER if chat else json.dumps({"size": size}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def _send_stream(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(EVENTS):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(PACE_S)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, lifespan="off")
