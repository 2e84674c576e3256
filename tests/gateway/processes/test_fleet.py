"""The number of replicas on a Ray cluster, and the lines of JSON with the process that runs them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eardrum.config import ModelSettings, RaySettings, ReplicaSettings
from eardrum.errors import NoReplicaError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes import fleet as module
from eardrum.gateway.processes.fleet import Fleet, FleetModel, ReplicaScaler
from eardrum.gateway.upstreams.replicas import ReplicaRules, ReplicaSet
from eardrum.transcription import Capabilities
from tests.gateway.upstreams.test_replicas import FakeRunner, wait_until

TOKEN = "0123456789abcdef0123"


def build_scaler(**settings: Any) -> ReplicaScaler:
    return ReplicaScaler(ReplicaSettings(**{"min": 1, "max": 5, "target_requests": 4, "scale_down_after": 60, **settings}))


@pytest.mark.parametrize(("requests", "count"), [(0, 1), (4, 1), (5, 2), (8, 2), (17, 5), (1000, 5)])
def test_replicas_for_a_number_of_requests(requests: int, count: int) -> None:
    assert build_scaler().decide(requests, 0.0) == count


def test_a_loaded_model_has_a_replica_even_if_it_may_have_none() -> None:
    assert build_scaler(min=0).decide(0, 0.0) == 1


def test_more_at_once_and_fewer_after_a_quiet_time() -> None:
    scaler = build_scaler()
    assert [scaler.decide(requests, now) for now, requests in ((0, 0), (1, 12), (2, 0), (30, 6), (61, 0))] == [1, 3, 3, 3, 3]
    assert [scaler.decide(0, now) for now in (62, 89, 90, 91)] == [2, 2, 2, 1], "the last 60 s decide"


def test_load_that_comes_and_goes_keeps_the_replicas() -> None:
    scaler = build_scaler(scale_down_after=10)
    assert {scaler.decide(20 if now % 8 == 0 else 0, now) for now in range(100)} == {5}


def test_other_limits_count_at_once() -> None:
    scaler = build_scaler()
    assert scaler.decide(100, 0) == 5
    scaler.settings = ReplicaSettings(min=2, max=3)
    assert scaler.decide(100, 1) == 3
    assert scaler.decide(0, 100) == 2


def test_no_quiet_time() -> None:
    scaler = build_scaler(scale_down_after=0)
    assert [scaler.decide(requests, now) for now, requests in enumerate((12, 0, 8, 0))] == [3, 1, 2, 1]
    assert math.isclose(scaler.settings.scale_down_after, 0)


@dataclass
class ScriptedFleet:
    """A fleet whose process is a script, and one model in it."""

    folder: Path
    fleet: Fleet
    model: FleetModel
    replicas: ReplicaSet

    def list_read(self) -> list[dict[str, Any]]:
        """The messages that the process has read, in all its lives."""
        file = self.folder / "read"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    async def wait_for(self, *states: str) -> None:
        """Wait until the replicas have these states."""
        await wait_until(lambda: [status.state for status in self.model.replicas] == list(states))

    async def wait_for_read(self, count: int) -> None:
        await wait_until(lambda: len(self.list_read()) >= count)


def write_lines(folder: Path, *messages: dict[str, Any] | str) -> None:
    (folder / "write").write_text("".join(f"{m if isinstance(m, str) else json.dumps(m)}\n" for m in messages))


def describe_replica(number: int, state: str, address: str = "", why: str = "") -> dict[str, Any]:
    return {"replica": f"m/{number}", "model": "m", "state": state, "address": address, "node": f"gpu{number}/ab12", "why": why}


@asynccontextmanager
async def run_scripted_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, pause_s: float = 0.05, **replicas: Any
) -> AsyncIterator[ScriptedFleet]:
    monkeypatch.setattr(module, "FLEET_MODULE", "tests.programs.scripted_fleet")
    monkeypatch.setattr(module, "FIRST_PAUSE_S", pause_s)
    monkeypatch.setattr(module, "UNLOAD_S", 0.3)
    monkeypatch.setenv("SCRIPTED_FLEET", str(tmp_path))
    entry = ModelSettings(engine="moonshine", replicas=ReplicaSettings(**{"min": 1, "token": TOKEN, **replicas}))
    model = Model("m", "moonshine", None, Capabilities(("en",)), "config", entry=entry, options={"key": "secret"})
    fleet = Fleet(RaySettings(address="10.0.0.1:6379", lease=30))
    replica_set = ReplicaSet(ReplicaRules("m", "moonshine", lambda: 60.0, advice=""))
    added = fleet.add_model(model, replica_set)
    try:
        yield ScriptedFleet(tmp_path, fleet, added, replica_set)
    finally:
        await replica_set.close()
        await fleet.remove_model(added)
        await fleet.shutdown()


async def test_a_replica_serves_once_it_has_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    await runner.start()
    lines = [{"joined": True}, describe_replica(1, "starting"), describe_replica(1, "ready", runner.address)]
    write_lines(tmp_path, *lines)
    async with run_scripted_fleet(tmp_path, monkeypatch, resources={"num_gpus": 0.5}, labels={"gpu": "h100"}) as scripted:
        await scripted.replicas.wait_ready(30)
        (status,) = scripted.model.replicas
        assert (status.state, status.address, status.name, status.node) == ("ready", runner.address, "m/1", "gpu1/ab12")
        await scripted.wait_for_read(1)
        wanted = scripted.list_read()[0]["wanted"]["m"]
        assert wanted["entry"] == {"engine": "moonshine", "source": "m", "options": {"key": "secret"}}
        assert (wanted["count"], wanted["token"], wanted["labels"]) == (1, TOKEN, {"gpu": "h100"})
        assert wanted["resources"] == {"num_cpus": 1, "num_gpus": 0.5, "memory": None, "custom": {}}
        assert (tmp_path / "arguments").read_text() == "--address 10.0.0.1:6379 --namespace eardrum --lease 30"
    await runner.stop()
    assert scripted.list_read()[-1] == {"stop": True}
    assert scripted.list_read()[-2]["wanted"]["m"]["count"] == 0


async def test_a_process_that_dies_is_started_again_and_its_replicas_serve_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = FakeRunner(), FakeRunner()
    await first.start()
    await second.start()
    ready = [describe_replica(1, "ready", first.address), describe_replica(2, "ready", second.address)]
    write_lines(tmp_path, {"joined": True}, *ready)
    async with run_scripted_fleet(tmp_path, monkeypatch, min=2) as scripted:
        await scripted.wait_for("ready", "ready")
        await scripted.wait_for_read(1)
        write_lines(tmp_path, "die")
        assert scripted.fleet._process
        await scripted.fleet._process.kill()
        await wait_until(lambda: "It was told to die" in scripted.model.problem)
        assert [status.state for status in scripted.model.replicas] == ["ready", "ready"]
        write_lines(tmp_path, ready[1], {"joined": True})  # one of them is lost
        await scripted.wait_for("ready", "starting")
        assert scripted.model.replicas[0].address == second.address
        assert scripted.model.problem == ""
        await scripted.wait_for_read(2)
        assert scripted.list_read()[1] == scripted.list_read()[0]
    await first.stop()
    await second.stop()


@pytest.mark.parametrize(("line", "says"), [("nonsense", "sent an invalid message"), ("", "sent nothing for 0.3 s")])
async def test_a_process_that_hangs_or_talks_nonsense_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.3)
    write_lines(tmp_path, {"joined": True}, *filter(None, [line]))
    async with run_scripted_fleet(tmp_path, monkeypatch, pause_s=30.0) as scripted:
        await wait_until(lambda: says in scripted.model.problem)
        assert scripted.fleet._process
        assert scripted.fleet._process.exited.done()


async def test_a_cluster_that_cannot_be_joined_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path, {"failed": {"message": "Nothing answers there."}}, "die")
    async with run_scripted_fleet(tmp_path, monkeypatch) as scripted:
        await wait_until(lambda: scripted.model.problem)
        with pytest.raises(NoReplicaError) as caught:
            await scripted.replicas.wait_ready(0.1)
        assert "m/?: the cluster at 10.0.0.1:6379 is not joined" in caught.value.message
        assert "could not join: Nothing answers there" in caught.value.message


async def test_a_replica_that_drains_gets_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    await runner.start()
    write_lines(tmp_path, {"joined": True}, describe_replica(1, "ready", runner.address))
    async with run_scripted_fleet(tmp_path, monkeypatch) as scripted:
        await scripted.replicas.wait_ready(30)
        scripted.fleet._take_message(describe_replica(1, "draining", runner.address, "no longer wanted"))
        assert list(scripted.replicas) == []
        assert [(status.state, status.detail) for status in scripted.model.replicas] == [("draining", "no longer wanted")]
        scripted.fleet._take_message(describe_replica(1, "gone"))
        assert [status.state for status in scripted.model.replicas] == ["starting"], "the one that is wanted in its place"
    await runner.stop()


async def test_a_replica_that_is_started_again_keeps_its_address_until_it_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = FakeRunner(), FakeRunner()
    await first.start()
    await second.start()
    write_lines(tmp_path, {"joined": True}, describe_replica(1, "ready", first.address))
    async with run_scripted_fleet(tmp_path, monkeypatch) as scripted:
        await scripted.replicas.wait_ready(30)
        scripted.fleet._take_message(describe_replica(1, "starting", why="its process or node was lost"))
        assert [(one.address, one.is_ready) for one in scripted.replicas] == [(first.address, True)]
        scripted.fleet._take_message(describe_replica(1, "ready", second.address))
        assert [one.address for one in scripted.replicas] == [second.address]
    await first.stop()
    await second.stop()


async def test_nobody_waits_for_a_model_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path, {"joined": True}, describe_replica(1, "failed", why="its weights are broken"))
    async with run_scripted_fleet(tmp_path, monkeypatch) as scripted:
        with pytest.raises(NoReplicaError) as caught:
            await asyncio.wait_for(scripted.replicas.wait_ready(600), 30)
        assert "m/1: its weights are broken" in caught.value.message
