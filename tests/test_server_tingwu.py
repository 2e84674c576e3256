"""TingWu's HTTP API as its page uses it, against a real server with the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.slow

SENTENCE_KEYS = {"text", "start", "end", "speaker", "speaker_id"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server("--set", "limits.fetch_hosts=[127.0.0.1]") as started:
        yield started


class Recording(BaseHTTPRequestHandler):
    """Serves one recording, and a redirect to a host that is not allowed."""

    def do_GET(self) -> None:
        data = encode_speech("mp3")
        self.send_response(302 if self.path == "/elsewhere" else 200)
        if self.path == "/elsewhere":
            self.send_header("location", "http://localhost:9/speech.mp3")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output stays clean."""


@pytest.fixture(scope="module")
def recording() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Recording) as serving:
        thread = Thread(target=partial(serving.serve_forever, 0.05))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def post(server: ServerUnderTest, path: str, **request: Any) -> requests.Response:
    return requests.post(f"{server.address}/api/v1/{path}", timeout=120, **request)


def check_transcript(body: dict) -> None:
    assert body.keys() == {
        *("code", "text", "text_accu", "sentences", "sentence_info", "speaker_turns", "transcript", "raw_text"),
    }
    assert (body["code"], body["text"], body["raw_text"]) == (0, SPEECH_TEXT, SPEECH_TEXT)
    assert body["sentence_info"] == body["sentences"]
    first = body["sentences"][0]
    assert first.keys() == SENTENCE_KEYS
    assert 200 < first["start"] < 400
    assert 6_500 < first["end"] < 7_200
    assert all(isinstance(sentence[name], int) for sentence in body["sentences"] for name in ("start", "end"))


@pytest.mark.parametrize("path", ["transcribe", "trans/video"])
def test_one_recording(server: ServerUnderTest, path: str) -> None:
    form = {"with_speaker": "true", "apply_hotword": "true", "hotwords": "Dashwood", "asr_options": '{"debug": {}}'}
    answer = post(server, path, files={"file": ("会议.mp3", encode_speech("mp3"))}, data=form)
    check_transcript(answer.json())
    assert answer.headers["x-eardrum-ignored"] == "hotwords, with_speaker, asr_options"
    assert answer.headers["x-eardrum-model"] == "moonshine-tiny-en"


def test_the_shape_of_asr(server: ServerUnderTest) -> None:
    body = post(server, "asr", files={"file": ("a.mp4", encode_speech("mp4"))}, data={"file_type": "video"}).json()
    assert (body["text"], body["language"]) == (SPEECH_TEXT, "en")
    first = body["segments"][0]
    assert first.keys() == {"sentence_index", "text", "start", "end", "speaker"}
    assert first["sentence_index"] == 1
    assert first["start"].startswith("00:00:00.")
    assert first["end"].startswith("00:00:06.")


def test_several_recordings_of_which_one_is_broken(server: ServerUnderTest) -> None:
    files = [("files", (name, data)) for name, data in (("a.mp3", encode_speech("mp3")), ("b.mp3", b"x" * 9000), ("c", b""))]
    files.append(("files", ("d.wav", encode_speech("wav"))))
    body = post(server, "transcribe/batch", files=files, data={"max_concurrent": "2"}).json()
    assert (body["code"], body["total"], body["success_count"], body["failed_count"]) == (1, 4, 2, 2)
    assert [(one["index"], one["filename"], one["success"]) for one in body["results"]] == [
        *[(0, "a.mp3", True), (1, "b.mp3", False), (2, "c", False), (3, "d.wav", True)]
    ]
    for number in (0, 3):
        check_transcript(body["results"][number]["result"])
        assert body["results"][number]["error"] is None
    assert "cannot be decoded" in body["results"][1]["error"]
    assert body["results"][1]["result"] is None
    assert not server.list_open_files()


def test_a_recording_at_a_url(server: ServerUnderTest, recording: str) -> None:
    url = f"{recording}/a.mp3"
    requested: list[dict[str, Any]] = [{"data": {"audio_url": url}}, {"files": {"audio_url": (None, url)}}]
    for request in requested:
        check_transcript(post(server, "transcribe/url", **request).json())


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8100/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "http://[::1]/",
        "nonsense",
        "{}/elsewhere",
    ],
)
def test_what_may_not_be_fetched(server: ServerUnderTest, recording: str, url: str) -> None:
    answer = post(server, "transcribe/url", data={"audio_url": url.format(recording)})
    assert answer.status_code == 400
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "audio_url"


def test_errors_are_details(server: ServerUnderTest) -> None:
    speech = {"file": ("a.mp3", encode_speech("mp3"))}
    wrong: list[tuple[str, dict[str, Any], int]] = [
        ("transcribe", {"files": speech, "data": {"model": "nope"}}, 404),
        ("transcribe", {"files": speech, "data": {"language": "de"}}, 400),
        ("transcribe", {"files": {"file": ("a", b"x" * 5000)}}, 400),
        ("transcribe", {"files": {"file": ("a", b"")}}, 400),
        ("transcribe", {"data": {"hotwords": "a"}}, 400),
        ("transcribe", {"files": speech, "data": {"asr_options": "{"}}, 400),
        ("asr", {"files": {"audio_file": ("a", b"x")}}, 400),
        ("asr", {"json": {}}, 415),
        ("transcribe/batch", {"files": {"file": ("a", b"x")}}, 400),
        ("transcribe/batch", {"files": {"max_concurrent": (None, "2")}}, 400),
        ("transcribe/batch", {"files": [("files", ("a", b"x"))] * 21}, 400),
        ("transcribe/batch", {"data": {"files": "a"}}, 415),
        ("transcribe/url", {"data": {"url": "http://x"}}, 400),
        ("transcribe/url", {"data": {f"f{n}": "1" for n in range(200)}}, 400),
        ("transcribe/url", {"json": {"audio_url": "http://x"}}, 400),
        ("transcribe/url", {"data": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ("transcribe/url", {"files": speech}, 400),
    ]
    for path, request, status in wrong:
        answer = post(server, path, **request)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["detail"] == answer.json()["error"]["message"], answer.text


def test_what_the_backend_can(server: ServerUnderTest) -> None:
    body = requests.get(f"{server.address}/api/v1/backend", timeout=10).json()
    assert body.keys() == {"backend", "info", "capabilities", "speaker_unsupported_behavior"}
    assert body["capabilities"].keys() >= {
        *(
            "supports_speaker",
            "supports_streaming",
            "supports_hotwords",
            "supports_speaker_fallback",
            "supports_speaker_external",
        ),
        "speaker_strategy",
    }
    assert (body["capabilities"]["speaker_strategy"], body["speaker_unsupported_behavior"]) == ("ignore", "ignore")
    assert body["info"].keys() >= {"name", "type", "device", "model", "language", "supports_hotwords"}


def fetch_result(server: ServerUnderTest, **fields: Any) -> dict[str, Any]:
    answer = post(server, "result", **fields)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_a_task_in_the_background_as_the_documentation_has_it(server: ServerUnderTest, recording: str) -> None:
    form = {"audio_url": f"{recording}/speech.mp3", "with_speaker": "false", "apply_hotword": "true"}
    submitted = post(server, "trans/url", files={name: (None, value) for name, value in form.items()}).json()
    assert (submitted["code"], submitted["status"]) == (200, "success")
    asked = {"task_id": submitted["data"]["task_id"]}
    while (found := fetch_result(server, data=asked))["code"] == 202:
        assert found["status"] in ("pending", "processing")
    assert (found["code"], found["status"]) == (200, "success")
    check_transcript(found["data"])
    assert fetch_result(server, data=asked)["code"] == 404, "a fetched result is deleted"


def test_a_task_in_the_background_as_the_page_wants_it(server: ServerUnderTest, recording: str) -> None:
    body = {"url": f"{recording}/speech.mp3", "with_speaker": False, "apply_hotword": True, "apply_llm": False}
    submitted = post(server, "trans/url", json={**body, "llm_role": "default", "hotwords": None}).json()
    asked = {"task_id": submitted["task_id"], "wait": True, "timeout": 60, "delete": False}
    for _ in range(2):
        found = fetch_result(server, json=asked)
        assert found["status"] == "success"
        check_transcript(found["result"])


def test_tasks_that_fail_and_those_that_cannot_be(server: ServerUnderTest, recording: str) -> None:
    task = post(server, "trans/url", data={"audio_url": f"{recording}/elsewhere"}).json()["task_id"]
    found = fetch_result(server, json={"task_id": task, "wait": True})
    assert (found["code"], found["status"]) == (500, "error")
    assert "does not fetch from localhost" in found["message"]
    for wrong in (
        {"audio_url": "http://elsewhere.example/x.mp3"},
        {"audio_url": ""},
        {"hotwords": "a"},
        {"audio_url": "file:///etc/passwd"},
    ):
        assert post(server, "trans/url", data=wrong).status_code == 400
    assert post(server, "trans/url", json=[]).status_code == 400
    assert post(server, "trans/url", data=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert post(server, "result", data={"delete": "true"}).status_code == 400
    assert fetch_result(server, data={"task_id": "nope"})["code"] == 404
