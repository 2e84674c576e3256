"""Requests for models behind other servers, passed through a real gateway to real HTTP programs."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
from aiohttp import web

from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.ports import find_free_port
from tests.upstreams import UpstreamCall, fake_hanging, fake_saying, fake_upstream

CHAT = "/v1/chat/completions"


def build_config(url: str, **entry: Any) -> dict[str, Any]:
    return {"models": {"llm": {"proxy": url, "aliases": ["gpt-4o"], **entry}}}


async def answer_echo(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that says what it was asked."""
    return web.json_response(
        {"path": call.path, "json": call.json, "headers": call.headers, "method": request.method}, headers={"x-upstream": "yes"}
    )


def test_json_reaches_the_upstream_byte_for_byte_and_the_answer_comes_back() -> None:
    raw = b'{"model" : "gpt-4o",  "messages": [], "temperature": 1.0}'
    seen: list[bytes] = []

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        seen.append(await request.read())
        return await answer_echo(call, request)

    with fake_upstream(answer) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        response = requests.post(
            f"{gateway.url}{CHAT}?a=%20b",
            data=raw,
            headers={"content-type": "application/json", "x-mine": "1", "connection": "keep-alive, x-drop", "x-drop": "1"},
            timeout=10,
        )
    said = response.json()
    assert (response.status_code, response.headers["x-upstream"]) == (200, "yes")
    assert seen == [raw]
    assert said["path"] == f"{CHAT}?a=%20b"
    assert said["headers"]["x-mine"] == "1"
    assert said["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert "x-drop" not in said["headers"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v/chat/completions", "/chat/completions"),
        ("/v/messages/count_tokens", "/messages/count_tokens"),
        ("/audioapi/v1/tasks/run", "/v1/tasks/run"),
        ("/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
        ("/infill", "/infill"),
    ],
)
def test_every_route_has_the_upstreams_path(path: str, expected: str, echo_gateway: GatewayUnderTest) -> None:
    assert requests.post(f"{echo_gateway.url}{path}", json={"model": "llm"}, timeout=10).json()["path"] == expected


def test_a_get_names_the_model_in_the_query(echo_gateway: GatewayUnderTest) -> None:
    said = requests.get(f"{echo_gateway.url}/props?model=llm&x=1", timeout=10).json()
    assert (said["method"], said["path"]) == ("GET", "/props?model=real&x=1")


def test_the_filters_of_the_model_are_applied(echo_gateway: GatewayUnderTest) -> None:
    said = requests.post(f"{echo_gateway.url}{CHAT}", json={"model": "gpt-4o", "top_k": 1, "n": 1}, timeout=10).json()
    assert said["json"] == {"model": "real", "n": 1, "temperature": 0}


@pytest.fixture
def echo_gateway():
    filters = {"strip_params": "top_k", "set_params": {"temperature": 0}}
    with (
        fake_upstream(answer_echo) as upstream,
        run_gateway(**build_config(upstream.url, use_model_name="real", filters=filters)) as gateway,
    ):
        yield gateway


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b'{"model": "nobody"}', "application/json", 404, "model_not_found"),
        (b"{}", "application/json", 400, "invalid_value"),
        (b'{"model": 3}', "application/json", 400, "invalid_value"),
        (b"[]", "application/json", 400, "invalid_value"),
        (b'{"model": ', "application/json", 400, "invalid_value"),
        (b"model=nobody", "application/x-www-form-urlencoded", 404, "model_not_found"),
        (b"<xml/>", "application/xml", 415, "unsupported_media_type"),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400, "invalid_value"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "invalid_value"),
        (b"", "multipart/form-data", 400, "invalid_value"),
        (b'{"model": "moonshine-tiny-en"}', "application/json", 400, "unsupported_feature"),
        (b'{"model": "llm", "x": "' + b"a" * 5000 + b'"}', "application/json", 413, "request_too_large"),
    ],
)
def test_what_cannot_be_served_is_refused_in_openais_shape(body: bytes, kind: str, status: int, code: str) -> None:
    with run_gateway(limits={"json_bytes": 5000}, **build_config("http://127.0.0.1:9")) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", data=body, headers={"content-type": kind}, timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    if status == 404:
        assert "llm" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/messages", 502),
        ("POST", "/v1/embeddings", 502),
        ("GET", "/v1/audio/voices?model=llm", 502),
        ("GET", "/props", 400),
        ("DELETE", CHAT, 405),
        ("POST", "/v1/nothing", 404),
    ],
)
def test_our_own_errors_below_v1_have_openais_shape(method: str, path: str, status: int) -> None:
    with run_gateway(**build_config("http://127.0.0.1:9")) as gateway:
        response = requests.request(method, f"{gateway.url}{path}", json={"model": "llm"}, timeout=10)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_what_an_upstream_says_itself_stays_as_it_is() -> None:
    async def refuse(_: UpstreamCall, __: web.Request) -> web.StreamResponse:
        return web.Response(status=418, text="no tea", headers={"x-why": "pot"})

    with fake_upstream(refuse) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
    assert (response.status_code, response.text, response.headers["x-why"]) == (418, "no tea", "pot")


def test_a_forgotten_content_type_is_forgiven(echo_gateway: GatewayUnderTest) -> None:
    """`curl -d` says that JSON is a form."""
    kind = "application/x-www-form-urlencoded"
    response = requests.post(f"{echo_gateway.url}{CHAT}", data=b'{"model": "llm"}', headers={"content-type": kind}, timeout=10)
    assert response.status_code == 200


def test_the_wrong_method_is_named(echo_gateway: GatewayUnderTest) -> None:
    response = requests.get(f"{echo_gateway.url}{CHAT}", timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")


def test_events_come_through_as_they_are_sent() -> None:
    arrived = [Event() for _ in range(3)]

    async def answer(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
        """Each event is sent when the client has the one before."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, event in enumerate(arrived):
            await response.write(f"data: {number}\n\n".encode())
            if not await asyncio.to_thread(event.wait, 10):
                return response
        await response.write(b"data: [DONE]\n\n")
        return response

    with fake_upstream(answer) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm", "stream": True}, stream=True, timeout=20)
        lines = (line for line in response.iter_lines(chunk_size=None) if line)
        for number, event in enumerate(arrived):
            assert next(lines) == f"data: {number}".encode()
            event.set()
        assert list(lines) == [b"data: [DONE]"]
    assert response.headers["x-accel-buffering"] == "no"


def test_a_client_that_leaves_is_noticed_by_the_upstream_before_the_answer() -> None:
    with fake_upstream(fake_hanging) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        client = HTTPConnection(gateway.url.removeprefix("http://"))
        client.request("POST", CHAT, b'{"model": "llm"}', {"content-type": "application/json"})
        wait_for(lambda: upstream.calls)
        client.close()
        wait_for(lambda: upstream.given_up == 1)


def test_a_client_that_leaves_is_noticed_by_the_upstream_in_mid_stream() -> None:
    async def endless(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: {}\n\n")
            await asyncio.sleep(0.05)

    with fake_upstream(endless) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm", "stream": True}, stream=True, timeout=10)
        next(response.iter_lines())
        response.close()
        wait_for(lambda: upstream.given_up == 1)


def create_dying(kind: str, said: bytes, **headers: str):
    async def answer(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": kind} | headers)
        await response.prepare(request)
        await response.write(said)
        await asyncio.sleep(0.1)
        assert request.transport
        request.transport.close()
        return response

    return answer


@pytest.mark.parametrize(
    ("kind", "said", "path", "tail"),
    [
        ("text/event-stream", b"data: {}\n\n", CHAT, b'data: {}\n\ndata: {"error": {"message": '),
        ("text/event-stream", b'data: {"a', CHAT, b'data: {"a\n\ndata: {"error": {"message": '),
        ("text/event-stream", b"data: {}\n\n", "/v1/messages", b'\n\nevent: error\ndata: {"type": "error", "error": {'),
        ("application/x-ndjson", b'{"a": 1}\n', CHAT, b'{"a": 1}\n{"error": {"message": '),
        ("application/json", b'{"a": ', CHAT, b'{"a": '),
    ],
)
def test_an_upstream_that_dies_in_mid_stream_is_seen_by_the_client(
    kind: str, said: bytes, path: str, tail: bytes, tmp_path: Path
) -> None:
    with fake_upstream(create_dying(kind, said)) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        output = tmp_path / "answer"
        head = ["-H", "content-type: application/json"]
        done = subprocess.run(
            ["curl", "-sS", "-N", "-o", str(output), f"{gateway.url}{path}", *head, "-d", '{"model": "llm", "stream": true}'],
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 18, "curl says: transfer closed with outstanding read data remaining"
    assert tail in output.read_bytes()


def test_an_answer_of_known_length_that_ends_early_ends_early(tmp_path: Path) -> None:
    with (
        fake_upstream(create_dying("text/event-stream", b"data: {}\n\n", **{"content-length": "1000"})) as upstream,
        run_gateway(**build_config(upstream.url)) as gateway,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)


def create_breaking(times: int):
    """A server that breaks off before its answer, so many times."""
    left = [times]

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        if left[0]:
            left[0] -= 1
            assert request.transport
            request.transport.abort()
        return await answer_echo(call, request)

    return answer


def test_a_broken_connection_is_tried_once_more_and_no_oftener() -> None:
    with fake_upstream(create_breaking(1)) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        assert requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10).status_code == 200
    with fake_upstream(create_breaking(9)) as upstream, run_gateway(**build_config(upstream.url)) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_died")
        assert len(upstream.calls) == 2


def test_an_address_where_nobody_answers_is_named() -> None:
    port = find_free_port()
    with run_gateway(**build_config(f"http://127.0.0.1:{port}")) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
    assert response.status_code == 502
    assert f"127.0.0.1:{port}" in response.json()["error"]["message"]


def test_an_upstream_that_is_too_slow_to_answer_is_given_up() -> None:
    with (
        fake_upstream(fake_hanging) as upstream,
        run_gateway(**build_config(upstream.url, timeouts={"response_header": 0.2})) as gateway,
    ):
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
        wait_for(lambda: upstream.given_up == 1)


def test_a_refusal_of_the_upstream_comes_back_as_it_is() -> None:
    with (
        fake_upstream(fake_saying({"error": "mine"}, status=418)) as upstream,
        run_gateway(**build_config(upstream.url)) as gateway,
    ):
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
    assert (response.status_code, response.json()) == (418, {"error": "mine"})


def test_localhost_is_found_on_either_family() -> None:
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        try:
            with socket.create_server((host, 0), family=family) as listening:
                port = listening.getsockname()[1]
                with run_gateway(**build_config(f"http://localhost:{port}", timeouts={"response_header": 0.1})) as gateway:
                    response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
                assert response.status_code == 504, response.text
        except OSError:
            pytest.skip(f"this machine has no {host}")


def test_a_large_body_with_a_changed_name_arrives_whole() -> None:
    with fake_upstream(answer_echo) as upstream, run_gateway(**build_config(upstream.url, use_model_name="real")) as gateway:
        text = "ä" * 1_000_000
        requests.post(f"{gateway.url}{CHAT}", data=json.dumps({"model": "llm", "x": text}), timeout=20,
                      headers={"content-type": "application/json"})  # fmt: skip
        assert upstream.calls[0].json == {"model": "real", "x": text}


def test_a_fault_of_our_own_is_an_error_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    with run_gateway(**build_config("http://127.0.0.1:9")) as gateway:
        monkeypatch.setattr(gateway.service, "lease_model", broken)
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "llm"}, timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "server_error")
    assert "ZeroDivisionError" in caplog.text
