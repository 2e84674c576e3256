"""The runners that serve one model together, on this or other machines: each is a replica, and work goes to the least busy one.

Each replica is asked for its health every second. One that does not answer gets no more work, and its requests are continued by
another one: windows are cut from the audio alone, so a recording continues behind its last finished window. A replica comes back
by itself once it answers again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from typing import Any, Self, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from eardrum.concurrency import Channel, cancel_and_wait, drop_error
from eardrum.errors import EardrumError, NoReplicaError, RunnerCrashedError, RunnerTokenError
from eardrum.gateway.metrics import CURRENT_MODEL_WAIT
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.transcription import Capabilities, ModelPlacement

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 1.0
"""Seconds between an answer and the next question."""

RETRY_INTERVAL_S = 0.3
"""The same after a question without an answer."""

ANSWER_S = 1.5
"""A replica that does not answer within this time gets no more work: with `PROBE_INTERVAL_S`, at most 3 s after its last sign."""

LATE_ANSWER_S = 0.2
"""Seconds that an overdue answer gets in addition: this process may have been the one that was suspended."""

LOST_AFTER_S = 4.0
"""After so long without an answer or an event, another replica continues its requests."""

WAIT_S = 30.0
"""Longest time that work waits for a replica when none can take it: a runner that is started again loads its model first."""

FIRST_ANSWER_S = 10.0
"""The same for a model that is about to be used for the first time."""

T = TypeVar("T")


class ReplicaState(StrEnum):
    """The state of a replica, as `eardrum ps` shows it."""

    STARTING = "starting"
    """Ray looks for a node, or its runner loads the model."""
    FAILED = "failed"
    """Its runner could not load the model; Ray tries again."""
    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    """It finishes its requests, and ends."""
    SILENT = "silent"
    """It cannot be reached, does not answer, or hangs."""
    REFUSED = "refused"
    """It requires another token, or serves something else."""


HOPELESS_STATES = {ReplicaState.REFUSED, ReplicaState.FAILED}
"""States that do not change within seconds: requests do not wait if all replicas of their model have one of them."""


class ReplicaHealth(Struct, frozen=True):
    """The answer of a runner to the question for its health."""

    instance: str
    """An id of the process: another one after a restart."""
    engine: str
    capabilities: Capabilities
    placement: ModelPlacement
    is_draining: bool
    batch_s: float
    """Seconds since the running batch began."""

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Parse the answer.

        Raises:
            ValueError: it is not that of a runner.
        """
        try:
            return cls(
                instance=str(data["instance"]),
                engine=str(data["engine"]),
                capabilities=Capabilities.from_json(data["capabilities"]),
                placement=ModelPlacement.from_json(data["placement"]),
                is_draining=data["status"] == "draining",
                batch_s=float(data["batch_s"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not the health of a runner") from error


class ReplicaStatus(Struct, frozen=True):
    """A replica as people and programs see it."""

    address: str
    state: ReplicaState
    detail: str
    """Why it gets no work; empty if it does."""
    requests: int
    """Recordings, texts and live sessions in progress."""
    moved: int
    """Requests so far that it did not finish, and that went on with another replica."""
    placement: ModelPlacement = field(default_factory=ModelPlacement)
    name: str = ""
    """Its name in the cluster, if Ray runs it."""
    node: str = ""
    """The same for its node."""


class ReplicaRules(Struct, frozen=True):
    """The rules for all replicas of a model."""

    model: str
    """The model's id, for messages."""
    engine: str
    """The engine that they must run."""
    find_batch_timeout: Callable[[], float]
    """Returns the seconds of a batch after which a replica counts as hung, by the config at that time."""
    find_wait_s: Callable[[], float] = lambda: WAIT_S
    """Returns the longest time that work waits for a replica when none can take it, in seconds, by the config at that time."""
    advice: str = " Start its runners with `eardrum runner`."


class Replica:
    """One runner: its connections, its state, and its requests in progress."""

    def __init__(self, address: str, token: str, rules: ReplicaRules, on_change: Callable[[], None]):
        self.address = address
        self.state = ReplicaState.CONNECTING
        self.detail = "not asked yet"
        self.requests = 0
        self.moved = 0
        """Requests that it did not finish, and that went on with another replica."""
        self.last_taken = 0
        self.health: ReplicaHealth | None = None
        self.is_leaving = False
        """Whether the config no longer names it."""
        self._upstream = RunnerUpstream(address=address, token=token)
        self._rules = rules
        self._on_change = on_change
        self._heard_at = time.monotonic()
        self._lost: asyncio.Future[EardrumError] = asyncio.get_running_loop().create_future()
        """The end of all requests in progress."""
        self._sent_away: asyncio.Future[EardrumError] = asyncio.get_running_loop().create_future()
        """The end of live sessions, which could last for hours."""
        self._ask_now = asyncio.Event()
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def upstream(self) -> RunnerUpstream:
        """The way to it."""
        return self._upstream

    @property
    def is_ready(self) -> bool:
        """Whether it takes work."""
        return self.state is ReplicaState.READY and not self.is_leaving

    @property
    def silent_s(self) -> float:
        """Seconds since its last sign of life."""
        return time.monotonic() - self._heard_at

    @property
    def status(self) -> ReplicaStatus:
        """Its state for people and programs."""
        state, detail = self.state, self.detail
        if self.is_leaving and self.state is ReplicaState.READY:
            state, detail = ReplicaState.DRAINING, "no longer in the config"
        if self.state is ReplicaState.SILENT and self.silent_s >= 1:
            detail = f"{detail}, for {self.silent_s:.0f} s"
        placement = self.health.placement if self.health else ModelPlacement()
        return ReplicaStatus(self.address, state, detail, self.requests, self.moved, placement)

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Count a request in progress."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._on_change()

    async def follow(self, events: AsyncGenerator[T, None], *, movable: bool = False) -> AsyncGenerator[T, None]:
        """Yield the events of an exchange with it, until it is lost. A `movable` exchange ends when it drains, too.

        Nobody waits for the end of an exchange with a replica that does not answer.

        Raises:
            RunnerCrashedError: it was lost, or the exchange is to go on elsewhere.
            EardrumError: the exchange failed.
        """
        channel, over = Channel[T](0), self._sent_away if movable else self._lost

        async def pump() -> None:
            try:
                async with aclosing(events):
                    async for event in events:
                        self._heard_at = time.monotonic()
                        await channel.send(event)
            finally:
                channel.close()

        def give_up(_: asyncio.Future[EardrumError]) -> None:
            channel.discard()

        pumping = asyncio.create_task(pump())
        over.add_done_callback(give_up)
        try:
            async for event in channel:
                yield event
            if over.done():
                raise over.result()
            await pumping
        finally:
            over.remove_done_callback(give_up)
            pumping.cancel()
            if over.done():
                self._abandoned.add(pumping)
                pumping.add_done_callback(self._abandoned.discard)
            else:
                await asyncio.wait([pumping])
            pumping.add_done_callback(drop_error)

    def record_failure(self, error: EardrumError) -> None:
        """Record that an exchange with it has failed: it gets no work until it has answered the next question."""
        self.moved += 1
        if self.state is ReplicaState.READY:
            self._set_state(ReplicaState.SILENT, _describe_failure(error))
        self._ask_now.set()

    async def watch(self) -> None:
        """Ask for its health again and again."""
        while True:
            self._ask_now.clear()
            await self._ask()
            pause = PROBE_INTERVAL_S if self.state is not ReplicaState.SILENT else RETRY_INTERVAL_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ask_now.wait()

    async def close(self) -> None:
        """End the requests in progress, and close the connections."""
        self._end_exchanges(RunnerCrashedError(f"{self._rules.model} was unloaded."))
        if self._abandoned:
            await cancel_and_wait(*self._abandoned)
        await self._upstream.close()

    async def _ask(self) -> None:
        began = time.monotonic()
        asking = asyncio.ensure_future(self._upstream.fetch_health())
        try:
            await asyncio.wait([asking], timeout=ANSWER_S)
            if not asking.done():
                await asyncio.wait([asking], timeout=LATE_ANSWER_S)
            if asking.done():
                self._take_health(ReplicaHealth.parse(asking.result()))
            elif self._heard_at < began:  # else events have come meanwhile: it is busy
                self._record_silence("it does not answer")
        except RunnerTokenError:
            self._set_state(ReplicaState.REFUSED, "it requires another token")
        except ValueError:
            self._set_state(ReplicaState.REFUSED, "the server at this address is not a runner")
        except EardrumError as error:
            self._record_silence(_describe_failure(error))
        except Exception:
            log.exception("The health check of the replica %s failed.", self.address)
            self._record_silence("its health check failed; the server's log has the cause")
        finally:
            if asking.done():
                drop_error(asking)
            asking.cancel()

    def _take_health(self, health: ReplicaHealth) -> None:
        self._heard_at = time.monotonic()
        if self.health and self.health.instance != health.instance:
            self._end_exchanges(RunnerCrashedError(f"The runner at {self.address} was started again."))
        self.health = health
        if health.engine != self._rules.engine:
            self._set_state(ReplicaState.REFUSED, f"it runs the engine {health.engine}, and not {self._rules.engine}")
        elif health.batch_s > self._rules.find_batch_timeout():
            self._set_state(ReplicaState.SILENT, f"it has worked on one batch for {health.batch_s:.0f} s (batch_timeout)")
            self._end_exchanges(RunnerCrashedError(f"The runner at {self.address} hangs: {self.detail}."))
        elif health.is_draining:
            self._set_state(ReplicaState.DRAINING, "it finishes its requests, and ends")
            self.send_sessions_away()
        else:
            self._set_state(ReplicaState.READY)

    def _record_silence(self, detail: str) -> None:
        self._set_state(ReplicaState.SILENT, detail)
        if self.silent_s >= LOST_AFTER_S:
            self._end_exchanges(RunnerCrashedError(f"The runner at {self.address} has not answered for {self.silent_s:.0f} s."))

    def send_sessions_away(self) -> None:
        """Let another replica continue its live sessions."""
        if not self._sent_away.done():
            self._sent_away.set_result(RunnerCrashedError(f"The runner at {self.address} is about to end."))
            self._sent_away = asyncio.get_running_loop().create_future()

    def _end_exchanges(self, error: RunnerCrashedError) -> None:
        for future in (self._lost, self._sent_away):
            if not future.done():
                future.set_result(error)
        loop = asyncio.get_running_loop()
        self._lost, self._sent_away = loop.create_future(), loop.create_future()

    def _set_state(self, state: ReplicaState, detail: str = "") -> None:
        before, self.state, self.detail = self.state, state, detail
        if before is state:
            return
        name = f"{self._rules.model}: the replica {self.address}"
        if state is ReplicaState.READY:
            log.info("%s is ready.", name)
        elif state is ReplicaState.DRAINING:
            log.info("%s drains: it gets no new requests.", name)
        else:
            more = f" Requests in progress: {self.requests}." if self.requests else ""
            log.warning("%s gets no requests: %s.%s", name, detail, more)
        self._on_change()


def _describe_failure(error: EardrumError) -> str:
    """The error as a clause."""
    text = error.message.rstrip(".")
    text = text.removeprefix("The runner cannot be reached: ")
    return text[:1].lower() + text[1:]


class ReplicaSet:
    """The replicas of one model."""

    def __init__(self, rules: ReplicaRules):
        self.rules = rules
        self.places: dict[str, tuple[str, str]] = {}
        """Name and node of each address, if Ray runs the replicas."""
        self.starting: Sequence[ReplicaStatus] = ()
        """Replicas that have no address yet."""
        self.waiting = 0
        """Requests that wait until a replica takes work."""
        self.is_closed = False
        """Whether the model was unloaded."""
        self._replicas: dict[str, Replica] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._token = ""
        self._changed = asyncio.Event()
        self._turns = itertools.count(1)
        self._ready_at = time.monotonic()
        """When a replica was ready last, if none is."""
        self._was_ready = False

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    @property
    def statuses(self) -> list[ReplicaStatus]:
        """The state of each replica, in the config's order."""
        return [*(self._add_place(replica.status) for replica in self), *self.starting]

    @property
    def requests(self) -> int:
        """Requests in progress at the replicas, or waiting for one."""
        return self.waiting + sum(replica.requests for replica in self)

    @property
    def unready_s(self) -> float:
        """Seconds for which no replica has been ready; 0 if one is."""
        return 0.0 if self._is_ready else time.monotonic() - self._ready_at

    @property
    def _is_ready(self) -> bool:
        return any(replica.is_ready for replica in self)

    def set_addresses(self, addresses: Sequence[str], token: str) -> None:
        """Use the runners at these addresses. Those that are no longer among them finish their requests."""
        kept = (
            {}
            if token != self._token
            else {address: self._replicas[address] for address in addresses if address in self._replicas}
        )
        for address, replica in self._replicas.items():
            if kept.get(address) is not replica:
                replica.is_leaving = True
                replica.send_sessions_away()
                task = asyncio.create_task(self._dismiss(replica, self._watching.pop(address)))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        self._token = token
        self._replicas = {address: kept.get(address) or Replica(address, token, self.rules, self._wake) for address in addresses}
        for address, replica in self._replicas.items():
            if address not in self._watching:
                self._watching[address] = asyncio.create_task(replica.watch())
        self._wake()

    async def wait_ready(self, within_s: float) -> None:
        """Wait until a replica takes work. If every replica refuses, the wait ends at once.

        Raises:
            NoReplicaError: none does in time.
            RunnerCrashedError: the model was unloaded.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.is_closed:
                    if self._is_ready:
                        return
                    states = {replica.state for replica in self} | {status.state for status in self.starting}
                    if states and states <= HOPELESS_STATES:
                        break
                    changed = self._changed
                    await changed.wait()
        raise RunnerCrashedError(f"{self.rules.model} was unloaded.") if self.is_closed else self._make_error()

    @asynccontextmanager
    async def take_replica(self) -> AsyncIterator[Replica]:
        """Choose the replica with the fewest requests in progress, and count one more for the duration of the block.

        Raises:
            NoReplicaError: none takes work.
        """
        self.waiting += 1
        try:
            await self.wait_ready(self.rules.find_wait_s())
        finally:
            self.waiting -= 1
        replica = min((one for one in self if one.is_ready), key=lambda one: (one.requests, one.last_taken))
        replica.last_taken = next(self._turns)
        if wait := CURRENT_MODEL_WAIT.get():
            wait.replica = replica.address
        with replica.count_request():
            yield replica

    async def close(self) -> None:
        """End all work, and close all connections."""
        self.is_closed = True
        self._wake()
        if self._watching:
            await cancel_and_wait(*self._watching.values())
        for replica in self:
            await replica.close()
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _dismiss(self, replica: Replica, watching: asyncio.Task[None]) -> None:
        """Let a replica finish its requests, then forget it."""
        while replica.requests and not self.is_closed:
            changed = self._changed
            await changed.wait()
        await cancel_and_wait(watching)
        await replica.close()

    def announce_starting(self, starting: Sequence[ReplicaStatus]) -> None:
        """Show these replicas, which have no address yet."""
        self.starting = starting
        self._wake()

    def _wake(self) -> None:
        """Announce a change of the replicas."""
        if self._is_ready or self._was_ready:
            self._ready_at = time.monotonic()
        self._was_ready = self._is_ready
        self._changed.set()
        self._changed = asyncio.Event()

    def _add_place(self, status: ReplicaStatus) -> ReplicaStatus:
        name, node = self.places.get(status.address, ("", ""))
        return replace(status, name=name, node=node) if name else status

    def _make_error(self) -> NoReplicaError:
        known = "; ".join(f"{status.address or status.name}: {status.detail or status.state}" for status in self.statuses)
        message = f"No replica of {self.rules.model} takes requests ({known or 'there is none'}).{self.rules.advice}"
        return NoReplicaError(message, param="model", retry_after=5.0)
