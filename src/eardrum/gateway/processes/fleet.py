"""Replicas that Ray runs: decides how many each model needs, and follows them through a process that is joined to the cluster.

That process, `eardrum.fleet`, is started with the first model that needs it, and again when it dies: the replicas live on
meanwhile, and are found again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from eardrum.concurrency import cancel_and_wait
from eardrum.config import RaySettings, ReplicaSettings
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.child import READ_BYTES, ChildProcess
from eardrum.gateway.upstreams.replicas import ReplicaSet, ReplicaState, ReplicaStatus
from eardrum.transcription import ModelPlacement

log = logging.getLogger(__name__)

FLEET_MODULE = "eardrum.fleet"
"""The program that is joined to the cluster. It is started, never imported."""

SCALE_S = 1.0
"""Seconds between two decisions about the number of replicas."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Seconds before the process is started again after its end: each time twice as long."""

LONG_LIFE_S = 60.0
"""A process that lived for so long is started again with the first pause."""

STOP_S = 12.0
"""Longest wait for the end of the process after `stop`: it ends all replicas first."""

UNLOAD_S = 15.0
"""Longest wait for the end of the replicas of a model that is unloaded: they have no requests, but a node may hang."""

SILENCE_S = 30.0
"""A process that is joined and sends nothing for this long is killed: without it, replicas end with their lease."""


class ReplicaScaler:
    """Decides how many replicas a model needs: more at once, fewer once fewer have been enough for a while. Pure."""

    def __init__(self, settings: ReplicaSettings):
        self.settings = settings
        self._needs: deque[tuple[float, int]] = deque()
        """Times and needs of the last `scale_down_after` seconds, without those below a later one."""

    def decide(self, requests: int, now: float) -> int:
        """Return the number of replicas for so many requests in progress and waiting. `now` is in seconds and never goes back."""
        settings = self.settings
        need = self._limit(math.ceil(requests / settings.target_requests))
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))
        while self._needs[0][0] < now - settings.scale_down_after:
            self._needs.popleft()
        return self._limit(self._needs[0][1])

    def _limit(self, need: int) -> int:
        return min(self.settings.most, max(self.settings.fewest, 1, need))


class ReplicaMessage(Struct, frozen=True):
    """A change of a replica, as the process tells it."""

    name: str
    model: str
    state: str
    """"starting", "ready", "draining", "failed" or "gone"."""
    address: str
    node: str
    why: str

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Parse the message."""
        return cls(data["replica"], *(str(data.get(name, "")) for name in ("model", "state", "address", "node", "why")))


class FleetModel:
    """The replicas of one model on the cluster, from its load to its end."""

    pid: int | None = None
    placement = ModelPlacement()

    def __init__(self, model: Model, replicas: ReplicaSet, token: str, on_change: Callable[[], None]):
        assert model.entry
        self.id = model.id
        self.scaler = ReplicaScaler(model.entry.replicas)
        self.problem = ""
        """Why the cluster cannot be used now."""
        self._entry: dict[str, Any] = {
            **({"engine": model.entry.engine} if model.entry.engine else {}),  # else the node finds it, as this server did
            "source": model.entry.source or model.id,
            "options": model.options,
            **({"batch_size": model.batch_size} if model.batch_size else {}),
        }
        self._set = replicas
        self._token = token
        self._on_change = on_change
        self._known: dict[str, ReplicaMessage] = {}
        self._changed = asyncio.Event()
        self._count = self.scaler.decide(0, time.monotonic())
        self._scaling = asyncio.create_task(self._scale())
        self._show()

    @property
    def wanted(self) -> dict[str, Any]:
        """The model's part of the message about replicas that are wanted."""
        replicas = self.scaler.settings
        return {
            "count": self._count,
            "entry": self._entry,
            "python": replicas.python,
            "token": self._token,
            "resources": replicas.resources.model_dump(),
            "labels": replicas.labels,
        }

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """The state of each replica, with those that are starting."""
        return self._set.statuses

    def take_message(self, message: ReplicaMessage) -> None:
        """Take a change of one of its replicas."""
        before = self._known.get(message.name)
        if message.state == "gone":
            self._known.pop(message.name, None)
        else:
            if before and message.state == "starting" and not message.address:
                message = replace(message, address=before.address)  # it may still serve: the server asks it itself
            self._known[message.name] = message
        if message.why and message.why != (before.why if before else "") and message.state in ("starting", "failed", "gone"):
            log.warning("%s: the replica %s is %s: %s.", self.id, message.name, message.state, message.why.rstrip("."))
        self._show()

    def forget_others(self, names: Container[str]) -> None:
        """Forget the replicas that the cluster does not have any more."""
        self._known = {name: message for name, message in self._known.items() if name in names}
        self._show()

    def set_problem(self, problem: str) -> None:
        """Show why the cluster cannot be used; an empty text: it can be."""
        if problem != self.problem:
            self.problem = problem
            self._show()

    def end(self) -> None:
        """Want no replicas any more."""
        self._scaling.cancel()
        self._count = 0
        self._on_change()

    async def wait_gone(self) -> None:
        """Wait until all replicas have ended, unless the cluster cannot tell."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNLOAD_S):
                while self._known and not self.problem:
                    changed = self._changed
                    await changed.wait()

    async def _scale(self) -> None:
        while True:
            await asyncio.sleep(SCALE_S)
            count = self.scaler.decide(self._set.requests, time.monotonic())
            if count != self._count:
                log.info("%s: %d replicas for %d requests, instead of %d.", self.id, count, self._set.requests, self._count)
                self._count = count
                self._on_change()
                self._show()

    def _show(self) -> None:
        """Give the addresses to the set that sends requests, and show the replicas without one."""
        self._changed.set()
        self._changed = asyncio.Event()
        if self._set.is_closed:
            return
        known = sorted(self._known.values(), key=lambda message: int(message.name.rpartition("/")[2]))
        serving = [message for message in known if message.address and message.state != "draining"]
        starting = [
            ReplicaStatus("", ReplicaState(message.state), message.why, 0, 0, name=message.name, node=message.node)
            for message in known
            if message not in serving
        ]
        waiting = [
            ReplicaStatus("", ReplicaState.STARTING, self.problem or "the cluster is being joined", 0, 0, name=f"{self.id}/?")
            for _ in range(self._count - len(known))
        ]
        self._set.places = {message.address: (message.name, message.node) for message in known}
        addresses = list(dict.fromkeys(message.address for message in serving))
        if addresses != [replica.address for replica in self._set]:
            self._set.set_addresses(addresses, self._token)
        self._set.announce_starting([*starting, *waiting])


class FleetProcess(ChildProcess):
    """The process that is joined to the cluster. It ends with its stdin, so also when this server is killed."""

    logs_stdout = False

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, unless the process is ending."""
        assert self._child.stdin
        if not (self.exited.done() or self._child.stdin.is_closing()):
            self._child.stdin.write(json.dumps(message).encode() + b"\n")

    async def read_message(self) -> dict[str, Any] | None:
        """Read the next message; None at the end."""
        assert self._child.stdout
        line = await self._child.stdout.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        return message


class Fleet:
    """All models with replicas on the cluster, and the process that is joined to it."""

    def __init__(self, settings: RaySettings):
        self._settings = settings
        self._models: dict[str, FleetModel] = {}
        self._token = secrets.token_hex(32)
        """The token of runners whose model has none in the config."""
        self._process: FleetProcess | None = None
        self._is_joined = False
        self._found: set[str] = set()
        """Replicas that the process has told of."""
        self._running: asyncio.Task[None] | None = None

    def add_model(self, model: Model, replicas: ReplicaSet) -> FleetModel:
        """Have replicas of a model, whose addresses go to `replicas`."""
        assert model.entry
        added = FleetModel(model, replicas, model.entry.replicas.token or self._token, self._send_wanted)
        self._models[model.id] = added
        self._running = self._running or asyncio.create_task(self._run())
        self._send_wanted()
        return added

    def find_model(self, id: str) -> FleetModel | None:
        """Find a model that has replicas, or waits for them."""
        return self._models.get(id)

    async def remove_model(self, model: FleetModel) -> None:
        """End the replicas of a model, and wait until they have ended."""
        model.end()
        try:
            await model.wait_gone()
        finally:
            self.drop_model(model)

    def drop_model(self, model: FleetModel) -> None:
        """End the replicas of a model without waiting."""
        model.end()
        if self._models.get(model.id) is model:
            del self._models[model.id]

    async def shutdown(self) -> None:
        """End all replicas at once, then the process."""
        if not self._running:
            return
        was_joined = self._is_joined
        await cancel_and_wait(self._running)
        if process := self._process:
            process.send({"stop": True})
            if not await process.ends_within(STOP_S if was_joined else 0.0):
                await process.stop()

    def _send_wanted(self) -> None:
        if self._process and self._is_joined:
            self._process.send({"wanted": {id: model.wanted for id, model in self._models.items()}})

    async def _run(self) -> None:
        """Keep the process running."""
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                why = await self._run_once()
            except TimeoutError:
                why = f"sent nothing for {SILENCE_S:g} s and was killed."
            except (OSError, ValueError) as error:
                why = f"could not be started, or sent an invalid message: {error}."
            pause = FIRST_PAUSE_S if time.monotonic() - began > LONG_LIFE_S else pause
            log.warning("The process that runs replicas on Ray %s It is started again in %g s.", why, pause)
            self._set_problem(
                f"the cluster at {self._settings.address} is not joined: the process that runs replicas {why}".rstrip(".")
            )
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)

    async def _run_once(self) -> str:
        """Run the process until its end; returns how it ended, as a clause."""
        settings = self._settings
        arguments = ["--address", settings.address, "--namespace", settings.namespace, "--lease", f"{settings.lease:g}"]
        self._process = process = await FleetProcess.spawn("ray", [sys.executable, "-m", FLEET_MODULE, *arguments], {})
        failure = ""
        self._found.clear()
        try:
            while message := await asyncio.wait_for(process.read_message(), SILENCE_S if self._is_joined else None):
                failure = self._take_message(message) or failure
            await asyncio.shield(process.ended)
        except (TimeoutError, ValueError):
            await process.kill()
            raise
        finally:
            self._is_joined = False
        return f"could not join: {failure}" if failure else f"{process.exit_description}. {process.last_line[:READ_BYTES]}."

    def _take_message(self, message: dict[str, Any]) -> str:
        """Take a message of the process; returns why it cannot join, if it says so."""
        if "replica" in message:
            change = ReplicaMessage.parse(message)
            self._found.add(change.name)
            if model := self._models.get(change.model):
                model.take_message(change)
        elif "joined" in message:
            log.info("Joined the Ray cluster at %s.", self._settings.address)
            self._is_joined = True
            self._set_problem("")
            for model in self._models.values():
                model.forget_others(self._found)
            self._send_wanted()
        return str(message["failed"]["message"]) if "failed" in message else ""

    def _set_problem(self, problem: str) -> None:
        for model in self._models.values():
            model.set_problem(problem)
