"""OpenAI's official client for Node.js asks a server for speech. `make test-clients` installs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ServerUnderTest, run_server
from tests.test_server_speech import RATE, SENTENCES, count_errors, decode, read_back

pytestmark = [pytest.mark.slow, pytest.mark.clients]

PROGRAM = Path(__file__).parent / "programs" / "speak.cjs"
TEXT = " ".join(SENTENCES[3:6])


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server() as started:
        yield started


def test_speech_whole_streamed_and_as_events(server: ServerUnderTest, tmp_path: Path) -> None:
    programs = os.environ.get("EARDRUM_CLIENTS")
    assert programs, "EARDRUM_CLIENTS is not set: use `make test-clients`"
    environment = os.environ | {"NODE_PATH": str(Path(programs).parent / "node_modules")}
    command = ["node", str(PROGRAM), server.address, str(tmp_path), TEXT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)

    whole = (tmp_path / "whole.mp3").read_bytes()
    assert told["type"] == "audio/mpeg"
    assert count_errors([TEXT], [read_back(server, whole)]) <= 0.1

    streamed = (tmp_path / "streamed.pcm").read_bytes()
    assert told["pieces"] > 1
    assert len(streamed) / 2 == pytest.approx(len(decode(whole, "mp3")), abs=0.1 * RATE)
    assert (tmp_path / "events.pcm").read_bytes() == streamed
    assert told["deltas"] >= 3
    assert told["last"]["type"] == "speech.audio.done"
    assert told["last"]["usage"]["input_tokens"] == sum(map(len, SENTENCES[3:6]))
    assert told["refusal"] == {"name": "BadRequestError", "status": 400, "param": "voice", "code": "invalid_value"}
