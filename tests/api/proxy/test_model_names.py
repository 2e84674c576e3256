"""Names that stand for models on their way to an upstream: it hears the name that was meant, not the one that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import requests
from aiohttp import web

from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.upstreams import UpstreamCall, fake_upstream

CHAT, EDITS = "/v1/chat/completions", "/v1/images/edits"


async def answer_echo(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
    body = (await request.read()).decode("latin-1")
    return web.json_response({"path": call.path, "json": call.json, "fields": call.fields, "body": body})


@pytest.fixture
def gateway_with_names() -> Iterator[GatewayUnderTest]:
    with (
        fake_upstream(answer_echo) as upstream,
        fake_upstream(answer_echo) as other,
        run_gateway(
            models={
                "llm": {
                    "proxy": upstream.url,
                    "aliases": ["gpt-4o", "llm-cold"],
                    "filters": {"set_params_by_id": {"llm-cold": {"temperature": 0}}},
                },
                "renamed": {"proxy": other.url, "use_model_name": "theirs"},
            },
            selectors={"any": {"strategy": "pin", "targets": ["llm"]}, "odd": {"strategy": "pin", "targets": ["renamed"]}},
            profiles={"day": {"pins": {"gpt-4o": "odd", "gpt-5": "llm-cold", "any": ""}}},
        ) as gateway,
    ):
        yield gateway


def post_chat(gateway: GatewayUnderTest, model: str) -> requests.Response:
    return requests.post(f"{gateway.url}{CHAT}", json={"model": model, "messages": []}, timeout=10)


def test_json(gateway_with_names: GatewayUnderTest) -> None:
    assert post_chat(gateway_with_names, "any").json()["json"] == {"model": "llm", "messages": []}
    assert post_chat(gateway_with_names, "gpt-4o").json()["json"]["model"] == "gpt-4o", "an alias stays as it is"
    assert post_chat(gateway_with_names, "odd").json()["json"]["model"] == "theirs"
    assert post_chat(gateway_with_names, "gpt-5").status_code == 404
    requests.put(f"{gateway_with_names.url}/api/profiles/active", json={"name": "day"}, timeout=10)
    assert post_chat(gateway_with_names, "gpt-4o").json()["json"]["model"] == "theirs"
    assert post_chat(gateway_with_names, "gpt-5").json()["json"] == {"model": "llm-cold", "messages": [], "temperature": 0}
    refused = post_chat(gateway_with_names, "any")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["any", "llm"])
def test_forms_and_queries(gateway_with_names: GatewayUnderTest, model: str) -> None:
    form = requests.post(f"{gateway_with_names.url}{EDITS}", files={"image": b"x" * 100}, data={"model": model}, timeout=10)
    assert form.json()["fields"]["model"] == ["llm"]
    fields = requests.post(f"{gateway_with_names.url}{CHAT}", data={"model": model, "a": "b"}, timeout=10)
    assert fields.json()["body"] == "model=llm&a=b"
    query = requests.get(f"{gateway_with_names.url}/props?a=b&model={model}", timeout=10)
    assert query.json()["path"] == "/props?a=b&model=llm"
    both = requests.post(f"{gateway_with_names.url}{CHAT}?model={model}", json={"messages": []}, timeout=10)
    assert (both.json()["path"], both.json()["json"]) == (f"{CHAT}?model=llm", {"messages": []})


def test_a_selector_has_no_pages(gateway_with_names: GatewayUnderTest) -> None:
    assert requests.get(f"{gateway_with_names.url}/upstream/llm/x", timeout=10).json()["path"] == "/x"
    assert requests.get(f"{gateway_with_names.url}/upstream/any/x", timeout=10).status_code == 404


@pytest.mark.parametrize("name", ["llm:latest", "any:latest", "mine", "mine:latest"])
def test_names_that_ollamas_routes_list_are_names_everywhere(gateway_with_names: GatewayUnderTest, name: str) -> None:
    """Clients list by `/api/tags` and chat by `/v1`. A server in the dark gets the name that it knows."""
    copy = {"source": "llm:latest", "destination": "mine"}
    assert requests.post(f"{gateway_with_names.url}/api/copy", json=copy, timeout=10).status_code == 200
    assert name in [m["name"] for m in requests.get(f"{gateway_with_names.url}/api/tags", timeout=10).json()["models"]] + ["mine"]
    assert post_chat(gateway_with_names, name).json()["json"] == {"model": "llm", "messages": []}
    form = requests.post(f"{gateway_with_names.url}{EDITS}", files={"image": b"x"}, data={"model": name}, timeout=10)
    assert form.json()["fields"]["model"] == ["llm"]
    assert requests.get(f"{gateway_with_names.url}/props?model={name}", timeout=10).json()["path"] == "/props?model=llm"
    assert requests.get(f"{gateway_with_names.url}/v1/models/{name}", timeout=10).status_code == 200
    if not name.startswith("any"):  # a selector has no pages
        assert requests.get(f"{gateway_with_names.url}/upstream/{name}/x", timeout=10).json()["path"] == "/x"
    assert requests.post(f"{gateway_with_names.url}/api/models/unload/{name}", timeout=10).text == "OK"


def test_tags_do_not_lose_what_an_alias_or_the_server_behind_means(gateway_with_names: GatewayUnderTest) -> None:
    cold = post_chat(gateway_with_names, "llm-cold:latest").json()["json"]
    assert cold == {"model": "llm-cold", "messages": [], "temperature": 0}
    assert post_chat(gateway_with_names, "renamed:latest").json()["json"]["model"] == "theirs"
    assert (
        post_chat(gateway_with_names, "nobody:latest").status_code == post_chat(gateway_with_names, ":latest").status_code == 404
    )


def test_copies_are_listed_with_the_models(gateway_with_names: GatewayUnderTest) -> None:
    requests.post(f"{gateway_with_names.url}/api/copy", json={"source": "llm", "destination": "mine"}, timeout=10)
    listed = {model["id"]: model for model in requests.get(f"{gateway_with_names.url}/v1/models", timeout=10).json()["data"]}
    assert listed["mine"]["meta"]["llamaswap"]["modelID"] == "llm"


def test_requests_spill_over() -> None:
    free = Event()

    async def slow(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        await asyncio.to_thread(free.wait, 20)
        return await answer_echo(call, request)

    with fake_upstream(slow) as first, fake_upstream(slow) as second, ThreadPoolExecutor(5) as pool:
        settings: dict[str, Any] = {
            "models": {"a": {"proxy": first.url}, "b": {"proxy": second.url}},
            "selectors": {"both": {"strategy": "spillover", "targets": ["a", "b"], "settings": {"spillover": 2}}},
        }
        with run_gateway(**settings) as gateway:
            answers = [pool.submit(post_chat, gateway, "both") for _ in range(5)]
            try:
                wait_for(lambda: first.in_flight + second.in_flight == 5)
            finally:
                free.set()
            asked = sorted(answer.result().json()["json"]["model"] for answer in answers)
    assert asked in (["a", "a", "a", "b", "b"], ["a", "a", "b", "b", "b"])
