"""Forms on their way to an upstream: the same bytes in constant memory, with another model's name where the config says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
import requests
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eardrum.api.proxy.multipart import ModelFieldParser
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.generated_cases import count_cases
from tests.upstreams import UpstreamCall, fake_upstream

EDITS = "/v1/images/edits"
BOUNDARY = "x-bound"
KIND = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def build_part(name: str, value: bytes, more: str = "", kind: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{kind}\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = build_part("image", b"\x89PNG\r\n--x-boun" * 300_000, '; filename="a.png"', "Content-Type: image/png\r\nX-Odd: 1\r\n")
PROMPT = build_part("prompt", b"a cat")
MODEL = build_part("model", b"llm")


def create_field(form: bytes, size: int = 1 << 30, **limits: int) -> ModelFieldParser:
    field = ModelFieldParser(BOUNDARY.encode(), LimitSettings(**limits))
    for at in range(0, len(form), size):
        if not field.is_done:
            field.feed(form[at : at + size])
    return field


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=count_cases(60))
@given(st.permutations([PROMPT, MODEL, build_part("mask", b"--x-bound\r\n\r\n", '; filename="model"')]), st.integers(1, 90))
def test_the_model_is_found_wherever_it_is_and_however_the_form_is_cut(parts: list[bytes], size: int) -> None:
    form = b"preamble\r\n" * (size % 2) + b"".join(parts) + END
    field = create_field(form, size)
    assert field.value == "llm"
    assert form[slice(*field.span)] == b"llm"


def test_a_form_without_a_model_is_over_at_its_end() -> None:
    field = create_field(PROMPT + build_part("model", b"x", '; filename="model"') + END, 7)
    assert (field.is_done, field.value) == (True, None)


@pytest.mark.parametrize(
    "form",
    [
        build_part("model", b"m" * 200),
        f"--{BOUNDARY}\r\n".encode() + b"X-Long: " + b"a" * 20_000,
        f"--{BOUNDARY}".encode() + b"a" * 20_000,
        PROMPT * 6,
    ],
)
def test_what_is_too_long_is_refused(form: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        create_field(form, 1000, field_bytes=100, fields=5)


@pytest.fixture
def upstream_of() -> Iterator[Any]:
    received: list[bytes] = []

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        received.append(await request.read())
        return web.json_response({"path": call.path, "headers": call.headers})

    with fake_upstream(answer) as upstream:
        yield upstream, received


@pytest.mark.parametrize("parts", [[MODEL, PROMPT, FILE], [PROMPT, FILE, MODEL], [FILE, MODEL, PROMPT, FILE]])
@pytest.mark.parametrize("name", ["", "org/the-real-one"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_form_arrives_with_its_parts_as_they_were(parts: list[bytes], name: str, chunked: bool, upstream_of: Any) -> None:
    upstream, received = upstream_of
    form = b"".join([*parts, END])
    with run_gateway(models={"llm": {"proxy": upstream.url, "use_model_name": name}}) as gateway:
        data = iter([form[: len(form) // 2], form[len(form) // 2 :]]) if chunked else form
        response = requests.post(f"{gateway.url}{EDITS}", data=data, headers=KIND, timeout=20)
    assert response.status_code == 200
    expected = form.replace(b"\r\n\r\nllm\r\n", f"\r\n\r\n{name}\r\n".encode()) if name else form
    assert received == [expected]
    assert ("content-length" in response.json()["headers"]) is not chunked


def test_the_model_may_be_named_in_the_query(upstream_of: Any) -> None:
    upstream, received = upstream_of
    with run_gateway(models={"llm": {"proxy": upstream.url}}) as gateway:
        response = requests.post(f"{gateway.url}{EDITS}?model=llm", data=PROMPT + END, headers=KIND, timeout=20)
    assert (response.status_code, received) == (200, [PROMPT + END])


def open_upload(gateway: GatewayUnderTest, head: bytes, announced: int) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    lines = f"POST {EDITS} HTTP/1.1\r\nHost: x\r\nContent-Type: {KIND['content-type']}\r\nContent-Length: {announced}\r\n\r\n"
    client.sendall(lines.encode() + head)
    return client


def test_an_unknown_model_is_refused_before_its_gigabyte_is_sent() -> None:
    with run_gateway() as gateway, open_upload(gateway, build_part("model", b"nobody") + FILE[:1000], 1 << 30) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 404 ")


def test_the_upstream_gets_the_form_while_it_comes_in() -> None:
    first = Event()

    form = MODEL + FILE + END
    with (
        run_raw_upstream(first) as url,
        run_gateway(models={"llm": {"proxy": url}}) as gateway,
        open_upload(gateway, form[:100_000], len(form)) as client,
    ):
        assert first.wait(60), "the upstream waits for the whole form"
        client.sendall(form[100_000:])
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_in_mid_upload_ends_the_upstreams_request() -> None:
    begun, gone = Event(), Event()
    form = MODEL + FILE + END
    with run_raw_upstream(begun, gone) as url, run_gateway(models={"llm": {"proxy": url}}) as gateway:
        with open_upload(gateway, form[:100_000], len(form)):
            assert begun.wait(60)
        assert gone.wait(60)


def run_raw_upstream(begun: Event, gone: Event | None = None) -> AbstractContextManager[str]:
    """A server that tells when the first and when no more bytes of a body come."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            left = int(self.headers["content-length"])
            while left and (data := self.rfile.read1(1 << 16)):
                left -= len(data)
                begun.set()
            if left:
                assert gone
                gone.set()
                return
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    @contextmanager
    def run() -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join(60)

    return run()
