"""The port: lets clients in, as many as there is room for, and sees them out when the server ends."""

from __future__ import annotations

import asyncio
import socket

from eardrum.api.wyoming.announcement import Announcement
from eardrum.api.wyoming.connection import Connection
from eardrum.descriptors import descriptors
from eardrum.errors import BusyError, UnauthorizedError
from eardrum.gateway.service import Service

CONNECTIONS = 256
"""At a time, or a quarter of the descriptors there are. One more takes the place of the oldest that is idle."""


class WyomingServer:
    """Serves Wyoming on a bound socket."""

    def __init__(self, service: Service, listening: socket.socket):
        """Serve nobody yet.

        Raises:
            ConfigError: the server is to be announced, and cannot be.
        """
        self.host, self.port = listening.getsockname()[:2]
        self._service = service
        self._listening = listening
        name = service.settings.wyoming.zeroconf
        self._announcement = Announcement(name, self.host, self.port) if name else None
        self._announcing: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._most = min(CONNECTIONS, descriptors.limit // 4 or CONNECTIONS)
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        """The oldest first."""

    async def start(self) -> None:
        """Let clients in."""
        self._server = await asyncio.start_server(self._accept, sock=self._listening)
        if self._announcement:
            self._announcing = asyncio.create_task(self._announcement.begin())

    async def close(self) -> None:
        """Let nobody in any more, and wait until the utterances in progress have their answers. Cancelled, it hangs up."""
        try:
            if self._server:
                self._server.close()
            for connection in self._connections:
                connection.finish()
            if self._announcement and self._announcing:
                self._announcing.cancel()
                await asyncio.wait([self._announcing])
                await self._announcement.end()
            if self._connections:
                await asyncio.wait(self._connections.values())
        finally:
            for task in self._connections.values():
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # so that who vanished without a word is noticed
        connection, settings = Connection(self._service, reader, writer), self._service.settings
        if not settings.wyoming.serves(settings.apiKeys):  # keys came with a config that was read again
            connection.end(UnauthorizedError("This server asks for keys now, which Wyoming cannot show: set wyoming.enabled."))
        elif len(self._connections) >= self._most or descriptors.are_short(peer.fileno(), len(self._connections)):
            self._make_room(connection)
        self._connections[connection] = task = asyncio.create_task(connection.serve())
        task.add_done_callback(lambda _: self._connections.pop(connection))

    def _make_room(self, newcomer: Connection) -> None:
        idle = next((connection for connection in self._connections if connection.idle), None)
        if idle:
            idle.end()
        else:
            newcomer.end(BusyError(f"{len(self._connections)} utterances are in progress: come back later."))
