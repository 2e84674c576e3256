"""What a client chooses costs others neither their turn nor their memory."""

from __future__ import annotations

import base64
import json
import os
import struct
from itertools import chain, repeat

import pytest
import requests

from tests.hostile.conftest import HostileClient, parse_status

pytestmark = [pytest.mark.slow, pytest.mark.hostile]

CHUNKED = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"  # fmt: skip # noqa: E501
MB = 1 << 20

JSON_ROUTES = (
    *("/api/chat", "/api/generate", "/api/embed", "/api/show", "/api/copy", "/api/pull"),
    *("/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions", "/v1/realtime/client_secrets"),
)


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        (b"GET / HTTP/1.1\r\nX: ", b"a" * MB),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n" * (MB // 6)),
        (b"GET /", b"a" * MB),
        (CHUNKED + b"0\r\nX: ", b"a" * MB),
        (CHUNKED + b"0\r\n", b"X: a\r\n" * (MB // 6)),
        (CHUNKED + b"3\r\n--x\r\n0\r\n", b"X-Long-Name: " + b"a" * 500 + b"\r\n"),
        (CHUNKED + b"5;", b"a" * MB),
    ],
    ids=["header", "headers", "path", "trailer", "trailers", "trailers after a body", "chunk extension"],
)
def test_what_is_no_body_is_bounded(hostile: HostileClient, begin: bytes, rest: bytes) -> None:
    with hostile.check_harmless():
        answer = hostile.exchange_bytes(begin, *repeat(rest, (100 * MB) // len(rest)))
    assert parse_status(answer) == 431, answer[:100]
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_nested_arrays_and_objects_are_refused(hostile: HostileClient, path: str) -> None:
    with hostile.check_harmless():
        for inside in (b"[" + b"[]," * (20 * MB) + b"[]]", b"[" * (8 * MB), b"[" + b"0," * (3 * MB) + b"0]"):
            answered, text = hostile.post_body(path, b'{"model": "llm", "input": ' + inside + b"}")
            assert answered in (400, 404, 413), (answered, text[:200])


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/audio/transcriptions"])
def test_names_of_objects_are_bounded(hostile: HostileClient, path: str) -> None:
    body = b'{"model": "llm", "x": {' + b",".join(b'"%d":0' % number for number in range(500_000)) + b"}}"
    with hostile.check_harmless():
        answered, text = hostile.post_body(path, body)
    assert (answered, "names" in text) == (413, True), text[:200]


def test_depth_has_a_bound_that_is_named(hostile: HostileClient) -> None:
    deep = b'{"model": "llm", "x": ' + b"[" * 200 + b"]" * 200 + b"}"
    answered, text = hostile.post_body("/v1/chat/completions", deep)
    assert (answered, "nested more than 128" in text) == (400, True)


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_name_of_ten_megabytes_is_refused_and_not_repeated(hostile: HostileClient, path: str) -> None:
    with hostile.check_harmless():
        for name in ("a" * (10 * MB), "ab" * (3 * MB), "x" * 100_000):
            session = {"type": "transcription", "audio": {"input": {"transcription": {"model": name}}}}
            body = {"model": name, "input": "a", "source": name, "session": session}
            answered, text = hostile.post_body(path, json.dumps(body).encode())
            assert 400 <= answered < 500, text[:200]
            assert len(text) < 30_000


def test_a_million_keywords_are_refused(hostile: HostileClient) -> None:
    audio = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}
    with hostile.check_harmless():
        for words in (["abc"] * 900_000, ",".join(["abc"] * 1_000_000), [1] * 900_000):
            body = json.dumps({"model": "whisper-1", "input_audio": audio, "keywords": words}).encode()
            answered, text = hostile.post_body("/v1/audio/transcriptions", body)
            assert answered in (400, 413), text[:200]


def test_audio_and_images_in_base64_are_no_text(hostile: HostileClient) -> None:
    image = base64.b64encode(os.urandom(30 * MB)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": "\U0001f600"},
    ]
    body = json.dumps({"model": "llm", "messages": [{"role": "user", "content": parts}]}, ensure_ascii=False).encode()
    with hostile.check_harmless():
        answered, text = hostile.post_body("/v1/chat/completions", body)
    assert answered == 502, "it went to the model, whose server is not there" + text[:200]


def test_a_form_of_millions_of_fields_is_refused(hostile: HostileClient) -> None:
    with hostile.check_harmless():
        answered, text = hostile.post_body("/v1/chat/completions", b"a&" * (3 * MB), "application/x-www-form-urlencoded")
    assert (answered, "limits.fields" in text) == (400, True)


@pytest.mark.parametrize("path", ["." * 60_000, "a" * 60_000, ".js" * 20_000 + "x", "/" * 60_000])
def test_a_long_path_meets_an_expression(hostile: HostileClient, path: str) -> None:
    with hostile.check_harmless():
        answer = hostile.exchange_bytes(f"GET /upstream/llm/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert parse_status(answer) in (409, 502), answer[:200]


def test_a_million_fragments_end_a_socket(hostile: HostileClient) -> None:
    with hostile.check_harmless():
        answer = hostile.exchange_bytes(build_fragments(0x02, 0x00, 1_000_000), opening=OPENING)
    assert parse_close_code(answer) == 1009, answer[-100:]


@pytest.mark.parametrize("kind", [0x82, 0x81, 0x89], ids=["binary", "text", "ping"])
def test_tiny_messages_leave_others_their_turn(hostile: HostileClient, kind: int) -> None:
    with hostile.check_harmless():
        hostile.exchange_bytes(
            build_fragments(kind, kind, 300_000), build_masked_frame(0x88, struct.pack("!H", 1000)), opening=OPENING, timeout=60
        )


def test_two_thousand_models_are_listed_beside_others(hostile: HostileClient) -> None:
    with hostile.check_harmless():
        for _ in range(3):
            listed = requests.get(f"{hostile.server.address}/v1/models", timeout=20).json()["data"]
            assert len(listed) >= 2000
            assert {"alias-7"} <= set(next(model for model in listed if model["id"] == "other-7")["aliases"])


def test_a_burst_that_ends_inside_a_head_is_answered(hostile: HostileClient) -> None:
    """Many requests in one packet, of which the last is not all here yet, are no long head."""
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 500 + b"\r\n\r\n"
    burst = one * 200 + one[:100]
    answer = hostile.exchange_bytes(burst, one[100:].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b" 431 " not in answer
    assert parse_status(answer) == 200


OPENING = (
    b"GET /v1/audio/transcriptions/stream?model=whisper-1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def build_masked_frame(first: int, payload: bytes) -> bytes:
    """A short frame of a client, whose mask changes nothing."""
    return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def build_fragments(first: int, others: int, count: int) -> bytes:
    """Frames of one byte."""
    return b"".join(chain([build_masked_frame(first, b"a")], repeat(build_masked_frame(others, b"a"), count - 1)))


def parse_close_code(answer: bytes) -> int:
    """Of the WebSocket's last frame."""
    at = answer.rfind(b"\x88", answer.find(b"\r\n\r\n"))
    return int.from_bytes(answer[at + 2 : at + 4], "big") if at >= 0 else 0


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/v1/audio/transcriptions", b"a"),
        ("/v1/images/edits", b"X: a\r\n"),
        ("/v1/audio/transcriptions", b"\r\n\r\n\r\n--x\r\n"),
    ],
    ids=["a header", "headers", "parts"],
)
def test_the_heads_of_a_forms_parts_are_bounded(hostile: HostileClient, path: str, unit: bytes) -> None:
    kind = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {100 * MB}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n"
    with hostile.check_harmless():
        answer = hostile.exchange_bytes(head.encode(), b"--x\r\nX: ", *repeat(unit * (MB // len(unit)), 100))
    assert parse_status(answer) == 400, answer[:200]


def test_names_that_nobody_knows_leave_others_their_turn(hostile: HostileClient) -> None:
    with hostile.check_harmless(), requests.Session() as session:
        for number in range(150):
            body = {"model": f"nobody-{number}", "messages": []}
            assert session.post(f"{hostile.server.address}/v1/chat/completions", json=body, timeout=20).status_code == 404
            assert session.post(f"{hostile.server.address}/api/chat", json=body, timeout=20).status_code == 404


def test_a_context_of_a_million_numbers_leaves_others_their_turn(hostile: HostileClient) -> None:
    with hostile.check_harmless():
        for numbers in ([0xEA2D01, 2_999_000, *[7] * 999_000], [7] * 999_000):
            body = json.dumps({"model": "llm", "prompt": "?", "context": numbers}).encode()
            answered, text = hostile.post_body("/api/generate", body)
            assert answered in (400, 413, 502), text[:200]
