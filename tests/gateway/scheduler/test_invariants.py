"""Any sequence of events that a supervisor could report, under any rules, breaks no promise."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eardrum.config.matrix import AndExpression, ModelReference, OrExpression
from eardrum.gateway.scheduler import (
    ConfigChanged,
    ModelState,
    RequestActive,
    RequestFinished,
    RequestIdle,
    Scheduler,
    ShutdownRequested,
    TimerFired,
    UnloadRequested,
)
from eardrum.gateway.scheduler.policies import (
    CombinedPolicy,
    EvictionPolicy,
    GroupPolicy,
    MatrixPolicy,
    MemoryPolicy,
    ModelGroup,
    NoEviction,
)
from tests.gateway.scheduler.simulated_world import SimulatedRequest, SimulatedWorld
from tests.generated_cases import count_cases

MODELS = "abcde"

groups = st.lists(
    st.tuples(st.sets(st.sampled_from(MODELS), min_size=1), st.booleans(), st.booleans(), st.booleans()), max_size=3
)
expressions = st.recursive(
    st.sampled_from(MODELS).map(ModelReference),
    lambda inner: st.one_of(
        *(st.lists(inner, min_size=1, max_size=3).map(tuple).map(kind) for kind in (AndExpression, OrExpression))
    ),
    max_leaves=5,
)
matrices = st.builds(
    MatrixPolicy,
    st.lists(expressions, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(MODELS), st.integers(1, 5)),
    st.frozensets(st.sampled_from(MODELS)),
)
pools = st.dictionaries(
    st.sampled_from(MODELS), st.dictionaries(st.sampled_from(["cpu", "cuda"]), st.integers(1, 9)), min_size=2
).map(lambda needs: MemoryPolicy({"cpu": 10, "cuda": 8}, needs))


def remove_overlaps(drawn: list[tuple[set[str], bool, bool, bool]]) -> GroupPolicy:
    """A model is in one group at most; the config says so too."""
    seen: set[str] = set()
    found = []
    for members, *how in drawn:
        found.append(ModelGroup(frozenset(members - seen), *how))
        seen |= members
    return GroupPolicy(tuple(found))


any_rules: st.SearchStrategy[EvictionPolicy] = st.one_of(
    st.just(NoEviction()),
    groups.map(remove_overlaps),
    matrices,
    pools,
    st.tuples(groups.map(remove_overlaps), pools).map(CombinedPolicy),
)


class SchedulerStateMachine(RuleBasedStateMachine):
    """The test is the supervisor, the processes, the clients and the clock."""

    models = st.sampled_from(MODELS)

    @initialize(rules=any_rules, patience=st.sampled_from([0.0, 5.0, 10.0]))
    def start_scheduler(self, rules: EvictionPolicy, patience: float) -> None:
        self.world = SimulatedWorld(rules, patience)
        self.patience = patience

    @property
    def scheduler(self) -> Scheduler:
        return self.world.scheduler

    @rule(
        model=models,
        limit=st.integers(1, 4),
        concurrency_limit=st.sampled_from([None, None, 3]),
        ttl=st.sampled_from([0.0, 10.0]),
        max_concurrency=st.sampled_from([None, 1, 2]),
        priority=st.integers(0, 2),
    )
    def ask_for_model(self, model: str, limit: int, **terms: Any) -> None:
        working = len(self.world.list_working(model))
        request = self.world.send_request(model, limit=limit, **terms)
        assert len(self.world.list_waiting(model)) + len(self.world.list_granted(model)) <= 4
        if request.granted is not None and terms["max_concurrency"]:
            assert working < terms["max_concurrency"]

    def draw_request(self, data: st.DataObject, requests: list[SimulatedRequest]) -> SimulatedRequest | None:
        return data.draw(st.sampled_from(requests)) if requests else None

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if request := self.draw_request(data, self.world.list_waiting()):
            self.world.hang_up(request)

    @rule(data=st.data())
    def finish_request(self, data: st.DataObject) -> None:
        if request := self.draw_request(data, self.world.list_granted()):
            self.world.finish_request(request)

    @rule(data=st.data())
    def toggle_activity(self, data: st.DataObject) -> None:
        if request := self.draw_request(data, self.world.list_granted()):
            request.resting = not request.resting
            kind = RequestIdle if request.resting else RequestActive
            self.world.send_event(kind(request.model, request.ticket))

    @rule(model=models, works=st.booleans())
    def end_start(self, model: str, works: bool) -> None:
        if works:
            self.world.report_start(model)
        else:
            self.world.fail_start(model)

    @rule(model=models)
    def end_process(self, model: str) -> None:
        if self.world.processes.get(model) in ("up", "stopping"):
            self.world.end_process(model)

    @rule(seconds=st.floats(0, 100))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.send_event(TimerFired())
        assert self.scheduler.next_deadline is None or self.scheduler.next_deadline > self.world.now, (
            "a tick settles what was due"
        )

    @rule(model=models, force=st.booleans())
    def unload_model(self, model: str, force: bool) -> None:
        self.world.unload_model(model, force=force)
        if force or not (self.world.list_waiting(model) or self.world.list_working(model)):
            assert self.world.processes.get(model) in (None, "stopping")

    @rule()
    def reload_same_config(self) -> None:
        before = repr(self.scheduler.models)
        self.world.send_event(ConfigChanged(self.world.rules, self.patience))
        assert repr(self.scheduler.models) == before, "a config that is the same changes nothing"

    @rule(rules=any_rules, changed=st.frozensets(models, max_size=2), removed=st.frozensets(models, max_size=1))
    def reload_other_config(self, rules: EvictionPolicy, changed: frozenset[str], removed: frozenset[str]) -> None:
        serving = {slot.model for slot in self.scheduler.models.values() if slot.is_serving and not slot.unloading}
        unchanged = serving - changed - removed
        self.world.rules = rules
        self.world.send_event(ConfigChanged(rules, self.patience, changed, removed))
        assert not any(self.world.list_waiting(model) for model in removed)
        if rules.allows(self.world.processes) and not self.world.list_waiting():
            assert all(self.scheduler.models[model].state is ModelState.READY for model in unchanged)

    @rule(sure=st.integers(0, 19))
    def shut_down(self, sure: int) -> None:
        if sure == 0:
            self.world.down = True
            self.world.send_event(ShutdownRequested())
            assert set(self.world.processes.values()) <= {"stopping"}
            assert not self.world.list_waiting()

    @invariant()
    def check_policy_holds(self) -> None:
        slots = self.scheduler.models.values()
        assert self.world.rules.allows(
            [s.model for s in slots if s.has_process and not s.unloading and s.state is not ModelState.STOPPING]
        )

    @invariant()
    def check_bookkeeping(self) -> None:
        for model, slot in self.scheduler.models.items():
            assert set(slot.waiting) == {r.ticket for r in self.world.list_waiting(model)}
            assert slot.active == {r.ticket for r in self.world.list_granted(model)}
            assert slot.has_process == (model in self.world.processes)

    @invariant()
    def check_progress(self) -> None:
        """There is always something under way whose end lets the next one in."""
        if self.world.list_waiting():
            moving = set(self.world.processes.values()) & {"starting", "stopping"}
            assert moving or any(self.world.list_working(model) for model in MODELS)

    def teardown(self) -> None:
        """From here on everything works, nobody new comes: so everybody is answered, and one after the other all ends."""
        if not hasattr(self, "world"):
            return
        for _ in range(200):
            for model, state in list(self.world.processes.items()):
                if state == "starting":
                    self.world.report_start(model)
                elif state == "stopping":
                    self.world.end_process(model)
            for request in self.world.list_granted():
                self.world.finish_request(request)
            self.world.now += 1.0
            self.world.send_event(TimerFired())
        assert not self.world.list_waiting(), "forgotten"
        for model in MODELS:
            self.world.send_event(UnloadRequested(model))
            self.world.send_event(RequestFinished(model, -1))
        assert set(self.world.processes.values()) <= {"stopping"}


TestLife = SchedulerStateMachine.TestCase
TestLife.settings = settings(max_examples=count_cases(150), stateful_step_count=50, deadline=None)
