"""Uploads in every order and pace, and clients that misbehave on the wire."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import requests

from eardrum.gateway.spool import MEMORY_BYTES
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import (
    RATE,
    SPEECH_TEXT,
    create_silence,
    create_tone,
    encode,
    encode_announcements,
    encode_speech,
    encode_tracks,
    load_speech,
)

pytestmark = pytest.mark.slow

FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--x--\r\n"

STORED = 2 * MEMORY_BYTES
"""Bytes of an upload that is in a file by then."""


def build_field(name: str, value: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


class WireClient:
    """A client that decides about every byte. The body is sent in chunks, without a length."""

    def __init__(self, server: ServerUnderTest, path: str):
        self.socket = socket.create_connection(server.host, timeout=60)
        self.received = b""
        self.socket.sendall(
            b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" % path.encode()
            + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def end_body(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def receive_until(self, mark: bytes) -> bytes:
        """Receive until `mark` has come or the server closes."""
        while mark not in self.received and (data := self.socket.recv(65536)):
            self.received += data
        return self.received


@contextmanager
def open_wire(server: ServerUnderTest, path: str = "/v1/audio/transcriptions") -> Iterator[WireClient]:
    made = WireClient(server, path)
    try:
        yield made
    finally:
        made.socket.close()


def parse_body(received: bytes) -> dict:
    return json.loads(received.partition(b"\r\n\r\n")[2])


def test_fields_after_the_file(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        client.send_bytes(
            FILE + encode_speech("mp3") + b"\r\n" + build_field("model", "whisper-1") + build_field("response_format", "text")
        )
        client.send_bytes(b"--x--\r\n")
        client.end_body()
        assert SPEECH_TEXT.encode() in client.receive_until(b"himself.")


def test_a_byte_at_a_time(server: ServerUnderTest) -> None:
    audio = encode(load_speech()[:32_000], "mp3")
    form = build_field("model", "whisper-1") + FILE + audio + END
    with open_wire(server) as client:
        client.socket.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in form))
        client.end_body()
        assert b"200 OK" in client.receive_until(b"usage")


def test_segments_come_while_the_upload_goes_on(server: ServerUnderTest) -> None:
    audio = encode_announcements(60)
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "whisper-1") + build_field("stream", "true") + FILE + audio[: len(audio) * 2 // 3])
        assert b"transcript.text.delta" in client.receive_until(b"transcript.text.delta")
        assert b"transcript.text.done" not in client.received
        client.send_bytes(audio[len(audio) * 2 // 3 :] + END)
        client.end_body()
        assert b"transcript.text.done" in client.receive_until(b"transcript.text.done")


def test_a_late_field_that_changes_the_question_is_heeded(server: ServerUnderTest) -> None:
    """Decoding begins before the field is read; the answer must be to the whole question."""
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "whisper-1") + FILE + encode_speech("mp3") + b"\r\n")
        time.sleep(0.5)
        client.send_bytes(build_field("language", "de") + b"--x--\r\n")
        client.end_body()
        assert "does not support German" in parse_body(client.receive_until(b"unsupported_feature"))["error"]["message"]


def test_a_late_field_in_a_running_stream_fails_visibly(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        client.send_bytes(
            build_field("model", "whisper-1") + build_field("stream", "true") + FILE + encode_announcements(40) + b"\r\n"
        )
        client.receive_until(b"transcript.text.delta")
        client.send_bytes(build_field("prompt", "too late") + b"--x--\r\n")
        client.end_body()
        received = client.receive_until(b"event: error")
        assert b"came too late" in client.receive_until(b'"code"')
        assert b"transcript.text.done" not in received


def test_a_wrong_model_is_refused_before_the_file_is_sent(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "nope") + FILE)
        received = client.receive_until(b"model_not_found")
        assert received.startswith(b"HTTP/1.1 404")
        assert b"connection: close" in received.lower()


def test_the_size_limit_counts_what_arrives() -> None:
    with run_server("--set", "limits.upload_bytes=100000") as server:
        with open_wire(server) as client:
            client.send_bytes(build_field("model", "whisper-1") + FILE)
            for _ in range(20):
                client.send_bytes(b"\0" * 10_000)
            received = client.receive_until(b"request_too_large")
            assert received.startswith(b"HTTP/1.1 413")
        announced = server.post_audio(b"\0" * 200_000)
        assert (announced.status_code, announced.json()["error"]["code"]) == (413, "request_too_large")


def test_a_client_that_stops_sending() -> None:
    with run_server("--set", "limits.stall_timeout=0.5") as server, open_wire(server) as client:
        client.send_bytes(build_field("model", "whisper-1") + FILE + encode_announcements(600)[:STORED])
        received = client.receive_until(b"request_timeout")
        assert received.startswith(b"HTTP/1.1 408")
        wait_for(lambda: not server.list_open_files())


def test_a_client_that_leaves_in_mid_upload(server: ServerUnderTest) -> None:
    with open_wire(server) as client:
        client.send_bytes(build_field("model", "whisper-1") + FILE + encode_announcements(600)[:STORED])
        wait_for(server.list_open_files)
    wait_for(lambda: not server.list_open_files())
    server.wait_for_log("client disconnected")


def test_a_client_that_leaves_stops_the_work(server: ServerUnderTest) -> None:
    server.post_audio(encode_speech("wav"))
    with open_wire(server) as client:
        client.send_bytes(
            build_field("model", "whisper-1") + build_field("stream", "true") + FILE + encode_announcements(600) + END
        )
        client.end_body()
        client.receive_until(b"transcript.text.delta")
    wait_for(lambda: not server.list_open_files())
    first = before = server.count_windows()
    time.sleep(1)
    while before < (before := server.count_windows()):
        time.sleep(1)
    assert before - first < 20, "of sixty or more"


def test_a_full_queue_says_when_to_come_back() -> None:
    with run_server("--set", "limits.requests=2") as server, open_wire(server) as one, open_wire(server) as two:
        for client in (one, two):
            client.send_bytes(build_field("model", "whisper-1") + FILE + encode_speech("mp3")[:4000])
        wait_for(lambda: requests.get(f"{server.address}/health", timeout=10).json()["models"][0]["requests"] == 2)
        wait_for(server.list_runners)
        busy = server.post_audio(encode_speech("wav"))
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "busy")
        assert int(busy.headers["retry-after"]) > 0


def test_of_several_audio_tracks_the_one_with_sound_or_the_one_asked_for_is_heard(server: ServerUnderTest) -> None:
    """As programs that record write them: the first track is the default one, and nothing is on it."""
    data = encode_tracks(create_silence(6), load_speech()[: 6 * RATE], np.tile(create_tone(1), 6), container="mp4")
    said = server.post_audio(data, response_format="verbose_json")
    assert "Dashwood" in said.json()["text"]
    assert (said.json()["audio_track"], said.json()["audio_tracks"]) == (2, 3)
    for response_format in ("json", "text", "srt", "vtt"):
        response = server.post_audio(data, audio_track="2", response_format=response_format)
        assert "Dashwood" in response.text
        assert (response.headers["x-eardrum-audio-track"], response.headers["x-eardrum-audio-tracks"]) == ("2", "3")
    streamed = server.post_audio(data, stream="true")
    assert "Dashwood" in streamed.text
    assert (streamed.headers["x-eardrum-audio-track"], streamed.headers["x-eardrum-audio-tracks"]) == ("2", "3")
    silent = server.post_audio(data, audio_track="1")
    assert (silent.json()["text"], silent.headers["x-eardrum-audio-track"]) == ("", "1")
    files = {"file": ("a.mp4", data)}
    by_header = requests.post(
        f"{server.address}/v1/audio/transcriptions", files=files, headers={"x-eardrum-audio-track": "1"}, timeout=60
    )
    assert by_header.headers["x-eardrum-audio-track"] == "1"
    for stream in ("false", "true"):
        refused = server.post_audio(data, audio_track="4", stream=stream)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "audio_track"
        assert "3 audio tracks" in refused.json()["error"]["message"]
