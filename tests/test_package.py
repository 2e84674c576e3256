"""The wheel and the sdist, as users get them: installed into an empty environment, built without Node. `make test-package`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from eardrum.api.page import PAGE_FOLDER
from tests.conftest import wait_for
from tests.ports import find_free_port

pytestmark = [pytest.mark.slow, pytest.mark.package, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
DIST = ROOT / "build" / "dist"


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd="/", env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@dataclass
class Dist:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """Both, the wheel built from the sdist, on a machine whose Node fails and tells."""
    folder = tmp_path_factory.mktemp("without-node")
    for name in ("node", "npm", "npx"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} >>"{folder}/used"\nexit 1\n')
        (folder / name).chmod(0o755)
    DIST.mkdir(parents=True, exist_ok=True)
    for old in DIST.iterdir():
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert not (folder / "used").exists()
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return Dist(wheel, sdist)


@pytest.fixture(scope="module")
def commands(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment in which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", dist.wheel)
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_package(dist: Dist) -> None:
    tracked = run("git", "-C", ROOT, "ls-files", "src/eardrum").split()
    packed = {name for name in zipfile.ZipFile(dist.wheel).namelist() if name.startswith("eardrum/")}
    assert packed == {name.removeprefix("src/") for name in tracked}


def test_the_sdist_has_no_more_than_it_should(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src/eardrum/sample.ogg"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", "bench/results", "web/node_modules"))]


def test_its_version_is_that_of_the_wheel(commands: Path, dist: Dist) -> None:
    version = dist.wheel.name.split("-")[1]
    assert version in run(commands / "eardrum", "--version")
    run(commands / "pip", "check")


def test_doctor_finds_a_model_that_runs(commands: Path) -> None:
    assert "moonshine" in run(commands / "eardrum", "doctor")


def test_it_transcribes_without_a_server(commands: Path, tmp_path: Path) -> None:
    sample = find_sample(commands)
    text = run(commands / "eardrum", "transcribe", sample, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert text.startswith("And Mr. John Dashwood had then leisure")


@pytest.fixture(scope="module")
def address(commands: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = find_free_port()
    process = subprocess.Popen(
        [str(commands / "eardrum"), "serve", "--no-wyoming", "--port", str(port)],
        cwd="/",
        env=os.environ | {"HF_HOME": str(tmp_path_factory.mktemp("models")), "HF_HUB_OFFLINE": "1"},
    )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return requests.get(f"{address}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(answers, 60)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_it_serves(commands: Path, address: str) -> None:
    with find_sample(commands).open("rb") as file:
        answer = requests.post(f"{address}/v1/audio/transcriptions", files={"file": file}, timeout=120)
    assert answer.json()["text"].endswith("amiable himself.")


def test_it_has_the_whole_web_page(address: str) -> None:
    page = requests.get(address, headers={"accept": "text/html"}, timeout=20)
    assert page.content == (PAGE_FOLDER / "index.html").read_bytes()
    for path in PAGE_FOLDER.iterdir():
        assert requests.get(f"{address}/{path.name}", timeout=20).content == path.read_bytes()


def find_sample(commands: Path) -> Path:
    (sample,) = commands.parent.glob("lib/python*/site-packages/eardrum/sample.ogg")
    return sample
