"""A world for the scheduler to act on: processes that take their time to start, serve and stop, and clients that wait.

It carries out what the scheduler decides, tells it what became of it, and objects to what must never happen.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eardrum.config import SchedulingSettings
from eardrum.errors import EardrumError, ModelLoadError
from eardrum.gateway.scheduler import (
    GrantRequest,
    ModelReady,
    ProcessExited,
    RejectRequest,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    Scheduler,
    SchedulerEvent,
    StartFailed,
    StartModel,
    StopModel,
    TimerFired,
    UnloadRequested,
)
from eardrum.gateway.scheduler.policies import EvictionPolicy

BROKEN = ModelLoadError("It lacks a file.")


@dataclass
class SimulatedRequest:
    """One client."""

    model: str
    ticket: int
    serve_s: float
    asked: float
    granted: float | None = None
    left: float | None = None
    resting: bool = False
    outcome: str | EardrumError = ""
    """"served", "left", or the error."""


class SimulatedWorld:
    """Owns the time. `at` plans something, `run` lets it happen."""

    def __init__(self, rules: EvictionPolicy, patience: float = 10.0):
        self.rules = rules
        self.scheduler = Scheduler(rules, patience)
        self.now = 0.0
        self.processes: dict[str, str] = {}
        """ "starting", "up" or "stopping"."""
        self.requests: dict[int, SimulatedRequest] = {}
        self.starts: list[str] = []
        self.load_s: Callable[[str], float | None] = lambda _: None
        """None leaves the end of a start to the test; as does None for a stop."""
        self.stop_s: Callable[[str], float | None] = lambda _: None
        self.down = False
        self.forced: set[str] = set()
        self._plan: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count(1)
        self._timer = 0

    # Clients.

    def send_request(self, model: str, serve_s: float = float("inf"), limit: int = 10**6, **settings: Any) -> SimulatedRequest:
        request = SimulatedRequest(model, next(self._ids), serve_s, self.now)
        self.requests[request.ticket] = request
        self.send_event(RequestArrived(model, request.ticket, SchedulingSettings(max_requests=limit, **settings)))
        return request

    def hang_up(self, request: SimulatedRequest) -> None:
        """The client hangs up while it waits."""
        assert not request.outcome
        assert request.granted is None
        request.outcome, request.left = "left", self.now
        self.send_event(RequestCancelled(request.model, request.ticket))
        self.send_event(RequestFinished(request.model, request.ticket))

    def finish_request(self, request: SimulatedRequest) -> None:
        if not request.outcome:
            request.outcome = "served"
            self.send_event(RequestFinished(request.model, request.ticket))

    def list_waiting(self, model: str | None = None) -> list[SimulatedRequest]:
        return [r for r in self._list_open(model) if r.granted is None]

    def list_granted(self, model: str | None = None) -> list[SimulatedRequest]:
        return [r for r in self._list_open(model) if r.granted is not None]

    def list_working(self, model: str) -> list[SimulatedRequest]:
        return [r for r in self.list_granted(model) if not r.resting]

    def _list_open(self, model: str | None) -> list[SimulatedRequest]:
        return [r for r in self.requests.values() if not r.outcome and model in (None, r.model)]

    # Processes.

    def report_start(self, model: str) -> None:
        if self.processes.get(model) == "starting":
            self.processes[model] = "up"
            self.send_event(ModelReady(model))

    def fail_start(self, model: str) -> None:
        if self.processes.get(model) == "starting":
            del self.processes[model]
            self.send_event(StartFailed(model, BROKEN))

    def end_process(self, model: str) -> None:
        """It stops, having been told to or not; requests it worked on notice soon."""
        del self.processes[model]
        self.forced.discard(model)
        self.send_event(ProcessExited(model))

    # Time.

    def schedule(self, moment: float, happening: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (moment, next(self._ids), happening))

    def run_until(self, until: float = float("inf")) -> None:
        """Let happen what is planned."""
        while self._plan and self._plan[0][0] <= until:
            moment, _, happening = heapq.heappop(self._plan)
            self.now = max(self.now, moment)
            happening()
        self.now = until if until < float("inf") else self.now

    # The scheduler.

    def unload_model(self, model: str, *, force: bool = False) -> None:
        if force:
            self.forced.add(model)
        self.send_event(UnloadRequested(model, force))

    def send_event(self, event: SchedulerEvent) -> None:
        for action in self.scheduler.handle_event(event, self.now):
            match action:
                case StartModel(model):
                    self._start(model)
                case StopModel(model):
                    self._stop(model)
                case GrantRequest(ticket):
                    self._grant(self.requests[ticket])
                case RejectRequest(ticket, error):
                    assert not self.requests[ticket].outcome, "answered twice"
                    assert self.requests[ticket].granted is None, "rejected what was granted"
                    self.requests[ticket].outcome = error
        self._set_timer()

    def _start(self, model: str) -> None:
        assert model not in self.processes, "started twice"
        assert not self.down, "started on the way down"
        assert not self.rules.find_evictions(model, dict.fromkeys(self.processes, 0.0)), (
            f"{model} started beside {self.processes}"
        )
        self.processes[model] = "starting"
        self.starts.append(model)
        if (seconds := self.load_s(model)) is not None:
            self.schedule(self.now + seconds, lambda: self.report_start(model))

    def _stop(self, model: str) -> None:
        assert self.processes[model] in ("starting", "up"), "stopped twice"
        at_work = self.processes[model] == "up" and self.list_working(model)  # what died with an earlier process is no work
        assert self.down or model in self.forced or not at_work, "signalled at work"
        self.processes[model] = "stopping"
        if (seconds := self.stop_s(model)) is not None:
            self.schedule(self.now + seconds, lambda: self.end_process(model))

    def _grant(self, request: SimulatedRequest) -> None:
        assert self.processes[request.model] == "up", "granted what is not up"
        assert not request.outcome, "granted after its end"
        assert request.granted is None, "granted twice"
        request.granted = self.now
        if request.serve_s < float("inf"):
            self.schedule(self.now + request.serve_s, lambda: self.finish_request(request))

    def _set_timer(self) -> None:
        due = self.scheduler.next_deadline
        self._timer = timer = self._timer + 1
        if due is not None:
            self.schedule(due, lambda: self.send_event(TimerFired()) if self._timer == timer else None)
