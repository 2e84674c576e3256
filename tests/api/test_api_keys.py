"""API keys with rights, models and limits: every route against every kind of key."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
from starlette.applications import Starlette
from starlette.routing import Route
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from eardrum.api import management, openapi
from eardrum.api.asr.routes import is_asr_path
from eardrum.api.key_scopes import PUBLIC_FOLDERS, PUBLIC_LISTS, PUBLIC_PATHS, find_scope
from eardrum.api.ollama.responses import is_ollama_path
from eardrum.api.openapi import ApiOperation
from eardrum.config import Settings, load_settings
from eardrum.config.api_keys import ApiKeySettings, KeyScope, hash_key
from eardrum.errors import KeyLimitError, ModelNotFoundError
from eardrum.gateway.key_usage import CURRENT_KEY, KeyRegistry, KeyUsage, RateLimit
from eardrum.gateway.models.download import MAY_FETCH
from eardrum.gateway.processes.supervisor import UnloadRecord
from eardrum.gateway.scheduler import UnloadCause, UnloadReason
from eardrum.gateway.service import Service
from eardrum.server.app import RequestDispatcher, create_app
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.recordings import encode_announcements, encode_pcm, load_speech

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


@pytest.fixture(scope="module")
def dispatcher() -> RequestDispatcher:
    """Everything that serves a path."""

    async def build() -> RequestDispatcher:
        dispatched = create_app(Service(load_settings(environment={})))._app
        assert isinstance(dispatched, RequestDispatcher)
        return dispatched

    return asyncio.run(build())


def list_operations(dispatcher: RequestDispatcher) -> list[ApiOperation]:
    assert isinstance(dispatcher.fallback_app, Starlette)
    return openapi.list_operations([*dispatcher.fallback_app.routes, *dispatcher.edges])


def test_every_route_is_described(dispatcher: RequestDispatcher) -> None:
    """So the table below has them all."""
    described = {operation.path for operation in list_operations(dispatcher)}
    assert isinstance(dispatcher.fallback_app, Starlette)
    assert {route.path for route in dispatcher.fallback_app.routes if isinstance(route, Route)} <= described
    for path in (path for edge in dispatcher.edges for path in edge.paths):
        assert any(other == path or other.startswith(f"{path.rstrip('/')}/") for other in described), path


def try_key(gateway: GatewayUnderTest, key: str, operation: ApiOperation, path: str) -> tuple[int, str]:
    """The status of an operation without a body, and the text of a refusal."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if 101 in operation.success:
        try:
            with connect(gateway.url.replace("http", "ws") + path, additional_headers=headers):
                return 101, ""
        except InvalidStatus as refused:
            return refused.response.status_code, (refused.response.body or b"").decode()
    with requests.request(
        operation.method, gateway.url + path, headers=headers, timeout=20, allow_redirects=False, stream=True
    ) as answer:  # some streams have no end
        return answer.status_code, answer.text if answer.status_code in (401, 403) else ""


@pytest.mark.slow
def test_every_route_is_closed_to_everybody_without_its_right(gateway: GatewayUnderTest, dispatcher: RequestDispatcher) -> None:
    """A table of all routes, WebSockets and streams among them, by no key, a wrong key, and a key of each single right."""
    opened: dict[KeyScope, int] = dict.fromkeys(KeyScope, 0)
    sockets, public = set[str](), set[str]()
    for operation in list_operations(dispatcher):
        method, path = operation.method, re.sub(r"\{\w+(:path)?\}", "x", operation.path)
        needed = find_scope(method.upper(), path)
        if needed is None:
            if not (method == "get" and path in PUBLIC_LISTS):
                public.add(path)
            continue
        where = (method, path, 101 in operation.success)
        assert try_key(gateway, "", operation, path)[0] == try_key(gateway, "wrong", operation, path)[0] == 401, where
        for scope in KeyScope:
            if scope is needed:
                opened[scope] += 1
                continue
            status, text = try_key(gateway, f"only-{scope}", operation, path)
            assert status == 403, (where, scope)
            assert f"`{needed}`" in text or method == "head", where
            assert "insufficient_scope" in text or is_ollama_path(path) or is_asr_path(path) or method == "head", where
        if 101 in operation.success:
            sockets.add(path)
            assert try_key(gateway, f"only-{needed}", operation, path)[0] not in (401, 403), where
    assert {path for path in public if not path.startswith(PUBLIC_FOLDERS)} <= PUBLIC_PATHS
    assert sockets >= {"/v1/realtime", "/v1/audio/transcriptions/stream", "/ws/realtime"}
    assert all(opened[scope] for scope in KeyScope if scope is not KeyScope.SPEAK), opened


def test_every_refused_method_comes_with_those_that_are_taken(gateway: GatewayUnderTest, dispatcher: RequestDispatcher) -> None:
    methods: dict[str, set[str]] = {}
    for operation in list_operations(dispatcher):
        methods.setdefault(re.sub(r"\{\w+(:path)?\}", "x", operation.path), set()).add(operation.method.upper())
    refused = set()
    for path, taken in methods.items():
        answer = ask(gateway, "all-rights", "propfind", path)
        if answer.status_code == 405:
            refused.add(path)
            assert set(answer.headers.get("allow", "").split(", ")) >= taken, path
    assert refused >= {"/v1/chat/completions", "/v1/audio/voices", "/v1/realtime/client_secrets", "/ws/realtime"}
    assert refused >= {"/v1/audio/transcriptions/stream", "/v1/models/x", "/v1/files", "/api/tags", "/asr", "/api/v1/asr"}


def test_a_socket_at_the_path_of_a_public_list_needs_a_key(gateway: GatewayUnderTest) -> None:
    """It reaches a model's server, and has that model loaded; only the list itself is for everybody."""
    path = "/v1/audio/voices?model=qwen"
    socket = ApiOperation("get", path, "", success=(101,))
    tries = {key: try_key(gateway, key, socket, path)[0] for key in ("", "wrong", "only-transcribe", "only-speak")}
    assert tries == {"": 401, "wrong": 401, "only-transcribe": 403, "only-speak": 502}
    assert ask(gateway, "", path=path).status_code == 200


def test_another_server_is_asked_for_its_voices_by_a_key_that_may_speak(gateway: GatewayUnderTest) -> None:
    keys = ("", "old", "only-metrics", "only-speak", "all-rights")
    asked = {key: ask(gateway, key, path="/v1/audio/voices?model=qwen").status_code for key in keys}
    assert asked == {"": 200, "old": 200, "only-metrics": 200, "only-speak": 502, "all-rights": 502}


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


SELECTORS = {
    "free": {"strategy": "spillover", "targets": ["whisper-a", "secret"]},
    "closed": {"strategy": "warm", "targets": ["secret", "qwen"]},
    "never-free": {"strategy": "pin", "targets": ["secret", "whisper-a"]},
}
PINS = {"ears": "whisper-a", "also": "free", "brain": "secret", "via": "closed", "off": ""}


def test_names_that_lead_to_other_models_are_hidden() -> None:
    with run_gateway(models=MODELS, selectors=SELECTORS, profiles={"p": {"pins": PINS}}, api_keys=KEYS) as gateway:
        assert ask(gateway, "all-rights", "put", "/api/profiles/active", json={"name": "p"}).status_code == 200
        seen = {model["id"]: model for model in ask(gateway, "whisper-only").json()["data"]}
        assert seen.keys() == {"whisper-a", "free", "ears", "also"}
        assert seen["free"]["meta"]["llamaswap"]["targets"] == ["whisper-a"]
        everything = {model["id"]: model for model in ask(gateway, "all-rights").json()["data"]}
        assert everything.keys() >= {*MODELS, *SELECTORS, *PINS} - {"off"}
        assert everything["free"]["meta"]["llamaswap"]["targets"] == ["whisper-a", "secret"]
        tags = {model["name"] for model in ask(gateway, "whisper-only", path="/api/tags").json()["models"]}
        assert tags == {"whisper-a:latest", "free:latest"}
        (profile,) = ask(gateway, "whisper-only", path="/api/profiles").json()["profiles"]
        assert profile["pins"] == {"ears": "whisper-a", "also": "free"}
        (profile,) = ask(gateway, "all-rights", path="/api/profiles").json()["profiles"]
        assert profile["pins"] == PINS
        assert ask(gateway, "whisper-only", path="/v1/models/free").status_code == 200
        for name in ("closed", "never-free", "brain", "via", "nobody"):
            refused = ask(gateway, "whisper-only", path=f"/v1/models/{name}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found"), name
        assert "whisper-a" in refused.json()["error"]["message"]
        assert not any(name in refused.json()["error"]["message"] for name in ("secret", "qwen")), "an error lists models, too"
        nothing = ask(gateway, "whisper-only", path="/upstream/").json()["error"]["message"]
        assert ("whisper-a" in nothing, "secret" in nothing) == (True, False)


async def test_a_model_that_made_room_for_another_one_does_not_name_it() -> None:
    catalog = Service(load_settings(overrides={"models": MODELS}, environment={})).catalog
    gone = UnloadRecord("whisper-a", UnloadCause(UnloadReason.GROUP, "secret"), 1.0)
    assert management.describe_departure(gone, catalog)["for"] == "secret"
    CURRENT_KEY.set(KeyUsage(ApiKeySettings(key="k", models=("whisper-*",)), "phone"))
    described = management.describe_departure(gone, catalog)
    assert (described["for"], described["message"]) == (None, "it made room for another model (group)")


def list_running(gateway: GatewayUnderTest, key: str) -> set[str]:
    running = {model["model"] for model in ask(gateway, key, path="/running").json()["running"]}
    assert running == {model["id"] for model in ask(gateway, key, path="/api/ps").json()["models"]}
    return running


def test_other_models_are_neither_described_nor_unloaded(gateway: GatewayUnderTest) -> None:
    assert ask(gateway, "all-rights", "post", "/api/models/load/secret").status_code == 200
    assert "secret" in list_running(gateway, "all-rights")
    assert "secret" not in list_running(gateway, "whisper-only")
    unload = {"model": "secret", "keep_alive": 0}
    for path in ("/api/generate", "/api/chat", "/api/show"):
        refused = ask(gateway, "whisper-only", "post", path, json=unload)
        assert (refused.status_code, "may not use the model secret" in refused.json()["error"]) == (404, True), path
    assert ask(gateway, "whisper-only", path="/api/v1/backend?model=secret").status_code == 404
    assert "secret" in list_running(gateway, "all-rights")
    assert ask(gateway, "all-rights", "post", "/api/generate", json=unload).json()["done_reason"] == "unload"
    assert "secret" not in list_running(gateway, "all-rights")


def test_names_that_stand_for_a_default_model_do_not_show_it() -> None:
    """`whisper-1` is the default model, whichever that is: a key for `whisper-*` may not use it."""
    with run_gateway(api_keys=({"key": "k", "models": ["whisper-*", "tts-*"]},)) as gateway:
        for path in ("/v1/models", "/v1/audio/models"):
            assert ask(gateway, "k", path=path).json()["data"] == []


async def test_a_key_downloads_no_model_that_it_may_not_use() -> None:
    service = Service(Settings(pull_missing=True))
    model = service.find_model("Systran/of-nobody")
    assert model.needs_download
    MAY_FETCH.set(False)  # else it would be downloaded here if the key were not checked first
    CURRENT_KEY.set(KeyUsage(ApiKeySettings(key="k", models=("whisper-*",)), "phone"))
    with pytest.raises(ModelNotFoundError, match="phone may not use the model Systran/of-nobody"):
        await service.ensure_fetched(model)


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


def create_secret(gateway: GatewayUnderTest, key: str) -> str:
    created = ask(gateway, key, "post", "/v1/realtime/client_secrets", json={})
    assert created.status_code == 200, created.text
    return str(created.json()["value"])


REALTIME = ApiOperation("get", "/v1/realtime", "", success=(101,))


def test_a_client_secret_ends_with_the_key_that_created_it() -> None:
    keys = [ApiKeySettings(key="kept"), ApiKeySettings(key="page", name="page")]
    with run_gateway(api_keys=tuple(keys)) as gateway:
        secret = create_secret(gateway, "page")
        assert try_key(gateway, secret, REALTIME, "/v1/realtime")[0] == 101
        gateway.service.api_keys.replace_keys([keys[0], ApiKeySettings(key="page", scopes=(KeyScope.MODELS,))])
        assert try_key(gateway, secret, REALTIME, "/v1/realtime")[0] == 403
        gateway.service.api_keys.replace_keys(keys[:1])
        assert try_key(gateway, secret, REALTIME, "/v1/realtime")[0] == 401


def test_sessions_of_client_secrets_count_against_the_limit_of_the_key() -> None:
    with run_gateway(api_keys=({"key": "page", "requests_per_minute": 3},)) as gateway:
        secret = create_secret(gateway, "page")
        assert [try_key(gateway, secret, REALTIME, "/v1/realtime")[0] for _ in range(3)] == [101, 101, 429]


@pytest.mark.slow
def test_a_live_session_ends_when_the_audio_of_its_key_is_used_up() -> None:
    """Long before the client ends it, with the text so far."""
    with run_gateway(api_keys=({"key": "k", "audio_per_hour": 4},)) as gateway:
        address = gateway.url.replace("http", "ws") + "/v1/audio/transcriptions/stream?model=moonshine-tiny-en"
        heard: list[dict[str, Any]] = []
        with connect(address, additional_headers={"authorization": "Bearer k"}) as socket, suppress(ConnectionClosed):
            speech = encode_pcm(load_speech())
            for start in range(0, 7 * 32_000, 3200):
                socket.send(speech[start : start + 3200])
            heard.extend(json.loads(message) for message in socket)
        assert heard[-1]["type"] == "error"
        assert heard[-1]["error"]["code"] == "rate_limit_exceeded"
        assert "audio_per_hour" in heard[-1]["error"]["message"]
        assert any(message["type"] == "final" and message["text"] for message in heard)
        assert socket.protocol.close_code == 1013
        (usage,) = gateway.service.api_keys
        assert 3 <= usage.audio_s <= 7.1
        assert try_key(gateway, "k", REALTIME, "/v1/realtime")[0] == 429


@pytest.mark.slow
def test_a_client_that_leaves_pays_for_what_it_heard() -> None:
    with run_gateway(api_keys=({"key": "k", "scopes": ["transcribe"]},)) as gateway:
        assert ask(gateway, "k", path="/status").status_code == 200, "Bazarr asks for it with the key of its uploads"
        (usage,) = gateway.service.api_keys
        form = {"files": {"file": ("a.wav", encode_announcements(600))}, "data": {"stream": "true", "model": "moonshine-tiny-en"}}
        with requests.post(
            f"{gateway.url}/v1/audio/transcriptions", headers={"x-api-key": "k"}, timeout=60, stream=True, **form
        ) as answer:
            assert any(b"delta" in line for line in answer.iter_lines())
        wait_for(lambda: usage.in_progress == 0, 60)
        assert 0 < usage.audio_s < 600
        assert usage.requests == 1


def test_no_two_keys_have_one_name_after_any_reload() -> None:
    one, two, three = (ApiKeySettings(key=f"key-number-{number}") for number in range(3))
    registry = KeyRegistry([one, two])
    registry.replace_keys([two, three])
    assert [usage.name for usage in registry] == ["key 2", "key 3"], "the use of the second one stays under its name"
    named = ApiKeySettings(key="another", name="key 2")
    registry.replace_keys([named, two, one])
    assert [usage.name for usage in registry] == ["key 2", "key 3", "key 4"]
    assert [usage.name for usage in KeyRegistry([one, named, two])] == ["key 1", "key 2", "key 3"]
    assert [usage.name for usage in KeyRegistry([named, one])] == ["key 2", "key 3"]


@pytest.mark.parametrize("now", [0.1, 12_345.678, 987_654.321])
def test_all_requests_of_a_minute_may_come_at_once(now: float) -> None:
    for number in range(1, 200):
        limit = RateLimit(number, 60.0)
        left = []
        while not limit.find_wait(now):
            left.append(int(limit.count_left(now)))
            limit.spend(1, now)
        assert left == [*range(number, 0, -1)]
        assert limit.find_wait(now) == pytest.approx(60 / number, abs=1e-5)
