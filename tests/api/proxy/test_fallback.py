"""Models that stand in for one behind another server that fails: before anything was sent, and never after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from aiohttp import web

from tests import upstreams
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.ports import find_free_port
from tests.upstreams import Answer, FakeUpstream, UpstreamCall, fake_upstream

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "?"}]}


async def answer_with_model(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that says which model it was asked for."""
    name = call.json["model"] if call.json else "?"
    if call.json and call.json.get("stream"):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for choice in ({"delta": {"content": name}}, {"delta": {}, "finish_reason": "stop"}):
            await response.write(b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response
    if call.path.endswith("embeddings"):
        return web.json_response({"data": [{"index": 0, "embedding": [1.0]}], "model": name})
    message = {"role": "assistant", "content": name}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return web.json_response({"choices": choices, "fields": call.fields})


async def break_stream(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that dies in the middle of a stream."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "And then"}}]}\n\n')
    assert request.transport
    request.transport.close()
    return response


@contextmanager
def run_with_fallback(first: Answer, **more: Any) -> Iterator[tuple[GatewayUnderTest, FakeUpstream, FakeUpstream]]:
    """A gateway with `first` behind `llm`, for which `other` stands in, and those two."""
    with fake_upstream(first) as failing, fake_upstream(answer_with_model) as other:
        models = {
            "llm": {"proxy": failing.url, "fallback": ["spare", "other"], **more},
            "other": {"proxy": other.url, "use_model_name": "real-other", "filters": {"set_params": {"n": 2}}},
            "spare": {"proxy": f"http://127.0.0.1:{find_free_port()}"},
        }
        with run_gateway(models=models) as gateway:
            yield gateway, failing, other


def post_chat(gateway: GatewayUnderTest, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{gateway.url}{path}", json={"model": "llm", **body}, timeout=20)


FAILING = {
    "500": upstreams.fake_saying({"error": "kaputt"}, 500),
    "502": upstreams.fake_html_error,
    "503": upstreams.fake_saying({"error": {"message": "Loading model"}}, 503),
    "429": upstreams.fake_saying({"error": {"message": "slow down"}}, 429),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", FAILING.values(), ids=FAILING)
def test_an_upstream_that_fails_is_stood_in_for(first: Answer, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with run_with_fallback(first) as (gateway, failing, other):
        answer = post_chat(gateway, CHAT, **ASKED, stream=stream)
        assert (answer.status_code, answer.headers["x-eardrum-model"]) == (200, "other")
        assert "real-other" in answer.text
        assert (len(failing.calls), other.calls[0].json) == (1, {"model": "real-other", **ASKED, "stream": stream, "n": 2})
        assert "Trying fallback model spare." in caplog.text
        assert "Trying fallback model other." in caplog.text
        ours = requests.post(f"{gateway.url}{CHAT}", json={"model": "other", **ASKED}, timeout=20)
        assert "x-eardrum-model" not in ours.headers, "who was asked has answered, in its own words"


BROKEN: dict[str, dict[str, Any]] = {
    "unreachable": {"proxy": f"http://127.0.0.1:{find_free_port()}"},
    "not started": {"cmd": "no-such-program --port 1", "proxy": "http://127.0.0.1:1"},
    "ended": {"cmd": "sh -c 'exit 3'", "proxy": "http://127.0.0.1:1"},
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN)
def test_a_model_that_cannot_be_loaded_or_reached_is_stood_in_for(entry: dict[str, Any]) -> None:
    with run_with_fallback(answer_with_model, **entry) as (gateway, _, _):
        for _ in range(2):  # the second time it is not even tried
            assert "real-other" in post_chat(gateway, CHAT, **ASKED).text
        for path in ("/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
            assert post_chat(gateway, path).status_code == 200
        chat = post_chat(gateway, "/api/chat", **ASKED, stream=False).json()
        assert (chat["model"], chat["message"]["content"]) == ("llm", "real-other")
        lines = [json.loads(line) for line in post_chat(gateway, "/api/generate", prompt="?").text.splitlines()]
        assert "".join(line["response"] for line in lines) == "real-other"
        assert post_chat(gateway, "/api/embed", input="?").json()["embeddings"] == [[1.0]]


@pytest.mark.parametrize("first", FAILING.values(), ids=FAILING)
def test_ollamas_chats_are_stood_in_for_too(first: Answer) -> None:
    with run_with_fallback(first) as (gateway, _, other):
        assert post_chat(gateway, "/api/chat", **ASKED, stream=False).json()["message"]["content"] == "real-other"
        assert post_chat(gateway, "/api/embed", input="?").json()["embeddings"] == [[1.0]]
        assert [call.json["model"] for call in other.calls] == ["real-other"] * 2


async def answer_empty_stream(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


def test_an_empty_stream_in_place_of_vectors_is_the_upstreams_fault() -> None:
    with fake_upstream(answer_empty_stream) as upstream, run_gateway(models={"llm": {"proxy": upstream.url}}) as gateway:
        answer = post_chat(gateway, "/api/embed", input="?")
        assert (answer.status_code, answer.json()) == (
            502,
            {"error": "The server behind llm returned 0 embeddings for 1 inputs."},
        )


def test_a_form_that_has_not_been_sent_goes_to_the_next() -> None:
    with run_with_fallback(answer_with_model, proxy=f"http://127.0.0.1:{find_free_port()}") as (gateway, _, _):
        form = {"model": (None, "llm"), "image": ("a.png", b"x" * 1_000_000)}
        answer = requests.post(f"{gateway.url}/v1/images/edits", files=form, timeout=20).json()
        assert answer["fields"]["model"] == ["real-other"]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_the_client_is_told_is_the_clients(status: int) -> None:
    said = {"error": {"message": "no"}}
    with run_with_fallback(upstreams.fake_saying(said, status)) as (gateway, _, other):
        answer = post_chat(gateway, CHAT, **ASKED)
        assert (answer.status_code, answer.json()) == (status, said)
        if status != 404:
            assert post_chat(gateway, "/api/chat", **ASKED).status_code == status
        assert other.calls == []


def test_models_that_stand_in_for_each_other_come_to_an_end(caplog: pytest.LogCaptureFixture) -> None:
    with fake_upstream(FAILING["500"]) as one, fake_upstream(FAILING["503"]) as two:
        models = {
            "llm": {"proxy": one.url, "fallback": ["b"]},
            "b": {"proxy": two.url, "fallback": ["c", "llm"]},
            "c": {"proxy": f"http://127.0.0.1:{find_free_port()}", "fallback": ["llm", "b"]},
        }
        with run_gateway(models=models) as gateway:
            assert post_chat(gateway, CHAT, **ASKED).status_code == 503
            assert post_chat(gateway, "/api/chat", **ASKED, stream=False).status_code == 503
            assert (len(one.calls), len(two.calls)) == (2, 2), "each once"
    for line in caplog.messages:
        assert "Trying" not in line or re.search(r"[.!?…] Trying fallback model b\.$", line), line


def test_an_answer_that_has_begun_stays_with_its_model() -> None:
    with run_with_fallback(break_stream) as (gateway, failing, other):
        said = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm", "stream": True, **ASKED}, timeout=20, stream=True)
        assert said.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            _ = said.content
        lines = post_chat(gateway, "/api/chat", **ASKED).text.splitlines()
        assert json.loads(lines[0])["message"]["content"] == "And then"
        assert "error" in json.loads(lines[-1])
        assert other.calls == []
        whole = post_chat(gateway, "/api/chat", **ASKED, stream=False)
        assert whole.json()["message"]["content"] == "real-other", "of which nothing was sent"
        assert len(failing.calls) >= 3


def test_the_last_one_has_the_last_word() -> None:
    models = {"llm": {"proxy": f"http://127.0.0.1:{find_free_port()}", "fallback": ["other"]}}
    with fake_upstream(upstreams.fake_saying({"error": "mine"}, 503)) as other:
        models["other"] = {"proxy": other.url}
        with run_gateway(models=models) as gateway:
            answer = post_chat(gateway, CHAT, **ASKED)
            assert (answer.status_code, answer.json()) == (503, {"error": "mine"})


def test_signs_of_loading_are_no_answer() -> None:
    with run_with_fallback(answer_with_model, **BROKEN["ended"], send_loading_state=True) as (gateway, _, _):
        said = post_chat(gateway, CHAT, **ASKED, stream=True).text
        assert "llm is" in said
        assert "real-other" in said
        assert said.endswith("data: [DONE]\n\n")


def test_a_speech_model_answers_no_chat() -> None:
    models = {"llm": {"proxy": f"http://127.0.0.1:{find_free_port()}", "fallback": ["moonshine-tiny-en"]}}
    with run_gateway(models=models) as gateway:
        assert post_chat(gateway, CHAT, **ASKED).json()["error"]["code"] == "upstream_died"
        assert "cannot be reached" in post_chat(gateway, "/api/chat", **ASKED).json()["error"]
