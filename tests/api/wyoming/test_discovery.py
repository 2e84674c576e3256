"""Being found by Home Assistant."""

from __future__ import annotations

import socket
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from eardrum.api.wyoming.discovery import SERVICE_TYPE, ZeroconfAnnouncement
from eardrum.errors import ConfigError


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(ConfigError, match=r"pip install 'eardrum\[zeroconf\]'"):
        ZeroconfAnnouncement("eardrum", "0.0.0.0", 10300)


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def zeroconf(self) -> Any:
        return pytest.importorskip("zeroconf.asyncio")

    def test_what_nobody_could_use_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"other machines cannot reach 127\.0\.0\.1"):
            ZeroconfAnnouncement("eardrum", "127.0.0.1", 10300)
        with pytest.raises(ConfigError, match="longer than 63 bytes"):
            ZeroconfAnnouncement("ü" * 32, "0.0.0.0", 10300)

    async def test_it_is_found_and_taken_back(self, zeroconf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        announced = ZeroconfAnnouncement("eardrum in a test", "10.1.2.3", 4711)
        monkeypatch.setattr(announced, "_address", ip_address("127.0.0.1"))  # the network of this test
        network = zeroconf.AsyncZeroconf(interfaces=["127.0.0.1"])
        try:
            await announced.begin()
            found = zeroconf.AsyncServiceInfo(SERVICE_TYPE, f"eardrum in a test.{SERVICE_TYPE}")
            assert await found.async_request(network.zeroconf, 5000)
            assert (found.port, found.addresses) == (4711, [socket.inet_aton("127.0.0.1")])
            await announced.end()
            gone = zeroconf.AsyncServiceInfo(SERVICE_TYPE, f"eardrum in a test.{SERVICE_TYPE}")
            assert not await gone.async_request(network.zeroconf, 500)
        finally:
            await announced.end()
            await network.async_close()
