"""The bot's client, against the shapes in which servers with OpenAI's API answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from eardrum.bot.server_api import ServerApi, ServerRefusalError, TranscriptProgress
from tests.upstreams import UpstreamCall, fake_upstream

VERBOSE = {
    "text": "Hello there. General.",
    "duration": 3.0,
    "segments": [{"start": 0.0, "end": 2.0, "text": " Hello there."}, {"start": 2.0, "end": 3.0, "text": " General."}],
}


def stream(*events: Any) -> Any:
    """An answer of server-sent events."""

    async def answer(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            await response.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
        return response

    return answer


def reply(body: Any, status: int = 200, content_type: str = "application/json") -> Any:
    """An answer with a body."""

    async def answer(_: UpstreamCall, __: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, content_type=content_type)

    return answer


async def read_sound() -> AsyncIterator[bytes]:
    yield b"sound"


async def transcribe(answer: Any) -> list[TranscriptProgress]:
    with fake_upstream(answer) as upstream:
        async with ServerApi(f"{upstream.url}/v1") as server:
            return [progress async for progress in server.transcribe(read_sound(), "a.ogg", model="whisper-1")]


async def chat(answer: Any) -> str:
    with fake_upstream(answer) as upstream:
        async with ServerApi(upstream.url, "secret") as server:
            said = "".join([piece async for piece in server.chat("qwen", [{"role": "user", "content": "hi"}])])
        assert upstream.calls[0].headers["authorization"] == "Bearer secret"
        return said


def chunk(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            stream(
                {"type": "transcript.text.delta", "delta": "Hello there."},
                {"type": "transcript.text.delta", "delta": " General."},
                {"type": "transcript.text.done", "text": "Hello there. General.", "segments": VERBOSE["segments"]},
            ),
            id="Eardrum",
        ),
        pytest.param(stream({"text": "Hello there."}, {"text": "General."}), id="speaches"),
        pytest.param(stream(chunk("Hello there."), chunk(" General."), chunk("", "stop"), "[DONE]"), id="vLLM"),
        pytest.param(reply({"text": "Hello there. General."}), id="a server that streams nothing"),
        pytest.param(reply(VERBOSE), id="verbose"),
    ],
)
async def test_transcripts_in_the_shapes_of_servers(answer: Any, request: pytest.FixtureRequest) -> None:
    found = await transcribe(answer)
    assert found[-1].text == "Hello there. General."
    times = [(segment.start, segment.end, segment.text.strip()) for segment in found[-1].segments]
    knows_times = request.node.callspec.id in ("Eardrum", "verbose")
    assert times == ([(0.0, 2.0, "Hello there."), (2.0, 3.0, "General.")] if knows_times else [])


async def test_a_transcript_of_spaces_is_empty() -> None:
    assert (await transcribe(stream(chunk(" "), chunk("\n", "stop"), "[DONE]")))[-1].text == ""
    assert (await transcribe(stream(chunk(" Hello. "), chunk("", "stop"), "[DONE]")))[-1].text == "Hello."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (stream({"type": "transcript.text.delta", "delta": "Hello"}), "broke off in the middle"),
        (stream(chunk("Hello")), "broke off in the middle"),
        (stream({"error": {"message": "The model crashed."}}), "The model crashed."),
        (reply({"error": {"message": "No such model."}}, 404), "No such model."),
        (reply({"detail": "File is empty"}, 422), "File is empty"),
        (reply("<html><title>Login</title></html>", content_type="text/html"), "not JSON"),
        (reply({"hello": "world"}), "no transcript"),
    ],
)
async def test_transcripts_that_fail(answer: Any, message: str) -> None:
    with pytest.raises(ServerRefusalError, match=message):
        await transcribe(answer)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(stream(chunk("It is "), chunk("blue."), chunk("", "stop"), "[DONE]"), id="stream"),
        pytest.param(stream(chunk("It is "), {"choices": []}, chunk("blue.", "stop")), id="without DONE"),
        pytest.param(stream({"choices": [{"delta": {"reasoning_content": "Hm."}}]}, chunk("It is blue.", "stop")), id="thinking"),
        pytest.param(reply({"choices": [{"message": {"content": "It is blue."}}]}), id="whole"),
    ],
)
async def test_answers_in_the_shapes_of_servers(answer: Any) -> None:
    assert await chat(answer) == "It is blue."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (stream(chunk("It is ")), "broke off in the middle"),
        (stream(chunk("It is "), {"error": {"message": "slot lost"}}), "slot lost"),
        (reply("no"), "not JSON"),
        (reply("", 500), "The server answered 500: it gives no reason"),
    ],
)
async def test_answers_that_fail(answer: Any, message: str) -> None:
    with pytest.raises(ServerRefusalError, match=message):
        await chat(answer)
