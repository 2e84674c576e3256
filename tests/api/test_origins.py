"""Which web pages may use what runs the server."""

from __future__ import annotations

import sys

import pytest
import requests

from eardrum.api.origins import is_allowed_origin, is_local
from eardrum.config.settings import ModelSettings
from tests.api.proxy.conftest import run_gateway

EVIL = "https://evil.example"


@pytest.mark.parametrize(
    ("origin", "host", "local", "also", "allowed"),
    [
        ("http://localhost:3000", "127.0.0.1:8100", True, (), True),
        ("https://127.0.0.1", "127.0.0.1:8100", True, (), True),
        ("http://[::1]:8100", "[::1]:8100", True, (), True),
        ("http://ui.localhost", "localhost", False, (), True),
        ("tauri://localhost", "127.0.0.1:8100", True, (), True),
        ("vscode-webview://abc", "127.0.0.1:8100", True, (), True),
        (EVIL, "127.0.0.1:8100", True, (), False),
        (EVIL, "127.0.0.1:8100", True, ("https://ui.example",), False),
        (EVIL, "127.0.0.1:8100", True, (EVIL,), True),
        (EVIL, "127.0.0.1:8100", True, ("*",), True),
        ("http://evil.example:8100", "evil.example:8100", True, (), False),
        ("http://stt.lan:8100", "stt.lan:8100", False, (), True),
        ("http://stt.lan:8100", "stt.lan", False, (), False),
        (EVIL, "stt.lan:8100", False, (), False),
        ("null", "null", False, (), False),
        ("", "", False, (), False),
        ("http://", "", False, (), False),
        ("http://[::1", "x", False, (), False),
        ("http://localhost.evil.example", "x", True, (), False),
        ("ftp://localhost", "x", True, (), False),
    ],
)
def test_who_may(origin: str, host: str, local: bool, also: tuple[str, ...], allowed: bool) -> None:
    assert is_allowed_origin(origin, host, host_is_trusted=not local, origins=also) is allowed


def test_what_is_local() -> None:
    assert [is_local(name) for name in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "", "10.0.0.1")] == [True] * 3 + [False] * 3


def test_a_page_from_elsewhere_can_neither_change_nor_read_anything() -> None:
    with run_gateway() as gateway:
        for method, path in (("POST", "/api/pull"), ("GET", "/api/tags"), ("OPTIONS", "/api/chat"), ("POST", "/api/ps/x")):
            answer = requests.request(method, f"{gateway.url}{path}", headers={"origin": EVIL}, data="{}", timeout=10)
            assert answer.status_code == 403
            assert "origins" in answer.text
            assert "access-control-allow-origin" not in answer.headers
        assert isinstance(requests.get(f"{gateway.url}/api/tags", headers={"origin": EVIL}, timeout=10).json()["error"], str)
        assert requests.get(f"{gateway.url}/v1/models", headers={"origin": EVIL}, timeout=10).status_code == 200


def test_a_picture_on_a_page_from_elsewhere_unloads_nothing() -> None:
    picture, link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, {"sec-fetch-site": "cross-site"}
    link["sec-fetch-mode"] = "navigate"
    with run_gateway() as gateway:

        def status(path: str, headers: dict[str, str]) -> int:
            return requests.get(f"{gateway.url}{path}", headers=headers, timeout=10).status_code

        for path in ("/unload", "/logs", "/running", "/upstream/x/", "/api/ps"):
            assert status(path, picture) == 403
            assert status(path, {"origin": EVIL}) == 403
        assert (status("/unload", link), status("/logs", link), status("/logs", {})) == (403, 200, 200)


BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"}
IMAGE, PAGE = BROWSER | {"accept": "image/webp,*/*"}, BROWSER | {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def build_headers(site: str, mode: str = "no-cors") -> dict[str, str]:
    return {"sec-fetch-site": site, "sec-fetch-mode": mode}


@pytest.mark.parametrize(
    ("headers", "loads"),
    [
        # What says which page it is from: over HTTPS, and to this machine.
        (IMAGE | build_headers("cross-site"), False),
        (IMAGE | build_headers("same-site"), False),
        (PAGE | build_headers("cross-site", "navigate"), False),  # a link, a frame, a window
        (PAGE | build_headers("same-site", "navigate") | {"referer": f"{EVIL}/"}, False),
        (PAGE | build_headers("same-site", "navigate") | {"referer": "http://localhost:3000/"}, True),
        (PAGE | build_headers("cross-site", "navigate") | {"referer": "https://home.example/links"}, True),  # in `origins`
        (PAGE | build_headers("same-origin", "navigate"), True),
        (IMAGE | build_headers("same-origin"), True),
        (PAGE | build_headers("none", "navigate"), True),  # typed, or a bookmark
        # What does not: over plain HTTP to another machine.
        (IMAGE, False),
        (IMAGE | {"referer": f"{EVIL}/"}, False),
        (PAGE, False),  # typed, or a frame of a page that hides itself
        (PAGE | {"referer": "http://[bad"}, False),
        (PAGE | {"referer": "http://nas:8100/upstream/m/"}, True),
        (IMAGE | {"referer": "http://nas:8100/ui/"}, True),
        (IMAGE | {"origin": "http://nas:8100"}, True),
        # Programs.
        ({"user-agent": "curl/8.5.0"}, True),
        ({"user-agent": "llama-swap"}, True),
    ],
)
def test_a_link_on_a_page_from_elsewhere_loads_no_model(headers: dict[str, str], loads: bool) -> None:
    ends = {"cmd": f"{sys.executable} -c pass", "proxy": "http://127.0.0.1:9"}
    with run_gateway(host="0.0.0.0", models={"m": ModelSettings(**ends)}, origins=("https://home.example",)) as gateway:
        for method in ("GET", "HEAD"):
            asked = headers | {"host": "nas:8100"}
            answer = requests.request(method, f"{gateway.url}/upstream/m/?a=1", headers=asked, timeout=20)
            begun = gateway.service.get_failure(gateway.service.catalog.find_model("m")) != ""
            assert (answer.status_code != 403, begun) == (loads, loads), (method, answer.text)
            if not loads and method == "GET":
                page = headers.get("accept", "").startswith("text/html")
                assert (page, not page) == ('href=""' in answer.text, "forbidden_origin" in answer.text)
                assert not page or "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_socket_of_a_page_from_elsewhere_is_refused() -> None:
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x" * 22 + "=="}
    with run_gateway() as gateway:
        for origin, status in ((EVIL, 403), ("http://localhost:3000", 404)):
            headers = asked | {"origin": origin}
            assert requests.get(f"{gateway.url}/upstream/x/ws", headers=headers, timeout=10).status_code == status


def test_a_page_of_this_machine_may_read_what_it_asked_for() -> None:
    mine = {"origin": "http://localhost:3000"}
    with run_gateway() as gateway:
        answer = requests.get(f"{gateway.url}/api/tags", headers=mine, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, mine["origin"])
        asked = mine | {"access-control-request-method": "POST", "access-control-request-headers": "x-odd"}
        answer = requests.options(f"{gateway.url}/api/chat", headers=asked, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "x-odd")
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-origin" not in requests.get(f"{gateway.url}/api/tags", timeout=10).headers
