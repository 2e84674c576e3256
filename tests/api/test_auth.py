"""Who is let in, and which pages."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import aiohttp
import pytest
import requests

from eardrum.api.auth import read_api_key
from eardrum.api.ollama.responses import is_ollama_path
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway

KEY = "sk-1"


@pytest.fixture(scope="module")
def gateway_with_keys() -> Iterator[GatewayUnderTest]:
    with run_gateway(api_keys=("sk-0", KEY)) as gateway:
        yield gateway


def build_basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"authorization": build_basic(KEY)},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": "wrong"},
    ],
)
def test_a_key_opens(gateway_with_keys: GatewayUnderTest, headers: dict[str, str]) -> None:
    assert requests.get(f"{gateway_with_keys.url}/v1/models", headers=headers, timeout=10).status_code == 200


def test_a_subprotocol_holds_any_key() -> None:
    """Characters that a subprotocol cannot have, as `/` and `=` of base64, are percent-encoded."""
    scope = {"headers": [], "subprotocols": ["eardrum", "openai-insecure-api-key.a%2Fb%3D%C3%BC"]}
    assert read_api_key(scope) == "a/b=ü"
    assert read_api_key({"headers": [], "subprotocols": ["openai-insecure-api-key.sk-1"]}) == "sk-1"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer sk-2"},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": "Basic !!"},
        {"authorization": build_basic("")},
        {"authorization": "Bearer wrong", "x-api-key": KEY},
        {"x-api-key": "sk-\xfc"},
    ],
)
def test_no_key_and_a_wrong_one_do_not(gateway_with_keys: GatewayUnderTest, headers: dict[str, str]) -> None:
    response = requests.get(f"{gateway_with_keys.url}/v1/models", headers=headers, timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == 'Basic realm="eardrum"'
    script = requests.get(f"{gateway_with_keys.url}/v1/models", headers=headers | {"x-requested-with": "page"}, timeout=10)
    assert script.headers["www-authenticate"] == 'Bearer realm="eardrum"', "a browser asks for a password at Basic"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/api/ps"),
        ("POST", "/api/chat"),
        ("POST", "/api/blobs/sha256:0"),
        ("DELETE", "/api/ps/moonshine-tiny-en"),
        ("GET", "/api/keys"),
        ("POST", "/api/v1/transcribe"),
        ("POST", "/api/pull/x"),
        ("GET", "/upstream/x/"),
        ("GET", "/nothing/here"),
    ],
)
def test_every_route_is_locked(gateway_with_keys: GatewayUnderTest, method: str, path: str) -> None:
    response = requests.request(method, gateway_with_keys.url + path, data=b"x" * 200_000, timeout=10)
    assert response.status_code == 401
    body = response.json()
    assert isinstance(body["error"], str if is_ollama_path(path) else dict)
    if path == "/api/v1/transcribe":  # TingWu's
        assert body["detail"] == response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json"])
def test_what_says_how_to_use_it_is_open(gateway_with_keys: GatewayUnderTest, path: str) -> None:
    assert requests.get(gateway_with_keys.url + path, timeout=10).status_code == 200


async def test_sockets_are_locked_too(gateway_with_keys: GatewayUnderTest) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{gateway_with_keys.url}/v1/realtime?model=x")
    assert refused.value.status == 401


def test_a_browser_may_ask_without_a_key_and_read_the_answer(gateway_with_keys: GatewayUnderTest) -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST", "access-control-request-headers": "x-a, b"}
    response = requests.options(f"{gateway_with_keys.url}/v1/chat/completions", headers=ask, timeout=10)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (204, "*")
    assert response.headers["access-control-allow-headers"] == "x-a, b"
    assert response.headers["access-control-max-age"] == "86400"
    for headers in ({}, {"x-api-key": KEY}):
        answer = requests.get(f"{gateway_with_keys.url}/v1/models", headers=headers, timeout=10)
        assert answer.headers["access-control-allow-origin"] == "*"


def test_pages_of_others_do_not_run_the_server(gateway_with_keys: GatewayUnderTest) -> None:
    answer = requests.get(f"{gateway_with_keys.url}/api/ps", headers={"x-api-key": KEY}, timeout=10)
    assert "access-control-allow-origin" not in answer.headers
    assert requests.options(f"{gateway_with_keys.url}/api/ps", headers={"x-api-key": KEY}, timeout=10).status_code == 405
