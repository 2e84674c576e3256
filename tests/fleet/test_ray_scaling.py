"""Replicas on a Ray cluster that come and go with the work, that have no place, and that a server leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from eardrum.config import ReplicaSettings
from tests.commands import run_eardrum
from tests.conftest import wait_for
from tests.fleet.fleets import TOKEN, stream_text
from tests.fleet.ray_clusters import GCS_PORT, HEAD, PATIENCE_S, RayCluster, RayServer, run_ray_server
from tests.recordings import SPEECH_TEXT, encode, load_announcements, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

LEASE_S = 6


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode(load_announcements()[0][1], "flac")


@pytest.fixture(scope="module")
def long() -> bytes:
    return encode(np.concatenate([samples for _, samples, _ in load_announcements()]), "flac")


def list_runners(cluster: RayCluster) -> list[psutil.Process]:
    return [process for node in cluster.workers for process in node.find_processes("eardrum.runner")]


def test_more_replicas_under_load_and_fewer_afterwards(cluster: RayCluster, scripted_entry: dict, long: bytes) -> None:
    replicas = {"min": 1, "max": 3, "target_requests": 1, "scale_down_after": 3}
    with run_ray_server(cluster, {**scripted_entry, "options": {"seconds": 0.4}}, replicas, namespace="scale") as fleet:
        fleet.wait_ready(1)
        texts: list[str] = []
        threads = [threading.Thread(target=lambda: texts.append(stream_text(fleet.server, long))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: fleet.count_ready() == 3, PATIENCE_S)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(texts) == 3
        assert len(set(texts)) == 1
        fleet.wait_ready(1)
        wait_for(lambda: len(list_runners(cluster)) == 1, PATIENCE_S)
    assert cluster.list_leftovers() == []


def test_none_without_work_and_one_with_the_next_request(cluster: RayCluster, scripted_entry: dict, clip: bytes) -> None:
    with run_ray_server(cluster, {**scripted_entry, "ttl": 2}, {"min": 0, "max": 2}, namespace="zero") as fleet:
        assert fleet.replicas == []
        text = fleet.transcribe(clip)
        wait_for(lambda: fleet.read_model() == {}, PATIENCE_S)
        wait_for(lambda: cluster.list_leftovers() == [], PATIENCE_S)
        assert fleet.transcribe(clip) == text
        run_eardrum("stop", "m", "--server", fleet.server.address, check=True)
        assert cluster.list_leftovers() == [], "an unloaded model has no replica"


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"resources": {"num_gpus": 1}}, "no node has 1 GPU (the most is 0 GPUs)"),
        ({"resources": {"custom": {"fast_disk": 2}}}, "no node has 2 fast_disk (the most is 0 fast_disk)"),
        ({"labels": {"place": "moon"}}, "no node has the label place=moon (there is node1, node2, node3)"),
    ],
)
def test_a_request_without_a_place_is_told(
    cluster: RayCluster, scripted_entry: dict, clip: bytes, needs: dict, says: str
) -> None:
    replicas = {"min": 0, **needs}
    with run_ray_server(cluster, scripted_entry, replicas, "--set", "start_timeout=15", namespace="nowhere") as fleet:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(fleet.server.post_audio(clip, model="m")))
        thread.start()
        wait_for(lambda: [one["detail"] for one in fleet.replicas] == [says], PATIENCE_S)
        assert fleet.read_model()["state"] == "starting"
        shown = run_eardrum("ps", "--server", fleet.server.address, check=True).stdout
        assert f"m/1  starting, 0 requests: {says}" in shown
        thread.join(PATIENCE_S)
        (answer,) = answers
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
        assert says in answer.json()["error"]["message"]
        fleet.server.wait_for_log(f"m: the replica m/1 is starting: {says}")


def test_labels_and_half_a_cpu_decide_where(cluster: RayCluster, scripted_entry: dict) -> None:
    replicas = {"min": 2, "labels": {"place": "node2"}, "resources": {"num_cpus": 0.5}}
    with run_ray_server(cluster, scripted_entry, replicas, namespace="labels") as fleet:
        fleet.wait_ready(2)
        assert {replica["node"].partition("/")[0] for replica in fleet.replicas} == {cluster.workers[1].host}


def test_a_model_that_cannot_be_loaded_is_told_at_once(cluster: RayCluster, clip: bytes) -> None:
    with run_ray_server(cluster, {"engine": "scripted", "source": "/nowhere"}, {"min": 0}, namespace="broken") as fleet:
        began = time.monotonic()
        answer = fleet.server.post_audio(clip, model="m")
        assert answer.status_code == 503
        assert "models.m.source: /nowhere does not exist" in answer.json()["error"]["message"]
        assert time.monotonic() - began < 100, "long before start_timeout"


def test_a_killed_server_leaves_replicas_for_their_lease(cluster: RayCluster, scripted_entry: dict, clip: bytes) -> None:
    with run_ray_server(cluster, scripted_entry, {"min": 2, "token": TOKEN}, namespace="lease", lease=LEASE_S) as fleet:
        fleet.wait_ready(2)
        text = fleet.transcribe(clip)
        before = {replica["address"] for replica in fleet.replicas}
        fleet.server.process.send_signal(signal.SIGKILL)
        fleet.server.process.wait(30)
    assert len(list_runners(cluster)) == 2
    with run_ray_server(cluster, scripted_entry, {"min": 2, "token": TOKEN}, namespace="lease", lease=LEASE_S) as fleet:
        fleet.wait_ready(2)
        print("found again:", before == {replica["address"] for replica in fleet.replicas})
        assert fleet.transcribe(clip) == text
        fleet.server.process.send_signal(signal.SIGKILL)
        fleet.server.process.wait(30)
    killed = time.monotonic()
    wait_for(lambda: cluster.list_leftovers() == [], PATIENCE_S)
    print(f"the replicas of a killed server ended after {time.monotonic() - killed:.1f} s")
    assert time.monotonic() - killed > LEASE_S / 2


def read_messages(process: subprocess.Popen[str], within_s: float) -> Iterator[dict[str, Any]]:
    """The messages of the fleet's process, which sends one every second at least."""
    end = time.monotonic() + within_s
    assert process.stdout
    for line in process.stdout:
        assert time.monotonic() < end, line
        yield json.loads(line)


def test_a_replica_that_is_lost_while_it_ends_does_not_come_back(cluster: RayCluster, scripted_entry: dict) -> None:
    command = [sys.executable, "-m", "eardrum.fleet", "--address", f"{HEAD}:{GCS_PORT}", "--namespace", "ending"]
    resources = ReplicaSettings().resources.model_dump()
    wanted = {"count": 1, "entry": scripted_entry, "python": "", "token": TOKEN, "resources": resources, "labels": {}}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **cluster.environment}, **pipes) as process:

        def send(message: dict[str, Any]) -> None:
            assert process.stdin
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

        def wait_for_state(state: str, within_s: float) -> None:
            assert any(message.get("state") == state for message in read_messages(process, within_s))

        try:
            send({"wanted": {"m": wanted}})
            wait_for_state("ready", PATIENCE_S)
            (runner,) = list_runners(cluster)
            runner.suspend()  # it would end at once
            send({"wanted": {}})
            wait_for_state("draining", PATIENCE_S)
            (actor,) = [actor for node in cluster.workers for actor in node.find_processes("ray::ReplicaActor")]
            actor.kill()
            runner.kill()
            wait_for_state("gone", 60)
            wait_for(lambda: cluster.list_leftovers() == [], PATIENCE_S)
        finally:
            send({"stop": True})
            process.communicate(timeout=60)


def test_the_embedded_model(cluster: RayCluster) -> None:
    with run_ray_server(cluster, {"source": "moonshine-tiny-en"}, {"min": 2}, namespace="embedded") as fleet:
        fleet.wait_ready(2)
        text = fleet.transcribe(encode(load_speech(), "flac"))
        assert split_words(text) == split_words(SPEECH_TEXT)
    assert cluster.list_leftovers() == []


def split_words(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


def test_jobs_use_all_replicas_and_have_more_started(
    cluster: RayCluster, scripted_entry: dict, long: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("jobs")
    replicas = {"min": 1, "max": 3, "target_requests": 2, "scale_down_after": 3}
    entry = {**scripted_entry, "options": {"seconds": 0.3}}
    with run_ray_server(cluster, entry, replicas, "--set", f"jobs={json.dumps({'dir': str(folder)})}", namespace="jobs") as fleet:
        fleet.wait_ready(1)
        submit_jobs(fleet, long, 9)
        wait_for(lambda: fleet.count_ready() == 3 and all(replica["requests"] >= 2 for replica in fleet.replicas), PATIENCE_S)
    assert cluster.list_leftovers() == []


def submit_jobs(fleet: RayServer, audio: bytes, count: int) -> None:
    for _ in range(count):
        answer = requests.post(
            f"{fleet.server.address}/api/jobs", data={"model": "m"}, files={"file": ("a.flac", audio)}, timeout=60
        )
        assert answer.status_code == 202, answer.text
