"""Random histories of a store: owners that die, are paused and come back, jobs that are cancelled and expire.

No item has two owners of one epoch, nothing of an old epoch is written, each window is there once, and all items reach one end.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule, run_state_machine_as_test

from eardrum.jobs.database import SqliteDatabase
from eardrum.jobs.records import (
    FINAL_STATUSES,
    OPEN_STATUSES,
    AudioReference,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
    NewItem,
    WindowRow,
)
from eardrum.jobs.store import JobStore, LeaseLostError
from eardrum.transcription import WindowCheckpoint
from tests.jobs.databases import create_postgres_store

LEASE_S = 30.0
ENDING = (JobStatus.IN_PROGRESS, JobStatus.FINALIZING, JobStatus.CANCELLING)


class StoreMachine(RuleBasedStateMachine):
    """A store, and what must be in it by the accepted writes."""

    claims: Bundle[ItemRecord] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.run(self.open_store())
        self.now = 1.0
        self.jobs: list[str] = []
        self.epochs: set[tuple[str, int, int]] = set()
        self.windows: dict[tuple[str, int], list[str]] = {}
        self.ends: dict[tuple[str, int], ItemStatus] = {}
        self.last_epoch: dict[tuple[str, int], int] = {}

    async def open_store(self) -> JobStore:
        store = JobStore(SqliteDatabase(Path(self.folder.name) / "jobs.sqlite"))
        await store.open()
        return store

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.run(self.drain())
        finally:
            self.run(self.store.close())
            self.runner.close()
            self.folder.cleanup()

    async def drain(self) -> None:
        """Let one good owner do all that is left: then every job and every item has ended."""
        for _ in range(500):
            self.now += LEASE_S + 1
            await self.store.requeue_lost_items(self.now)
            while item := await self.store.claim_item("good", self.now, LEASE_S, model="tiny"):
                await self.store.finish_item(item, ItemStatus.DONE, {})
                self.ends[item.name] = ItemStatus.DONE
            while job := await self.store.claim_job(ENDING, self.now, LEASE_S):
                await self.store.finish_job(job, JobStatus(job.outcome or JobStatus.COMPLETED), self.now)
            if all([(await self.store.get_job(id)).has_ended for id in self.jobs]):
                break
        for id in self.jobs:
            job = await self.store.get_job(id)
            assert job
            assert job.status in FINAL_STATUSES
            assert job.open_items == 0
            items = await self.store.list_items(id)
            assert all(item.status not in OPEN_STATUSES for item in items)
            counts = [sum(item.status is status for item in items) for status in (ItemStatus.DONE, ItemStatus.FAILED)]
            assert [job.completed, job.failed] == counts
            for item in items:
                if item.name in self.ends:
                    assert item.status is self.ends[item.name], "an end is an end"

    @initialize()
    def begin(self) -> None:
        self.add_job(items=2, deadline=None, owner="ann")

    @rule(items=st.integers(1, 3), deadline=st.sampled_from([None, 40.0]), owner=st.sampled_from(["ann", "ben"]))
    def add_job(self, items: int, deadline: float | None, owner: str) -> None:
        async def add() -> None:
            id = f"j{len(self.jobs)}"
            self.jobs.append(id)
            due = self.now + deadline if deadline else None
            await self.store.add_job(JobRecord(id, JobKind.BATCH, owner, "/e", self.now, deadline=due))
            job = await self.store.claim_job((JobStatus.VALIDATING,), self.now, LEASE_S)
            assert job
            made = [NewItem(str(n), "tiny", AudioReference(f"f{id}{n}"), {"task": "transcribe"}) for n in range(items)]
            await self.store.add_items(job, 0, made, self.now, LEASE_S)
            await self.store.start_job(job, self.now)

        self.run(add())

    @rule(target=claims, worker=st.sampled_from("abc"))
    def claim(self, worker: str) -> Any:
        item = self.run(self.store.claim_item(worker, self.now, LEASE_S, model="tiny"))
        if not item:
            return multiple()
        assert (*item.name, item.epoch) not in self.epochs, "two owners of one epoch"
        assert item.epoch > self.last_epoch.get(item.name, 0)
        assert item.windows == len(self.windows.get(item.name, []))
        self.epochs.add((*item.name, item.epoch))
        self.last_epoch[item.name] = item.epoch
        return item

    def is_current(self, item: ItemRecord) -> bool:
        async def look() -> bool:
            found = await self.store.get_item(item.job, item.n)
            assert found
            return found.status is ItemStatus.RUNNING and found.epoch == item.epoch

        return bool(self.run(look()))

    def write(self, item: ItemRecord, work: Coroutine[Any, Any, None]) -> bool:
        """Write; returns whether it was accepted, which it must be from the current owner and from nobody else."""
        current = self.is_current(item)
        try:
            self.run(work)
        except LeaseLostError:
            assert not current, "the owner of an item was refused"
            return False
        assert current, "a write of an old epoch"
        return True

    @rule(item=claims, count=st.integers(1, 3))
    def save(self, item: ItemRecord, count: int) -> None:
        first = item.windows
        texts = [f"{item.job}.{item.n}.{first + n}@{item.epoch}" for n in range(count)]
        rows = [WindowRow([{"text": text}]) for text in texts]
        if self.write(item, self.store.save_windows(item, rows, WindowCheckpoint(first + count, 1.0), self.now, LEASE_S)):
            self.windows.setdefault(item.name, []).extend(texts)

    @rule(item=claims, status=st.sampled_from([ItemStatus.DONE, ItemStatus.FAILED]))
    def finish(self, item: ItemRecord, status: ItemStatus) -> None:
        if self.write(item, self.store.finish_item(item, status, {})):
            assert item.name not in self.ends
            self.ends[item.name] = status

    @rule(item=claims, counts=st.booleans(), wait=st.sampled_from([0.0, 20.0]))
    def release(self, item: ItemRecord, counts: bool, wait: float) -> None:
        self.write(item, self.store.release_item(item, counts=counts, not_before=self.now + wait))

    @rule(item=claims)
    def restart(self, item: ItemRecord) -> None:
        if self.write(item, self.store.restart_item(item)):
            self.windows[item.name] = []

    @rule(seconds=st.sampled_from([1.0, 15.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run(self.store.requeue_lost_items(self.now))
        self.run(self.store.expire_jobs(self.now))

    @rule(worker=st.sampled_from("abc"), items=st.lists(claims, max_size=3))
    def renew(self, worker: str, items: list[ItemRecord]) -> None:
        self.run(self.store.renew_leases(worker, [item.name for item in items], self.now, LEASE_S))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.run(self.store.cancel_job(data.draw(st.sampled_from(self.jobs)), self.now))

    @rule()
    def end_job(self) -> None:
        async def end() -> None:
            if job := await self.store.claim_job(ENDING, self.now, LEASE_S):
                await self.store.finish_job(job, JobStatus(job.outcome or JobStatus.COMPLETED), self.now)

        self.run(end())

    @rule()
    def restart_server(self) -> None:
        self.run(self.store.end_leases())
        self.run(self.store.requeue_lost_items(self.now))

    @invariant()
    def windows_are_those_that_were_accepted(self) -> None:
        async def look() -> None:
            for (job, n), texts in self.windows.items():
                rows = await self.store.list_windows(job, n)
                assert [(number, row.segments[0]["text"]) for number, row in rows] == list(enumerate(texts))

        self.run(look())

    @invariant()
    def counts_are_true(self) -> None:
        async def look() -> None:
            for id in self.jobs:
                job, items = await self.store.get_job(id), await self.store.list_items(id)
                assert job
                assert job.open_items == sum(item.status in OPEN_STATUSES for item in items)

        self.run(look())


class PostgresMachine(StoreMachine):
    """The same on Postgres."""

    async def open_store(self) -> JobStore:
        return await create_postgres_store()


def run_machine(machine: type[StoreMachine], examples: int, steps: int) -> None:
    bounds = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=bounds)


def test_random_histories_keep_the_rules() -> None:
    run_machine(StoreMachine, 4, 15)


@pytest.mark.slow
@pytest.mark.endurance
def test_many_random_histories_keep_the_rules() -> None:
    run_machine(StoreMachine, 200, 50)


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.usefixtures("postgres")
def test_random_histories_keep_the_rules_on_postgres() -> None:
    run_machine(PostgresMachine, 40, 40)
