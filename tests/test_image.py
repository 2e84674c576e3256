"""The CPU image, built from its own Dockerfile and run as hardened as the docs say; and Compose. `make test-image` runs this."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import wait_for
from tests.ports import find_free_port
from tests.scripts import load_script

pytestmark = [pytest.mark.slow, pytest.mark.image, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "deploy" / "compose"
SAMPLE = ROOT / "src" / "eardrum" / "sample.ogg"
WITHOUT_SYSTEMD = Path(__file__).parent / "programs" / "podman_without_systemd.sh"

MAX_BYTES = 1e9
START_S = 60.0

HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
"""As in the docs."""


class Containers:
    """The engine that runs containers: Docker, or Debian's podman."""

    def __init__(self, images: ModuleType):
        self.image = images.name_image("cpu")
        self.command = ["docker"]
        if not images.has_docker():
            (images.STORE / "containers.conf").write_text(
                "[containers]\ndefault_ulimits = []\n"
                '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n'
            )
            self.command = ["bash", str(WITHOUT_SYSTEMD), str(images.STORE)]

    def call(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, input="", timeout=120, check=False)
        assert not check or not done.returncode, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    @contextmanager
    def run(
        self, *options: str, arguments: tuple[str, ...] = ("serve", "--no-wyoming"), **environment: str
    ) -> Iterator[Container]:
        """A container of the image, hardened, on a free port of this machine; removed in the end, with its volumes."""
        port = find_free_port()
        given = {"EARDRUM_HOST": "127.0.0.1", "EARDRUM_PORT": str(port)} | environment
        variables = [option for item in given.items() for option in ("--env", "=".join(item))]
        id = self.call("run", "--detach", "--network=host", *HARDENED, *variables, *options, self.image, *arguments)
        container = Container(self, id, f"http://127.0.0.1:{port}")
        try:
            wait_for(container.is_up, START_S)
            yield container
        finally:
            self.call("rm", "--force", "--volumes", id)


class Container:
    """A container that runs."""

    def __init__(self, containers: Containers, id: str, address: str):
        self._containers = containers
        self.id, self.address = id, address

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.address}/health", timeout=5).ok
        except requests.ConnectionError:
            assert self.inspect()["State"]["Running"], self._containers.call("logs", self.id)
            return False

    def inspect(self) -> dict[str, Any]:
        return json.loads(self._containers.call("inspect", self.id))[0]

    def exec(self, *command: str, check: bool = True) -> str:
        return self._containers.call("exec", self.id, *command, check=check)

    def transcribe_sample(self) -> str:
        with SAMPLE.open("rb") as file:
            answer = requests.post(f"{self.address}/v1/audio/transcriptions", files={"file": file}, timeout=120)
        assert answer.ok, answer.text
        return answer.json()["text"]


@pytest.fixture(scope="module")
def null_device() -> Iterator[None]:
    """crun gives the null device to whoever a container runs as, if it is the container's standard input."""
    device = Path(os.devnull)
    before = device.stat()
    yield
    after = device.stat()
    if (after.st_uid, after.st_mode) != (before.st_uid, before.st_mode):
        os.chown(device, before.st_uid, before.st_gid)
        device.chmod(stat.S_IMODE(before.st_mode))
        pytest.fail("a container took the null device of this machine")


@pytest.fixture(scope="module")
def containers(null_device: None) -> Containers:
    images = load_script("images")
    images.build_image("cpu")
    assert images.measure_image("cpu") < MAX_BYTES
    return Containers(images)


@pytest.fixture(scope="module")
def container(containers: Containers) -> Iterator[Container]:
    with containers.run() as started:
        yield started


def test_it_transcribes_the_sample_without_root_and_without_a_writable_root(container: Container) -> None:
    text = container.transcribe_sample()
    assert text.startswith("And Mr. John Dashwood had then leisure")
    assert text.endswith("amiable himself.")
    assert container.exec("id", "-u") == "10001"
    assert "Read-only" in container.exec("sh", "-c", "touch /opt/eardrum/x 2>&1", check=False)
    status = container.exec("sh", "-c", "grep -E '^(CapEff|NoNewPrivs)' /proc/1/status")
    assert status.split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_volumes_can_be_written_to(container: Container) -> None:
    for folder in ("/models", "/tmp"):
        container.exec("sh", "-c", f"touch {folder}/x && rm {folder}/x")


def test_the_health_check_follows_the_port(containers: Containers, container: Container) -> None:
    kind, *command = inspect_image(containers)["Healthcheck"]["Test"]
    assert kind == "CMD"
    container.exec(*command)
    answer = containers.call("exec", "--env", "EARDRUM_PORT=9", container.id, "sh", "-c", f"{' '.join(command)}; echo $?")
    assert answer == "1"


def inspect_image(containers: Containers) -> dict[str, Any]:
    """The image's own settings: podman leaves its health check out where nothing could run it."""
    inspected = json.loads(containers.call("image", "inspect", containers.image))[0]
    return inspected["Config"] | {"Healthcheck": inspected.get("HealthCheck") or inspected.get("Healthcheck")}


def test_the_image_declares_user_volumes_and_ports(containers: Containers) -> None:
    config = inspect_image(containers)
    assert config["User"] == "10001:10001"
    assert sorted(config["Volumes"]) == ["/models", "/tmp"]
    assert sorted(config["ExposedPorts"]) == ["10300/tcp", "8100/tcp"]
    assert config["Entrypoint"] == ["tini", "--", "eardrum"]
    assert config["StopSignal"] in ("SIGTERM", "15")


def test_doctor_finds_the_engines_that_the_docs_name(container: Container) -> None:
    report = json.loads(container.exec("eardrum", "doctor", "--json"))
    usable = {check["subject"] for check in report["checks"] if check["status"] == "ok"}
    assert usable >= {"default model", *(f"engine {name}" for name in ("faster_whisper", "onnx_asr", "ggml", "moonshine"))}


def test_it_ends_soon_after_it_is_told_to(containers: Containers) -> None:
    with containers.run() as container:
        container.transcribe_sample()
        started = time.monotonic()
        containers.call("stop", "--time=30", container.id)
        state = container.inspect()["State"]
        assert (state["ExitCode"], state["Running"]) in ((0, False), (128 + signal.SIGTERM, False))
        assert time.monotonic() - started < 20


def test_a_profile_of_compose_comes_up_and_leaves_nothing(containers: Containers, tmp_path: Path) -> None:
    port = find_free_port()
    # Here is no network between containers, so the server listens on this machine itself.
    override = {
        "services": {
            "server": {
                "image": containers.image,
                "network_mode": "host",
                "environment": {"EARDRUM_PORT": str(port), "EARDRUM_HOST": "127.0.0.1", "EARDRUM_WYOMING__ENABLED": "false"},
            }
        }
    }
    (tmp_path / "override.yaml").write_text(yaml.safe_dump(override))
    compose = call_compose(containers, tmp_path)
    before = containers.call("ps", "--all", "--quiet"), containers.call("volume", "ls", "--quiet")
    address = f"http://127.0.0.1:{port}"
    compose("up", "--detach", "--no-build")
    try:
        (id,) = containers.call("ps", "--quiet", "--filter", "label=com.docker.compose.service=server").split()
        container = Container(containers, id, address)
        wait_for(container.is_up, START_S)
        container.exec(*inspect_image(containers)["Healthcheck"]["Test"][1:])
        container.exec("sh", "-c", "touch /models/x && rm /models/x")
        assert container.exec("stat", "-c", "%u", "/models") == "10001"
        assert container.transcribe_sample().startswith("And Mr. John Dashwood")
    finally:
        compose("down", "--volumes")
    assert (containers.call("ps", "--all", "--quiet"), containers.call("volume", "ls", "--quiet")) == before


def call_compose(containers: Containers, folder: Path) -> Any:
    command = ["docker", "compose"]
    if containers.command != ["docker"]:
        wrapper = folder / "podman"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(containers.command)} "$@"\n')
        wrapper.chmod(0o755)
        command = ["podman-compose", "--podman-path", str(wrapper)]

    def compose(*arguments: str) -> None:
        files = [COMPOSE / "compose.yaml", folder / "override.yaml"]
        options = [option for file in files for option in ("--file", str(file))]
        done = subprocess.run(
            [*command, *options, "--profile", "server", *arguments],
            cwd=COMPOSE,
            capture_output=True,
            text=True,
            input="",
            timeout=180,
            check=False,
        )
        assert not done.returncode, done.stdout + done.stderr

    return compose
