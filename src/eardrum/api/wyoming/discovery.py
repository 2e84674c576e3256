"""Announces the server on the local network, so that Home Assistant discovers it. Needs the package `zeroconf`."""

from __future__ import annotations

import logging
import socket
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from eardrum.errors import ConfigError

log = logging.getLogger(__name__)

SERVICE_TYPE = "_wyoming._tcp.local."
MULTICAST_ADDRESS = ("224.0.0.251", 5353)
"""The mDNS group. A socket is connected to it to find the local address; nothing is sent."""
NAME_BYTES = 63


class Announcement(Protocol):
    """Tells Home Assistant about the server from `begin` to `end`."""

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


class ZeroconfAnnouncement:
    """Announces one name by mDNS. Home Assistant identifies the server by it: another name is another server."""

    def __init__(self, name: str, host: str, port: int):
        """Check the announcement; `begin` sends it.

        Raises:
            ConfigError: the package is missing, the name is too long, or the host is unreachable from other machines.
        """
        if len(name.encode()) > NAME_BYTES:
            raise ConfigError(f"wyoming.zeroconf is longer than {NAME_BYTES} bytes: choose a shorter name.")
        self._zeroconf, self._on_loop = _import_library("zeroconf"), _import_library("zeroconf.asyncio")
        self._name = name
        self._address = _choose_address(host)
        self._port = port
        self._network: Any = None

    async def begin(self) -> None:
        """Announce the server. Network errors are only logged: clients that have the address can still connect."""
        try:
            self._network = self._on_loop.AsyncZeroconf(interfaces=[str(self._address)])
            service = self._on_loop.AsyncServiceInfo(
                SERVICE_TYPE, f"{self._name}.{SERVICE_TYPE}", addresses=[self._address.packed], port=self._port
            )
            await (await self._network.async_register_service(service))
        except self._zeroconf.NonUniqueNameException:
            log.error("wyoming.zeroconf: the name %s is already in use on the network; choose another name.", self._name)
        except (OSError, self._zeroconf.Error) as error:
            log.error("wyoming.zeroconf: could not announce %s at %s: %r", self._name, self._address, error)
        else:
            log.info("Announcing Wyoming as %s at %s.", self._name, self._address)

    async def end(self) -> None:
        """Withdraw the announcement."""
        if self._network:
            await self._network.async_close()
            self._network = None


def _import_library(name: str) -> Any:
    """Import a module of zeroconf, which is optional and slow to import."""
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            "wyoming.zeroconf needs the package zeroconf, which is not installed: pip install 'eardrum[zeroconf]'."
        ) from None


def _choose_address(host: str) -> IPv4Address | IPv6Address:
    """Choose the address to announce for the address to listen on."""
    address = ip_address(host)
    if address.is_unspecified:
        address = _find_local_address(MULTICAST_ADDRESS)
    if address.is_loopback:
        raise ConfigError(f"wyoming.zeroconf: other machines cannot reach {address}: set wyoming.host, or host, to 0.0.0.0.")
    return address


def _find_local_address(other: tuple[str, int]) -> IPv4Address | IPv6Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(other)
        except OSError as error:
            raise ConfigError(f"wyoming.zeroconf: there is no network for the announcement: {error.strerror}.") from error
        return ip_address(probe.getsockname()[0])
