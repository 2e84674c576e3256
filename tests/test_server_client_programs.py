"""agent-cli, as published, uses a server with its own command: over OpenAI's API and over Wyoming.

`make test-clients` installs it into an environment of its own, which EARDRUM_CLIENTS names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ServerUnderTest, run_server
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.test_server_wyoming import find_port

pytestmark = [pytest.mark.slow, pytest.mark.clients]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server("--wyoming", "--wyoming-port", "0") as started:
        yield started


def run_client(folder: Path, *arguments: str) -> dict[str, object]:
    """Transcribe the recording with agent-cli; returns the JSON that it prints."""
    programs = os.environ.get("EARDRUM_CLIENTS")
    assert programs, "EARDRUM_CLIENTS is not set: use `make test-clients`"
    recording = folder / "speech.wav"
    recording.write_bytes(encode_speech("wav"))
    command: list[str | Path] = [
        Path(programs) / "agent-cli",
        "transcribe",
        "--from-file",
        recording,
        "--no-llm",
        "--no-clipboard",
        "--json",
    ]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    done = subprocess.run(
        [*command, *arguments],
        env=kept | {"HOME": str(folder), "AGENT_CLI_NO_AUTO_INSTALL": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("model", ["whisper-1", "moonshine-tiny-en"])
def test_agent_cli_over_openais_api(server: ServerUnderTest, tmp_path: Path, model: str) -> None:
    options = ("--asr-provider", "openai", "--asr-openai-base-url", f"{server.address}/v1", "--asr-openai-model", model)
    told = run_client(tmp_path, *options, "--asr-openai-prompt", "Norland Park")
    assert told["transcript"] == SPEECH_TEXT


def test_agent_cli_over_wyoming(server: ServerUnderTest, tmp_path: Path) -> None:
    host = ("--asr-wyoming-ip", "127.0.0.1", "--asr-wyoming-port", str(find_port(server)))
    assert run_client(tmp_path, "--asr-provider", "wyoming", *host)["transcript"] == SPEECH_TEXT
