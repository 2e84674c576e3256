"""Models that are fetched, missing, damaged and repaired under a running server."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote

import psutil
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.fake_hub import FakeHub, FakeRepository, fake_hub
from tests.gateway.models.test_names import EVIL
from tests.processes import find_children
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.weights import MOONSHINE, read_moonshine_files

pytestmark = pytest.mark.slow

NAME = "someone/moon-en"
AUDIO = encode_speech("wav")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repositories[NAME] = FakeRepository(read_moonshine_files())
        yield hub


@contextmanager
def run_server_with(hub: FakeHub, store: Path, *arguments: str, prelude: str = "") -> Iterator[ServerUnderTest]:
    store.mkdir(exist_ok=True)
    with run_server(*arguments, prelude=prelude, HF_HUB_CACHE=str(store), **hub.environment) as server:
        yield server


def post_pull(server: ServerUnderTest, name: str, *, stream: bool = False) -> requests.Response:
    return requests.post(f"{server.address}/api/pull/{name}", timeout=60, stream=stream)


def parse_lines(answer: requests.Response) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def list_downloads(server: ServerUnderTest) -> list[psutil.Process]:
    return find_children(server.process.pid, "eardrum.hub")


TELL_MODULES = """
import json, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("MODULES", json.dumps(sorted(sys.modules)), flush=True))
"""


def test_a_model_pulled_over_http_serves_and_the_gateway_stays_light(hub: FakeHub, tmp_path: Path) -> None:
    with run_server_with(hub, tmp_path / "store", prelude=TELL_MODULES) as server:
        assert server.post_audio(AUDIO, model=NAME).status_code == 404
        hub.repositories[NAME].pace = 0.0003
        answer = post_pull(server, NAME)
        assert answer.headers["content-type"] == "application/x-ndjson"
        first, *steps, last = parse_lines(answer)
        assert first == {"status": "pulling", "model": NAME, "engine": "moonshine"}
        assert last == {"status": "success", "model": NAME}
        assert {step["status"] for step in steps} == {"downloading"}
        assert steps[-1]["completed"] == steps[-1]["total"] == sum(map(len, read_moonshine_files().values()))
        for name in (NAME, "whisper-1", f"{NAME}:latest"):
            answer = server.post_audio(AUDIO, model=name)
            assert (answer.json()["text"], answer.headers["x-eardrum-model"]) == (SPEECH_TEXT, NAME), name
        listed = requests.get(f"{server.address}/v1/models", timeout=10).json()["data"]
        assert NAME in [model["id"] for model in listed]
        del hub.repositories[NAME]  # a model that is here can be pulled whatever the hub says
        pulled = requests.post(f"{server.address}/api/pull", json={"model": NAME}, timeout=60)
        assert [line["status"] for line in parse_lines(pulled)][-1] == "success"
        server.wait_for_log("was not updated; the local copy stays in use")
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for_log("MODULES")
        modules = set(json.loads(server.log.split("MODULES ")[1].splitlines()[0]))
        assert "eardrum.gateway.models.download" in modules
        heavy = {"huggingface_hub", "httpx2", "filelock", "numpy", "torch", "onnxruntime", "av", "eardrum.hub"}
        assert not modules & heavy
        assert not [name for name in modules if name.startswith(("eardrum.hub", "eardrum.runner.", "eardrum.engines.moonshine"))]


def test_speaches_clients_download_and_delete(hub: FakeHub, tmp_path: Path) -> None:
    with run_server_with(hub, tmp_path / "store", "--set", "default_model=moonshine-tiny-en") as server:
        url = f"{server.address}/v1/models/{NAME}"
        assert requests.get(url, timeout=10).status_code == 404
        assert requests.delete(url, timeout=10).status_code == 404
        downloaded = requests.post(url, timeout=60)
        assert (downloaded.status_code, downloaded.text) == (200, f"Model '{NAME}' downloaded")
        for change in (requests.post, requests.delete):  # by a page of another site
            assert change(url, headers={"origin": "http://evil.example"}, timeout=60).status_code == 403
        again = requests.post(url, timeout=60)
        assert (again.status_code, again.text) == (201, f"Model '{NAME}' already exists")
        assert requests.get(url, timeout=10).json()["id"] == NAME
        assert server.post_audio(AUDIO, model=NAME).json()["text"] == SPEECH_TEXT
        deleted = requests.delete(url, timeout=20)
        openai_fields = {"id": NAME, "object": "model", "deleted": True}
        assert (deleted.status_code, deleted.json()) == (200, {**openai_fields, "detail": f"Model '{NAME}' deleted"})
        assert requests.get(url, timeout=10).status_code == 404
        assert not server.list_runners()
        for name, status in (("nobody/nothing", 404), ("nothing-like-it", 404), ("moonshine-tiny-en", 201)):
            assert requests.post(f"{server.address}/v1/models/{name}", timeout=20).status_code == status, name
        assert requests.delete(f"{server.address}/v1/models/moonshine-tiny-en", timeout=20).status_code == 400
        listed = requests.get(f"{server.address}/v1/registry", timeout=10).json()["data"]
        (whisper,) = [model for model in listed if model["id"] == "Systran/faster-whisper-small"]
        assert whisper["task"] == "automatic-speech-recognition"
        assert (whisper["owned_by"], "de" in whisper["language"] or not whisper["language"]) == ("Systran", True)
        spoken = requests.get(f"{server.address}/v1/registry?task=text-to-speech", timeout=10).json()["data"]
        assert {model["task"] for model in spoken} == {"text-to-speech"}
        assert requests.get(f"{server.address}/v1/registry?task=translation", timeout=10).json()["data"] == []


def test_what_another_process_brings_serves_the_next_request(hub: FakeHub, tmp_path: Path) -> None:
    """As `eardrum pull` and `eardrum rm` do, in another terminal."""
    with run_server_with(hub, tmp_path / "store") as server:
        assert server.post_audio(AUDIO, model="whisper-1").headers["x-eardrum-model"] == "moonshine-tiny-en"
        assert server.post_audio(AUDIO, model="whisper-1", language="de").status_code == 400
        for name in ("moon-en", "moon-de"):
            beside = tmp_path / name
            beside.mkdir()
            for file, content in read_moonshine_files().items():
                (beside / file).write_bytes(content)
            beside.rename(tmp_path / "store" / name)
        assert server.post_audio(AUDIO, model="whisper-1", language="de").headers["x-eardrum-model"] == "moon-de"
        assert server.post_audio(AUDIO, model="whisper-1").headers["x-eardrum-model"] == "moon-en"
        assert requests.get(f"{server.address}/health", timeout=10).json()["default_model"] == "moon-en"
        server.wait_for_log("The default model is now moon-en")
        deleted = requests.delete(f"{server.address}/api/delete", json={"model": "moon-en"}, timeout=20)
        assert deleted.status_code == 200
        assert server.post_audio(AUDIO).headers["x-eardrum-model"] == "moonshine-tiny-en"


def test_two_clients_share_a_download_and_it_ends_with_the_last(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].gate = Event()
    with run_server_with(hub, tmp_path / "store") as server:
        one, two = post_pull(server, NAME, stream=True), post_pull(server, NAME, stream=True)
        for answer in (one, two):
            received = answer.iter_lines()
            assert b"pulling" in next(received)
            assert b"downloading" in next(received)
        (child,) = list_downloads(server)
        one.close()
        two.close()
        assert not psutil.wait_procs([child], timeout=60)[1], "fetching for nobody"
        assert server.post_audio(AUDIO, model=NAME).status_code == 404


def test_shutdown_ends_a_download_and_says_so(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].gate = Event()
    with run_server_with(hub, tmp_path / "store", "--set", "shutdown_timeout=0") as server:
        answer = post_pull(server, NAME, stream=True)
        received = answer.iter_lines()
        next(received)
        next(received)
        server.process.send_signal(signal.SIGTERM)
        last = json.loads(list(received)[-1])
        assert (last["status"], last["code"]) == ("error", "shutting_down")
        server.process.wait(60)


def test_what_cannot_be_pulled(hub: FakeHub, tmp_path: Path) -> None:
    with run_server_with(hub, tmp_path / "store") as server:
        for name in ("nothing-like-it", "nobody/nothing", *(quote(name.encode(errors="replace")) for name in EVIL[2:])):
            answer = post_pull(server, name)
            assert answer.status_code == 404, name[:100]
            assert len(answer.text) < 1000
        assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
        assert list((tmp_path / "store").iterdir()) == []
        assert post_pull(server, "moonshine-tiny-en").status_code == 400
        assert requests.get(f"{server.address}/api/pull/x", timeout=10).status_code == 405
        hub.repositories[NAME].damaged = True
        answer = post_pull(server, NAME)
        last = parse_lines(answer)[-1]
        assert (answer.status_code, last["status"], last["code"]) == (200, "error", "pull_failed")
        assert "does not match the hub's checksum: pull the model again" in str(last["error"])
        server.wait_for_log("does not match the hub's checksum")
        assert "Traceback" not in server.log


def test_a_model_whose_terms_nobody_accepted_is_refused_with_the_setting(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].gated = True
    with run_server_with(hub, tmp_path / "store", "--set", "pull_missing=true") as server:
        url = f"{server.address}/api/pull"
        for answer in (
            post_pull(server, NAME),
            requests.post(url, json={"model": NAME, "stream": False}, timeout=60),
            requests.post(f"{server.address}/v1/models/{NAME}", timeout=60),
        ):
            assert answer.status_code == 403, answer.text
            assert "accept them on its page at the hub, then set HF_TOKEN" in answer.text
        assert "hub_access_denied" in answer.text
        (last,) = parse_lines(requests.post(url, json={"model": NAME}, timeout=60))[1:]
        assert "HF_TOKEN" in str(last["error"])


def test_what_runs_a_model(hub: FakeHub, tmp_path: Path) -> None:
    settings = f"models={{mine-es: {{source: {MOONSHINE}, options: {{device: cpu}}}}}}"
    with run_server_with(hub, tmp_path / "store", "--set", settings, "--set", "default_model=moonshine-tiny-en") as server:
        url = f"{server.address}/api/v1/backend"
        default = requests.get(url, timeout=10).json()
        assert (default["backend"], default["info"]["model"], default["info"]["language"]) == (
            "moonshine",
            "moonshine-tiny-en",
            "en",
        )
        assert default["capabilities"]["supports_logprobs"] is True
        assert default["capabilities"]["supports_translate"] is False
        mine = requests.get(url, params={"model": "mine-es"}, timeout=10).json()
        assert (mine["info"]["device"], mine["capabilities"]["languages"]) == ("cpu", ["es"])
        refused = requests.get(url, params={"model": "nobody"}, timeout=10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_pull_missing_fetches_on_first_use_for_all_who_wait(hub: FakeHub, tmp_path: Path) -> None:
    settings = f"models={{mine: {{source: {NAME}, engine: moonshine}}}}"
    gate = hub.repositories[NAME].gate = Event()
    with run_server_with(hub, tmp_path / "store", "--set", settings, "--set", "pull_missing=true") as server:
        assert requests.get(f"{server.address}/v1/models/mine", timeout=10).status_code == 404
        assert "mine" not in requests.get(f"{server.address}/v1/models", timeout=10).text
        answers: list[requests.Response] = []
        asking = [Thread(target=lambda: answers.append(server.post_audio(AUDIO, model="mine"))) for _ in range(2)]
        for thread in asking:
            thread.start()
        wait_for(lambda: hub.sending)
        assert len(list_downloads(server)) == 1
        gate.set()
        for thread in asking:
            thread.join(60)
        assert [answer.json().get("text") for answer in answers] == [SPEECH_TEXT] * 2
        assert hub.served == sum(map(len, read_moonshine_files().values()))
        assert requests.get(f"{server.address}/v1/models/mine", timeout=10).status_code == 200


def test_a_download_that_fails_on_first_use_says_why(hub: FakeHub, tmp_path: Path) -> None:
    settings = f"models={{mine: {{source: {NAME}, engine: moonshine}}, odd: {{source: a/b, engine: moonshine}}}}"
    hub.repositories["a/b"] = FakeRepository({"notes.txt": b"x"})
    hub.repositories[NAME].status = 500
    with run_server_with(hub, tmp_path / "store", "--set", settings, "--set", "pull_missing=true") as server:
        answer = server.post_audio(AUDIO, model="mine")
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "pull_failed")
        assert "failed with status" in answer.json()["error"]["message"]
        odd = server.post_audio(AUDIO, model="odd")
        assert odd.status_code == 500
        assert "encoder_model.ort is missing" in odd.json()["error"]["message"]
        hub.repositories[NAME].status = 200
        assert server.post_audio(AUDIO, model="mine").json()["text"] == SPEECH_TEXT


def test_a_pull_that_was_cut_off_is_told_and_repaired_without_a_restart(hub: FakeHub, tmp_path: Path) -> None:
    gate = hub.repositories[NAME].gate = Event()
    settings = f"models={{mine: {{source: {NAME}, engine: moonshine}}}}"
    with run_server_with(hub, tmp_path / "store", "--set", settings) as server:
        missing = server.post_audio(AUDIO, model="mine").json()["error"]
        assert f"is not on this machine: run `eardrum pull {NAME}`" in missing["message"]
        answer = post_pull(server, "mine", stream=True)
        wait_for(lambda: hub.sending and hub.served > 3_000_000)
        answer.close()
        wait_for(lambda: not list_downloads(server))
        half = server.post_audio(AUDIO, model="mine")
        assert half.status_code == 404
        assert f"mine ({NAME}) is only partly downloaded: run `eardrum pull {NAME}`" in half.json()["error"]["message"]
        gate.set()
        assert parse_lines(post_pull(server, "mine"))[-1]["status"] == "success"
        assert hub.ranges
        assert server.post_audio(AUDIO, model="mine").json()["text"] == SPEECH_TEXT


def test_damaged_models_are_named_and_repaired_without_a_restart(hub: FakeHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("lacks-en", "short-en"):
        shutil.copytree(MOONSHINE, store / name)
    decoder = store / "short-en" / "decoder_model_merged.ort"
    decoder.write_bytes(decoder.read_bytes()[:100_000])
    with run_server_with(hub, store, "--set", f"models.lacks.source={store / 'lacks-en'}") as server:
        (store / "lacks-en" / "tokenizer.bin").unlink()
        lacking = server.post_audio(AUDIO, model="lacks")
        assert lacking.status_code == 500
        assert "tokenizer.bin is missing" in lacking.json()["error"]["message"]
        truncated = server.post_audio(AUDIO, model="short-en")
        assert truncated.status_code == 500
        assert str(decoder) in truncated.json()["error"]["message"]
        nowhere = server.post_audio(AUDIO, model="short-e")
        assert nowhere.status_code == 404
        assert "There is no model 'short-e'. Models: lacks, " in nowhere.json()["error"]["message"]
        for name in ("decoder_model_merged.ort", "tokenizer.bin"):
            for folder in ("lacks-en", "short-en"):
                shutil.copy(MOONSHINE / name, store / folder / name)
        for model in ("lacks", "short-en"):
            wait_for(lambda model=model: server.post_audio(AUDIO, model=model).status_code == 200)
        assert "Traceback" not in server.log


def test_names_that_no_model_has_do_no_harm(hub: FakeHub, tmp_path: Path) -> None:
    with run_server_with(hub, tmp_path / "store", "--set", "pull_missing=true") as server:
        for name in [name for name in EVIL if name.strip()]:
            answer = server.post_audio(AUDIO, model=name.encode(errors="replace").decode())
            assert answer.status_code == 404, (name[:80], answer.text[:300])
            assert len(answer.json()["error"]["message"]) < 600
        for name in EVIL[2:]:
            url = f"{server.address}/v1/models/{quote(name.encode(errors='replace'), safe='')}"
            assert requests.get(url, timeout=10).status_code == 404, name[:100]
        assert hub.requests == []
        assert list((tmp_path / "store").iterdir()) == []
        assert not [line for line in server.log.splitlines() if line.startswith("ERROR forged")]
        assert "Traceback" not in server.log


def test_a_models_id_may_be_in_any_script(hub: FakeHub, tmp_path: Path) -> None:
    with run_server_with(hub, tmp_path / "store", "--set", f"models={{größe-модель: {{source: {MOONSHINE}}}}}") as server:
        answer = server.post_audio(AUDIO, model="größe-модель")
        assert (answer.status_code, answer.json()["text"]) == (200, SPEECH_TEXT)
        assert answer.headers["x-eardrum-model"] == quote("größe-модель")
