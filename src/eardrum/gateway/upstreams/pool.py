"""Connections to one upstream that are kept and used again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from eardrum.config.llama_swap import Timeouts
from eardrum.errors import UpstreamDiedError, UpstreamTimeoutError, UpstreamUnreachableError, shortage
from eardrum.gateway.upstreams.connection import Connection

LOCALHOST = ("127.0.0.1", "::1")
"""What `localhost` is, also where the system's table has only one of them."""


class Pool:
    """Takes the connection that was used last, so that those too many are closed when their time is over."""

    def __init__(self, address: str, timeouts: Timeouts):
        self._address = address
        url = urlsplit(address)
        self._secure = ssl.create_default_context() if url.scheme == "https" else None
        self._name = url.hostname or ""
        self._hosts = LOCALHOST if self._name == "localhost" else (self._name,)
        self._port = url.port or (443 if self._secure else 80)
        self._timeouts = timeouts
        self._free: list[tuple[Connection, float]] = []
        self._all: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def connection(self) -> Connection:
        """One that can take a request.

        Raises:
            UpstreamUnreachableError: nobody answers there.
            UpstreamTimeoutError: not in time.
            UpstreamDiedError: the pool was closed.
        """
        if self._closed:
            raise UpstreamDiedError(f"{self._address} is not asked any more.")
        while self._free:
            kept, _ = self._free.pop()
            if kept.usable:
                return kept
        try:
            async with asyncio.timeout(self._connect_within):
                return await self._connected()
        except TimeoutError:
            raise UpstreamTimeoutError(f"{self._address} could not be reached in time (timeouts.connect).") from None

    def close(self) -> None:
        """Close all of them, for good."""
        self._closed = True
        if self._sweeping:
            self._sweeping.cancel()
        for connection in list(self._all):
            connection.abort()

    @property
    def _connect_within(self) -> float | None:
        handshake = self._timeouts.tlsHandshake if self._secure else 0.0
        return self._timeouts.connect + handshake if self._timeouts.connect else None

    async def _connected(self) -> Connection:
        failure: OSError | None = None
        for host in self._hosts:
            try:
                transport, made = await asyncio.get_running_loop().create_connection(
                    self._new, host, self._port, ssl=self._secure, server_hostname=self._name if self._secure else None
                )
            except OSError as error:
                failure = failure or error
            else:
                self._all.add(made)
                self._probe(transport.get_extra_info("socket"))
                return made
        if failure and (known := shortage(failure, f"to reach {self._address}")):
            raise known from failure
        said = failure.strerror or str(failure) if failure else ""
        raise UpstreamUnreachableError(f"{self._address} cannot be reached: {said}.") from failure

    def _new(self) -> Connection:
        return Connection(self._address, self._keep, self._all.discard)

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._free.append((connection, loop.time()))
        if self._timeouts.idleConn and not self._sweeping:
            self._sweeping = loop.call_later(self._timeouts.idleConn, self._sweep)

    def _sweep(self) -> None:
        """Close those that nobody has used for long; come back when the next one may be due."""
        loop = asyncio.get_running_loop()
        self._sweeping = None
        while self._free and self._free[0][1] + self._timeouts.idleConn <= loop.time():
            self._free.pop(0)[0].abort()
        if self._free:
            self._sweeping = loop.call_at(self._free[0][1] + self._timeouts.idleConn, self._sweep)

    def _probe(self, connected: socket.socket | None) -> None:
        """Ask every so many seconds whether the other side is still there."""
        if not self._timeouts.keepalive or not connected:
            return
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):  # not every system has both
            if option := getattr(socket, name, None):
                connected.setsockopt(socket.IPPROTO_TCP, option, max(1, int(self._timeouts.keepalive)))
