"""Resolvers of host names for aiohttp. They extend its classes, so this module is imported only where one is created."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from eardrum.aiohttp_import import aiohttp
from eardrum.errors import InvalidRequestError
from eardrum.gateway.upstreams.http_client import LOCALHOST


class CheckedResolver(aiohttp.abc.AbstractResolver):
    """Resolves host names with `resolver`, the system's if None, and returns only the addresses that `is_allowed` accepts.

    `setting` is where others could be listed, and `param` the request's field that has the URL.
    """

    def __init__(
        self,
        is_allowed: Callable[[IPv4Address | IPv6Address], bool],
        resolver: aiohttp.abc.AbstractResolver | None,
        *,
        setting: str,
        param: str,
    ):
        self._is_allowed = is_allowed
        self._resolver = resolver or aiohttp.ThreadedResolver()
        self._setting = setting
        self._param = param

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        """Return the allowed addresses of a host.

        Raises:
            InvalidRequestError: none of them is allowed.
        """
        found = await self._resolver.resolve(host, port, family)
        allowed = [result for result in found if self._is_allowed(ip_address(result["host"]))]
        if found and not allowed:
            message = f"{host} is in a private network: list its address, too, in the config ({self._setting})."
            raise InvalidRequestError(message, param=self._param)
        return allowed

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._resolver.close()


class LocalhostResolver(aiohttp.ThreadedResolver):
    """Resolves `localhost` to this machine's IPv4 and IPv6 addresses, as `ConnectionPool` does."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        """The addresses of a host."""
        if host != "localhost":
            return await super().resolve(host, port, family)
        families = (socket.AF_INET, socket.AF_INET6)
        return [
            aiohttp.abc.ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in zip(families, LOCALHOST, strict=True)
            if family in (kind, socket.AF_UNSPEC)
        ]
