"""Clients that say nothing, or hardly anything, take nothing from those that speak."""

from __future__ import annotations

import io
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import av
import pytest
import requests
from websockets.sync.client import connect

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.hostile.conftest import HostileClient, is_complete, parse_status
from tests.recordings import SPEECH_TEXT, encode_speech, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.hostile]

DESCRIPTORS = 64
FORM = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 1000000\r\n\r\n--x\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper-1\r\n"
    b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
)


@contextmanager
def connect_clients(server: ServerUnderTest, count: int, say: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.host, timeout=20)) for _ in range(count)]
        for client in clients:
            client.sendall(say)
        yield clients


def is_serving(server: ServerUnderTest) -> bool:
    try:
        return requests.get(f"{server.address}/health", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def drip_until_closed(client: socket.socket, drip: bytes = b"") -> tuple[bytes, float]:
    """What the server said last, and when it closed the connection, if the client says no more than that, a bit at a time."""
    began, answer = time.monotonic(), b""
    client.settimeout(0.3)
    while time.monotonic() - began < 60:
        try:
            if drip:
                client.send(drip)
            if not (data := client.recv(1 << 16)):
                break
            answer += data
        except TimeoutError:
            pass
        except OSError:
            break
    return answer, time.monotonic() - began


@pytest.mark.parametrize("say", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["new", "kept"])
def test_an_idle_connection_is_closed(hostile: HostileClient, say: bytes) -> None:
    with connect_clients(hostile.server, 1, say) as (client,):
        answer, seconds = drip_until_closed(client)
    assert (parse_status(answer), b"" if say else answer) == (200 if say else 0, b"")
    assert 2.5 < seconds < 40, "limits.idle_timeout is 3"


@pytest.mark.parametrize("say", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
def test_trickling_headers_end_with_408(hostile: HostileClient, say: bytes) -> None:
    with connect_clients(hostile.server, 1, say) as (client,):
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ")
        answer, seconds = drip_until_closed(client, b"a")
    assert b"HTTP/1.1 408 " in answer
    assert b"limits.idle_timeout" in answer
    assert seconds < 40


def test_empty_lines_keep_no_connection(hostile: HostileClient) -> None:
    with connect_clients(hostile.server, 1, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as (client,):
        assert drip_until_closed(client, b"\r\n")[1] < 40


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions/stream", "/v1/realtime?intent=transcription", "/ws/realtime"])
def test_a_live_session_is_no_idle_connection(hostile: HostileClient, path: str) -> None:
    with connect(f"{hostile.server.address.replace('http', 'ws', 1)}{path}") as session:
        time.sleep(7)  # limits.idle_timeout is 3
        assert session.ping().wait(60)


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A server with few descriptors, and short patience with uploads."""
    config = tmp_path_factory.mktemp("narrow") / "config.yaml"
    config.write_text(json.dumps({"limits": {"stall_timeout": 3}}))
    few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))"
    with run_server("--config", str(config), prelude=few) as server:
        yield server


def test_silent_connections_leave_room_for_others_and_are_logged(limited_server: ServerUnderTest) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > DESCRIPTORS
    with connect_clients(limited_server, 80):
        limited_server.wait_for_log("File descriptors are short")
        wait_for(lambda: is_serving(limited_server))  # who comes in the same instant as all of them may have to come again
        for _ in range(5):
            assert is_serving(limited_server)
        assert limited_server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT
    assert "Traceback" not in limited_server.log


def test_clients_at_work_are_not_hung_up_on_for_new_ones(limited_server: ServerUnderTest) -> None:
    with connect_clients(limited_server, 1, FORM) as (client,):
        wait_for(lambda: is_serving(limited_server))
        with connect_clients(limited_server, 80):
            wait_for(lambda: is_serving(limited_server))
            client.sendall(b"a" * 100)
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)


def test_uploads_that_drip_hold_no_places_and_are_given_up(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"limits": {"requests": 4, "stall_timeout": 4}}))
    with run_server("--config", str(config)) as server, connect_clients(server, 8, FORM) as clients:
        answers: list[tuple[bytes, float]] = []
        threads = [threading.Thread(target=lambda one=client: answers.append(drip_until_closed(one, b"a"))) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(0.5)  # they all drip
        assert server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT
        for thread in threads:
            thread.join()
    assert [parse_status(answer) for answer, _ in answers] == [408] * 8
    assert all(seconds < 40 for _, seconds in answers)


def find_port(server: ServerUnderTest) -> int:
    """Of Wyoming."""
    server.wait_for_log("(Wyoming)")
    found = re.search(r"Home Assistant: 127\.0\.0\.1 port (\d+)", server.log)
    assert found
    return int(found[1])


def speech_bytes() -> bytes:
    return (load_speech() * 32767).astype("<i2").tobytes()


def build_audio_event(audio: bytes) -> bytes:
    """An event of Wyoming's with audio."""
    told = {"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 1}, "payload_length": len(audio)}
    return json.dumps(told).encode() + b"\n" + audio


def send_slowly(client: socket.socket, audio: bytes, seconds: float) -> None:
    """An upload over a slow connection."""
    head, _, part = FORM.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked").partition(b"\r\n\r\n")
    client.sendall(head + b"\r\n\r\n")
    pieces = [part, *(audio[at : at + 1000] for at in range(0, len(audio), 1000)), b"\r\n--x--\r\n"]
    for piece in pieces:
        client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        time.sleep(seconds / len(pieces))
    client.sendall(b"0\r\n\r\n")


def receive_transcript(client: socket.socket) -> bytes:
    """What Wyoming says up to the end of an utterance."""
    heard = b""
    while b'"transcript"' not in heard:
        data = client.recv(1 << 16)
        assert data, heard
        heard += data
    return heard


@contextmanager
def repeat_from_clients(every_s: float, clients: Sequence[socket.socket], say: bytes) -> Iterator[None]:
    """For the duration of the block, each of them says this every so often, until it is hung up on."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            for client in clients:
                with suppress(OSError):
                    client.send(say)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def count_places(server: ServerUnderTest) -> int:
    models = requests.get(f"{server.address}/health", timeout=5).json()["models"]
    return sum(model["requests"] for model in models)


def test_places_that_drips_hold_are_for_those_who_speak(tmp_path: Path) -> None:
    """They have begun, so they hold all there are; a muted microphone and a slow uplink keep theirs."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"limits": {"requests": 7}, "live": {"sessions": 3}}))
    with (
        run_server("--config", str(config), "--wyoming", "--wyoming-port", "0") as server,
        connect_clients(server, 3, FORM + b"a" * 3000) as uploads,
        connect_clients(server, 1) as (uplink,),
        ExitStack() as stack,
    ):
        address = "127.0.0.1", find_port(server)
        *drips, muted = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)]
        stack.enter_context(repeat_from_clients(0.1, [muted], build_audio_event(bytes(3200))))
        stack.enter_context(repeat_from_clients(0.3, uploads, b"a"))
        stack.enter_context(repeat_from_clients(0.3, drips, build_audio_event(bytes(20))))
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(send_slowly, uplink, encode_low_rate(), 16)
            wait_for(lambda: count_places(server) == 7)
            wait_for(lambda: server.post_audio(encode_speech("wav")).status_code == 200)
            for _ in range(2):
                assert server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT
            with socket.create_connection(address, timeout=30) as speaking:
                speaking.sendall(build_audio_event(speech_bytes()) + b'{"type": "audio-stop"}\n')
                assert b"John Dashwood" in receive_transcript(speaking)
            sending.result()
        answer = b""
        while not is_complete(answer):
            answer += uplink.recv(1 << 16)
        assert (parse_status(answer), b"John Dashwood" in answer) == (200, True), answer
        muted.sendall(b'{"type": "audio-stop"}\n')
        receive_transcript(muted)
        gone = next(answer for client in uploads if (answer := read_available(client)))
        assert (parse_status(gone), b"while other requests waited" in gone) == (408, True), gone
    assert "Traceback" not in server.log


def read_available(client: socket.socket) -> bytes:
    client.settimeout(0.2)
    with suppress(OSError):
        return client.recv(1 << 16)
    return b""


def encode_low_rate() -> bytes:
    """Speech in Opus at 16 kbit/s."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        stream.bit_rate = 16_000
        frame = av.AudioFrame.from_ndarray((load_speech() * 32767).astype("int16")[None, :], format="s16", layout="mono")
        frame.rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()
