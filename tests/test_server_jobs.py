"""Jobs of a real server: OpenAI's client, /api/jobs, webhooks, and the command line."""

from __future__ import annotations

import io
import json
import os
import time
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import psutil
import pytest
import requests

from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server
from tests.recordings import SPEECH_TEXT, encode_announcements, encode_speech

pytestmark = pytest.mark.slow

SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ="
ENDPOINT = "/v1/audio/transcriptions"
SPEECH_ENDPOINT = "/v1/audio/speech"


class Receiver(HTTPServer):
    """Receives webhooks; the first answer is 500."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", f"{self.server.url}/hook")
        else:
            self.server.received.append((body, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(500 if self.path == "/fails-once" and len(self.server.received) == 1 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        audio = encode_speech("wav") if self.path == "/speech.wav" else b""
        self.send_response(200 if audio else 404)
        self.send_header("content-length", str(len(audio)))
        self.end_headers()
        self.wfile.write(audio)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    folder = tmp_path_factory.mktemp("jobs")
    jobs = {"dir": str(folder), "webhook_secret": SECRET, "webhook_hosts": ["*", "127.0.0.1"]}
    settings = ["--set", f"jobs={json.dumps(jobs)}", "--set", 'limits.fetch_hosts=["127.0.0.1"]']
    with run_server(*settings) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: ServerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, webhook_secret=SECRET) as made:
        yield made


def upload(client: openai.OpenAI, audio: bytes) -> str:
    return client.files.create(file=("speech.mp3", io.BytesIO(audio)), purpose="user_data").id


def create_batch(client: openai.OpenAI, lines: list[dict[str, Any]], **extra: Any) -> Any:
    text = "\n".join(json.dumps({"method": "POST", "url": ENDPOINT, **line}) for line in lines)
    file = client.files.create(file=("requests.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **extra)


def wait_for_batch(client: openai.OpenAI, id: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while (batch := client.batches.retrieve(id)).status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < end, batch
        time.sleep(0.1)
    return batch


def read_lines(client: openai.OpenAI, id: str | None) -> dict[str, Any]:
    if not id:
        return {}
    return {line["custom_id"]: line for line in map(json.loads, client.files.content(id).text.splitlines())}


def test_files_come_back_as_they_were_sent(client: openai.OpenAI, server: ServerUnderTest) -> None:
    data = os.urandom(300_000)
    made = client.files.create(
        file=("a name.bin", data), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.bytes, made.filename, made.purpose, made.object) == (300_000, "a name.bin", "user_data", "file")
    assert made.expires_at == pytest.approx(made.created_at + 3600, abs=2)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == data
    part = requests.get(f"{server.address}/v1/files/{made.id}/content", headers={"range": "bytes=10-19"}, timeout=20)
    assert (part.status_code, part.content) == (206, data[10:20])
    others = [client.files.create(file=("x", b"x"), purpose="evals").id for _ in range(3)]
    listed = [file.id for file in client.files.list(purpose="evals", limit=2)]
    assert listed == others[::-1], "all pages"
    assert [file.id for file in client.files.list(purpose="evals", order="asc")] == others
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        client.files.retrieve(made.id)


def test_a_batch_from_end_to_end(client: openai.OpenAI, receiver: Receiver) -> None:
    audio = upload(client, encode_speech("mp3"))
    lines = [
        {"custom_id": "json", "body": {"model": "whisper-1", "file": audio}},
        {"custom_id": "srt", "body": {"model": "whisper-1", "file": audio, "response_format": "srt"}},
        {"custom_id": "url", "method": "FILE", "body": {"file": f"{receiver.url}/speech.wav", "response_format": "verbose_json"}},
        {"custom_id": "gone", "body": {"file_url": f"{receiver.url}/nothing.wav"}},
        {"custom_id": "missing", "body": {"file": "file-missing"}},
        {"custom_id": "xml", "body": {"file": audio, "response_format": "xml"}},
        {"custom_id": "model", "body": {"file": audio, "model": "org/nope"}},
        {"custom_id": "noise", "body": {"file": upload(client, b"no audio")}},
        {"custom_id": "host", "body": {"file_url": "http://10.1.2.3/a.wav"}},
    ]
    batch = create_batch(client, lines, metadata={"a": "b"}, extra_body={"webhook_url": f"{receiver.url}/hook"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"a": "b"})
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.02)
    with pytest.raises(openai.ConflictError, match="cancel the job first"):
        client.files.delete(audio)
    batch = wait_for_batch(client, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 9, "completed": 3, "failed": 6}
    done, failed = read_lines(client, batch.output_file_id), read_lines(client, batch.error_file_id)
    assert list(done) == ["json", "srt", "url"]
    assert done["json"]["response"]["body"]["text"] == SPEECH_TEXT
    assert done["srt"]["response"]["body"].startswith("1\n00:00:00,")
    assert done["url"]["response"]["body"]["segments"]
    statuses = {key: line["response"]["status_code"] for key, line in failed.items()}
    assert statuses == {"gone": 400, "missing": 404, "xml": 400, "model": 404, "noise": 400, "host": 400}
    assert failed["model"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    body, headers = next(pair for pair in receiver.received if batch.id.encode() in pair[0])
    event = client.webhooks.unwrap(body.decode(), headers)
    assert (event.type, event.data.id) == ("batch.completed", batch.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.decode().replace("completed", "failed"), headers)


def test_a_batch_of_texts_to_speak(client: openai.OpenAI) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "wav": {"model": "tts-1", "input": "The train leaves at nine.", "voice": "alloy", "response_format": "wav"},
        "mp3": {"input": "Good morning."},
        "voice": {"input": "Good morning.", "voice": "nobody"},
    }
    lines = [{"custom_id": key, "method": "POST", "url": SPEECH_ENDPOINT, "body": body} for key, body in bodies.items()]
    file = client.files.create(file=("requests.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=SPEECH_ENDPOINT,
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    batch = wait_for_batch(client, batch.id, 120)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
    done = {key: line["response"]["body"] for key, line in read_lines(client, batch.output_file_id).items()}
    assert [done[key]["content_type"] for key in ("wav", "mp3")] == ["audio/wav", "audio/mpeg"]
    audio = client.files.content(done["wav"]["file_id"]).read()
    assert len(audio) == done["wav"]["bytes"]
    with wave.open(io.BytesIO(audio)) as read:
        assert read.getnframes() / read.getframerate() == pytest.approx(done["wav"]["duration"], abs=0.01)
        assert done["wav"]["duration"] > 1
    described = client.files.retrieve(done["mp3"]["file_id"])
    assert described.filename.endswith(".mp3")
    assert described.expires_at == client.files.retrieve(batch.output_file_id).expires_at
    assert read_lines(client, batch.error_file_id)["voice"]["response"]["status_code"] == 400


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\n{]\n", "invalid_value", 2),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "invalid_value", 1),
        (b'{"custom_id": "a", "body": {"file": "f"}}\n{"custom_id": "a", "body": {"file": "f"}}', "duplicate_custom_id", 2),
        (b'{"body": {}}', "invalid_value", 1),
        (b"\xff\xfe", "invalid_value", 1),
    ],
    ids=["empty", "json", "url", "twice", "no id", "bytes"],
)
def test_a_file_that_is_wrong_fails_the_batch_and_says_where(
    client: openai.OpenAI, text: bytes, code: str, line: int | None
) -> None:
    file = client.files.create(file=("requests.jsonl", text), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    batch = wait_for_batch(client, batch.id)
    assert batch.status == "failed"
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, line)


def test_requests_that_are_wrong_are_400(client: openai.OpenAI) -> None:
    audio = upload(client, b"x")
    for wanted, says in (
        ({"input_file_id": audio}, "not batch"),
        ({"input_file_id": "nope"}, "There is no file"),
        ({"input_file_id": audio, "endpoint": "/v1/embeddings"}, "endpoint"),
        ({"input_file_id": audio, "completion_window": "90d"}, "1h to 30d"),
        ({"input_file_id": audio, "metadata": {"a": "b" * 513}}, "512"),
        ({"input_file_id": audio, "extra_body": {"webhook_url": "http://10.0.0.1/"}}, "batch|webhook_hosts"),
    ):
        with pytest.raises(openai.APIStatusError, match=says) as caught:
            client.batches.create(**{"endpoint": ENDPOINT, "completion_window": "24h", **wanted})
        assert caught.value.status_code in (400, 404)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("x", b"x"), purpose="nonsense")
    with pytest.raises(openai.NotFoundError, match="There is no batch"):
        client.batches.retrieve("batch_x")


def test_cancel_before_during_and_after(client: openai.OpenAI) -> None:
    audio = upload(client, encode_announcements(300))
    batch = create_batch(client, [{"custom_id": str(n), "body": {"file": audio}} for n in range(6)])
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    ended = wait_for_batch(client, batch.id)
    assert ended.status == "cancelled"
    assert ended.cancelled_at
    assert client.batches.cancel(batch.id).status == "cancelled"
    codes = {line["error"]["code"] for line in read_lines(client, ended.error_file_id).values()}
    assert codes == {"batch_cancelled"}
    assert len(read_lines(client, ended.error_file_id)) + len(read_lines(client, ended.output_file_id)) == 6


def post_job(server: ServerUnderTest, audio: bytes, headers: dict[str, str] | None = None, **fields: str) -> requests.Response:
    files = {"file": ("speech.mp3", audio)}
    return requests.post(f"{server.address}/api/jobs", data=fields, files=files, headers=headers or {}, timeout=60)


def get(server: ServerUnderTest, path: str, **more: Any) -> requests.Response:
    return requests.get(f"{server.address}/api/jobs{path}", timeout=100, **more)


def test_a_recording_as_a_job(server: ServerUnderTest, receiver: Receiver) -> None:
    made = post_job(
        server, encode_speech("mp3"), response_format="srt", webhook_url=f"{receiver.url}/fails-once", metadata='{"a": "b"}'
    )
    assert made.status_code == 202, made.text
    job = made.json()
    assert made.headers["location"] == f"/api/jobs/{job['id']}"
    ended = get(server, f"/{job['id']}?wait=60").json()
    assert (ended["status"], ended["metadata"], ended["file"]) == ("completed", {"a": "b"}, "speech.mp3")
    assert ended["progress"]["seconds"] == ended["progress"]["of_seconds"] == pytest.approx(17.4, abs=1)
    assert get(server, f"/{job['id']}/result").text.startswith("1\n00:00:00,")
    assert get(server, f"/{job['id']}/result?response_format=json").json()["text"] == SPEECH_TEXT
    assert get(server, f"/{job['id']}/result?response_format=xml").status_code == 400
    assert job["id"] in [one["id"] for one in get(server, "").json()["data"]]
    events = get(server, f"/{job['id']}/events").text
    assert events.rstrip().rpartition("\n\n")[2].startswith("event: done")
    assert requests.delete(f"{server.address}/api/jobs/{job['id']}", timeout=20).json()["deleted"]
    gone = get(server, f"/{job['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_a_long_job_shows_its_progress_its_segments_and_what_is_finished(server: ServerUnderTest) -> None:
    job = post_job(server, encode_announcements(120)).json()
    early = get(server, f"/{job['id']}/result")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "conflict")
    assert requests.delete(f"{server.address}/api/jobs/{job['id']}", timeout=20).status_code == 409
    segments: list[dict[str, Any]] = []
    kinds = []
    with get(server, f"/{job['id']}/events", stream=True) as answer:
        kind = ""
        for line in answer.iter_lines(decode_unicode=True):
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
                kinds.append(kind)
            elif line.startswith("data: ") and kind == "segments":
                segments += json.loads(line.removeprefix("data: "))["segments"]
    assert kinds[-1] == "done"
    assert "progress" in kinds
    result = get(server, f"/{job['id']}/result?response_format=verbose_json").json()
    assert [segment["text"] for segment in segments] == [segment["text"].strip() for segment in result["segments"]]
    direct = server.post_audio(encode_announcements(120), response_format="verbose_json").json()
    assert [s["start"] for s in direct["segments"]] == [s["start"] for s in result["segments"]]


def test_what_is_wrong_with_a_job_is_told_before_it_is_taken(server: ServerUnderTest) -> None:
    for fields, status, says in (
        ({"response_format": "xml"}, 400, "response_format must be"),
        ({"model": "org/nope"}, 404, "There is no model"),
        ({"stream": "true"}, 400, "not streamed"),
        ({"metadata": "[1]"}, 400, "metadata must be"),
        ({"webhook_url": "ftp://x"}, 400, "webhook_url must be"),
        ({"webhook_url": "http://10.0.0.1/"}, 400, "webhook_hosts"),
        ({"task": "sing"}, 400, "task must"),
        ({"expires_after": "5"}, 400, "expires_after must be"),
    ):
        answer = post_job(server, encode_speech("mp3"), **fields)
        assert (answer.status_code, says in answer.text) == (status, True), (fields, answer.text)
    assert post_job(server, b"").status_code == 400
    failed = get(server, f"/{post_job(server, b'no audio').json()['id']}?wait=30").json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_audio")
    assert get(server, f"/{failed['id']}/result").status_code == 400


def test_a_repeated_request_with_one_key_is_one_job(server: ServerUnderTest) -> None:
    key = {"idempotency-key": "once"}
    first, second = (post_job(server, encode_speech("mp3"), key).json()["id"] for _ in range(2))
    assert first == second


def test_webhooks_do_not_follow_redirects(server: ServerUnderTest, receiver: Receiver) -> None:
    job = post_job(server, encode_speech("mp3"), webhook_url=f"{receiver.url}/moved").json()
    get(server, f"/{job['id']}?wait=60")
    server.wait_for_log("answered 302", 10)
    server.wait_for_log("The webhook of job")
    assert not [body for body, _ in receiver.received if job["id"].encode() in body]


def test_a_webhook_that_fails_comes_again_with_the_same_id(server: ServerUnderTest, receiver: Receiver) -> None:
    receiver.received.clear()
    job = post_job(server, encode_speech("mp3"), webhook_url=f"{receiver.url}/fails-once").json()
    deadline = time.monotonic() + 30
    while len(receiver.received) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    ids = [headers["webhook-id"] for body, headers in receiver.received if job["id"].encode() in body]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_the_command_line(server: ServerUnderTest, tmp_path: Path) -> None:
    job = post_job(server, encode_speech("mp3")).json()["id"]
    get(server, f"/{job}?wait=60")
    ask = ("--server", server.address)
    assert job in run_eardrum("jobs", "list", *ask, check=True).stdout
    assert json.loads(run_eardrum("jobs", "show", job, *ask, check=True).stdout)["status"] == "completed"
    run_eardrum("jobs", "export", job, "--format", "srt", "-o", str(tmp_path / "a.srt"), *ask, check=True)
    assert (tmp_path / "a.srt").read_text().startswith("1\n00:00:00,")
    assert "completed" in run_eardrum("jobs", "cancel", job, *ask, check=True).stdout
    assert "deleted" in run_eardrum("jobs", "rm", job, *ask, check=True).stdout
    gone = run_eardrum("jobs", "show", job, *ask)
    assert (gone.returncode, "There is no job" in gone.stderr) == (1, True)


def test_a_manifest_is_worked_off_and_goes_on(server: ServerUnderTest, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(encode_speech("mp3"))
    nemo = {"audio_filepath": "a.mp3", "duration": 17.4, "text": f"wrong {SPEECH_TEXT}", "id": "nemo"}
    request = {"custom_id": "request", "url": ENDPOINT, "body": {"file": "a.mp3", "model": "whisper-1"}}
    lines = ["a.mp3", json.dumps(nemo), json.dumps(request), f"{receiver.url}/speech.wav", "missing.mp3"]
    manifest = tmp_path / "manifest"
    manifest.write_text("\n".join(lines))
    command = ("batch", str(manifest), "--server", server.address)
    done = run_eardrum(*command)
    assert (done.returncode, "1 failed" in done.stderr) == (1, True), done.stderr
    words = len(SPEECH_TEXT.split()) + 1
    assert f"WER {100 / words:.2f} % of {words} words" in done.stderr
    output = manifest.with_name("manifest.out.jsonl")
    results = [json.loads(line) for line in output.read_text().splitlines()]
    by_key = {result.get("custom_id") or result["id"]: result for result in results}
    assert by_key["1"]["pred_text"] == by_key["nemo"]["pred_text"] == by_key["4"]["pred_text"] == SPEECH_TEXT
    assert by_key["request"]["response"]["body"]["text"] == SPEECH_TEXT
    assert "No such file" in by_key["5"]["error"]
    output.write_text("".join(json.dumps(result) + "\n" for result in results[:2]) + '{"id": "cut o')
    again = run_eardrum(*command)
    assert "2 of 5 recordings are done already" in again.stderr
    assert len(output.read_text().splitlines()) == 5


@pytest.mark.endurance
def test_an_upload_of_600_mib_costs_no_memory(server: ServerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(600 << 20)
    process = psutil.Process(server.process.pid)
    before = peak = process.memory_info().rss
    answers: list[requests.Response] = []

    def send() -> None:
        with path.open("rb") as stream:
            answers.append(requests.post(f"{server.address}/api/jobs", files={"file": ("large.wav", stream)}, timeout=120))

    thread = Thread(target=send)
    thread.start()
    while thread.is_alive():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.05)
    assert answers[0].status_code == 202, answers[0].text
    print(f"An upload of 600 MiB into a job: the gateway grew by {(peak - before) / 1e6:.1f} MB at most")
    assert peak - before < 20 << 20
