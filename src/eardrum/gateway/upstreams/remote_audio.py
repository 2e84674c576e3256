"""Fetches recordings from URLs that clients send, from the hosts that the config allows (`limits.fetch_hosts`).

Without limits a client could make the server send requests into its own network (SSRF). So the host must be listed, and its
address must be public or listed. The connection goes to the address that was checked, even if the name resolves to another
one a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from msgspec import Struct
from yarl import URL

from eardrum import tls
from eardrum.aiohttp_import import aiohttp
from eardrum.config import LimitSettings
from eardrum.errors import FetchFailedError, InvalidRequestError, TooLargeError
from eardrum.gateway.spool import ByteSink

CONNECT_TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
PARAM = "audio_url"


class AudioFetcher:
    """Fetches recordings within the limits. `resolver` resolves host names."""

    def __init__(self, limits: LimitSettings, resolver: aiohttp.abc.AbstractResolver | None = None):
        self._hosts = AllowedHosts.from_list(limits.fetch_hosts)
        self._limits = limits
        self._resolver = resolver

    def check_address(self, spelled: str) -> None:
        """Check that the recording at this URL may be fetched.

        Raises:
            InvalidRequestError: it may not.
        """
        self._check_url(spelled)

    async def fetch_into(self, spelled: str, spool: ByteSink) -> None:
        """Fetch the recording at this URL into the spool.

        Raises:
            InvalidRequestError: the URL is not allowed.
            FetchFailedError: it cannot be fetched.
            TooLargeError: the recording is larger than an upload may be.
        """
        from eardrum.gateway.upstreams.resolvers import CheckedResolver  # noqa: PLC0415 -- see there

        resolver = CheckedResolver(self._hosts.is_reachable, self._resolver, setting="limits.fetch_hosts", param=PARAM)
        connector = aiohttp.TCPConnector(
            resolver=resolver, use_dns_cache=False, ssl=await asyncio.to_thread(tls.get_client_context)
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._limits.stall_timeout)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
                self._follow_redirects(session, self._check_url(spelled)) as response,
            ):
                await self._read_response(response, spool)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # some addresses are wrong only when they are used
            raise FetchFailedError(f"{spelled[:200]} cannot be fetched: {_explain_error(error)}.", param=PARAM) from error
        spool.finish()

    @asynccontextmanager
    async def _follow_redirects(self, session: aiohttp.ClientSession, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response with the recording, after a few redirects at most."""
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False, headers={"accept-encoding": "identity"}) as response:
                if response.status == 200:
                    yield response
                    return
                if response.status not in (301, 302, 303, 307, 308):
                    kind = FetchFailedError if response.status >= 500 or response.status == 429 else InvalidRequestError
                    raise kind(f"{url} cannot be fetched: it answered {response.status}.", param=PARAM)
                url = self._check_url(_join_redirect(url, response.headers.get("location", "")))
        raise InvalidRequestError(f"{url} cannot be fetched: it is more than {MAX_REDIRECTS} redirects away.", param=PARAM)

    def _check_url(self, spelled: str) -> URL:
        """Return the URL, if it may be requested."""
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

    async def _read_response(self, response: aiohttp.ClientResponse, spool: ByteSink) -> None:
        if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
            raise InvalidRequestError(f"{response.url} has the content-encoding {encoding}.", param=PARAM)
        if (response.content_length or 0) > self._limits.upload_bytes:
            raise self._make_too_large_error(response)
        async for chunk in response.content.iter_any():
            await spool.write(chunk)
            if spool.size > self._limits.upload_bytes:
                raise self._make_too_large_error(response)

    def _make_too_large_error(self, response: aiohttp.ClientResponse) -> TooLargeError:
        most = f"{self._limits.upload_bytes:,} bytes (limits.upload_bytes)"
        return TooLargeError(f"{response.url} is larger than {most}.", param=PARAM)


def _join_redirect(url: URL, location: str) -> str:
    """Return the target of a redirect."""
    try:
        return str(url.join(URL(location)))
    except ValueError:
        raise InvalidRequestError(
            f"{url} cannot be fetched: it redirects to {location[:200]!r}, which is not an address.", param=PARAM
        ) from None


def _explain_error(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    return str(error).rstrip(".") or type(error).__name__


IpAddress = IPv4Address | IPv6Address

NAT64_NETWORK = ip_network("64:ff9b::/96")
"""IPv6 addresses that a NAT64 gateway translates to IPv4."""


class AllowedHosts(Struct, frozen=True):
    """The hosts of `limits.fetch_hosts`: names, and networks that are allowed although they are not public."""

    names: frozenset[str]
    """In lower case; `*.example.com` is every name below that one, `*` every name."""
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def from_list(cls, listed: Sequence[str]) -> Self:
        """The hosts of `limits.fetch_hosts`."""
        networks = {entry: found for entry in listed if (found := parse_network(entry))}
        return cls(frozenset(entry.lower().rstrip(".") for entry in listed if entry not in networks), tuple(networks.values()))

    def allows(self, host: str) -> bool:
        """Whether a URL may contain this host. `is_reachable` checks the address that its name resolves to."""
        if literal := parse_address(host):
            return self.is_reachable(literal) and ("*" in self.names or self._is_listed(literal))
        host = host.lower().rstrip(".")
        above = (f"*.{rest}" for rest in _list_parents(host))
        return host in self.names or "*" in self.names or any(name in self.names for name in above)

    def is_reachable(self, ip: IpAddress) -> bool:
        """Whether the address is public or listed."""
        inner = _unwrap_address(ip)
        return (inner.is_global and not inner.is_multicast) or self._is_listed(ip) or self._is_listed(inner)

    def _is_listed(self, ip: IpAddress) -> bool:
        return any(ip in net for net in self.networks)


def parse_network(entry: str) -> IPv4Network | IPv6Network | None:
    """Parse an entry as a network or an address; None if it is a host name."""
    try:
        return ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def parse_address(host: str) -> IpAddress | None:
    """Parse a host as an address; None if it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _list_parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))]


def _unwrap_address(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address inside an IPv6 address, if there is one."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in NAT64_NETWORK:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
