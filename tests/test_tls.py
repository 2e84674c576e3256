"""Which certificates the server takes, what it says about the others, and which ones its clients trust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from eardrum import tls
from eardrum.client import EardrumClient
from eardrum.config import LimitSettings
from eardrum.errors import ConfigError, EardrumError
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.external import ExternalUpstream
from eardrum.gateway.upstreams.http_client import OutgoingRequest
from eardrum.gateway.upstreams.remote_audio import AudioFetcher
from tests.certificates import create_certificate


def test_a_certificate_with_its_key_beside_it_or_in_it(tmp_path: Path) -> None:
    made, key = create_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(made.read_bytes() + key.read_bytes())
    assert tls.create_server_context(made, key)
    assert tls.create_server_context(both, None)
    assert tls.create_server_context(None, None) is None


CASES: dict[str, tuple[Callable[[Path], tuple[Path | None, Path | None]], str]] = {
    "a key alone": (lambda folder: (None, folder / "server.key"), "tls_key is set but tls_certificate is not"),
    "no such certificate": (lambda folder: (folder / "none", None), "tls_certificate .*none cannot be read: No such file"),
    "a folder": (lambda folder: (folder, None), "tls_certificate .* cannot be read: Is a directory"),
    "no certificate in it": (lambda folder: (folder / "server.key", None), "tls_certificate .*server.key has no certificate"),
    "no such key": (lambda folder: (folder / "server.crt", folder / "none"), "tls_key .*none cannot be read: No such file"),
    "no key in it": (lambda folder: (folder / "server.crt", folder / "server.crt"), "tls_key .*server.crt has no private key"),
    "no key beside it": (lambda folder: (folder / "server.crt", None), "as there is no tls_key, has no private key"),
    "somebody else's key": (
        lambda folder: (folder / "server.crt", folder / "other.key"),
        "tls_key .*other.key is not the key of",
    ),
    "a key with a password": (lambda folder: (folder / "locked.crt", folder / "locked.key"), "tls_key .*locked.key is encrypted"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_said_with_its_setting_and_file(tmp_path: Path, case: str) -> None:
    create_certificate(tmp_path)
    create_certificate(tmp_path, "other")
    create_certificate(tmp_path, "locked", password="secret")
    files, said = CASES[case]
    with pytest.raises(ConfigError, match=said):
        tls.create_server_context(*files(tmp_path))


def test_what_a_client_is_to_trust_must_be_a_certificate(tmp_path: Path) -> None:
    made, key = create_certificate(tmp_path)
    assert tls.create_client_context(made).check_hostname
    assert not tls.create_client_context(made, by_any_name=True).check_hostname
    with pytest.raises(ConfigError, match="has no certificate"):
        tls.create_client_context(key)


async def answer(request: web.Request) -> web.StreamResponse:
    if request.headers.get("upgrade") != "websocket":
        return web.Response(body=b"RIFF")
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("open")
    return socket


async def call_all_clients(address: str) -> list[str]:
    """Call an HTTPS server with each of the server's clients; what each of them gets, or why not."""
    upstream = ExternalUpstream(address)
    fetcher = AudioFetcher(LimitSettings(fetch_hosts=("localhost", "127.0.0.0/8", "::1")))

    async def forward() -> str:
        response = await upstream.send_request(OutgoingRequest("GET", "/"))
        return str(response.status)

    async def open_websocket() -> str:
        async with await upstream.connect_websocket("/", [], []) as socket:
            return await socket.receive_str()

    async def fetch() -> str:
        with Spool() as spool:
            await fetcher.fetch_into(f"{address}/a.wav", spool)
            return b"".join([data async for data in spool.read()]).decode()

    async def read_logs() -> str:
        async with EardrumClient(address) as client:
            return await client.read_logs("model")

    results = []
    for call in (forward, open_websocket, fetch, read_logs):
        try:
            results.append(await call())
        except EardrumError as error:
            results.append(error.message)
    await upstream.close()
    return results


async def test_clients_trust_the_certificates_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, key = create_certificate(tmp_path)
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.create_server_context(made, key)).start()
    address = f"https://localhost:{runner.addresses[0][1]}"
    tls.get_client_context.cache_clear()
    try:
        refused = await call_all_clients(address)
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        tls.get_client_context.cache_clear()
        assert await call_all_clients(address) == ["200", "open", "RIFF", "RIFF"]
        assert all("certificate" in text.lower() for text in refused), refused
    finally:
        tls.get_client_context.cache_clear()
        await runner.cleanup()
