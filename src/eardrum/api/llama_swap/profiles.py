"""The profiles there are, and which one is active."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum import json_text
from eardrum.api import json_body
from eardrum.api.whole_text import check_whole
from eardrum.errors import InvalidRequestError
from eardrum.gateway.service import Service

EXAMPLE = 'send {"name": "a profile"}, or {"name": null} for none'


class Profiles:
    """The endpoints."""

    def __init__(self, service: Service):
        self._service = service

    async def list(self, _: Request) -> Response:
        """All profiles, by name."""
        selection = self._service.selection
        profiles = [
            {
                "id": id,
                "description": profile.description,
                "pins": {requested: target or "" for requested, target in profile.pins.items()},
            }
            for id, profile in sorted(selection.profiles.items())
        ]
        return JSONResponse({"active": selection.active or None, "profiles": profiles})

    async def activate(self, request: Request) -> Response:
        """Make one the active one, or none."""
        limits = json_body.small(self._service.settings.limits)
        upload = json_body.opened(request.scope, request.receive, limits)
        written = await json_body.received(request.scope, upload, limits)
        try:
            body = json_text.parsed(written)
        except ValueError:
            raise InvalidRequestError(f"The body is not JSON: {EXAMPLE}.") from None
        check_whole(written, body)
        if not isinstance(body, dict) or "name" not in body:
            raise InvalidRequestError(f"The field `name` is missing: {EXAMPLE}.", param="name")
        if not isinstance(body["name"], str | None):
            raise InvalidRequestError(f"The field `name` is neither text nor null: {EXAMPLE}.", param="name")
        self._service.activate(body["name"] or "")
        return JSONResponse({"active": self._service.selection.active or None})
