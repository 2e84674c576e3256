"""Keeps as many replicas in a Ray cluster as the gateway requires: starts actors, finds those from before, and ends them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import ray
from msgspec import Struct
from ray.actor import ActorHandle
from ray.exceptions import RayError

from eardrum import __version__
from eardrum.fleet.placement import explain_placement
from eardrum.fleet.replica_actor import ReplicaActor, ReplicaOrder, ReplicaReport

ASK_S = 1.0
"""Seconds between two questions to an actor that is ready; each renews its lease."""

ASK_SOON_S = 0.3
"""The same while it is not ready."""

UNPLACED_S = 5.0
"""Seconds without an answer of a new actor after which its resources are compared with those of the nodes."""

DRAIN_S = 30.0
"""Seconds that a replica has for its requests in progress when it is no longer needed; another one continues the rest."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
"""Seconds before an actor that could not live is replaced: each time twice as long."""

ACTOR_THREADS = 4
"""Calls that an actor serves at a time: one that drains still reports."""

Writer = Callable[[dict[str, Any]], None]


class WantedModel(Struct, frozen=True):
    """The replicas that the gateway wants for one model."""

    count: int
    order: ReplicaOrder
    options: Mapping[str, Any]
    """Options of the actor: `num_cpus`, `num_gpus`, `memory` (bytes), `resources` and `label_selector`."""

    @classmethod
    def parse(cls, model: str, data: Mapping[str, Any]) -> Self:
        """Parse the model's part of a `wanted` message."""
        parts = {"model": model, "entry": data["entry"], "python": data["python"], "token": data["token"]}
        digest = hashlib.sha256(
            json.dumps([__version__, parts, data["resources"], data["labels"]], sort_keys=True).encode()
        ).hexdigest()
        resources = data["resources"]
        options = {
            "num_cpus": resources["num_cpus"],
            "num_gpus": resources["num_gpus"],
            "memory": resources["memory"],
            "resources": resources["custom"],
            "label_selector": data["labels"] or None,
        }
        return cls(data["count"], ReplicaOrder(**parts, digest=digest), options)


class WatchedReplica:
    """One actor, which is asked for its state again and again."""

    def __init__(self, name: str, handle: ActorHandle, write: Writer, wanted: WantedModel | None):
        self.name = name
        self.model, _, number = name.rpartition("/")
        self.number = int(number)
        self.handle = handle
        self.report = ReplicaReport(digest=wanted.order.digest if wanted else "")
        self.is_ending = False
        self.was_ready = False
        self.is_gone = False
        self._has_answered = False
        self._write = write
        self._wanted = wanted
        self._shown: dict[str, Any] = {}

    async def watch(self) -> None:
        """Follow the actor until it is gone."""
        while not self.is_gone:
            asking = asyncio.ensure_future(asyncio.wrap_future(self.handle.report.remote().future()))
            while not (await asyncio.wait([asking], timeout=UNPLACED_S))[0]:
                await self._explain_silence()
            try:
                report = ReplicaReport(**asking.result())
                if self.is_ending and report.incarnation != self.report.incarnation:
                    self.kill()  # Ray has started it again: this life does not know that it is to end
                self._take_report(report)
            except RayError as error:
                await self._handle_failure(error)
            await asyncio.sleep(ASK_S if self.report.state == "ready" else ASK_SOON_S)

    def end(self, drain_s: float = DRAIN_S) -> None:
        """End the actor, once it has finished its requests."""
        self.is_ending = True
        if self._has_answered and drain_s:
            self.handle.end.remote(drain_s)
            self._take_report(replace(self.report, state="draining", why="no longer wanted"))
        else:
            self.kill()

    def kill(self) -> None:
        """End the actor at once: its runner ends with the pipe between them."""
        self.is_ending = True
        with suppress(RayError):
            ray.kill(self.handle, no_restart=True)

    async def _handle_failure(self, error: RayError) -> None:
        """Record that the actor is gone, if Ray has no actor of its name any more; else Ray starts it again, if it is wanted."""
        try:
            with suppress(RayError):  # the head does not answer
                self.handle = await asyncio.to_thread(ray.get_actor, self.name)
        except ValueError:
            self._record_end(error)
        else:
            if self.is_ending:
                self.kill()  # what it had in hand is lost, and so may be the call that was to end it
            self._take_report(replace(self.report, state="starting", address="", why="its process or node was lost"))

    async def _explain_silence(self) -> None:
        """Say why the actor has no place yet. One that had a place answers again, or Ray moves it: the gateway asks itself."""
        if self._has_answered or not self._wanted or self.is_ending:
            return
        why = explain_placement(await asyncio.to_thread(ray.nodes), self._wanted.options)
        self._take_report(replace(self.report, why=why))

    def _take_report(self, report: ReplicaReport) -> None:
        self._has_answered = self._has_answered or bool(report.incarnation)
        self.was_ready = self.was_ready or report.state == "ready"
        self.report = replace(report, state="draining") if self.is_ending else report
        shown = {name: getattr(self.report, name) for name in ("state", "address", "incarnation", "node", "why")}
        if shown != self._shown:
            self._shown = shown
            self._write({"replica": self.name, "model": self.model, **shown})

    def _record_end(self, error: RayError) -> None:
        self.is_gone = True
        why = "it is no longer wanted" if self.is_ending else summarize_error(error)
        self._write(describe_change(self.name, "gone", why))


class ReplicaFleet:
    """The replicas of all models in one namespace."""

    def __init__(self, namespace: str, lease_s: float, write: Writer):
        self._namespace = namespace
        self._lease_s = lease_s
        self._write = write
        self._actor_class = ray.remote(ReplicaActor)
        self._wanted: dict[str, WantedModel] | None = None
        """None until the gateway has said it."""
        self._failure: BaseException | None = None
        """An unexpected error."""
        self._replicas: dict[str, WatchedReplica] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses: defaultdict[str, float] = defaultdict(lambda: FIRST_PAUSE_S)
        self._retry_at: dict[str, float] = {}

    def find_replicas(self) -> None:
        """Find the actors that an earlier process started."""
        for name in ray.util.list_named_actors():
            if name.rpartition("/")[2].isdigit():
                with suppress(ValueError):  # it has ended meanwhile
                    handle = ray.get_actor(name)
                    self._write(describe_change(name, "starting"))
                    self._add(WatchedReplica(name, handle, self._write, None))
        self._write({"joined": True})

    def set_wanted(self, wanted: Mapping[str, WantedModel]) -> None:
        """Have these replicas from now on."""
        self._wanted = dict(wanted)
        self._retry_at.clear()
        self.adjust()

    def adjust(self) -> None:
        """Start replicas that are missing, and end those that are not wanted.

        Raises:
            BaseException: following a replica has failed unexpectedly.
        """
        if self._failure:
            raise self._failure
        if self._wanted is None:
            return
        by_model: defaultdict[str, list[WatchedReplica]] = defaultdict(list)
        for replica in list(self._replicas.values()):
            wanted = self._wanted.get(replica.model)
            if replica.is_ending:
                continue
            if not wanted or replica.report.digest not in ("", wanted.order.digest):
                replica.end()
            else:
                by_model[replica.model].append(replica)
        for model, wanted in self._wanted.items():
            self._adjust_model(model, wanted, by_model[model])

    async def end_all(self, within_s: float) -> None:
        """End all replicas at once, and wait until they are gone."""
        self._wanted = {}
        for replica in list(self._replicas.values()):
            replica.kill()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)

    def _adjust_model(self, model: str, wanted: WantedModel, living: Sequence[WatchedReplica]) -> None:
        # Those that are not ready are given up first, and then the youngest.
        ranked = sorted(living, key=lambda one: (one.report.state != "ready", one.number))
        for replica in ranked[wanted.count :]:
            replica.end()
        for _ in range(wanted.count - len(living)):
            if time.monotonic() >= self._retry_at.get(model, 0.0):
                self._start(model, wanted)

    def _start(self, model: str, wanted: WantedModel) -> None:
        number = next(number for number in range(1, 100_000) if f"{model}/{number}" not in self._replicas)
        name = f"{model}/{number}"
        try:
            handle = self._actor_class.options(
                name=name,
                namespace=self._namespace,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=ACTOR_THREADS,
                scheduling_strategy="SPREAD",
                **wanted.options,
            ).remote(wanted.order, self._lease_s)
        except (ValueError, RayError) as error:  # Ray refuses the options, or the name is still that of an actor that ends
            self._pause(model)
            self._write(describe_change(name, "gone", summarize_error(error)))
            return
        self._write(describe_change(name, "starting"))
        self._add(WatchedReplica(name, handle, self._write, wanted))

    def _add(self, replica: WatchedReplica) -> None:
        self._replicas[replica.name] = replica
        task = asyncio.create_task(self._watch(replica))
        self._tasks.add(task)
        task.add_done_callback(self._end_watch)

    def _end_watch(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._failure = task.exception() or self._failure

    async def _watch(self, replica: WatchedReplica) -> None:
        await replica.watch()
        del self._replicas[replica.name]
        if replica.was_ready:
            self._pauses.pop(replica.model, None)
        if not replica.is_ending:
            self._pause(replica.model)

    def _pause(self, model: str) -> None:
        """Start no replica of a model for a while."""
        pause = self._pauses[model]
        self._pauses[model] = min(LONGEST_PAUSE_S, pause * 2)
        self._retry_at[model] = time.monotonic() + pause


def describe_change(name: str, state: str, why: str = "") -> dict[str, Any]:
    """Describe a replica without an address, for the gateway."""
    return {"replica": name, "model": name.rpartition("/")[0], "state": state, "address": "", "node": "", "why": why}


def summarize_error(error: Exception) -> str:
    """Shorten an error of Ray to its last line, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
