"""Fetches recordings that clients name by their address, from the hosts that the config allows.

A client could otherwise make the server ask whatever the server can reach. So the name must be listed, and what it leads to must
be public or listed: the address that was checked is the one that is connected to, whatever the name leads to a moment later.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from eardrum.config import Limits
from eardrum.errors import InvalidRequestError, TooLargeError
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.hosts import Hosts, address

CONNECT_S = 10.0
REDIRECTS = 3
PARAM = "audio_url"


class Fetcher:
    """Gets recordings within the limits. `resolver` looks up names."""

    def __init__(self, limits: Limits, resolver: AbstractResolver | None = None):
        self._hosts = Hosts.of(limits.fetch_hosts)
        self._limits = limits
        self._resolver = resolver

    async def pour(self, spelled: str, spool: Spool) -> None:
        """Fetch what is there into the spool.

        Raises:
            InvalidRequestError: it is not allowed, or cannot be fetched.
            TooLargeError: it is larger than an upload may be.
        """
        resolver = Checked(self._hosts, self._resolver or ThreadedResolver())
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._limits.stall_seconds)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
                self._found(session, self._checked(spelled)) as response,
            ):
                await self._read(response, spool)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # some addresses are wrong only when they are used
            raise InvalidRequestError(f"{spelled[:200]} cannot be fetched: {_why(error)}.", param=PARAM) from error
        spool.finish()

    @asynccontextmanager
    async def _found(self, session: aiohttp.ClientSession, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer that has the recording, a few redirects away at most."""
        for _ in range(REDIRECTS + 1):
            async with session.get(url, allow_redirects=False, headers={"accept-encoding": "identity"}) as response:
                if response.status == 200:
                    yield response
                    return
                if response.status not in (301, 302, 303, 307, 308):
                    raise InvalidRequestError(f"{url} cannot be fetched: it answered {response.status}.", param=PARAM)
                url = self._checked(_joined(url, response.headers.get("location", "")))
        raise InvalidRequestError(f"{url} cannot be fetched: it is more than {REDIRECTS} redirects away.", param=PARAM)

    def _checked(self, spelled: str) -> URL:
        """The address, if it may be asked."""
        try:
            url = URL(spelled)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
            message = "audio_url must be a data: URL, or an address with http or https and without a password."
            raise InvalidRequestError(message, param=PARAM)
        if not self._hosts.allows(url.host):
            message = (
                f"This server does not fetch from {url.host}: list it in the config (limits.fetch_hosts), or send the audio."
            )
            raise InvalidRequestError(message, param=PARAM)
        return url

    async def _read(self, response: aiohttp.ClientResponse, spool: Spool) -> None:
        if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
            raise InvalidRequestError(f"{response.url} has the content-encoding {encoding}.", param=PARAM)
        if (response.content_length or 0) > self._limits.upload_bytes:
            raise self._too_large(response)
        async for chunk in response.content.iter_any():
            await spool.write(chunk)
            if spool.size > self._limits.upload_bytes:
                raise self._too_large(response)

    def _too_large(self, response: aiohttp.ClientResponse) -> TooLargeError:
        most = f"{self._limits.upload_bytes:,} bytes (limits.upload_bytes)"
        return TooLargeError(f"{response.url} is larger than {most}.", param=PARAM)


class Checked(AbstractResolver):
    """Looks up names, and keeps of what it finds only what may be connected to."""

    def __init__(self, hosts: Hosts, resolver: AbstractResolver):
        self._hosts = hosts
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            InvalidRequestError: none of them may be connected to.
        """
        found = await self._resolver.resolve(host, port, family)
        allowed = [result for result in found if (ip := address(result["host"])) and self._hosts.reachable(ip)]
        if found and not allowed:
            message = f"{host} is in a private network: list its address, too, in the config (limits.fetch_hosts)."
            raise InvalidRequestError(message, param=PARAM)
        return allowed

    async def close(self) -> None:
        """Let go of what the other one holds."""
        await self._resolver.close()


def _joined(url: URL, location: str) -> str:
    """Where a redirect leads."""
    try:
        return str(url.join(URL(location)))
    except ValueError:
        raise InvalidRequestError(
            f"{url} cannot be fetched: it leads to {location[:200]!r}, which is no address.", param=PARAM
        ) from None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    return str(error).rstrip(".") or type(error).__name__
