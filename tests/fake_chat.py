"""A fake language model behind OpenAI's API, as llama-server would serve it: an HTTP program, because no real one can run here.

It answers by what it is told: the last user message chooses (see `_said`). Streams are written in pieces that end anywhere.
As a program, `python tests/fake_chat.py PORT`, it has `/health` too and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
WORDS = ["The", " sky", " is", " blü", "e."]
PIECE = 23
"""Bytes written at a time: events and letters are cut in two."""


async def fake_chat(call: Any, request: web.Request) -> web.StreamResponse:
    """One request; `call.json` is its body."""
    body = call.json
    if request.path == "/v1/embeddings":
        inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [{"index": i, "object": "embedding", "embedding": [float(len(text)), i, 0.5]} for i, text in enumerate(inputs)]
        return web.json_response({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 5, "total_tokens": 5}})
    said = _find_last_text(body)
    if said == "refuse":
        error = {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}
        return web.json_response({"error": error}, status=400)
    if said == "fail":
        return web.Response(status=500, text="out of memory")
    if said == "wait":
        await asyncio.sleep(60)
    if not body.get("stream"):
        return web.json_response(_build_completion(body, said))
    return await _stream_completion(body, said, request)


def _find_last_text(body: dict[str, Any]) -> str:
    """The text of the last message of a user, or the prompt."""
    if "prompt" in body:
        return str(body["prompt"])
    content = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")


def _build_deltas(body: dict[str, Any], said: str) -> list[dict[str, Any]]:
    if body.get("tools") and body["messages"][-1]["role"] == "user":
        name = body["tools"][0]["function"]["name"]
        first = {"index": 0, "id": "call_abc", "type": "function", "function": {"name": name, "arguments": ""}}
        fragments = [{"index": 0, "function": {"arguments": part}} for part in ('{"ci', 'ty": "Wi', 'en"}')]
        return [{"tool_calls": [fragment]} for fragment in (first, *fragments)]
    if "prompt" in body:
        return [{"content": word} for word in (said, " and", " on")]
    if any(message["role"] == "tool" for message in body["messages"]):
        return [{"content": f"It is {body['messages'][-1]['content']}."}]
    if body.get("response_format"):
        return [{"content": '{"sky":'}, {"content": ' "blue"}'}]
    thoughts = [{"reasoning_content": "Let me"}, {"reasoning_content": " see."}] if said == "think" else []
    return [*thoughts, *({"content": word} for word in WORDS)]


def _choose_reason(deltas: list[dict[str, Any]], body: dict[str, Any]) -> str:
    return "tool_calls" if "tool_calls" in deltas[-1] else "length" if body.get("max_tokens") == 1 else "stop"


def _build_completion(body: dict[str, Any], said: str) -> dict[str, Any]:
    deltas = _build_deltas(body, said)
    joined = {key: "".join(delta.get(key, "") for delta in deltas) for key in ("content", "reasoning_content")}
    choice: dict[str, Any] = {"index": 0, "finish_reason": _choose_reason(deltas, body)}
    if "prompt" in body:
        choice["text"] = joined["content"]
    else:
        choice["message"] = {"role": "assistant"} | {key: text for key, text in joined.items() if text}
        if "tool_calls" in deltas[-1]:
            parts = [delta["tool_calls"][0]["function"] for delta in deltas]
            arguments = "".join(part["arguments"] for part in parts)
            function = {"name": parts[0]["name"], "arguments": arguments}
            choice["message"]["tool_calls"] = [{"id": "call_abc", "type": "function", "function": function}]
    return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": USAGE}


async def _stream_completion(body: dict[str, Any], said: str, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    deltas, plain = _build_deltas(body, said), "prompt" in body
    shown = [{"text": delta["content"]} if plain else {"delta": delta} for delta in deltas]
    events: list[Any] = [{"choices": [{"index": 0, "finish_reason": None} | delta]} for delta in shown]
    if said == "die":
        await _write_events(response, events[:2])
        assert request.transport
        request.transport.close()
        return response
    if said == "break":
        await _write_events(response, [*events[:2], {"error": {"message": "slot lost", "code": 500}}])
        return response
    if said == "linger":
        await _write_events(response, events[:2])
        await asyncio.sleep(60)
    empty: dict[str, object] = {"text": ""} if plain else {"delta": {}}
    end = {"choices": [{"index": 0, "finish_reason": _choose_reason(deltas, body)} | empty]}
    usage = [{"choices": [], "usage": USAGE}] if body.get("stream_options", {}).get("include_usage") else []
    await _write_events(response, [*events, end, *usage, "[DONE]"])
    return response


async def _write_events(response: web.StreamResponse, events: list[Any]) -> None:
    data = b": a comment\r\n\r\n"
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        data += f"data: {text}\r\n\r\n".encode()
    for start in range(0, len(data), PIECE):
        await response.write(data[start : start + PIECE])
        await asyncio.sleep(0)


class _ChatCall:
    def __init__(self, json: Any):
        self.json = json


async def _handle(request: web.Request) -> web.StreamResponse:
    if request.path == "/health":
        return web.json_response({"status": "ok"})
    return await fake_chat(_ChatCall(await request.json()), request)


if __name__ == "__main__":
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", _handle)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
