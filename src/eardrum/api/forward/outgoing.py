"""What an upstream gets of a client's request."""

from __future__ import annotations

from eardrum.api.asgi import Scope
from eardrum.api.auth import SUBPROTOCOL
from eardrum.api.forward import headers
from eardrum.gateway.inventory import COMMAND, Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.foreign import CREDENTIALS, Outgoing, Stream

KEYS = frozenset(CREDENTIALS)
NONE: frozenset[bytes] = frozenset()


def request(service: Service, model: Model, scope: Scope, path: str, body: bytes | Stream | None) -> Outgoing:
    """The request as the model's upstream gets it: a command's own, as if there were no gateway in between."""
    return Outgoing(scope["method"], path, sent_on(service, model, scope), body)


def sent_on(service: Service, model: Model, scope: Scope, *, without: frozenset[bytes] = NONE) -> list[tuple[bytes, bytes]]:
    """The headers. A key to this server is for this machine only: what runs elsewhere does not get it."""
    dropped = KEYS | without if _keeps_keys(service, model) else without
    return headers.sent_on(scope, host=model.engine == COMMAND, without=dropped)


def subprotocols(service: Service, model: Model, scope: Scope) -> list[str]:
    """The subprotocols of a WebSocket, of which one may be a key."""
    offered: list[str] = scope.get("subprotocols", [])
    return [name for name in offered if not name.startswith(SUBPROTOCOL)] if _keeps_keys(service, model) else offered


def _keeps_keys(service: Service, model: Model) -> bool:
    return bool(service.settings.apiKeys) and model.engine != COMMAND
