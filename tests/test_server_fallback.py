"""Models that stand in for one that fails, is busy or dies, and what they do not stand in for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import SPEECH_TEXT, encode_announcements, encode_speech
from tests.test_server_lifecycle import kill_runner
from tests.test_server_uploads import END, FILE, build_field, open_wire
from tests.weights import MOONSHINE

pytestmark = pytest.mark.slow

AUDIO = encode_speech("wav")
EMBEDDED = "moonshine-tiny-en"


def settings(tmp_path: Path, **models: dict[str, object]) -> tuple[str, ...]:
    """A config in which `broken` and `absent` always fail."""
    broken = tmp_path / "broken-en"
    broken.mkdir()
    for file in MOONSHINE.iterdir():
        (broken / file.name).symlink_to(file)
    (broken / "decoder_model_merged.ort").unlink()
    (broken / "decoder_model_merged.ort").write_bytes(b"not weights")
    everything = {
        "broken": {"source": str(broken), "fallback": [EMBEDDED]},
        "absent": {"source": "someone/nothing", "engine": "moonshine", "fallback": ["broken", EMBEDDED]},
    } | models
    return "--set", f"models={json.dumps(everything)}", "--set", f"default_model={EMBEDDED}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerUnderTest]:
    one = {"source": str(MOONSHINE), "fallback": [EMBEDDED]}
    spanish = {"source": str(MOONSHINE), "options": {"language": "es"}}
    models = {
        "one": one,
        "narrow": one | {"max_requests": 1},
        "spanish": spanish,
        "picky": {"source": str(tmp_path / "broken-en"), "fallback": ["spanish", EMBEDDED]},
        "hopeless": {"source": str(tmp_path / "broken-en"), "fallback": ["spanish"]},
        "to": {"source": str(tmp_path / "broken-en"), "fallback": ["and-fro"]},
        "and-fro": {"source": str(tmp_path / "broken-en"), "fallback": ["to"]},
    }
    with run_server(*settings(tmp_path, **models)) as started:
        yield started


def get_serving_model(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-eardrum-model"]


def test_what_cannot_be_loaded_or_is_not_here_is_stood_in_for(server: ServerUnderTest) -> None:
    for model in ("broken", "broken", "absent"):  # the second time it is not even tried
        answer = server.post_audio(AUDIO, model=model)
        assert (answer.json()["text"], get_serving_model(answer)) == (SPEECH_TEXT, EMBEDDED)
    server.wait_for_log(f"Trying fallback model {EMBEDDED}.")
    server.wait_for_log(f"model={EMBEDDED}")
    assert server.post_audio(AUDIO, model=EMBEDDED).headers["x-eardrum-model"] == EMBEDDED
    failed = server.post_audio(AUDIO, model="to")
    assert failed.status_code in (500, 503), "two that stand in for each other are tried once each"


def test_who_cannot_do_what_is_asked_is_skipped(server: ServerUnderTest) -> None:
    assert get_serving_model(server.post_audio(AUDIO, model="picky", language="en")) == EMBEDDED
    assert get_serving_model(server.post_audio(AUDIO, model="picky")) == "spanish"
    refused = server.post_audio(AUDIO, model="hopeless", language="en")
    assert refused.status_code in (500, 503), "spanish does not know English, so the failure stands"
    assert "decoder_model_merged.ort" in refused.json()["error"]["message"]


def test_a_busy_model_is_stood_in_for(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "narrow") + FILE + AUDIO[:20_000])
        wait_for(lambda: get_state(server, "narrow")["requests"] == 1)
        assert get_serving_model(server.post_audio(AUDIO, model="narrow")) == EMBEDDED
        client.send_bytes(AUDIO[20_000:] + END)
        client.end_body()
        client.receive_until(b"x-eardrum-model: narrow")


def get_state(server: ServerUnderTest, model: str) -> dict[str, object]:
    models = requests.get(f"{server.address}/health", timeout=10).json()["models"]
    return next(entry for entry in models if entry["id"] == model)


def test_the_mistakes_of_a_client_are_the_clients(server: ServerUnderTest) -> None:
    for audio, fields in ((b"not audio", {}), (AUDIO, {"language": "de"}), (AUDIO, {"response_format": "xml"})):
        assert server.post_audio(audio, model="one", **fields).status_code == 400
    assert "Trying" not in server.log
    assert get_state(server, EMBEDDED)["state"] == "stopped"


def test_a_model_that_dies_again_and_again_is_stood_in_for(server: ServerUnderTest) -> None:
    server.post_audio(AUDIO, model="one")
    answers: list[requests.Response] = []
    asking = Thread(target=lambda: answers.append(server.post_audio(encode_announcements(120), model="one")))
    asking.start()
    for deaths in (1, 2):
        wait_for(
            lambda: server.list_runners() and get_state(server, "one")["state"] == "ready" and server.count_windows() > 3, 30
        )
        kill_runner(server)
        wait_for(lambda deaths=deaths: server.log.count("ran out). Its") >= deaths)
    asking.join(90)
    assert get_serving_model(answers[0]) == EMBEDDED
    assert len(answers[0].json()["text"]) > 500
    server.wait_for_log("Trying once more.")
    server.wait_for_log(f"Trying fallback model {EMBEDDED}.")


def test_a_stream_may_change_its_model_before_the_first_segment_and_not_after(server: ServerUnderTest) -> None:
    streamed = server.post_audio(AUDIO, model="broken", stream="true")
    assert "transcript.text.done" in streamed.text
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "one") + build_field("stream", "true") + FILE + encode_announcements(600) + END)
        client.end_body()
        client.receive_until(b"transcript.text.delta")
        for runner in server.list_runners():
            runner.kill()
        client.receive_until(b"event: error")
        assert b"transcript.text.done" not in client.receive_until(b'"code"')
