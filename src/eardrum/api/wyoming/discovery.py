"""Announces the server on the local network, so that Home Assistant discovers it. Needs the package `zeroconf`."""

from __future__ import annotations

import logging
import socket
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from eardrum.errors import ConfigError

log = logging.getLogger(__name__)

SERVICE_TYPE = "_wyoming._tcp.local."
MULTICAST_ADDRESS = ("224.0.0.251", 5353)
"""Where such announcements go. Which of our addresses leads there is asked, nothing is sent."""
NAME_BYTES = 63


class ZeroconfAnnouncement:
    """One name on the network, from `begin` to `end`. Home Assistant knows the server by it: another name is another server."""

    def __init__(self, name: str, host: str, port: int):
        """What could be announced.

        Raises:
            ConfigError: the package is missing, the name is too long, or nobody else can reach the host.
        """
        if len(name.encode()) > NAME_BYTES:
            raise ConfigError(f"wyoming.zeroconf is longer than {NAME_BYTES} bytes: choose a shorter name.")
        self._zeroconf, self._on_loop = _import_library("zeroconf"), _import_library("zeroconf.asyncio")
        self._name = name
        self._address = _choose_address(host)
        self._port = port
        self._network: Any = None

    async def begin(self) -> None:
        """Announce it. What the network has against it is logged: who knows the address can use the server all the same."""
        try:
            self._network = self._on_loop.AsyncZeroconf(interfaces=[str(self._address)])
            service = self._on_loop.AsyncServiceInfo(
                SERVICE_TYPE, f"{self._name}.{SERVICE_TYPE}", addresses=[self._address.packed], port=self._port
            )
            await (await self._network.async_register_service(service))
        except self._zeroconf.NonUniqueNameException:
            log.error("wyoming.zeroconf: there is another %s on the network already: choose another name.", self._name)
        except (OSError, self._zeroconf.Error) as error:
            log.error("wyoming.zeroconf: %s cannot be announced at %s: %r", self._name, self._address, error)
        else:
            log.info("Wyoming is announced as %s at %s.", self._name, self._address)

    async def end(self) -> None:
        """Take it back."""
        if self._network:
            await self._network.async_close()
            self._network = None


def _import_library(name: str) -> Any:
    """Imported only if it is wanted: it is optional, and takes its time."""
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError("wyoming.zeroconf needs a package that is missing: pip install 'eardrum[zeroconf]'.") from None


def _choose_address(host: str) -> IPv4Address | IPv6Address:
    """The address to announce for one to listen on."""
    address = ip_address(host)
    if address.is_unspecified:
        address = _find_local_address(MULTICAST_ADDRESS)
    if address.is_loopback:
        raise ConfigError(f"wyoming.zeroconf: nobody else can reach {address}: set wyoming.host, or host, to 0.0.0.0.")
    return address


def _find_local_address(other: tuple[str, int]) -> IPv4Address | IPv6Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(other)
        except OSError as error:
            raise ConfigError(f"wyoming.zeroconf: there is no network to announce anything on: {error.strerror}.") from error
        return ip_address(asking.getsockname()[0])
