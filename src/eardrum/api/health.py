"""`/` and `/health`: whether the server is up, and the state of each model."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from eardrum import __version__
from eardrum.api.management import describe_placement
from eardrum.api.ollama.routes import build_greeting
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service

MAX_SILENCE_S = 2.0
"""How long a process may owe a sign of life before that is told."""


def build_routes(service: Service) -> list[Route]:
    """`/` and `/health`."""

    async def health(_: Request) -> Response:
        """200 as long as the server serves, whatever one model does: who restarts it for that one takes all others along."""
        service.catalog.rescan_if_changed()
        default = service.catalog.default
        failure = service.get_failure(default)
        if not failure and (silent := service.get_unresponsive_s(default)) > MAX_SILENCE_S:
            failure = f"its process gives no sign of life for {silent:.0f} s."
        return JSONResponse(
            {
                "status": "degraded" if failure else "ok",
                **({"reason": f"The default model {default.id} has failed: {failure}"} if failure else {}),
                "version": __version__,
                "default_model": default.id,
                "models": [_describe_model(service, model) for model in service.catalog],
            }
        )

    async def home(request: Request) -> Response:
        """A page for people; for Ollama's clients the sign that they are right here."""
        return RedirectResponse("/docs") if "text/html" in request.headers.get("accept", "") else build_greeting()

    return [Route("/", home), Route("/health", health)]


def _describe_model(service: Service, model: Model) -> dict[str, Any]:
    gone, placement = service.unload_history.find_last(model.id), service.get_placement(model)
    return {
        "id": model.id,
        "state": service.get_state(model),
        "requests": service.count_requests(model),
        "engine": model.engine,
        **(describe_placement(model, placement) if placement and not model.is_external else {}),
        **({"reason": gone.cause.reason} if gone else {}),
        **({"silent_seconds": round(silent, 1)} if (silent := service.get_unresponsive_s(model)) > MAX_SILENCE_S else {}),
    }
