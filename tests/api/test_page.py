"""The files of the web page over HTTP: types, ETags, compression, the policy, keys, and the switch."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
import requests

from eardrum.api.key_scopes import find_scope
from eardrum.api.page import GREETING, PAGE_FOLDER, has_tag, list_page_files
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayUnderTest]:
    with run_gateway(api_keys=["secret"]) as started:
        yield started


def get(gateway: GatewayUnderTest, path: str = "/", **headers: str) -> requests.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(gateway.url + path, headers=BROWSER | given, timeout=20, allow_redirects=False)


def test_browsers_get_the_page_and_ollamas_clients_their_greeting(gateway: GatewayUnderTest) -> None:
    page = get(gateway)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == (PAGE_FOLDER / "index.html").read_text()
    assert "accept" in page.headers["vary"]
    plain = get(gateway, accept="*/*")
    assert (plain.text, plain.headers["vary"]) == (GREETING, "accept")


def test_every_file_is_there_without_a_key_in_its_type(gateway: GatewayUnderTest) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    names = list_page_files()
    assert {"index.html", "app.js", "app.css"} <= set(names)
    assert names == tuple(sorted(path.name for path in PAGE_FOLDER.iterdir())), "a file of a type that is not served"
    for name in names:
        assert find_scope("GET", f"/{name}") is None
        answer = get(gateway, f"/{name}")
        assert answer.status_code == 200
        assert answer.content == (PAGE_FOLDER / name).read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == types["." + name.rpartition(".")[2]]
    assert get(gateway, "/app.py").status_code == 401


def test_a_file_that_the_browser_has_is_not_sent_again(gateway: GatewayUnderTest) -> None:
    first = get(gateway, "/index.html")
    assert first.headers["cache-control"] == "no-cache"
    again = get(gateway, "/index.html", if_none_match=f'"x", {first.headers["etag"]}')
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert get(gateway, "/index.html", if_none_match='"x"').status_code == 200


@pytest.mark.parametrize(
    ("listed", "found"), [('W/"a"', True), ('"a"', True), ("*", True), ('"b", W/"a"', True), ('W/"b"', False), ("", False)]
)
def test_a_tag_is_found_in_a_list(listed: str, found: bool) -> None:
    assert has_tag(listed, 'W/"a"') is found


def test_files_are_compressed_for_those_who_take_it(gateway: GatewayUnderTest) -> None:
    with requests.get(f"{gateway.url}/app.js", headers={"accept-encoding": "gzip"}, timeout=20, stream=True) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.raw.read(decode_content=False)) == (PAGE_FOLDER / "app.js").read_bytes()
    plain = get(gateway, "/app.js", accept_encoding="identity")
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "accept-encoding"


def test_head_has_the_headers_of_get(gateway: GatewayUnderTest) -> None:
    head = requests.head(f"{gateway.url}/index.html", timeout=20)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == get(gateway, "/index.html").headers["etag"]


def test_the_policy_allows_nothing_inline_and_nobody_else(gateway: GatewayUnderTest) -> None:
    rules = dict(rule.split(" ", 1) for rule in get(gateway).headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == rules["style-src"] == "'self'"
    assert "blob:" in rules["media-src"]
    assert not [rule for rule in rules.values() if "unsafe" in rule or "*" in rule or "http" in rule]


def test_the_page_names_only_relative_addresses() -> None:
    """Behind Home Assistant's ingress, or any proxy, it lies below a path that it does not know."""
    text = (PAGE_FOLDER / "index.html").read_text()
    assert 'src="./' in text
    for attribute in ('src="/', 'href="/', "://"):
        assert attribute not in text
    assert "<noscript>" in text
    assert "JavaScript" in text


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/models", "/ui/a/b/"])
def test_llama_swaps_address_leads_to_the_page_below_any_prefix(gateway: GatewayUnderTest, path: str) -> None:
    answer = get(gateway, path)
    assert answer.status_code == 307
    assert urljoin(f"https://host/prefix{path}", answer.headers["location"]) == "https://host/prefix/"
    assert get(gateway, "/uix").status_code == 401


def test_without_the_page_nothing_of_it_is_served() -> None:
    with run_gateway(page=False) as gateway:
        assert get(gateway, "/ui").status_code == 404
        assert get(gateway).headers["location"] == "docs"
        assert get(gateway, accept="*/*").text == GREETING
        assert {get(gateway, f"/{name}").status_code for name in list_page_files()} == {404}


def test_a_key_can_ask_for_its_rights(gateway: GatewayUnderTest) -> None:
    def ask(url: str, key: str = "") -> dict[str, object]:
        answer = requests.get(f"{url}/api/keys/current", headers={"authorization": f"Bearer {key}"} if key else {}, timeout=20)
        assert answer.status_code == 200
        found: dict[str, object] = answer.json()
        return found

    keys = [
        {"key": "phone", "scopes": ["transcribe"], "name": "phone", "models": ["a*"]},
        {"key": "old", "expires": "2020-01-31"},
    ]
    with run_gateway(api_keys=keys) as limited:
        phone = ask(limited.url, "phone")
        assert phone == {
            "required": True, "accepted": True, "name": "phone", "scopes": ["transcribe"], "models": ["a*"], "expires": None,
        }  # fmt: skip
        for key in ("", "wrong", "old"):
            refused = ask(limited.url, key)
            assert (refused["required"], refused["accepted"], refused["scopes"], refused["name"]) == (True, False, [], None)
    with run_gateway() as open_gateway:
        opened = ask(open_gateway.url)
        assert (opened["required"], opened["accepted"], opened["name"]) == (False, True, None)
        assert "manage" in opened["scopes"]
