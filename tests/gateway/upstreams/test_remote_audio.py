"""What the server fetches for clients, and from where it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from eardrum.config import LimitSettings
from eardrum.errors import EardrumError, InvalidRequestError, TooLargeError
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.remote_audio import AllowedHosts, AudioFetcher, parse_address
from tests.ports import find_free_port

PUBLIC = "93.184.216.34"


class FakeResolver(AbstractResolver):
    """Knows where names lead: one address after the other, for those that change their mind."""

    def __init__(self, **names: list[str]):
        self._names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        self.asked += 1
        found = self._names[host]
        ip = found.pop(0) if len(found) > 1 else found[0]
        return [ResolveResult(hostname=host, host=ip, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def run_file_server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """A server on this machine; its port."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def serve_file(request: web.Request) -> web.StreamResponse:
    if to := request.query.get("to", "/a" if request.path == "/there" else ""):
        return web.Response(status=302, headers={"location": to})
    if request.path.startswith("/to/"):
        return web.Response(status=307, headers={"location": f"http://{request.path.removeprefix('/to/')}"})
    if request.path == "/round":
        return web.Response(status=302, headers={"location": "/round"})
    if request.path == "/endless":
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(bytes(1000))
        return response
    if request.path == "/silent":
        await asyncio.sleep(30)
    if request.path == "/zipped":
        return web.Response(body=b"x" * 100, headers={"content-encoding": "gzip"})
    return web.Response(body=b"x" * 100)


def fetch_path(
    path: str, *listed: str, resolver: AbstractResolver | None = None, host: str = "127.0.0.1", **limits: object
) -> bytes | EardrumError:
    """What comes of fetching a path of the server: its bytes, or the error."""

    async def main() -> bytes | EardrumError:
        async with run_file_server(serve_file) as port:
            fetcher = AudioFetcher(LimitSettings(fetch_hosts=listed, **limits), resolver)
            with Spool() as spool:
                try:
                    await fetcher.fetch_into(f"http://{host}:{port}{path.replace('PORT', str(port))}", spool)
                except EardrumError as error:
                    return error
                return b"".join([chunk async for chunk in spool.read()])

    return asyncio.run(main())


def get_refusal(*arguments: object, **named: object) -> str:
    error = fetch_path(*arguments, **named)
    assert isinstance(error, InvalidRequestError), error
    assert error.param == "audio_url"
    return error.message


def test_a_listed_host_is_fetched_from() -> None:
    assert fetch_path("/a", "127.0.0.1") == b"x" * 100
    assert fetch_path("/a", "127.0.0.0/8") == b"x" * 100
    assert fetch_path("/there", "127.0.0.1") == b"x" * 100, "and followed"


def test_nothing_is_fetched_unless_listed() -> None:
    assert "does not fetch from 127.0.0.1" in get_refusal("/a")
    assert "does not fetch from 127.0.0.1" in get_refusal("/a", "*"), "all hosts are all public ones"
    assert "does not fetch from localhost" in get_refusal("/a", "127.0.0.1", host="localhost")


def test_a_name_that_leads_inside_is_not_followed() -> None:
    inside = FakeResolver(files_example_com=["127.0.0.1"])
    named = {"host": "files.example.com", "resolver": inside}
    assert "is in a private network" in get_refusal("/a", "*", **named)
    assert "is in a private network" in get_refusal("/a", "files.example.com", **named)
    assert fetch_path("/a", "*.example.com", "127.0.0.0/8", **named) == b"x" * 100, "unless its network is listed too"


def test_the_address_that_was_checked_is_the_one_that_is_asked() -> None:
    """A name that is public when it is looked up first and private a moment later: it is looked up once."""
    changing = FakeResolver(files_example_com=[PUBLIC, "127.0.0.1"])

    async def main() -> None:
        fetcher = AudioFetcher(LimitSettings(fetch_hosts=("*",), stall_timeout=0.2), changing)
        with Spool() as spool:
            async with run_file_server(serve_file) as port, asyncio.timeout(2):
                await fetcher.fetch_into(f"http://files.example.com:{port}/a", spool)

    with pytest.raises((InvalidRequestError, TimeoutError)):  # nobody is reached at the public address from here
        asyncio.run(main())
    assert changing.asked == 1


def test_redirects_are_checked_again() -> None:
    names = FakeResolver(a_example_com=["127.0.0.1"], b_example_com=["10.0.0.1"])
    allowed = ("127.0.0.1", "*.example.com")
    assert fetch_path("/to/a.example.com:PORT/a", *allowed, resolver=names) == b"x" * 100
    assert "b.example.com is in a private network" in get_refusal("/to/b.example.com/a", *allowed, resolver=names)
    assert "does not fetch from 169.254.169.254" in get_refusal("/to/169.254.169.254/latest", *allowed)
    assert "more than 3 redirects" in get_refusal("/round", "127.0.0.1")


@pytest.mark.parametrize("to", ["http://[bad", "http://a:b:c/", "http://127.0.0.1:99999999/", "//[", "http://xn--/"])
def test_a_redirect_to_nowhere_is_refused(to: str) -> None:
    assert len(get_refusal(f"/astray?to={quote(to)}", "127.0.0.1")) < 1000


def test_limits_hold() -> None:
    for path in ("/endless", "/a"):
        error = fetch_path(path, "127.0.0.1", upload_bytes=99)
        assert isinstance(error, TooLargeError)
    assert "does not answer in time" in get_refusal("/silent", "127.0.0.1", stall_timeout=0.2)
    assert "content-encoding gzip" in get_refusal("/zipped", "127.0.0.1")


def test_a_port_where_nobody_listens() -> None:
    assert "cannot be fetched" in get_refusal(f"/to/127.0.0.1:{find_free_port()}/a", "127.0.0.1")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "http:///a", "http://me:secret@127.0.0.1/a", "http://[::1", "/a"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with Spool() as spool, pytest.raises(InvalidRequestError, match="must be a data: URL"):
        asyncio.run(AudioFetcher(LimitSettings(fetch_hosts=("127.0.0.1",))).fetch_into(url, spool))


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    ],
)
def test_addresses_that_are_not_public(ip: str) -> None:
    parsed = parse_address(ip)
    assert parsed
    assert not AllowedHosts.from_list(["*"]).is_reachable(parsed)
    assert AllowedHosts.from_list([ip]).is_reachable(parsed)


@pytest.mark.parametrize("ip", [PUBLIC, "2606:2800:220:1::1", f"::ffff:{PUBLIC}"])
def test_addresses_that_are_public(ip: str) -> None:
    parsed = parse_address(ip)
    assert parsed
    assert AllowedHosts.from_list([]).is_reachable(parsed)


@pytest.mark.parametrize("spelled", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01", "localhost.", "[::1]", "0"])
def test_other_ways_to_spell_this_machine(spelled: str) -> None:
    assert isinstance(fetch_path("/a", "*", host=spelled), InvalidRequestError)
