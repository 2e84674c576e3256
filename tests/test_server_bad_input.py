"""Everything a client can send wrong ends in a clear answer, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import socket
from contextlib import suppress

import numpy as np
import psutil
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import ROOT, SPEECH_TEXT, create_silence, decode_file, encode, encode_speech, load_speech

pytestmark = pytest.mark.slow

FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def tone() -> np.ndarray:
    return (0.3 * np.sin(np.arange(16_000 * 20) * 2 * np.pi * 440 / 16_000)).astype(np.float32)


def test_silence_noise_and_tones_are_empty(server: ServerUnderTest, tone: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    noise = (rng.standard_normal(16_000 * 20) * 0.1).clip(-1, 1).astype(np.float32)
    for file in (encode(np.zeros(16_000 * 600, np.float32), "flac"), encode(noise, "mp3"), encode(tone, "mp3")):
        answer = server.post_audio(file)
        assert (answer.status_code, answer.json()["text"]) == (200, "")


def test_silence_in_every_format(server: ServerUnderTest) -> None:
    silence = encode(np.zeros(16_000, np.float32), "wav")
    assert server.post_audio(silence, response_format="vtt").text == "WEBVTT\n\n"
    assert server.post_audio(silence, response_format="srt").text == ""
    assert server.post_audio(silence, response_format="text").text == "\n"
    verbose = server.post_audio(silence, response_format="verbose_json").json()
    assert (verbose["text"], verbose["segments"], verbose["duration"]) == ("", [], 1.0)
    assert '"type": "transcript.text.done", "text": ""' in server.post_audio(silence, stream="true").text


def test_a_clip_of_100_ms_is_answered(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode(load_speech()[16_000:17_600], "wav"))
    assert answer.status_code == 200
    assert answer.json()["usage"]["seconds"] == 1


def test_an_hour_in_bounded_memory(server: ServerUnderTest) -> None:
    hour = encode(np.zeros(3_600 * 16_000, np.float32), "flac", rate=8_000)
    server.post_audio(encode_speech("wav"))
    (runner,) = server.list_runners()
    before = runner.memory_info().rss
    answer = server.post_audio(hour, response_format="verbose_json").json()
    assert (answer["text"], round(answer["duration"])) == ("", 3_600)
    assert runner.memory_info().rss - before < 60e6, "its samples are 230 MB"


def test_a_truncated_mp3_is_worth_what_is_in_it(server: ServerUnderTest) -> None:
    whole = encode_speech("mp3")
    answer = server.post_audio(whole[: len(whole) // 2], response_format="verbose_json")
    text = answer.json()["text"]
    assert text.startswith(SPEECH_TEXT[:100])
    assert len(text) < len(SPEECH_TEXT)
    (warning,) = answer.json()["warnings"]
    assert warning.startswith("The file breaks off at 9.0 s")
    assert answer.headers["x-eardrum-warnings"] == warning
    server.wait_for_log(warning)
    assert "x-eardrum-warnings" not in server.post_audio(whole).headers


def test_video_without_sound(server: ServerUnderTest) -> None:
    answer = server.post_audio(encode(None, "mp4"))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The file has no audio track."


def test_a_playlist_opens_nothing(server: ServerUnderTest, tmp_path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode_speech("wav"))
    for text in (f"#EXTM3U\n#EXTINF:10,\nfile://{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        answer = server.post_audio(text.encode())
        assert answer.status_code == 400
        assert "cannot be decoded" in answer.json()["error"]["message"]


def test_forms_that_are_wrong(server: ServerUnderTest) -> None:
    audio = encode_speech("wav")
    url = f"{server.address}/v1/audio/transcriptions"

    def refused(answer: requests.Response) -> str:
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["message"]

    assert "holds no file" in refused(server.post_audio(model="whisper-1"))
    two = requests.post(url, files=[("file", ("a", audio)), ("file", ("b", audio))], timeout=60)
    assert "two files" in refused(two)
    elsewhere = requests.post(url, files={"audio": ("a", audio)}, timeout=60)
    assert "belongs into the field 'file'" in refused(elsewhere)
    fields = b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nv\r\n' % n for n in range(10_000))
    assert "more than 100 fields" in refused(requests.post(url, data=fields + b"--x--\r\n", headers=FORM, timeout=60))
    unended = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + audio
    assert "closing boundary" in refused(requests.post(url, data=unended, headers=FORM, timeout=60))
    assert "cannot be parsed" in refused(requests.post(url, data=b"no form", headers=FORM, timeout=60))
    no_boundary = requests.post(url, data=b"", headers={"content-type": "multipart/form-data"}, timeout=60)
    assert "no boundary" in refused(no_boundary)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/audio/transcriptions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/audio/transcriptions/", 404, "not_found"),
        ("POST", "/v1/audio/transcriptions", 415, "unsupported_media_type"),
    ],
)
def test_wrong_routes_speak_openai(server: ServerUnderTest, method: str, path: str, status: int, code: str) -> None:
    answer = requests.request(method, server.address + path, timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-request-id"].startswith("req_")


def test_json_bodies(server: ServerUnderTest) -> None:
    url = f"{server.address}/v1/audio/transcriptions"
    audio = base64.b64encode(encode_speech("mp3")).decode()
    body = {"model": "whisper-1", "language": None, "input_audio": {"data": audio, "format": "mp3"}}
    assert requests.post(url, json=body, timeout=60).json()["text"] == SPEECH_TEXT
    for wrong in ({}, [], {"input_audio": 3}, {"input_audio": {"data": "?"}}):
        answer = requests.post(url, json=wrong, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_audio")
    for broken in (b"{", b"[" * 100_000, b"\xff"):
        answer = requests.post(url, data=broken, headers={"content-type": "application/json"}, timeout=60)
        said = "nested more than" if broken.startswith(b"[") else "not valid JSON"
        assert (answer.status_code, said in answer.text) == (400, True)


def test_raw_pcm_when_declared(server: ServerUnderTest) -> None:
    pcm = (load_speech() * 32767).astype("<i2").tobytes()
    files = {"file": ("a", pcm, "audio/pcm")}
    answer = requests.post(f"{server.address}/v1/audio/transcriptions", files=files, timeout=60)
    assert answer.json()["text"] == SPEECH_TEXT


def test_audio_that_is_too_long(tmp_path) -> None:
    with run_server("--set", "limits.audio_duration=10") as server:
        answer = server.post_audio(encode_speech("wav"))
        assert answer.status_code == 400
        assert "longer than" in answer.json()["error"]["message"]


def test_hints_a_model_cannot_take_are_named(server: ServerUnderTest) -> None:
    audio = encode_speech("wav")
    answer = server.post_audio(audio, prompt="Sense and Sensibility", temperature="0.4", foo="bar", language="", stream="")
    assert answer.json()["text"] == SPEECH_TEXT
    assert answer.headers["x-eardrum-ignored"] == "prompt, temperature, foo"
    assert "x-eardrum-ignored" not in server.post_audio(audio, prompt="", temperature="0").headers
    words = server.post_audio(audio, **{"timestamp_granularities[]": "word"})
    assert words.headers["x-eardrum-ignored"] == "timestamp_granularities"
    shaped = server.post_audio(audio, subtitles="broadcast", max_line_width="30", multilingual="true")
    assert shaped.headers["x-eardrum-ignored"] == "multilingual, subtitles, max_line_width"


def test_a_word_said_ten_times_is_not_taken_for_a_loop(server: ServerUnderTest) -> None:
    zero = decode_file(ROOT / "tests" / "data" / "digits" / "0.ogg")
    answer = server.post_audio(
        encode(np.tile(np.concatenate([zero, create_silence(0.2)]), 10), "wav"), response_format="verbose_json"
    ).json()
    assert 9 <= answer["text"].lower().count("zero") <= 11, "the model may miscount by one; on other processors it does"
    assert "dropped" not in answer


def test_nothing_is_left_open(server: ServerUnderTest) -> None:
    server.post_audio(b"not audio" * (1 << 18))
    server.post_audio(encode_speech("m4a"))
    wait_for(lambda: server.list_open_files() == [])  # the threads that wrote for a refused request may have a moment to go


def exchange_bytes(server: ServerUnderTest, request: bytes) -> bytes:
    """What the server answers to these bytes before it closes the connection."""
    with socket.create_connection(server.host, timeout=20) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        answer = b""
        with suppress(ConnectionError):
            while data := connection.recv(65536):
                answer += data
    return answer


def test_what_is_not_http_is_refused_in_the_apis_shape(server: ServerUnderTest) -> None:
    for request in (
        b"FOO /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    ):
        head, _, body = exchange_bytes(server, request).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_endless_headers_are_refused(server: ServerUnderTest) -> None:
    before = psutil.Process(server.process.pid).memory_info().rss
    answer = exchange_bytes(server, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 50_000_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    assert psutil.Process(server.process.pid).memory_info().rss - before < 20e6
    slowly = exchange_bytes(server, b"GET / HTTP/1.1\r\nX: " + b"a" * 66_000)
    assert slowly.startswith(b"HTTP/1.1 431")


def test_a_path_cannot_forge_the_log(server: ServerUnderTest) -> None:
    requests.get(f"{server.address}/v1/models/x%0aERROR%20forged", timeout=20)
    server.wait_for_log("forged")
    assert not [line for line in server.log.splitlines() if line.startswith("ERROR")]


def test_compressed_bodies_are_refused_by_name(server: ServerUnderTest) -> None:
    headers = FORM | {"content-encoding": "gzip"}
    answer = requests.post(f"{server.address}/v1/audio/transcriptions", data=b"x", headers=headers, timeout=20)
    assert (answer.status_code, "content-encoding gzip" in answer.text) == (415, True)


def test_what_a_query_asks_for_is_named_as_ignored(server: ServerUnderTest) -> None:
    files = {"file": ("a", encode(load_speech()[:16_000], "wav"))}
    url = f"{server.address}/v1/audio/transcriptions?response_format=text"
    answer = requests.post(url, files=files, data={"stream": "true", "response_format": "srt"}, timeout=60)
    assert answer.headers["x-eardrum-ignored"] == "response_format, ?response_format"
