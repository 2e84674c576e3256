"""The programs of `examples/` that can be had as packages, run against a server: `make test-examples`."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import openai
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port

pytestmark = [pytest.mark.slow, pytest.mark.examples]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SAMPLE = ROOT / "src" / "eardrum" / "sample.ogg"
COMMANDS = ROOT / ".venv-examples" / "bin"
START_S = 120.0

LISTEN = """
import asyncio, importlib.util, sys, wave
from livekit import rtc

spec = importlib.util.spec_from_file_location("agent", sys.argv[1])
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)

async def main():
    import aiohttp
    with wave.open(sys.argv[2]) as file:
        data, rate = file.readframes(file.getnframes()), file.getframerate()
    speech = agent.create_speech_to_text()
    event = await speech.recognize(rtc.AudioFrame(data, rate, 1, len(data) // 2))
    await speech.aclose()
    print(event.alternatives[0].text)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def eardrum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    jobs = {"dir": str(tmp_path_factory.mktemp("jobs"))}
    with run_server("--set", f"jobs={json.dumps(jobs)}") as server:
        yield server


@contextmanager
def run_program(*command: str | Path, folder: Path, **environment: str) -> Iterator[Callable[[], None]]:
    """A program that serves, until the block ends. The function that is yielded fails if the program has ended by itself."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def check() -> None:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]

    try:
        yield check
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def litellm(eardrum: ServerUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The official client of a LiteLLM in front of the server."""
    port = find_free_port()
    secret = f"sk-{secrets.token_hex(32)}"
    environment = {"EARDRUM_URL": f"{eardrum.address}/v1", "EARDRUM_KEY": "none", "LITELLM_MASTER_KEY": secret}
    environment |= {"OPENAI_BASE_URL": f"{eardrum.address}/v1", "OPENAI_API_KEY": "none"}
    command = (COMMANDS / "litellm", "--config", EXAMPLES / "litellm" / "config.yaml", "--host", "127.0.0.1", "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    with run_program(*command, folder=tmp_path_factory.mktemp("litellm"), **environment) as check:

        def is_up() -> bool:
            check()
            try:
                return requests.get(f"{address}/health/liveliness", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_for(is_up, START_S)
        with openai.OpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0, timeout=120) as client:
            yield client


@pytest.mark.parametrize("model", ["whisper-1", "moonshine-tiny-en"])
def test_litellm_in_front(litellm: openai.OpenAI, model: str) -> None:
    with SAMPLE.open("rb") as file:
        assert litellm.audio.transcriptions.create(model=model, file=file).text.endswith("amiable himself.")


def test_litellm_passes_batches_on(litellm: openai.OpenAI) -> None:
    with SAMPLE.open("rb") as file:
        audio = litellm.files.create(file=file, purpose="user_data")
    endpoint: Any = "/v1/audio/transcriptions"
    lines = [
        {"custom_id": key, "method": "POST", "url": endpoint, "body": {"model": "whisper-1", "file": file}}
        for key, file in (("speech", audio.id), ("missing", "file-missing"))
    ]
    requests_file = litellm.files.create(file=("requests.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = litellm.batches.create(input_file_id=requests_file.id, endpoint=endpoint, completion_window="24h")
    wait_for(lambda: litellm.batches.retrieve(batch.id).status == "completed", START_S)
    batch = litellm.batches.retrieve(batch.id)
    assert batch.output_file_id
    assert batch.error_file_id
    (done,) = map(json.loads, litellm.files.content(batch.output_file_id).text.splitlines())
    assert done["response"]["body"]["text"].endswith("amiable himself.")
    (failed,) = map(json.loads, litellm.files.content(batch.error_file_id).text.splitlines())
    assert failed["response"]["status_code"] == 404
    assert batch.id in [one.id for one in litellm.batches.list(limit=5)]
    assert litellm.files.delete(audio.id).deleted


def test_a_livekit_agent_recognises_speech(eardrum: ServerUnderTest, tmp_path: Path) -> None:
    recording = tmp_path / "sample.wav"
    recording.write_bytes(decode_sample())
    command = [str(COMMANDS / "python"), "-c", LISTEN, str(EXAMPLES / "livekit" / "agent.py"), str(recording)]
    done = subprocess.run(
        command,
        env=os.environ | {"TMPDIR": str(tmp_path), "EARDRUM_URL": f"{eardrum.address}/v1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert done.stdout.strip().endswith("amiable himself.")


def decode_sample() -> bytes:
    """The sample as a WAV file, mono, 16 kHz."""
    buffer = io.BytesIO()
    resampler = av.AudioResampler("s16", "mono", 16_000)
    with wave.open(buffer, "wb") as file, av.open(str(SAMPLE)) as container:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                file.writeframes(part.to_ndarray().tobytes())
    return buffer.getvalue()


def test_prometheus_scrapes_the_server(eardrum: ServerUnderTest, tmp_path: Path) -> None:
    eardrum.post_audio(SAMPLE.read_bytes())
    text = (EXAMPLES / "monitoring" / "prometheus.yml").read_text(encoding="utf-8")
    target = eardrum.address.removeprefix("http://")
    assert "eardrum:8100" in text
    (tmp_path / "prometheus.yml").write_text(text.replace("eardrum:8100", target).replace("15s", "1s"))
    shutil.copy(ROOT / "deploy" / "monitoring" / "alerts.yaml", tmp_path)
    address = f"127.0.0.1:{find_free_port()}"
    command = ("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}")
    with run_program(*command, folder=tmp_path) as check:

        def read(path: str, **parameters: str) -> dict:
            check()
            try:
                return requests.get(f"http://{address}/api/v1/{path}", params=parameters, timeout=5).json()["data"]
            except (requests.ConnectionError, ValueError):
                return {}

        wait_for(lambda: read("query", query="up == 1").get("result"), 60)
        wait_for(lambda: read("query", query='whisper_transcription_requests_total{status="success"} >= 1').get("result"), 30)
        groups = read("rules")["groups"]
        assert groups
        assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
