"""Models come and go: loaded and unloaded by hand, and when nobody comes for their time to live."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.processes import is_alive
from tests.recordings import SPEECH_TEXT, encode, encode_speech, load_announcements

pytestmark = pytest.mark.slow

M = "moonshine-tiny-en"


def list_processes(server: ServerUnderTest) -> list[dict[str, object]]:
    found: list[dict[str, object]] = requests.get(f"{server.address}/api/ps", timeout=10).json()["models"]
    return found


def test_a_model_is_loaded_and_unloaded_by_hand() -> None:
    with run_server() as server:
        assert list_processes(server) == []
        loaded = requests.post(f"{server.address}/api/ps/whisper-1", timeout=60)
        assert (loaded.status_code, loaded.json()) == (200, {"status": "loaded", "model": M})
        (model,) = list_processes(server)
        assert (model["id"], model["state"], model["requests"], model["ttl_remaining"]) == (M, "ready", 0, None)
        assert model["is_default"]
        assert abs(time.time() - float(str(model["loaded_at"]))) < 60
        process = psutil.Process(int(str(model["pid"])))
        assert process.nice() == psutil.Process(server.process.pid).nice() + 5  # the gateway runs first
        if (autogroup := Path(f"/proc/{process.pid}/autogroup")).exists():
            assert autogroup.read_text().split()[-1] == "5"
        unloaded = requests.delete(f"{server.address}/api/ps/{M}", timeout=60)
        assert (unloaded.status_code, unloaded.json()) == (200, {"status": "unloaded", "model": M})
        assert not is_alive(process.pid)
        assert list_processes(server) == []
        assert requests.delete(f"{server.address}/api/ps/{M}", timeout=60).status_code == 200, "gone is gone"
        assert requests.delete(f"{server.address}/api/ps/nobody", timeout=60).status_code == 404
        assert server.post_audio(encode_speech("flac")).json()["text"] == SPEECH_TEXT


def test_unloading_cuts_nobody_off() -> None:
    """While a request is at work the process stays; who comes meanwhile is served by the next one."""
    recording = encode_speech("flac")
    with run_server() as server, ThreadPoolExecutor(4) as pool:
        server.post_audio(recording)
        (first,) = list_processes(server)
        answers = [pool.submit(server.post_audio, recording) for _ in range(2)]
        wait_for(lambda: list_processes(server)[0]["requests"] == 2)
        gone = pool.submit(requests.delete, f"{server.address}/api/ps/{M}", timeout=60)
        wait_for(lambda: not list_processes(server) or list_processes(server)[0]["state"] != "ready")
        answers.append(pool.submit(server.post_audio, recording))
        assert [answer.result().json()["text"] for answer in answers] == [SPEECH_TEXT] * 3
        assert gone.result().status_code == 200
        (second,) = list_processes(server)
        assert second["pid"] != first["pid"]


def test_a_model_that_nobody_asks_for_is_unloaded() -> None:
    with run_server("--set", "default_ttl=2") as server:
        server.post_audio(encode_speech("flac"))
        (model,) = list_processes(server)
        assert 0 < float(str(model["ttl_remaining"])) <= 2
        wait_for(lambda: not list_processes(server))
        assert not server.list_runners()
        assert server.post_audio(encode_speech("flac")).json()["text"] == SPEECH_TEXT


def test_a_request_longer_than_the_time_to_live_is_not_cut(tmp_path: Path) -> None:
    long = b"".join(encode(samples, "mp3") for _, samples, _ in load_announcements()[:12])
    with run_server("--set", "default_ttl=0.3") as server:
        began = time.monotonic()
        answer = server.post_audio(long)
        assert answer.status_code == 200
        assert time.monotonic() - began > 0.3
    assert server.log.count(f"{M} ready after") == 1, "another process had to finish it"
