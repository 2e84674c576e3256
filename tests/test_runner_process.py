"""A runner on its own, without a gateway: the small web service on TCP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from tests.ports import free_port
from tests.recordings import SPEECH_TEXT, spoken

pytestmark = pytest.mark.slow


def embedded() -> Path:
    spec = find_spec("moonshine_voice")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "assets" / "tiny-en"


@contextmanager
def runner(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """A runner and the first line it says."""
    command = [sys.executable, "-m", "eardrum.runner", "--engine", "moonshine", "--source", str(embedded()), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def lines(answer: requests.Response) -> list[dict]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_audio_in_lines_out(tmp_path: Path) -> None:
    port = free_port()
    with runner("--port", str(port), "--batch", "2") as (_, said):
        assert said["ready"]["batch"] == 2
        address = f"http://127.0.0.1:{port}"
        events = lines(requests.post(f"{address}/transcribe", data=spoken("mp3"), timeout=60))
        assert [next(iter(event)) for event in events] == ["opened", "segment", "segment", "segment", "summary"]
        assert " ".join(event["segment"]["text"] for event in events[1:4]) == SPEECH_TEXT
        assert (events[-1]["summary"]["windows"], events[-1]["summary"]["language"]) == (3, "en")
        (failed,) = lines(requests.post(f"{address}/transcribe", data=b"not audio", timeout=60))
        assert failed["error"]["error"] == "AudioError"
        bad = requests.post(f"{address}/transcribe", headers={"x-eardrum-request": '{"task": "sing"}'}, timeout=60)
        assert "not a request in JSON" in lines(bad)[0]["error"]["message"]
        assert requests.delete(f"{address}/transcribe/nobody", timeout=60).status_code == 204
        health = requests.get(f"{address}/health", timeout=60).json()
        assert (health["windows"], health["capabilities"]["languages"]) == (3, ["en"])


@pytest.mark.parametrize("private", [True, False])
def test_it_ends_with_its_parent_and_only_a_private_folder_goes_with_it(
    private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that is the folder for temporary files, where others have theirs."""
    directory = tmp_path / "folder"
    directory.mkdir()
    (directory / "left-by-a-library").write_text("x")
    monkeypatch.setenv("TMPDIR", str(directory))
    flags = ["--private"] if private else []
    with runner("--socket", str(directory / "runner.sock"), "--parent", "--batch", "1", *flags) as (process, said):
        assert "ready" in said
        assert process.stdin
        process.stdin.close()
        process.wait(20)
    assert directory.exists() is not private
    assert private or [path.name for path in directory.iterdir()] == ["left-by-a-library"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--options", '{"thread": 2}'], "Option thread of moonshine"),
        (["--options", '{"compute_type": "int8"}'], "compute_type 'int8' cannot be had"),
        (["--options", '{"device": "cuda"}'], "device is cuda"),
        (["--source", "/nowhere"], "encoder_model.ort is missing"),
        (["--batch", "1000"], "batch is 1000, but this engine decodes at most 4"),
        (["--engine", "parrot"], "There is no engine 'parrot'. Engines: faster_whisper, moonshine"),
    ],
)
def test_why_it_cannot_start(arguments: list[str], says: str) -> None:
    with runner(*arguments) as (process, said):
        assert says in said["failed"]["message"]
        assert process.wait(20) == 1
