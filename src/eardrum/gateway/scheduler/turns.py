"""Whose turn it is: which models may start now, and who has to make room for them.

The models that are down and waited for stand in one queue. The first starts as soon as those whom the rules evict for it
are gone. They go when they have nothing to do, or once somebody has waited `patience` seconds: from then on they serve only
who came before that one. Models that exclude nobody ahead of them pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from eardrum.gateway.rules import CLAIMED, Rules, blamed
from eardrum.gateway.scheduler.events import Going, Reason, State
from eardrum.gateway.scheduler.slots import Slot

STARVED = 2
"""Who has waited so many times the patience goes before everybody who came later, whatever their priority."""


@dataclass(slots=True)
class Turns:
    """What is to be done now."""

    start: list[Slot] = field(default_factory=list)
    stop: dict[str, Slot] = field(default_factory=dict)
    """Loaded for nobody, in the way of somebody."""
    barriers: dict[str, int] = field(default_factory=dict)
    """Models that drain for others, and before which arrival one must have come to be served by them still."""
    going: dict[str, Going] = field(default_factory=dict)
    """Of all these, why."""


def turns(slots: Mapping[str, Slot], rules: Rules, patience: float, now: float) -> Turns:
    """Decide for everybody who waits."""
    decided = Turns()
    loaded = {slot.model: slot.used(now) for slot in slots.values() if slot.up}
    claims: dict[str, float] = {}
    for slot in _queue(slots.values(), patience, now):
        evicted = blamed(rules, slot.model, loaded | claims)
        blocked = not evicted.keys().isdisjoint(claims) or _excluded(slot.model, rules, loaded, claims)
        if not blocked and not evicted:
            decided.start.append(slot)
            loaded[slot.model] = now
            continue
        claims[slot.model] = CLAIMED
        if not blocked:
            overdue = slot.head.since + patience <= now
            going = {model: Going(Reason(kind), slot.model) for model, kind in evicted.items()}
            _make_room(decided, slot.head.order, [slots[model] for model in evicted], going, overdue=overdue)
    return decided


def deadlines(slot: Slot, patience: float) -> list[float]:
    """When the passing of time alone changes whose turn it is, as far as those are concerned who wait for this model."""
    return [slot.head.since + times * patience for times in (1, STARVED)] if slot.waiting and not slot.up else []


def _queue(slots: Iterable[Slot], patience: float, now: float) -> list[Slot]:
    """By priority, then arrival; but first those who would starve."""

    def place(slot: Slot) -> tuple[int, int, int]:
        starved = slot.head.since + STARVED * patience <= now
        return (0, 0, slot.head.order) if starved else (1, -slot.priority, slot.head.order)

    return sorted((slot for slot in slots if slot.waiting and not slot.up), key=place)


def _excluded(model: str, rules: Rules, loaded: Mapping[str, float], claims: Mapping[str, float]) -> bool:
    """Whether it would have to go again for somebody ahead: to start it would be for nothing."""
    for ahead in claims:
        others = {other: used for other, used in {**loaded, **claims, model: CLAIMED}.items() if other != ahead}
        if model in rules.evicted(ahead, others):
            return True
    return False


def _make_room(decided: Turns, order: int, evicted: list[Slot], going: Mapping[str, Going], *, overdue: bool) -> None:
    if not overdue and not all(_free(slot) for slot in evicted):
        return  # to stop one while another serves on would help nobody
    for slot in evicted:
        decided.going.setdefault(slot.model, going[slot.model])
        if slot.state is State.STARTING and not slot.waiting:
            decided.stop[slot.model] = slot
        elif slot.serves and not slot.unloading:
            barrier = max(order, slot.turn)
            decided.barriers[slot.model] = min(barrier, decided.barriers.get(slot.model, barrier))


def _free(slot: Slot) -> bool:
    """Whether it makes room without anybody having to wait for their next turn."""
    if slot.state is State.STOPPING or slot.unloading:
        return True
    return not slot.waiting and (slot.state is State.STARTING or not slot.working)
