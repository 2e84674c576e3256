"""API keys with rights, models and limits: every route against every kind of key."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import requests
from websockets.sync.client import connect

from eardrum.api import openapi
from eardrum.api.key_scopes import PUBLIC_LISTS, PUBLIC_PATHS, find_scope
from eardrum.api.openapi import ApiOperation
from eardrum.config import load_settings
from eardrum.config.api_keys import ApiKeySettings, KeyScope, hash_key
from eardrum.errors import KeyLimitError
from eardrum.gateway.key_usage import KeyRegistry, KeyUsage, RateLimit
from eardrum.gateway.service import Service
from eardrum.server.app import create_app
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway

MODELS = {name: {"proxy": "http://127.0.0.1:9"} for name in ("qwen", "whisper-a", "secret")}
KEYS: list[Any] = [
    "all-rights",
    *({"key": f"only-{scope}", "scopes": [scope], "name": f"{scope} alone"} for scope in KeyScope),
    {"key": "old", "expires": "2020-01-31"},
    {"key": f"sha256:{hash_key('hashed').hex()}", "name": "hashed"},
    {"key": "whisper-only", "models": ["whisper-*"]},
    {"key": "slow", "requests_per_minute": 2, "name": "slow"},
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayUnderTest]:
    with run_gateway(models=MODELS, api_keys=KEYS) as started:
        yield started


def ask(gateway: GatewayUnderTest, key: str, method: str = "get", path: str = "/v1/models", **more: Any) -> requests.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return requests.request(method, gateway.url + path, headers=headers, timeout=20, allow_redirects=False, **more)


def list_operations(monkeypatch: pytest.MonkeyPatch) -> list[ApiOperation]:
    found: list[ApiOperation] = []
    listed = openapi.list_operations

    def list_and_keep(routes: Iterable[object]) -> list[ApiOperation]:
        found.extend(listed(routes))
        return listed(routes)

    monkeypatch.setattr(openapi, "list_operations", list_and_keep)

    async def build() -> None:
        create_app(Service(load_settings(environment={})))

    asyncio.run(build())
    return found


def test_every_route_is_closed_to_everybody_without_its_right(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of all documented routes by no key, a wrong key, and a key of each single right."""
    operations = {(one.method, re.sub(r"\{\w+(:path)?\}", "x", one.path)) for one in list_operations(monkeypatch)}
    assert len(operations) > 80
    opened: dict[KeyScope, int] = dict.fromkeys(KeyScope, 0)
    for method, path in sorted(operations):
        if method in ("head", "options") or path in ("/logs/stream", "/logs/stream/x", "/api/events"):
            continue  # no body to look at; endless
        needed = find_scope(method.upper(), path)
        if needed is None:
            assert path in PUBLIC_PATHS or (method == "get" and path in PUBLIC_LISTS)
            continue
        assert ask(gateway, "", method, path).status_code == ask(gateway, "wrong", method, path).status_code == 401, path
        for scope in KeyScope:
            if scope is needed:
                opened[scope] += 1
                continue
            refused = ask(gateway, f"only-{scope}", method, path)
            assert refused.status_code == 403, (method, path, scope)
            assert "insufficient_scope" in refused.text or path.startswith("/api/"), path
            assert f"`{needed}`" in refused.text
    assert all(opened[scope] for scope in KeyScope), opened


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/new"), ("GET", "/api/new"), ("DELETE", "/v1/models/x"), ("POST", "/api/ps/x")]
)
def test_a_route_that_nobody_decided_on_needs_the_right_to_manage(method: str, path: str) -> None:
    assert find_scope(method, path) is KeyScope.MANAGE


def test_a_key_opens_the_routes_of_its_rights(gateway: GatewayUnderTest) -> None:
    assert ask(gateway, "only-models").status_code == 200
    assert ask(gateway, "only-metrics", path="/metrics").status_code == 200
    assert ask(gateway, "only-logs", path="/logs").status_code == 200
    assert ask(gateway, "only-manage", path="/api/keys").status_code == 200
    assert ask(gateway, "only-chat", "post", "/v1/chat/completions", json={"model": "qwen"}).status_code == 502
    assert ask(gateway, "only-transcribe", "post", "/v1/audio/transcriptions").status_code == 415
    assert ask(gateway, "hashed").status_code == 200
    assert ask(gateway, f"sha256:{hash_key('hashed').hex()}").status_code == 401, "the hash is no key"


def test_an_expired_key_says_so(gateway: GatewayUnderTest) -> None:
    answer = ask(gateway, "old")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "expired on 2020-01-31" in answer.json()["error"]["message"]


def test_other_models_are_hidden_and_closed(gateway: GatewayUnderTest) -> None:
    listed = {model["id"] for model in ask(gateway, "whisper-only").json()["data"]}
    assert listed == {"whisper-a"}
    tags = {model["name"] for model in ask(gateway, "whisper-only", path="/api/tags").json()["models"]}
    assert all(name.startswith("whisper-a") for name in tags)
    assert ask(gateway, "whisper-only", path="/v1/models/secret").status_code == 404
    body = {"model": "secret", "messages": [{"role": "user", "content": "x"}]}
    refused = ask(gateway, "whisper-only", "post", "/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(gateway, "all-rights", "post", "/v1/chat/completions", json=body).status_code == 502
    assert ask(gateway, "whisper-only", "post", "/api/chat", json=body).status_code == 404


def test_a_limit_is_429_with_the_headers_that_clients_read(gateway: GatewayUnderTest) -> None:
    chat = {"json": {"model": "qwen"}}
    first = ask(gateway, "slow", "post", "/v1/chat/completions", **chat)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    ask(gateway, "slow", "post", "/v1/chat/completions", **chat)
    refused = ask(gateway, "slow", "post", "/v1/chat/completions", **chat)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(gateway, "slow").status_code == 200, "lists do not count"
    as_ollama = ask(gateway, "slow", "post", "/api/chat", json={"model": "qwen"})
    assert as_ollama.status_code == 429
    assert isinstance(as_ollama.json()["error"], str)
    (entry,) = [key for key in ask(gateway, "only-manage", path="/api/keys").json()["keys"] if key["name"] == "slow"]
    assert (entry["requests"], entry["refused"], entry["in_progress"]) == (2, 2, 0)


def create_usage(**settings: Any) -> KeyUsage:
    return KeyUsage(ApiKeySettings(key="k", **settings), "test")


def test_a_budget_refills_steadily() -> None:
    limit = RateLimit(2, 60.0)
    limit.spend(1, 0.0)
    assert limit.find_wait(0.0) == 0
    limit.spend(1, 0.0)
    assert limit.find_wait(0.0) == 30
    assert (limit.find_wait(31.0), limit.count_left(31.0)) == (0, pytest.approx(1.03, abs=0.01))


def test_audio_is_charged_as_decoded_and_the_next_request_is_refused() -> None:
    usage = create_usage(audio_per_hour="1m")
    usage.start_request()
    usage.charge_audio(90)
    with pytest.raises(KeyLimitError, match="60 seconds of audio") as refused:
        usage.start_request()
    assert refused.value.retry_after == pytest.approx(1860, abs=1)
    assert (usage.requests, usage.refused, usage.audio_s) == (1, 1, 90)


def test_requests_at_the_same_time_are_limited() -> None:
    usage = create_usage(max_requests=1)
    usage.start_request()
    with pytest.raises(KeyLimitError, match="1 requests in progress"):
        usage.start_request()
    usage.end_request()
    usage.start_request()


def test_an_unchanged_key_keeps_its_use_after_a_reload() -> None:
    kept, changed = ApiKeySettings(key="a", requests_per_minute=1), ApiKeySettings(key="b")
    registry = KeyRegistry([kept, changed])
    for usage in registry:
        usage.start_request()
    registry.replace_keys([ApiKeySettings(key="a", requests_per_minute=1), ApiKeySettings(key="b", models=("x",))])
    assert [usage.requests for usage in registry] == [1, 0]


def test_a_client_secret_has_the_models_of_the_key_that_created_it(gateway: GatewayUnderTest) -> None:
    created = ask(gateway, "whisper-only", "post", "/v1/realtime/client_secrets", json={})
    assert created.status_code == 200, created.text
    address = gateway.url.replace("http", "ws") + "/v1/realtime?intent=transcription&model=moonshine-tiny-en"
    with connect(address, additional_headers={"authorization": f"Bearer {created.json()['value']}"}) as socket:
        audio = base64.b64encode(bytes(48_000)).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        events = [json.loads(socket.recv(10))]
        while events[-1]["type"] != "error":
            events.append(json.loads(socket.recv(10)))
    assert "may not use the model moonshine-tiny-en" in events[-1]["error"]["message"]
