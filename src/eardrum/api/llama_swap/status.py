"""Describes models and requests in llama-swap's format: running models, requests in progress, finished requests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum.api.request_log import FinishedRequest, RequestRecord, RequestTracker
from eardrum.errors import InvalidRequestError, NotFoundError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.redaction import redact_command, redact_headers

LLAMA_SWAP_STATES = {
    ModelState.STOPPED: "stopped",
    ModelState.STARTING: "starting",
    ModelState.READY: "ready",
    ModelState.DRAINING: "stopping",
    ModelState.STOPPING: "stopping",
    ModelState.FAILED: "stopped",
}
"""llama-swap's name of each state."""


def list_running(service: Service) -> list[dict[str, Any]]:
    """List the running models for `/running`."""
    found = [(model, LLAMA_SWAP_STATES[service.get_state(model)]) for model in service.catalog]
    return [
        {
            "model": model.id,
            "state": state,
            "cmd": redact_command(model.entry.cmd) if model.entry else "",
            "proxy": redact_command(model.entry.proxy) if model.entry else "",
            "ttl": int(ttl) if (ttl := model.scheduling.ttl) == int(ttl) else ttl,
            **_describe_names(model),
        }
        for model, state in sorted(found, key=lambda pair: pair[0].id)
        if state != "stopped"
    ]


def list_statuses(service: Service) -> Iterator[dict[str, Any]]:
    """Yield all models with their states, then those of peers."""
    for model in sorted(service.catalog, key=lambda model: model.id):
        aliases = service.catalog.list_aliases(model)
        gone = service.unload_history.find_last(model.id)
        yield {
            "id": model.id,
            "state": LLAMA_SWAP_STATES[service.get_state(model)],
            "unlisted": bool(model.entry and model.entry.unlisted),
            "peerID": "",
            **_describe_names(model),
            **({"aliases": aliases} if aliases else {}),
            **({"reason": gone.cause.reason, "message": str(gone)} if gone else {}),
        }
    for peer, entry in service.settings.peers.items():
        for name in entry.models:
            yield {"id": name, "name": "", "description": "", "state": "", "unlisted": False, "peerID": peer}


def _describe_names(model: Model) -> dict[str, str]:
    return {"name": model.entry.name if model.entry else "", "description": model.entry.description if model.entry else ""}


DEFAULT_ROWS, MAX_ROWS = 25, 999


class ActivityRoutes:
    """Lists finished requests and cancels requests in progress."""

    def __init__(self, activity: RequestTracker):
        self._activity = activity

    async def list_finished(self, request: Request) -> Response:
        """Serve a page of the finished requests (`model`, `limit`, `page`, `order`), the latest first."""
        query = request.query_params
        limit, page = (
            _parse_number(query.get("limit", DEFAULT_ROWS), "limit", MAX_ROWS),
            _parse_number(query.get("page", 1), "page"),
        )
        order = query.get("order", "desc").lower()
        if order not in ("asc", "desc"):
            raise InvalidRequestError("order must be asc or desc.", param="order")
        rows = [row for row in self._activity.finished if query.get("model", "") in ("", row.model)]
        if order == "desc":
            rows.reverse()
        shown = rows[(page - 1) * limit : page * limit]
        return JSONResponse(
            {
                "data": [_describe_finished(row) for row in shown],
                "page": page,
                "limit": limit,
                "total": len(rows),
                "total_pages": math.ceil(len(rows) / limit),
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Cancel a request in progress by its id, the `x-request-id` of its response."""
        id = request.path_params["id"]
        if not self._activity.cancel(id):
            raise NotFoundError(f"No request {id} is in progress.")
        return JSONResponse({"msg": "ok"})


class RequestChanges:
    """Tracks, for one subscriber, the requests sent to it and the changes since."""

    def __init__(self, activity: RequestTracker):
        self._activity = activity
        self._known: dict[str, tuple[object, ...]] = {}
        self._last = activity.finished[-1].number if activity.finished else 0

    def take_snapshot(self) -> dict[str, Any]:
        """Describe all requests in progress."""
        records = self._activity.in_progress.values()
        self._known = {record.id: _get_version(record) for record in records}
        return {"operation": "snapshot", "requests": [_describe_record(record) for record in records]}

    def list_changes(self) -> Iterator[dict[str, Any]]:
        """Yield the changes since the last call. A request that began and ended in between is left out."""
        current = {record.id: (record, _get_version(record)) for record in self._activity.in_progress.values()}
        before, self._known = self._known, {id: version for id, (_, version) in current.items()}
        yield from (
            {"operation": "upsert", "request": _describe_record(r)}
            for id, (r, version) in current.items()
            if before.get(id) != version
        )
        yield from ({"operation": "remove", "id": id} for id in before if id not in current)

    def list_finished(self) -> list[int]:
        """Return the numbers of the requests finished since the last call."""
        last, numbers = self._last, [row.number for row in reversed(self._activity.finished)]
        self._last = numbers[0] if numbers else 0
        return sorted(itertools.takewhile(lambda number: number > last, numbers))


def _get_version(record: RequestRecord) -> tuple[object, ...]:
    return record.model, record.status, record.sent


def _describe_record(record: RequestRecord) -> dict[str, Any]:
    client = record.scope.get("client")
    return {
        "id": record.id,
        "timestamp": _format_time(record.started_at),
        "model": record.model,
        "req_path": record.scope["path"],
        "method": record.method,
        "req_headers": redact_headers(record.scope["headers"]),
        "remote_ip": client[0] if client else "",
        "resp_headers": redact_headers(record.headers),
        "resp_bytes": record.sent,
        "elapsed_ms": round(record.elapsed_s * 1000),
    }


def _describe_finished(row: FinishedRequest) -> dict[str, Any]:
    return {
        "id": row.number,
        "timestamp": _format_time(row.started_at),
        "model": row.model,
        "req_path": row.path,
        "resp_content_type": redact_headers(row.headers).get("content-type", ""),
        "resp_status_code": row.status,
        "tokens": {
            "cache_tokens": row.tokens.cached,
            "input_tokens": row.tokens.input,
            "output_tokens": row.tokens.output,
            "prompt_per_second": -1,
            "tokens_per_second": -1,
        },
        "duration_ms": round(row.seconds * 1000),
        "has_capture": False,
        **({"error_msg": row.error} if row.error else {}),
    }


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parse_number(text: str | int, name: str, maximum: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 or (maximum and number > maximum):
        limit = f"from 1 to {maximum}" if maximum else "of 1 or more"
        raise InvalidRequestError(f"{name} must be a number {limit}.", param=name)
    return number
