"""A reverse proxy that adds a path to the server's addresses, as Home Assistant's ingress does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from aiohttp import ClientSession, WSMsgType, web

PREFIX = "/api/hassio_ingress/TOKEN"
DROPPED = {"host", "content-length", "transfer-encoding", "content-encoding", "connection", "accept-encoding"}


class PrefixProxy:
    """Removes the prefix, and forwards requests and WebSockets."""

    def __init__(self, upstream: str, session: ClientSession):
        self._upstream = upstream
        self._session = session

    async def forward(self, request: web.Request) -> web.StreamResponse:
        address = self._upstream + request.raw_path.removeprefix(PREFIX)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        if request.headers.get("upgrade", "").lower() == "websocket":
            return await self._relay(request, address, request.headers["origin"])
        async with self._session.request(request.method, address, headers=headers, data=await request.read()) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in DROPPED:
                    response.headers[name] = value
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
        return response

    async def _relay(self, request: web.Request, address: str, origin: str) -> web.WebSocketResponse:
        client = web.WebSocketResponse(protocols=("eardrum",))
        await client.prepare(request)
        async with self._session.ws_connect(address, protocols=("eardrum",), origin=origin) as server:

            async def send_up() -> None:
                async for message in client:
                    await (server.send_bytes(message.data) if message.type is WSMsgType.BINARY else server.send_str(message.data))

            sending = asyncio.create_task(send_up())
            async for message in server:
                await client.send_str(message.data)
            await client.close(code=server.close_code or 1011)
            await sending
        return client


@contextmanager
def run_prefix_proxy(upstream: str) -> Iterator[str]:
    """The proxy on a port of its own; yields the page's address behind it."""
    address, stopping, ready = "", asyncio.Event(), Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal address
        async with ClientSession(auto_decompress=True) as session:
            app = web.Application()
            app.router.add_route("*", PREFIX + "/{path:.*}", PrefixProxy(upstream, session).forward)
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            address = f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}"
            ready.set()
            await stopping.wait()
            await runner.cleanup()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = Thread(target=run, name="prefix proxy")
    thread.start()
    try:
        assert ready.wait(60)
        yield address
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(20)
