"""Requests to an upstream that whoever runs the server cancels."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from aiohttp import web

from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.upstreams import UpstreamCall, fake_hanging, fake_upstream

CHAT = "/v1/chat/completions"


def list_active(gateway: GatewayUnderTest) -> list[dict[str, Any]]:
    """The requests in progress, as the first events tell them."""
    with requests.get(f"{gateway.url}/api/events", stream=True, timeout=10) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {"type": ""}
            if message["type"] == "inflight":
                found: list[dict[str, Any]] = json.loads(message["data"])["requests"]
                return found
    raise AssertionError("no inflight")


def cancel_request(gateway: GatewayUnderTest) -> str:
    (request,) = list_active(gateway)
    assert requests.post(f"{gateway.url}/api/inflight/{request['id']}/cancel", timeout=10).json() == {"msg": "ok"}
    return str(request["id"])


def post_chat(gateway: GatewayUnderTest, **fields: Any) -> requests.Response:
    headers = {"authorization": "Bearer secret"}
    return requests.post(f"{gateway.url}{CHAT}", json={"model": "llm", **fields}, headers=headers, timeout=30)


def test_a_request_that_waits_for_its_upstream() -> None:
    with (
        fake_upstream(fake_hanging) as upstream,
        run_gateway(models={"llm": {"proxy": upstream.url}}) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(post_chat, gateway)
        wait_for(lambda: upstream.in_flight)
        (request,) = list_active(gateway)
        assert (request["model"], request["req_path"], request["method"]) == ("llm", CHAT, "POST")
        assert request["req_headers"]["authorization"] == "[redacted]"
        id = cancel_request(gateway)
        refused = answer.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (499, "cancelled")
        assert refused.headers["x-request-id"] == id
        wait_for(lambda: upstream.given_up == 1)
        wait_for(lambda: list_active(gateway) == [])


def test_a_request_of_ollamas_api() -> None:
    """Its clients read an error as a string."""
    with (
        fake_upstream(fake_hanging) as upstream,
        run_gateway(models={"llm": {"proxy": upstream.url}}) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        body = {"model": "llm", "messages": [{"role": "user", "content": "x"}]}
        answer = pool.submit(requests.post, f"{gateway.url}/api/chat", json=body, timeout=30)
        wait_for(lambda: upstream.in_flight)
        cancel_request(gateway)
        refused = answer.result()
        assert (refused.status_code, refused.json()) == (499, {"error": "The server's operator cancelled the request."})


def test_a_stream_that_has_begun() -> None:
    async def endless(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        return await fake_hanging(call, request)

    with (
        fake_upstream(endless) as upstream,
        run_gateway(models={"llm": {"proxy": upstream.url}}) as gateway,
        requests.post(f"{gateway.url}{CHAT}", json={"model": "llm", "stream": True}, stream=True, timeout=30) as stream,
    ):
        chunks = stream.iter_content(None)
        assert next(chunks) == b"data: {}\n\n"
        cancel_request(gateway)
        with pytest.raises(requests.RequestException):
            list(chunks)
        wait_for(lambda: upstream.given_up == 1)
        rows = requests.get(f"{gateway.url}/api/metrics/activity", timeout=10).json()["data"]
        assert [(row["model"], row["resp_content_type"]) for row in rows] == [("llm", "text/event-stream")]
