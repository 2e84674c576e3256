"""Which web pages may use what runs the server."""

from __future__ import annotations

import pytest
import requests

from eardrum.api.hosts import is_local
from eardrum.api.origins import may_use
from tests.api.forward.conftest import serving

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
    assert may_use(origin, host, known=not local, also=also) is allowed


def test_what_is_local() -> None:
    assert [is_local(name) for name in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "", "10.0.0.1")] == [True] * 3 + [False] * 3


def test_a_page_from_elsewhere_can_neither_change_nor_read_anything() -> None:
    with serving() as gateway:
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
    with serving() as gateway:

        def status(path: str, headers: dict[str, str]) -> int:
            return requests.get(f"{gateway.url}{path}", headers=headers, timeout=10).status_code

        for path in ("/unload", "/logs", "/running", "/upstream/x/", "/api/ps"):
            assert status(path, picture) == 403
            assert status(path, {"origin": EVIL}) == 403
        assert (status("/unload", link), status("/logs", link), status("/logs", {})) == (403, 200, 200)


def test_a_socket_of_a_page_from_elsewhere_is_refused() -> None:
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x" * 22 + "=="}
    with serving() as gateway:
        for origin, status in ((EVIL, 403), ("http://localhost:3000", 404)):
            headers = asked | {"origin": origin}
            assert requests.get(f"{gateway.url}/upstream/x/ws", headers=headers, timeout=10).status_code == status


def test_a_page_of_this_machine_may_read_what_it_asked_for() -> None:
    mine = {"origin": "http://localhost:3000"}
    with serving() as gateway:
        answer = requests.get(f"{gateway.url}/api/tags", headers=mine, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, mine["origin"])
        asked = mine | {"access-control-request-method": "POST", "access-control-request-headers": "x-odd"}
        answer = requests.options(f"{gateway.url}/api/chat", headers=asked, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "x-odd")
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-origin" not in requests.get(f"{gateway.url}/api/tags", timeout=10).headers
