"""The programs of `examples/` that can be had as packages, run against a server: `make test-examples`."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import signal
import subprocess
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
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
def eardrum() -> Iterator[ServerUnderTest]:
    with run_server() as server:
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


def test_litellm_in_front(eardrum: ServerUnderTest, tmp_path: Path) -> None:
    port = find_free_port()
    secret = f"sk-{secrets.token_hex(32)}"
    environment = {"EARDRUM_URL": f"{eardrum.address}/v1", "EARDRUM_KEY": "none", "LITELLM_MASTER_KEY": secret}
    command = (COMMANDS / "litellm", "--config", EXAMPLES / "litellm" / "config.yaml", "--host", "127.0.0.1", "--port", str(port))
    key = {"authorization": f"Bearer {secret}"}
    address = f"http://127.0.0.1:{port}"
    with run_program(*command, folder=tmp_path, **environment) as check:

        def is_up() -> bool:
            check()
            try:
                return requests.get(f"{address}/health/liveliness", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_for(is_up, START_S)
        for model in ("whisper-1", "moonshine-tiny-en"):
            with SAMPLE.open("rb") as file:
                answer = requests.post(
                    f"{address}/v1/audio/transcriptions", headers=key, data={"model": model}, files={"file": file}, timeout=120
                )
            assert answer.ok, answer.text
            assert answer.json()["text"].endswith("amiable himself.")


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
