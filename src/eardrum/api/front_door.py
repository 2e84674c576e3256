"""What everybody who comes to the port may see first: that it lives, and what it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from eardrum import __version__
from eardrum.api.ollama.routes import greeting
from eardrum.gateway.service import Service


def routes(service: Service) -> list[Route]:
    """`/` and `/health`."""

    async def health(_: Request) -> Response:
        models = [
            {"id": m.id, "state": service.state(m), "requests": service.load(m), "engine": m.engine} for m in service.catalog
        ]
        return JSONResponse(
            {"status": "ok", "version": __version__, "default_model": service.catalog.default.id, "models": models}
        )

    async def home(request: Request) -> Response:
        """A page for people; for Ollama's clients the sign that they are right here."""
        return RedirectResponse("/docs") if "text/html" in request.headers.get("accept", "") else greeting()

    return [Route("/", home), Route("/health", health)]
