"""Whose window is next: classes by who is waiting, deficit round robin between requests. Pure, no clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

from eardrum.types import Priority

CLIP_S = 30.0
"""Audio up to here is served as a short clip; what follows shows the request to be a file."""

QUANTUM_S = 10.0
"""Seconds of audio a request may take per turn: about one full window, or several short ones."""

DEBT_S = 30.0
"""Seconds of audio that a request may be ahead of others for the sake of batches of windows of one length."""

SHARE = 0.2
"""Part of all audio that the classes below the first one waiting are sure to get."""

LIVE_SHARE = 0.1
"""The same below finals of live speech: ten that come at once meet one window of a file."""


class Class(IntEnum):
    """Order of service."""

    LIVE = 0
    PARTIAL = 1
    """Of live speech, but only for a text that will be given again."""
    CLIP = 2
    FILE = 3
    BULK = 4


def class_of(priority: Priority, start_s: float) -> Class:
    """The class of a window that begins `start_s` seconds into its request."""
    if priority is Priority.LIVE:
        return Class.LIVE
    if priority is Priority.BULK:
        return Class.BULK
    return Class.CLIP if start_s < CLIP_S else Class.FILE


ROOM = {Class.LIVE: 0.0, Class.PARTIAL: 0.0, Class.CLIP: 0.5, Class.FILE: 1.0, Class.BULK: 1.0}
"""Share of a batch up to which classes below the one whose turn it is may fill it."""


class Queued(Protocol):
    """What a queue needs to know about a window."""

    @property
    def request_id(self) -> int:
        """Windows of one request share it."""

    @property
    def cost(self) -> float:
        """Seconds of audio."""

    @property
    def rank(self) -> Class:
        """The window's class."""

    @property
    def key(self) -> Hashable:
        """What windows of one batch must share."""


Item = TypeVar("Item", bound=Queued)


class Queue(Protocol[Item]):
    """The order in which windows are decoded. `FairQueue` is the house's; benchmarks bring others."""

    def push(self, item: Item) -> None:
        """Add a window."""

    def take(self, limit: int, *, live: bool = False) -> list[Item]:
        """Remove and return the next batch, 1 to `limit` windows; empty when nothing waits.

        With `live` there are sessions of live speech, whose windows may come at any moment.
        """

    def drop(self, request_id: int) -> list[Item]:
        """Remove and return everything of one request."""


@dataclass(slots=True)
class Line(Generic[Item]):
    """One request's waiting windows of one class, and the seconds of audio it may still take this turn."""

    items: deque[Item] = field(default_factory=deque)
    deficit: float = 0.0


class FairQueue(Generic[Item]):
    """Deficit round robin over requests within a class; the first class waiting goes first, less a share.

    Whose turn it is gives a batch its first window; windows of about the same length join it, because an engine pads all to
    the longest. A batch is filled up from the classes below as far as `ROOM` says: a short clip must not wait for many long
    windows decoded beside it, but batches of one would cost throughput.
    """

    def __init__(self) -> None:
        self._lines: dict[Class, OrderedDict[int, Line[Item]]] = {c: OrderedDict() for c in Class}
        self._owed = 0.0  # seconds of audio that lower classes have earned
        self._turns = dict.fromkeys(Class, 0)  # when each class was last served from the share
        self._turn = 0

    def push(self, item: Item) -> None:
        """Add a window at the end of its request's line."""
        self._lines[item.rank].setdefault(item.request_id, Line()).items.append(item)

    def take(self, limit: int, *, live: bool = False) -> list[Item]:
        """Remove and return the next batch, 1 to `limit` windows of one key; empty when nothing waits.

        With `live`, batches of clips and files hold one window: a final waits for the one in hand and one of the share at most.
        """
        waiting = [c for c in Class if self._lines[c]]
        if not waiting:
            return []
        first, *lower = waiting
        if lower and self._owed > 0:
            rank = min(lower, key=self._turns.__getitem__)
            self._turn += 1
            self._turns[rank] = self._turn
        else:
            rank = first
        if live and rank > Class.PARTIAL:
            limit = 1
        batch = [self._next(rank)]
        served = self._fill(batch, rank, limit)
        filled = sum(self._fill(batch, c, int(limit * ROOM[rank])) for c in Class if c > rank)
        share = LIVE_SHARE if rank is Class.LIVE else SHARE
        self._account(served + batch[0].cost, filled, share if lower else 0.0, from_share=rank is not first)
        return batch

    def drop(self, request_id: int) -> list[Item]:
        """Remove and return everything of one request."""
        lines = [lines.pop(request_id) for lines in self._lines.values() if request_id in lines]
        return [item for line in lines for item in line.items]

    def _fill(self, batch: list[Item], rank: Class, limit: int) -> float:
        """Add windows of a class up to `limit` in all, and return what they cost."""
        before = len(batch)
        while len(batch) < limit and (found := self._nearest(rank, batch[0])):
            batch.append(self._pop(rank, *found))
        return sum(item.cost for item in batch[before:])

    def _nearest(self, rank: Class, like: Item) -> tuple[int, int] | None:
        """Request and position of the waiting window closest in length to another one, or None if none may join it."""
        lines = self._lines[rank]
        least = max((line.deficit for line in lines.values()), default=0.0) - DEBT_S
        candidates = (
            (abs(item.cost - like.cost), -line.deficit, request_id, position)
            for request_id, line in lines.items()
            if line.deficit >= least
            for position, item in enumerate(line.items)
            if item.key == like.key
        )
        best = min(candidates, default=None)
        return best[2:] if best else None

    def _next(self, rank: Class) -> Item:
        """Take the first window of the request whose turn it is."""
        lines = self._lines[rank]
        while True:
            request_id, line = next(iter(lines.items()))
            if line.deficit >= line.items[0].cost:
                return self._pop(rank, request_id)
            line.deficit += QUANTUM_S
            lines.move_to_end(request_id)

    def _pop(self, rank: Class, request_id: int, position: int = 0) -> Item:
        line = self._lines[rank][request_id]
        item = line.items[position]
        del line.items[position]
        line.deficit -= item.cost
        if not line.items:
            del self._lines[rank][request_id]  # an idle request saves nothing up
        return item

    def _account(self, served: float, filled: float, share: float, *, from_share: bool) -> None:
        """Book a batch: `served` seconds of the class whose turn it was, `filled` of those below it, which are owed a share."""
        if from_share:
            self._owed -= served
        elif share:
            self._owed += served * share / (1 - share)
            self._owed -= min(filled, max(self._owed, 0.0))  # a gift is no debt
        else:
            self._owed = 0.0
