"""Requests for models: those in progress, which can be cancelled, and the last of those that are over."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from eardrum.api.asgi import Scope
from eardrum.gateway.inventory import Model
from eardrum.types import Summary

KEPT = 1000
"""Requests that are remembered when they are over."""

LONGEST_PATH = 1000
"""Characters of a path that are remembered."""

FAILED = 400


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a text model counted for a request."""

    input: int = 0
    output: int = 0
    cached: int = -1
    """-1 is unknown."""


UNKNOWN = Tokens()


class Record:
    """What is known of one request. The edges fill in what they learn."""

    __slots__ = (
        "_activity",
        "_model",
        "began",
        "cancelled",
        "headers",
        "id",
        "note",
        "readable",
        "scope",
        "sent",
        "started",
        "status",
        "summary",
        "task",
        "tokens",
    )

    def __init__(self, id: str, scope: Scope, activity: Activity):
        self.id = id
        self.scope = scope
        self.summary: Summary | None = None
        self.tokens = UNKNOWN
        self.note = ""
        self.readable: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that let a page of another origin read the answer, where that says nothing of this itself."""
        self.began = time.time()
        self.started = time.monotonic()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Of the answer."""
        self.sent = 0
        """Bytes of the answer's body."""
        self.cancelled = False
        self.task = asyncio.current_task()
        self._model = ""
        self._activity = activity

    @property
    def model(self) -> str:
        """Id of the model that the request is for, once that is known; "" if it is for none."""
        return self._model

    @model.setter
    def model(self, id: str) -> None:
        self._model = id
        self._activity.learned(self)

    @property
    def method(self) -> str:
        """How it was asked. A WebSocket, of which ASGI does not say this, begins with a GET."""
        return str(self.scope.get("method", "GET"))

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def about(self, model: Model, summary: Summary) -> None:
        """The request was a transcription."""
        self.summary = summary
        self.model = summary.model or model.id

    def answering(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer begins."""
        self.status, self.headers = status, headers
        if self._model:
            self._activity.changed()

    def answered(self, size: int) -> None:
        """More of the answer is out."""
        self.sent += size
        if self._model:
            self._activity.changed()


@dataclass(slots=True)
class Finished:
    """A request that is over. Not frozen, because that would cost every request more than all the rest here."""

    number: int
    """Counts up from 1."""
    began: float
    """Unix time."""
    model: str
    path: str
    status: int
    headers: list[tuple[bytes, bytes]]
    """Of the answer."""
    seconds: float
    tokens: Tokens
    error: str


@dataclass(slots=True)
class Activity:
    """All requests for models."""

    changed: Callable[[], None] = lambda: None
    """Told whenever something here changes."""
    in_progress: dict[str, Record] = field(default_factory=dict)
    """By their ids, the oldest first."""
    finished: deque[Finished] = field(default_factory=lambda: deque(maxlen=KEPT))
    """The last ones, the latest at the end."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def learned(self, record: Record) -> None:
        """It is known which model the request is for."""
        self.in_progress[record.id] = record
        self.changed()

    def over(self, record: Record) -> None:
        """The request is over."""
        if not self.in_progress.pop(record.id, None):
            return
        self.finished.append(
            Finished(
                number=next(self._numbers),
                began=record.began,
                model=record.model,
                path=record.scope["path"][:LONGEST_PATH],
                status=record.status,
                headers=record.headers,
                seconds=record.elapsed,
                tokens=record.tokens,
                error=record.note if record.status >= FAILED else "",
            )
        )
        self.changed()

    def cancel(self, id: str) -> bool:
        """End a request in progress; False if there is none of this id."""
        record = self.in_progress.get(id)
        if not record or not record.task:
            return False
        if not record.cancelled:
            record.cancelled = True
            record.task.cancel()
        return True
