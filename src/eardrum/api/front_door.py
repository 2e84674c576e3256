"""What everybody who comes to the port may see first: that it lives, and what it is."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from eardrum import __version__
from eardrum.api.admin import placed
from eardrum.api.ollama.routes import greeting
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service

SILENT_S = 2.0
"""How long a process may owe a sign of life before that is told."""


def routes(service: Service) -> list[Route]:
    """`/` and `/health`."""

    async def health(_: Request) -> Response:
        """200 as long as the server serves, whatever one model does: who restarts it for that one takes all others along."""
        service.catalog.look()
        default = service.catalog.default
        failure = service.failure(default)
        if not failure and (silent := service.silent_s(default)) > SILENT_S:
            failure = f"its process gives no sign of life for {silent:.0f} s."
        return JSONResponse(
            {
                "status": "degraded" if failure else "ok",
                **({"reason": f"The default model {default.id} has failed: {failure}"} if failure else {}),
                "version": __version__,
                "default_model": default.id,
                "models": [_health(service, model) for model in service.catalog],
            }
        )

    async def home(request: Request) -> Response:
        """A page for people; for Ollama's clients the sign that they are right here."""
        return RedirectResponse("/docs") if "text/html" in request.headers.get("accept", "") else greeting()

    return [Route("/", home), Route("/health", health)]


def _health(service: Service, model: Model) -> dict[str, Any]:
    gone, placement = service.departures.of(model.id), service.placement(model)
    return {
        "id": model.id,
        "state": service.state(model),
        "requests": service.load(model),
        "engine": model.engine,
        **(placed(model, placement) if placement and not model.foreign else {}),
        **({"reason": gone.going.reason} if gone else {}),
        **({"silent_seconds": round(silent, 1)} if (silent := service.silent_s(model)) > SILENT_S else {}),
    }
