"""Chooses the next window: service classes by priority, deficit round robin between requests. Pure, without a clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

from eardrum.transcription import Priority

MAX_CLIP_S = 30.0
"""Windows that end before are served as a short clip; what follows shows the request to be a file."""

QUANTUM_S = 10.0
"""Seconds of audio a request may take per turn: about one full window, or several short ones."""

MAX_DEBT_S = 30.0
"""Seconds of audio that a request may be ahead of others for the sake of batches of windows of one length."""

LOWER_SHARE = 0.2
"""Part of all audio that the classes below the first one waiting are sure to get."""

LIVE_SHARE = 0.1
"""The same below finals of live speech: ten that come at once meet one window of a file."""


class ServiceClass(IntEnum):
    """Order of service."""

    LIVE = 0
    PARTIAL = 1
    """Of live speech, but only for a text that will be given again."""
    CLIP = 2
    FILE = 3
    BULK = 4


def classify_window(priority: Priority, end_s: float) -> ServiceClass:
    """The class of a window that ends `end_s` seconds into its request."""
    if priority is Priority.LIVE:
        return ServiceClass.LIVE
    if priority is Priority.BULK:
        return ServiceClass.BULK
    return ServiceClass.CLIP if end_s <= MAX_CLIP_S else ServiceClass.FILE


FILL_SHARE = {
    ServiceClass.LIVE: 0.0,
    ServiceClass.PARTIAL: 0.0,
    ServiceClass.CLIP: 0.5,
    ServiceClass.FILE: 1.0,
    ServiceClass.BULK: 1.0,
}
"""Share of a batch up to which classes below the one whose turn it is may fill it."""


class QueuedWindow(Protocol):
    """The properties of a window that decide its place in the queue."""

    @property
    def request_id(self) -> int:
        """Windows of one request share it."""

    @property
    def cost(self) -> float:
        """Seconds of audio that decoding it is worth."""

    @property
    def padded_s(self) -> float:
        """Seconds of audio with the engine's padding: windows of about equal length share a batch."""

    @property
    def rank(self) -> ServiceClass:
        """The window's class."""

    @property
    def key(self) -> Hashable:
        """The properties that all windows of one batch share."""


Item = TypeVar("Item", bound=QueuedWindow)


class WindowQueue(Protocol[Item]):
    """The order in which windows are decoded. `FairQueue` is the default; benchmarks substitute others."""

    def push(self, item: Item) -> None:
        """Add a window."""

    def take(self, limit: int, *, live: bool = False, clips_alone: bool = False) -> list[Item]:
        """Remove and return the next batch, 1 to `limit` windows; empty when nothing waits.

        With `live` there are sessions of live speech, whose windows may come at any moment. With `clips_alone` only files and
        bulk share a batch, and nothing does while another class waits.
        """

    def take_urgent(self, most: float) -> list[Item]:
        """Remove and return a window of live speech, or of a clip that costs no more than `most`; empty when none waits."""

    def take_ahead_of(self, rank: ServiceClass, limit: int) -> list[Item]:
        """Remove and return up to `limit` windows that are to be decoded before the rest of a batch of class `rank`."""

    def drop(self, request_id: int) -> list[Item]:
        """Remove and return everything of one request."""


@dataclass(slots=True)
class RequestQueue(Generic[Item]):
    """One request's waiting windows of one class, and the seconds of audio it may still take this turn."""

    items: deque[Item] = field(default_factory=deque)
    deficit: float = 0.0


class FairQueue(Generic[Item]):
    """Deficit round robin over requests within a class; the first class waiting goes first, less a share.

    Whose turn it is gives a batch its first window; windows of about the same length join it, because an engine pads all to
    the longest. A batch is filled up from the classes below as far as `FILL_SHARE` allows: a short clip must not wait for many
    long windows decoded beside it, but batches of one would cost throughput.
    """

    def __init__(self) -> None:
        self._queues: dict[ServiceClass, OrderedDict[int, RequestQueue[Item]]] = {c: OrderedDict() for c in ServiceClass}
        self._owed_s = 0.0  # seconds of audio that lower classes have earned
        self._last_turns = dict.fromkeys(ServiceClass, 0)  # when each class was last served from the share
        self._turn = 0

    def push(self, item: Item) -> None:
        """Add a window at the end of its request's line."""
        self._queues[item.rank].setdefault(item.request_id, RequestQueue()).items.append(item)

    def take(self, limit: int, *, live: bool = False, clips_alone: bool = False) -> list[Item]:
        """Remove and return the next batch, 1 to `limit` windows of one key; empty when nothing waits.

        With `live`, batches of clips and files hold one window: a final waits for the running one and one of the share at most.
        With `clips_alone` they do while clips wait, too, and no clip is in a batch.
        """
        waiting = [c for c in ServiceClass if self._queues[c]]
        if not waiting:
            return []
        first, *lower = waiting
        if lower and self._owed_s > 0:
            rank = min(lower, key=self._last_turns.__getitem__)
            self._turn += 1
            self._last_turns[rank] = self._turn
        else:
            rank = first
        if (live and rank > ServiceClass.PARTIAL) or (clips_alone and first <= ServiceClass.CLIP):
            limit = 1
        batch = [self._take_next(rank)]
        served = self._fill_batch(batch, rank, limit)
        filled = sum(self._fill_batch(batch, c, int(limit * FILL_SHARE[rank])) for c in ServiceClass if c > rank)
        served += batch[0].cost
        earned = _compute_share(rank, served) if lower else 0.0
        self._record_batch(served, filled, earned, from_share=rank is not first)
        return batch

    def take_urgent(self, most: float) -> list[Item]:
        """Remove and return the first window of live speech, or of a clip that costs no more than `most`.

        Files are decoded beside it, so it is not counted against their share.
        """
        for rank in (c for c in ServiceClass if c <= ServiceClass.CLIP):
            for request_id, line in self._queues[rank].items():
                if rank < ServiceClass.CLIP or line.items[0].cost <= most:
                    return [self._pop(rank, request_id)]
        return []

    def take_ahead_of(self, rank: ServiceClass, limit: int) -> list[Item]:
        """Remove and return the next windows of live speech or of clips, if their class is above `rank`: 1 to `limit` of one key.

        The lower classes earn their share by it. None is returned while they are owed a full window.
        """
        first = self._find_first()
        if first >= min(rank, ServiceClass.FILE) or self._owed_s >= QUANTUM_S:
            return []
        batch = [self._take_next(first)]
        self._owed_s += _compute_share(first, batch[0].cost + self._fill_batch(batch, first, limit))
        return batch

    def drop(self, request_id: int) -> list[Item]:
        """Remove and return everything of one request."""
        lines = [lines.pop(request_id) for lines in self._queues.values() if request_id in lines]
        return [item for line in lines for item in line.items]

    def _find_first(self) -> ServiceClass:
        """The highest class that waits; the lowest one if none does."""
        return next((c for c in ServiceClass if self._queues[c]), ServiceClass.BULK)

    def _fill_batch(self, batch: list[Item], rank: ServiceClass, limit: int) -> float:
        """Add windows of a class up to `limit` in all, and return what they cost."""
        before = len(batch)
        while len(batch) < limit and (found := self._find_nearest(rank, batch[0])):
            batch.append(self._pop(rank, *found))
        return sum(item.cost for item in batch[before:])

    def _find_nearest(self, rank: ServiceClass, like: Item) -> tuple[int, int] | None:
        """Request and position of the waiting window closest in length to another one, or None if none may join it."""
        lines = self._queues[rank]
        least = max((line.deficit for line in lines.values()), default=0.0) - MAX_DEBT_S
        candidates = (
            (abs(item.padded_s - like.padded_s), -line.deficit, request_id, position)
            for request_id, line in lines.items()
            if line.deficit >= least
            for position, item in enumerate(line.items)
            if item.key == like.key
        )
        best = min(candidates, default=None)
        return best[2:] if best else None

    def _take_next(self, rank: ServiceClass) -> Item:
        """Take the first window of the request whose turn it is."""
        lines = self._queues[rank]
        while True:
            request_id, line = next(iter(lines.items()))
            if line.deficit >= line.items[0].cost:
                return self._pop(rank, request_id)
            line.deficit += QUANTUM_S
            lines.move_to_end(request_id)

    def _pop(self, rank: ServiceClass, request_id: int, position: int = 0) -> Item:
        line = self._queues[rank][request_id]
        item = line.items[position]
        del line.items[position]
        line.deficit -= item.cost
        if not line.items:
            del self._queues[rank][request_id]  # an idle request saves nothing up
        return item

    def _record_batch(self, served: float, filled: float, earned: float, *, from_share: bool) -> None:
        """Book a batch: `served` seconds of the class whose turn it was, `filled` of those below, which have `earned` a share."""
        if from_share:
            self._owed_s -= served
        elif earned:
            self._owed_s += earned
            self._owed_s -= min(filled, max(self._owed_s, 0.0))  # a gift is no debt
        else:
            self._owed_s = 0.0


def _compute_share(rank: ServiceClass, served: float) -> float:
    """Seconds of audio that the classes below `rank` earn when so many of it are decoded."""
    share = LIVE_SHARE if rank is ServiceClass.LIVE else LOWER_SHARE
    return served * share / (1 - share)
