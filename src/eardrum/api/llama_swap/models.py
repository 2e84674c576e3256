"""Models in llama-swap's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service
from eardrum.redaction import hide_in_command

STATES = {
    State.STOPPED: "stopped",
    State.STARTING: "starting",
    State.READY: "ready",
    State.DRAINING: "stopping",
    State.STOPPING: "stopping",
    State.FAILED: "stopped",
}
"""Our states in theirs."""


def running(service: Service) -> list[dict[str, Any]]:
    """What `/running` lists."""
    found = [(model, STATES[service.state(model)]) for model in service.catalog]
    return [
        {
            "model": model.id,
            "state": state,
            "cmd": hide_in_command(model.entry.cmd) if model.entry else "",
            "proxy": hide_in_command(model.entry.proxy) if model.entry else "",
            "ttl": int(model.ttl) if model.ttl == int(model.ttl) else model.ttl,
            **_for_people(model),
        }
        for model, state in sorted(found, key=lambda pair: pair[0].id)
        if state != "stopped"
    ]


def statuses(service: Service) -> Iterator[dict[str, Any]]:
    """All models with their states, then those of other servers."""
    for model in sorted(service.catalog, key=lambda model: model.id):
        aliases = service.catalog.aliases(model)
        gone = service.departures.of(model.id)
        yield {
            "id": model.id,
            "state": STATES[service.state(model)],
            "unlisted": bool(model.entry and model.entry.unlisted),
            "peerID": "",
            **_for_people(model),
            **({"aliases": aliases} if aliases else {}),
            **({"reason": gone.going.reason, "message": str(gone)} if gone else {}),
        }
    for peer, entry in service.settings.peers.items():
        for name in entry.models:
            yield {"id": name, "name": "", "description": "", "state": "", "unlisted": False, "peerID": peer}


def _for_people(model: Model) -> dict[str, str]:
    return {"name": model.entry.name if model.entry else "", "description": model.entry.description if model.entry else ""}
