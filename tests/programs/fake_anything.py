"""A fake server that takes whatever it is sent: `python tests/programs/fake_anything.py PORT`. Each answer is 200."""

from __future__ import annotations

import sys

from aiohttp import web


async def count_bytes(request: web.Request) -> web.Response:
    """How much was read."""
    return web.json_response({"read": len(await request.read())})


app = web.Application(client_max_size=1 << 30)
app.router.add_route("*", "/{path:.*}", count_bytes)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
