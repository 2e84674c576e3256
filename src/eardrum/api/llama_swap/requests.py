"""Requests for models in llama-swap's words: those in progress and those that are over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum.api.activity import Activity, Finished, Record
from eardrum.errors import InvalidRequestError, NotFoundError
from eardrum.redaction import redacted_headers

ROWS, MOST_ROWS = 25, 999


class Requests:
    """The endpoints."""

    def __init__(self, activity: Activity):
        self._activity = activity

    async def finished(self, request: Request) -> Response:
        """A page of the requests that are over (`model`, `limit`, `page`, `order`), the latest first."""
        asked = request.query_params
        limit, page = _number(asked.get("limit", ROWS), "limit", MOST_ROWS), _number(asked.get("page", 1), "page")
        order = asked.get("order", "desc").lower()
        if order not in ("asc", "desc"):
            raise InvalidRequestError("order is asc or desc.", param="order")
        rows = [row for row in self._activity.finished if asked.get("model", "") in ("", row.model)]
        if order == "desc":
            rows.reverse()
        shown = rows[(page - 1) * limit : page * limit]
        return JSONResponse(
            {
                "data": [_row(row) for row in shown],
                "page": page,
                "limit": limit,
                "total": len(rows),
                "total_pages": math.ceil(len(rows) / limit),
            }
        )

    async def cancel(self, request: Request) -> Response:
        """End a request in progress, by the id that its answer also has as `x-request-id`."""
        id = request.path_params["id"]
        if not self._activity.cancel(id):
            raise NotFoundError(f"No request {id} is in progress.")
        return JSONResponse({"msg": "ok"})


class InProgress:
    """What one follower knows of the requests in progress, and what is new to it."""

    def __init__(self, activity: Activity):
        self._activity = activity
        self._known: dict[str, tuple[object, ...]] = {}
        self._last = activity.finished[-1].number if activity.finished else 0

    def snapshot(self) -> dict[str, Any]:
        """All of them."""
        records = self._activity.in_progress.values()
        self._known = {record.id: _version(record) for record in records}
        return {"operation": "snapshot", "requests": [_entry(record) for record in records]}

    def news(self) -> Iterator[dict[str, Any]]:
        """What came, changed or went since this was last asked. One that came and went in between is no news."""
        now = {record.id: (record, _version(record)) for record in self._activity.in_progress.values()}
        before, self._known = self._known, {id: version for id, (_, version) in now.items()}
        yield from (
            {"operation": "upsert", "request": _entry(r)} for id, (r, version) in now.items() if before.get(id) != version
        )
        yield from ({"operation": "remove", "id": id} for id in before if id not in now)

    def finished(self) -> list[int]:
        """The numbers of the requests that are over since this was last asked."""
        last, numbers = self._last, [row.number for row in reversed(self._activity.finished)]
        self._last = numbers[0] if numbers else 0
        return sorted(itertools.takewhile(lambda number: number > last, numbers))


def _version(record: Record) -> tuple[object, ...]:
    return record.model, record.status, record.sent


def _entry(record: Record) -> dict[str, Any]:
    client = record.scope.get("client")
    return {
        "id": record.id,
        "timestamp": _time(record.began),
        "model": record.model,
        "req_path": record.scope["path"],
        "method": record.method,
        "req_headers": redacted_headers(record.scope["headers"]),
        "remote_ip": client[0] if client else "",
        "resp_headers": redacted_headers(record.headers),
        "resp_bytes": record.sent,
        "elapsed_ms": round(record.elapsed * 1000),
    }


def _row(row: Finished) -> dict[str, Any]:
    return {
        "id": row.number,
        "timestamp": _time(row.began),
        "model": row.model,
        "req_path": row.path,
        "resp_content_type": redacted_headers(row.headers).get("content-type", ""),
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


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(text: str | int, name: str, most: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 or (most and number > most):
        raise InvalidRequestError(f"{name} is a number from 1{f' to {most}' if most else ''}.", param=name)
    return number
