"""Models of other servers."""

from __future__ import annotations

import requests
from aiohttp import web

from tests.api.proxy.conftest import run_gateway
from tests.upstreams import UpstreamCall, fake_upstream

CHAT = "/v1/chat/completions"


async def answer_echo(call: UpstreamCall, _: web.Request) -> web.StreamResponse:
    return web.json_response({"json": call.json, "headers": call.headers})


def test_models_of_peers_are_found_listed_and_asked_with_the_peers_key() -> None:
    with fake_upstream(answer_echo) as one, fake_upstream(answer_echo) as two:
        peers = {
            "one": {"proxy": f"{one.url}/", "models": ("big", "shared"), "api_key": "sk-peer", "filters": {"strip_params": "n"}},
            "two": {"proxy": two.url, "models": ("shared", "mine")},
        }
        settings = {"peers": peers, "models": {"mine": {"proxy": "http://127.0.0.1:9"}}, "api_keys": ("sk-here",)}
        with run_gateway(**settings) as gateway:
            headers = {"authorization": "Bearer sk-here"}

            def asked(name: str) -> requests.Response:
                return requests.post(f"{gateway.url}{CHAT}", json={"model": name, "n": 1}, headers=headers, timeout=10)

            said = asked("big").json()
            assert said["json"] == {"model": "big"}
            assert (said["headers"]["authorization"], said["headers"]["x-api-key"]) == ("Bearer sk-peer", "sk-peer")
            assert said["headers"]["host"] == one.url.removeprefix("http://")
            assert asked("one/shared").json()["json"]["model"] == "shared"
            assert asked("shared").status_code == 404, "two peers have it: which one is meant?"
            assert asked("mine").status_code == 502, "our own comes first"
            said = asked("two/mine").json()
            assert said["json"] == {"model": "mine", "n": 1}
            assert "authorization" not in said["headers"], "our key is none of the peer's business"
            listed = requests.get(f"{gateway.url}/v1/models", headers=headers, timeout=10).json()["data"]
    assert {"one/big", "one/shared", "two/shared", "two/mine", "mine"} <= {model["id"] for model in listed}


def test_a_peer_of_whom_it_is_not_known_that_it_hears_is_not_the_default_model() -> None:
    with run_gateway(peers={"p": {"proxy": "http://127.0.0.1:9", "models": ("m",)}}) as gateway:
        assert gateway.service.catalog.default.origin == "embedded"
