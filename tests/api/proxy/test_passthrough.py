"""Everything a model's server has, under the model's name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from aiohttp import web

from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.upstreams import UpstreamCall, fake_upstream


@pytest.fixture
def gateway() -> Iterator[GatewayUnderTest]:
    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        said = {"method": request.method, "path": call.path, "body": (await request.read()).decode(), "headers": call.headers}
        return web.json_response(said)

    with fake_upstream(answer) as upstream:
        entries = {name: {"proxy": upstream.url} for name in ("m", "org/m", "org/m/q4", "my model")}
        with run_gateway(models=entries) as started:
            yield started


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("m/", "/"),
        ("m/a/b?c=%20d", "/a/b?c=%20d"),
        ("org/m/a", "/a"),
        ("org/m/q4/a%2Fb", "/a%2Fb"),
        ("org/m/q5", "/q5"),
        ("org%2Fm/x", "/x"),
        ("my%20model/x", "/x"),
    ],
)
def test_the_longest_name_that_fits_is_the_models(gateway: GatewayUnderTest, path: str, expected: str) -> None:
    said = requests.get(f"{gateway.url}/upstream/{path}", timeout=10).json()
    assert (said["method"], said["path"]) == ("GET", expected)


@pytest.mark.parametrize("path", ["/upstream", "/upstream/", "/upstream/?a=1", "/upstream//x"])
def test_a_path_without_a_model_is_told_how_to_name_one(gateway: GatewayUnderTest, path: str) -> None:
    response = requests.get(f"{gateway.url}{path}", timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert "/upstream/MODEL/" in response.json()["error"]["message"]
    assert "m, org/m, org/m/q4, my model." in response.json()["error"]["message"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_any_method_passes_with_its_body(gateway: GatewayUnderTest, method: str) -> None:
    said = requests.request(method, f"{gateway.url}/upstream/m/x", data="abc", timeout=10).json()
    assert (said["method"], said["body"], said["headers"]["content-length"]) == (method, "abc", "3")


def test_a_head_has_no_body(gateway: GatewayUnderTest) -> None:
    response = requests.head(f"{gateway.url}/upstream/m/x", timeout=10)
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 10


def test_a_name_without_a_slash_behind_it_is_redirected(gateway: GatewayUnderTest) -> None:
    response = requests.get(f"{gateway.url}/upstream/org/m?a=1", allow_redirects=False, timeout=10)
    assert (response.status_code, response.headers["location"]) == (301, "/upstream/org/m/?a=1")
    assert requests.post(f"{gateway.url}/upstream/m", allow_redirects=False, timeout=10).status_code == 308


def test_an_unknown_model_is_not_found(gateway: GatewayUnderTest) -> None:
    response = requests.get(f"{gateway.url}/upstream/nobody/x", timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_of_our_own_has_no_pages(gateway: GatewayUnderTest) -> None:
    assert requests.get(f"{gateway.url}/upstream/moonshine-tiny-en/x", timeout=10).status_code == 400


def test_files_of_a_page_do_not_load_a_model(gateway: GatewayUnderTest) -> None:
    response = requests.get(f"{gateway.url}/upstream/m/page.css", timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_not_ready")
    assert requests.get(f"{gateway.url}/upstream/m/page", timeout=10).status_code == 200
    assert requests.get(f"{gateway.url}/upstream/m/page.css", timeout=10).status_code == 200
