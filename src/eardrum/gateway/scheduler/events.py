"""The scheduler's model states, events and actions. A ticket stands for one request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from eardrum.config import SchedulingSettings
from eardrum.errors import EardrumError
from eardrum.gateway.scheduler.policies import EvictionPolicy


class ModelState(StrEnum):
    """States of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class UnloadReason(StrEnum):
    """Why a model goes, or has gone."""

    TTL = "ttl"
    POOL = "pool"
    GROUP = "group"
    MATRIX = "matrix"
    HAND = "hand"
    FORCE = "force"
    RELOAD = "reload"
    SHUTDOWN = "shutdown"
    CRASH = "crash"
    FAILED = "failed"
    """It could not be started."""


@dataclass(frozen=True, slots=True)
class UnloadCause:
    """A model's way out."""

    reason: UnloadReason
    other: str = ""
    """The model that it makes room for, if it does."""

    def __str__(self) -> str:
        """In words, for the log and for people."""
        return f"{REASON_TEXTS[self.reason]} {self.other} ({self.reason})" if self.other else REASON_TEXTS[self.reason]


REASON_TEXTS = {
    UnloadReason.TTL: "nobody asked for it for the length of its ttl",
    **dict.fromkeys((UnloadReason.POOL, UnloadReason.GROUP, UnloadReason.MATRIX), "it made room for"),
    UnloadReason.HAND: "somebody unloaded it",
    UnloadReason.FORCE: "somebody unloaded it by force",
    UnloadReason.RELOAD: "the config was read again, and has another one for it, none, or no room",
    UnloadReason.SHUTDOWN: "the server ends",
    UnloadReason.CRASH: "its process ended by itself",
    UnloadReason.FAILED: "it could not be started",
}


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request needs the model. The model's settings come with every request, so that they are never out of date.

    A preload is a request as others: it is `Done` as soon as it is granted.
    """

    model: str
    ticket: int
    settings: SchedulingSettings


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A granted request is over."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """A request gave up before it was granted."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class RequestIdle:
    """A granted request, such as a WebSocket, has been silent for a while: it does not hold its model until it resumes."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class RequestActive:
    """A resting request is at work again."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model's process serves."""

    model: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The model's process did not become ready."""

    model: str
    error: EardrumError


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """A process is gone that had been ready, or whose start was broken off; asked to or not."""

    model: str


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """Somebody wants the model's memory back: when it has finished what it has begun, or, with `force`, at once."""

    model: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The model's settings are others from now on."""

    model: str
    settings: SchedulingSettings


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The config is another one.

    Models of `changed` are stopped when they have finished what they have begun, and who waits for them gets their next
    life; those of `removed` are stopped too, and nobody waits for them any more. All others serve on, unless the new
    rules forbid what is loaded: then the least recently used go.
    """

    policy: EvictionPolicy
    patience: float
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """More is known of what models need. It counts from the next load on."""

    policy: EvictionPolicy


@dataclass(frozen=True, slots=True)
class TimerFired:
    """Time has passed: `due` was reached."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """The server goes down: stop everything, start nothing."""


SchedulerEvent = (
    RequestArrived
    | RequestFinished
    | RequestCancelled
    | RequestIdle
    | RequestActive
    | ModelReady
    | StartFailed
    | ProcessExited
    | UnloadRequested
    | SettingsChanged
    | ConfigChanged
    | PolicyChanged
    | TimerFired
    | ShutdownRequested
)


@dataclass(frozen=True, slots=True)
class StartModel:
    """Start the model's process."""

    model: str


@dataclass(frozen=True, slots=True)
class StopModel:
    """Stop the model's process, also in the middle of its start."""

    model: str


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """The ticket's request may use the model."""

    ticket: int


@dataclass(frozen=True, slots=True)
class RejectRequest:
    """The ticket's request ends with this error."""

    ticket: int
    error: EardrumError


SchedulerAction = StartModel | StopModel | GrantRequest | RejectRequest
