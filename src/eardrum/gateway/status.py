"""What the models' processes are doing."""

from __future__ import annotations

from dataclasses import dataclass, field

from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import Going, State
from eardrum.gateway.supervisor import Supervisor
from eardrum.types import Placement


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A model's process as it is now."""

    model: Model
    state: State
    requests: int
    pid: int | None
    """None if it is another server's."""
    loaded_at: float
    """Unix time."""
    default: bool
    ttl: float
    """Seconds without a request after which it is unloaded, by what its last request said; 0 is never."""
    ttl_remaining: float | None
    """Seconds until it is unloaded if nobody comes; None while it is at work, or if it stays."""
    going: Going | None = None
    """Why it is on its way out, if it is."""
    placement: Placement = field(default_factory=Placement)


def status_of(model: Model, supervisor: Supervisor, catalog: Catalog) -> ProcessStatus | None:
    """The model's process; None if it does not serve."""
    if not (running := supervisor.running(model)):
        return None
    idle, ttl = supervisor.idle_for(model), supervisor.ttl(model)
    return ProcessStatus(
        model=model,
        state=supervisor.state(model),
        requests=supervisor.load(model),
        pid=running.pid,
        loaded_at=running.since,
        placement=running.life.placement,
        default=model.id == catalog.default.id,
        ttl=ttl,
        ttl_remaining=max(0.0, ttl - idle) if ttl and idle is not None else None,
        going=supervisor.going(model),
    )
