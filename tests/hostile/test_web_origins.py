"""Web pages and programs that nobody invited: what they may not do, and that who may still may."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import requests

from eardrum.config.settings import ModelSettings
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.ports import find_free_port

EVIL = "https://evil.example"
REBOUND = "evil.example:8100"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
PICTURE = {"user-agent": BROWSER, "accept": "image/avif,image/webp,*/*", "accept-language": "en"}
MODEL = "moonshine-tiny-en"
FAKE_ANYTHING = Path(__file__).parent.parent / "programs" / "fake_anything.py"


pytestmark = [pytest.mark.slow, pytest.mark.hostile]


@pytest.fixture(scope="module")
def local_gateway() -> Iterator[GatewayUnderTest]:
    """Meant for this machine only, as by default."""
    with run_gateway(hosts=("stt.example.com", "*.tailnet.example"), pull_missing=True) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def public_gateway() -> Iterator[GatewayUnderTest]:
    """Meant for the network, without keys."""
    with run_gateway(host="0.0.0.0", hosts=("stt.example.com",)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def locked() -> Iterator[GatewayUnderTest]:
    with run_gateway(host="0.0.0.0", api_keys=("sk-1", "schlüssel")) as gateway:
        yield gateway


def get_status(gateway: GatewayUnderTest, path: str, method: str = "GET", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.request(method, gateway.url + path, headers=named, timeout=10, allow_redirects=False).status_code


@pytest.mark.parametrize(
    "path", ["/logs", "/running", "/v1/models", "/api/tags", "/api/ps", "/health", "/", "/unload?force", "/nothing"]
)
def test_a_page_that_leads_its_name_here_gets_nothing(
    local_gateway: GatewayUnderTest, public_gateway: GatewayUnderTest, path: str
) -> None:
    for gateway in (local_gateway, public_gateway):
        answer = requests.get(gateway.url + path, headers={"host": REBOUND}, timeout=10)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert "`hosts`" in (error if isinstance(error, str) else error["message"])
        assert isinstance(error, str) or error["code"] == "forbidden_host"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost:8100",
            "127.0.0.1",
            "[::1]:8100",
            "[fe80::1%25eth0]",
            "192.168.1.5:8100",
            "203.0.113.7",
            "LOCALHOST",
            "localhost.",
        ),
        *(
            "app.localhost:1",
            "nas.local:8100",
            "host.docker.internal:8100",
            "eardrum:8100",
            "stt.example.com",
            "STT.example.com:443",
        ),
    ],
)
def test_names_of_machines_and_networks_and_configured_ones_are_ours(
    local_gateway: GatewayUnderTest, public_gateway: GatewayUnderTest, host: str
) -> None:
    assert [get_status(gateway, "/v1/models", host=host) for gateway in (local_gateway, public_gateway)] == [200, 200]


@pytest.mark.parametrize(
    ("host", "here", "there"),
    [
        ("stt.lan", 403, 200),
        ("stt.fritz.home.arpa", 403, 200),
        ("a.tailnet.example", 200, 403),
        ("tailnet.example", 403, 403),
        ("127.0.0.1.evil.example", 403, 403),
        ("localhost.evil.example", 403, 403),
        ("evil-localhost.example", 403, 403),
        ("evil.example.", 403, 403),
        ("127.0.0.1:80@evil.example", 403, 403),
    ],
)
def test_other_names_are_those_of_the_place(
    local_gateway: GatewayUnderTest, public_gateway: GatewayUnderTest, host: str, here: int, there: int
) -> None:
    assert (get_status(local_gateway, "/v1/models", host=host), get_status(public_gateway, "/v1/models", host=host)) == (
        here,
        there,
    )


def test_a_client_that_names_no_host_is_no_browser(local_gateway: GatewayUnderTest) -> None:
    with socket.create_connection(("127.0.0.1", int(local_gateway.url.rsplit(":", 1)[1]))) as client:
        client.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert client.recv(100).split()[1] == b"200"


def test_with_keys_every_name_does(locked: GatewayUnderTest) -> None:
    assert get_status(locked, "/v1/models", host=REBOUND, authorization="Bearer sk-1") == 200
    assert get_status(locked, "/v1/models", host=REBOUND) == 401


async def test_sockets_have_the_same_rule(public_gateway: GatewayUnderTest) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/realtime", "/v1/audio/transcriptions/stream", "/ws/realtime", "/upstream/x/ws"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{public_gateway.url}{path}", headers={"host": REBOUND})
            assert refused.value.status == 403


def test_a_page_behind_a_proxy_with_the_servers_own_name_may_use_it(local_gateway: GatewayUnderTest) -> None:
    assert get_status(local_gateway, "/api/tags", host="stt.example.com", origin="https://stt.example.com") == 200
    assert get_status(local_gateway, "/api/tags", host="stt.example.com", origin=EVIL) == 403


def test_no_picture_unloads_over_plain_http_to_another_machine(public_gateway: GatewayUnderTest) -> None:
    lan = {"host": "192.168.1.5:8100"}
    for path in ("/unload", "/unload?force"):
        for page in ({}, {"referer": f"{EVIL}/page"}, {"referer": "http://[bad"}):
            assert get_status(public_gateway, path, **lan, **PICTURE, **page) == 403
            assert get_status(public_gateway, path, "HEAD", **lan, **PICTURE, **page) == 403
    for site in ("cross-site", "same-site"):
        assert get_status(public_gateway, "/unload", **PICTURE, sec_fetch_site=site, sec_fetch_mode="no-cors") == 403
    assert get_status(public_gateway, "/unload", "POST", **lan, **PICTURE, origin=EVIL) == 403


def test_programs_and_the_servers_own_pages_unload(public_gateway: GatewayUnderTest) -> None:
    for agent in ("curl/8.5.0", "python-requests/2.32", "Home Assistant/2026.1", ""):
        assert get_status(public_gateway, "/unload", user_agent=agent) == 200
    lan = {"host": "192.168.1.5:8100"}
    assert get_status(public_gateway, "/unload", **lan, **PICTURE, referer="http://192.168.1.5:8100/ui") == 200
    assert get_status(public_gateway, "/unload", user_agent=BROWSER, sec_fetch_site="none", sec_fetch_mode="navigate") == 200
    assert get_status(public_gateway, "/unload", "POST") == 200
    assert get_status(public_gateway, "/unload", "POST", **lan, origin="http://192.168.1.5:8100") == 200


def test_a_model_is_loaded_by_a_click_on_our_page_and_not_by_a_picture() -> None:
    port = find_free_port()
    command = shlex.join([sys.executable, str(FAKE_ANYTHING), str(port)])
    model = ModelSettings(cmd=command, proxy=f"http://127.0.0.1:{port}")
    with run_gateway(host="0.0.0.0", models={"m": model}) as gateway:
        page, lan = "/upstream/m/", {"host": "192.168.1.5:8100"}
        opened = {"user-agent": BROWSER, "accept": "text/html,*/*;q=0.8"}
        for foreign in ({}, {"referer": f"{EVIL}/"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}):
            assert requests.get(gateway.url + page, headers=lan | PICTURE | foreign, timeout=10).status_code == 403
        led = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
        asked = requests.get(gateway.url + page, headers=lan | opened | led, timeout=10)
        assert (asked.status_code, asked.headers["x-frame-options"]) == (403, "DENY")
        assert requests.get(f"{gateway.url}/running", timeout=10).json()["running"] == []

        clicked = {"referer": f"http://{lan['host']}{page}"}
        assert requests.get(gateway.url + page, headers=lan | opened | clicked, timeout=30).json() == {"read": 0}
        assert [one["model"] for one in requests.get(f"{gateway.url}/running", timeout=10).json()["running"]] == ["m"]
        assert requests.get(gateway.url + page, headers=lan | opened, timeout=10).status_code == 200, (
            "it is up: nothing is loaded"
        )


@pytest.mark.parametrize("key", ["schlüssel".encode(), b"sk-1"])
def test_a_key_of_any_letters_is_shown_in_any_way(locked: GatewayUnderTest, key: bytes) -> None:
    for headers in ({"authorization": b"Bearer " + key}, {"x-api-key": key}):
        assert requests.get(f"{locked.url}/v1/models", headers=headers, timeout=10).status_code == 200
    answer = requests.get(f"{locked.url}/v1/models", headers={"authorization": b"Bearer " + key + b"\xc3\xbc"}, timeout=10)
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/chat/completions"])
def test_a_strange_page_has_no_model_fetched(local_gateway: GatewayUnderTest, path: str) -> None:
    """The hub is none that could be reached from a test: who may fetch is told that, who may not is told how it is done."""
    audio = {"file": ("a.wav", b"RIFF", "audio/wav")}
    for headers in ({"origin": EVIL}, {"origin": "null"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}):
        if path.endswith("transcriptions"):
            answer = requests.post(local_gateway.url + path, headers=headers, data={"model": "base.en"}, files=audio, timeout=20)
        else:
            part = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
            body = {"model": "base.en", "messages": [{"role": "user", "content": [part]}]}
            answer = requests.post(local_gateway.url + path, headers=headers, json=body, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), answer.text


def test_what_is_said_of_the_unused_fits_into_a_header(local_gateway: GatewayUnderTest, fixture_audio: bytes) -> None:
    names = "&".join([f"n{number}=" for number in range(2000)])
    queries = ("a%0d%0ab=1", "%00=1", "%ff%fe=1", "%E2%82%AC=1", "a%0d%0aset-cookie:%20x=1", "x" * 40_000, names)
    for query in queries:
        answer = requests.post(
            f"{local_gateway.url}/v1/audio/transcriptions?{query}",
            data={"model": MODEL},
            files={"file": fixture_audio},
            timeout=60,
        )
        assert answer.status_code == 200, (query[:50], answer.text)
        ignored = answer.headers["x-eardrum-ignored"]
        assert len(ignored) < 4000
        assert ignored.startswith("?")
        assert ignored.isascii()
        assert ignored.isprintable()
        assert "set-cookie" not in answer.headers
    answer = requests.post(
        f"{local_gateway.url}/v1/audio/transcriptions",
        data={"model": MODEL, "odd\r\nx-evil: 1": "1", "y" * 2000: "1"},
        files={"file": fixture_audio},
        timeout=60,
    )
    assert answer.status_code == 200
    assert len(answer.headers["x-eardrum-ignored"]) < 4000
    assert "x-evil" not in answer.headers


@pytest.fixture(scope="module")
def fixture_audio() -> bytes:
    silence = bytes(16_000)
    return (
        b"RIFF"
        + (36 + len(silence)).to_bytes(4, "little")
        + b"WAVEfmt "
        + bytes.fromhex("10000000 0100 0100 803e0000 007d0000 0200 1000")
        + b"data"
        + len(silence).to_bytes(4, "little")
        + silence
    )


def test_what_is_echoed_is_bounded(local_gateway: GatewayUnderTest) -> None:
    long = "x" * 1_000_000
    asked = [
        ("POST", "/api/show", {"model": long}),
        ("POST", "/api/copy", {"source": MODEL, "destination": long}),
        ("POST", "/api/chat", {"model": MODEL, "keep_alive": long}),
        ("POST", "/v1/realtime/client_secrets", {"session": {"audio": {"input": {"transcription": {"language": long}}}}}),
        ("POST", "/v1/realtime/client_secrets", {"session": {"audio": {"input": {"transcription": {"model": long}}}}}),
        ("POST", "/v1/realtime/client_secrets", {"session": {"audio": {"input": {"transcription": {"keywords": [long]}}}}}),
        ("POST", "/v1/realtime/client_secrets", {"session": {"include": [long]}}),
        ("POST", "/v1/realtime/client_secrets", {"session": {"type": long}}),
        ("PUT", "/api/profiles/active", {"name": long}),
        (
            "POST",
            "/v1/audio/transcriptions",
            {"model": MODEL, "language": long, "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ),
        ("POST", "/v1/audio/transcriptions", {"model": MODEL, "response_format": long, "input_audio": {"data": "UklGRg=="}}),
    ]
    for method, path, body in asked:
        answer = requests.request(method, local_gateway.url + path, json=body, timeout=20)
        assert 400 <= answer.status_code < 500, (path, answer.status_code)
        assert len(answer.content) < 5000, (path, answer.text[:200])
        assert max(map(len, answer.headers.values())) < 4000
    assert max(map(len, local_gateway.service.logs.server.get_lines()), default=0) < 5000


def test_a_client_secret_keeps_little(local_gateway: GatewayUnderTest) -> None:
    prompt = {"session": {"audio": {"input": {"transcription": {"model": MODEL, "prompt": "p" * 1_000_000}}}}}
    answer = requests.post(f"{local_gateway.url}/v1/realtime/client_secrets", json=prompt, timeout=20)
    assert answer.status_code == 200
    assert len(answer.content) < 6000


@pytest.mark.parametrize("path", ["/v1/realtime/client_secrets", "/v1/realtime/transcription_sessions"])
def test_no_page_from_elsewhere_fills_what_is_kept(local_gateway: GatewayUnderTest, locked: GatewayUnderTest, path: str) -> None:
    for headers in ({"origin": EVIL, "content-type": "text/plain"}, {"origin": "null"}):
        assert requests.post(local_gateway.url + path, headers=headers, data="{}", timeout=10).status_code == 403
    assert requests.post(local_gateway.url + path, data="{}", timeout=10).status_code == 200
    mine = requests.post(local_gateway.url + path, headers={"origin": "http://localhost:3000"}, data="{}", timeout=10)
    assert mine.status_code == 200
    shown = {"origin": EVIL, "authorization": "Bearer sk-1"}
    assert requests.post(locked.url + path, headers=shown, data="{}", timeout=10).status_code == 200


HALF = '"\\ud800"'


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/show", f'{{"model": {HALF}}}'),
        ("POST", "/api/chat", f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": {HALF}}}]}}'),
        ("POST", "/api/generate", f'{{"model": "{MODEL}", "prompt": {HALF}}}'),
        ("POST", "/api/pull", f'{{"model": {HALF}}}'),
        ("POST", "/api/copy", f'{{"source": "{MODEL}", "destination": {HALF}}}'),
        ("DELETE", "/api/delete", f'{{"model": {HALF}}}'),
        ("POST", "/api/embed", f'{{"model": {HALF}, "input": "x"}}'),
        ("PUT", "/api/profiles/active", f'{{"name": {HALF}}}'),
        (
            "POST",
            "/v1/realtime/client_secrets",
            f'{{"session": {{"audio": {{"input": {{"transcription": {{"prompt": {HALF}}}}}}}}}}}',
        ),
        ("POST", "/v1/realtime/transcription_sessions", f'{{"input_audio_transcription": {{"prompt": {HALF}}}}}'),
        ("POST", "/v1/audio/transcriptions", f'{{"model": {HALF}, "input_audio": {{"data": "UklGRg=="}}}}'),
        ("POST", "/v1/audio/transcriptions", f'{{{HALF}: "1", "input_audio": {{"data": "UklGRg=="}}}}'),
        ("POST", "/v1/chat/completions", f'{{"model": {HALF}, "messages": []}}'),
        ("POST", "/v1/embeddings", f'{{"model": {HALF}, "input": "x"}}'),
        ("POST", "/api/v1/result", f'{{"task_id": {HALF}}}'),
    ],
)
def test_half_a_character_is_the_clients_fault(local_gateway: GatewayUnderTest, method: str, path: str, body: str) -> None:
    answer = requests.request(
        method, local_gateway.url + path, data=body, headers={"content-type": "application/json"}, timeout=20
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("path", ["/v1/realtime?intent=transcription", "/v1/audio/transcriptions/stream", "/ws/realtime"])
async def test_half_a_character_ends_no_session_with_an_error_of_ours(local_gateway: GatewayUnderTest, path: str) -> None:
    update = {"transcription": {"prompt": "HALF"}}
    messages = [
        json.dumps({"type": "session.update", "session": {"audio": {"input": update}}}).replace('"HALF"', HALF),
        f'{{"type": {HALF}}}',
        f'{{"type": "session.update", "session": {{"type": {HALF}}}}}',
        f'{{"prompt": {HALF}}}',
        HALF,
    ]
    for message in messages:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{local_gateway.url}{path}") as ws:
            await ws.send_str(message)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                        pass
            await ws.close()
            assert ws.close_code != 1011, (message, ws.close_code)


NINES = "9" * 400
SPEECH = f'"model": "{MODEL}", "input_audio": {{"data": "UklGRg=="}}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", f'{{"model": "{MODEL}", "messages": [], "options": {{"temperature": {NINES}}}, "keep_alive": {NINES}}}'),
        (
            "/v1/realtime/client_secrets",
            f'{{"session": {{"audio": {{"input": {{"turn_detection": {{"threshold": {NINES}}}}}}}}}}}',
        ),
        ("/v1/realtime/client_secrets", f'{{"expires_after": {{"seconds": {NINES}}}}}'),
        ("/v1/audio/transcriptions", f'{{{SPEECH}, "chunking_strategy": {{"type": "server_vad", "threshold": {NINES}}}}}'),
        ("/v1/audio/transcriptions", f'{{{SPEECH}, "temperature": {NINES}}}'),
    ],
)
def test_a_number_of_any_length_is_no_failure_of_ours(local_gateway: GatewayUnderTest, path: str, body: str) -> None:
    answer = requests.post(local_gateway.url + path, data=body, headers={"content-type": "application/json"}, timeout=20)
    assert answer.status_code < 500, answer.text


async def test_nor_is_one_in_a_live_session(local_gateway: GatewayUnderTest) -> None:
    for text in (f'{{"threshold": {NINES}}}', f'{{"vad": {{"threshold": {NINES}}}}}', f'{{"sample_rate": {NINES}}}'):
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{local_gateway.url}/v1/audio/transcriptions/stream") as ws,
        ):
            await ws.send_str(text)
            error = await ws.receive_json(timeout=10)
            while error.get("type") != "error":
                error = await ws.receive_json(timeout=10)
            assert "server_error" not in json.dumps(error)
            await ws.close()
            assert ws.close_code != 1011


def test_nobody_reads_passwords_and_keys_of_the_config() -> None:
    secrets = ("pass-word-1", "cmd-key-22", "env-token-3", "option-key-4")
    say = "import os,sys,http.server as h; print(sys.argv, os.environ['MY_TOKEN'], flush=True); sys.exit(3)"
    models = {
        "cmd": {
            "cmd": f'{sys.executable} -c "{say}" --api-key cmd-key-22 --port ${{PORT}}',
            "proxy": f"http://user:pass-word-1@127.0.0.1:{find_free_port()}",
            "env": ("MY_TOKEN=env-token-3",),
        },
        "far": {"proxy": f"http://user:pass-word-1@127.0.0.1:{find_free_port()}"},
        "cloud": {
            "engine": "openai_api",
            "options": {"url": "http://127.0.0.1:9/v1", "key": "option-key-4"},
        },
    }
    with run_gateway(models=models, default_model=MODEL) as gateway:
        told = [requests.post(f"{gateway.url}/api/ps/{name}", timeout=30).text for name in models]
        asked = {"model": "far", "messages": []}
        told += [requests.post(f"{gateway.url}/v1/chat/completions", json=asked, timeout=30).text]
        paths = ["/running", "/logs", "/logs/cmd", "/logs/upstream", "/health", "/api/ps", "/v1/models", "/api/tags"]
        paths += [f"/api/v1/backend?model={name}" for name in models]
        told += [requests.get(gateway.url + path, timeout=10).text for path in paths]
        assert "--api-key" in requests.get(f"{gateway.url}/logs/cmd", timeout=10).text
        assert "--api-key ***" in requests.get(f"{gateway.url}/api/v1/backend?model=cmd", timeout=10).text
    for answer in told:
        assert not [secret for secret in secrets if secret in answer], answer
