"""Being found by Home Assistant."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
from aiohttp import web

from eardrum.api.wyoming import supervisor
from eardrum.api.wyoming.discovery import SERVICE_TYPE, ZeroconfAnnouncement
from eardrum.api.wyoming.supervisor import SupervisorAnnouncement
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


@asynccontextmanager
async def run_fake_supervisor(status: int) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A Supervisor that answers with this status: its address, and the announcements that it gets."""
    announced: list[dict[str, Any]] = []

    async def discover(request: web.Request) -> web.Response:
        announced.append(await request.json() | {"authorization": request.headers["authorization"]})
        return web.json_response({"result": "ok", "data": {"uuid": "1"}}, status=status)

    app = web.Application()
    app.router.add_post("/discovery", discover)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", announced
    finally:
        await runner.cleanup()


class TestSupervisor:
    def test_outside_of_an_app_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SUPERVISOR_TOKEN", raising=False)
        with pytest.raises(ConfigError, match=r"wyoming\.supervisor is for an app of Home Assistant"):
            SupervisorAnnouncement(10300)

    async def test_the_supervisor_gets_the_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUPERVISOR_TOKEN", "secret")
        async with run_fake_supervisor(200) as (address, announced):
            monkeypatch.setattr(supervisor, "SUPERVISOR_URL", address)
            announcement = SupervisorAnnouncement(10300)
            await announcement.begin()
            await announcement.end()
        uri = f"tcp://{socket.gethostname()}:10300"
        assert announced == [{"service": "wyoming", "config": {"uri": uri}, "authorization": "Bearer secret"}]

    @pytest.mark.parametrize("status", [403, None], ids=["refused", "absent"])
    async def test_a_failure_is_logged(
        self, status: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("SUPERVISOR_TOKEN", "secret")
        async with run_fake_supervisor(status or 200) as (address, _):
            monkeypatch.setattr(supervisor, "SUPERVISOR_URL", address if status else "http://127.0.0.1:9")
            with caplog.at_level(logging.ERROR):
                await SupervisorAnnouncement(10300).begin()
        assert "could not announce tcp://" in caplog.text
        assert "secret" not in caplog.text
