"""`/asr` and the body of a request: read to its end, whatever becomes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from eardrum.api.asgi import ClientGoneError, Message, Scope
from eardrum.api.asr.routes import AsrEndpoint, DetectionEndpoint
from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.config import LimitSettings, Settings
from eardrum.gateway.service import Service
from tests.api.proxy.conftest import run_gateway
from tests.upstreams import fake_saying, fake_upstream

FORM = "multipart/form-data; boundary=x"
HEAD = b'--x\r\nContent-Disposition: form-data; name="audio_file"; filename="a"\r\n\r\n'
END = b"\r\n--x--\r\n"


class Sender:
    """A client that sends pieces, and then ends, leaves or falls silent."""

    def __init__(self, pieces: Iterable[bytes], query: str = "", content_type: str = FORM, *, then: str = "end", size: str = ""):
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/asr",
            "query_string": query.encode(),
            "headers": [(b"content-type", content_type.encode())] + ([(b"content-length", size.encode())] if size else []),
        }
        self.scope["eardrum.record"] = RequestRecord("req_1", self.scope, RequestTracker())
        self.status, self.text, self.kind = 0, "", ""
        self.taken = 0
        self._pieces = list(pieces)
        self._then = then

    async def receive(self) -> Message:
        assert not self.status, "answered before everything was read"
        if self._pieces:
            self.taken += 1
            return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces) or self._then != "end"}
        if self._then == "leave":
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.kind = dict(message.get("headers", [])).get(b"content-type", self.kind.encode()).decode()
        self.text += message.get("body", b"").decode()


async def send(sender: Sender, settings: Settings | None = None, endpoint: type[AsrEndpoint] = AsrEndpoint) -> Sender:
    async with asyncio.timeout(60):
        await endpoint(Service(settings or Settings()))(sender.scope, sender.receive, sender.send)
    return sender


PIECES = [HEAD, *[bytes(1000)] * 50, END]

REFUSED = {
    "a wrong value": ("output=nope", FORM, 400),
    "a model that there is not": ("model=nope", FORM, 404),
    "a language that the model lacks": ("language=de&model=moonshine-tiny-en", FORM, 400),
    "a body of another type": ("", "text/html", 415),
    "a form without a boundary": ("", "multipart/form-data", 400),
    "a file in another field": ("", FORM.replace("=x", "=y"), 400),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_body_is_read_to_its_end(case: str) -> None:
    query, content_type, status = REFUSED[case]
    sender = await send(Sender(PIECES, query, content_type))
    assert (sender.status, sender.taken) == (status, len(PIECES))
    assert sender.text.startswith("Error: ")
    assert sender.kind == "text/plain; charset=utf-8"
    assert sender.scope["eardrum.record"].note


async def test_a_named_model_must_detect_languages_and_no_model_is_undetermined() -> None:
    sender = await send(Sender(PIECES, "model=moonshine-tiny-en"), endpoint=DetectionEndpoint)
    assert (sender.status, "does not detect languages" in sender.text) == (400, True)
    late = b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmoonshine-tiny-en'
    sender = await send(Sender([*PIECES[:-1], late, END]), endpoint=DetectionEndpoint)
    assert (sender.status, "does not detect languages" in sender.text) == (400, True)
    sender = await send(Sender(PIECES), endpoint=DetectionEndpoint)
    assert sender.text == '{"detected_language":"undetermined","language_code":"und","confidence":0.0}'
    assert sender.taken == len(PIECES)


async def test_a_client_that_leaves_is_not_answered() -> None:
    sender = Sender(PIECES[:-1], "output=nope", then="leave")
    with pytest.raises(ClientGoneError):
        await send(sender)
    assert sender.status == 0


async def test_a_client_that_falls_silent_is_not_waited_for_twice() -> None:
    settings = Settings(limits=LimitSettings(stall_timeout=0.2))
    sender = await send(Sender(PIECES[:-1], "output=nope", then="silence"), settings)
    assert sender.status == 400
    sender = await send(Sender([b"--x"], then="silence"), settings)
    assert (sender.status, "stalled" in sender.text) == (408, True)


async def test_a_body_beyond_the_limit_is_not_read() -> None:
    settings = Settings(limits=LimitSettings(upload_bytes=10_000))
    sender = await send(Sender(PIECES, size="50000"), settings)
    assert (sender.status, sender.taken) == (413, 0)
    sender = await send(Sender(PIECES, "output=nope"), settings)
    assert sender.status == 400
    assert sender.taken < 25


def send_in_halves(url: str, method: str = "POST") -> tuple[str, str]:
    """Send a body in two pieces, of which the second comes late. Returns the head and the body of the answer."""
    address, body = urlsplit(url), b"".join(PIECES)
    head = f"{method} {address.path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: {FORM}\r\nconnection: close\r\n"
    with socket.create_connection((address.hostname, address.port), 20) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:20_000])
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):  # an answer before the end is one that Bazarr does not see
            client.recv(1)
        client.settimeout(20)
        client.sendall(body[20_000:])
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return answer.partition("\r\n\r\n")[::2]


REFUSALS: dict[str, tuple[dict[str, Any], str, str, int, str]] = {
    "no key": ({"api_keys": ("sk",)}, "POST", "/asr", 401, "www-authenticate: Basic"),
    "no key for the language": ({"api_keys": ("sk",)}, "POST", "/detect-language", 401, "www-authenticate: Basic"),
    "another method": ({}, "PUT", "/asr", 405, "allow: POST"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_request_that_is_refused_before_it_is_read_is_read_to_its_end(case: str) -> None:
    settings, method, path, status, header = REFUSALS[case]
    with run_gateway(**settings) as gateway:
        head, text = send_in_halves(f"{gateway.url}{path}", method)
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert header in head
    assert "content-type: text/plain; charset=utf-8" in head
    assert text.startswith("Error: ")


def test_a_language_is_detected_although_the_server_has_a_default_one() -> None:
    said = {"task": "transcribe", "language": "english", "duration": 1.0, "text": "Hello.", "segments": []}
    with (
        fake_upstream(fake_saying(said)) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, default_model="m", default_language="de") as gateway,
    ):
        files = {"audio_file": ("a.wav", b"audio")}
        answer = requests.post(f"{gateway.url}/detect-language", files=files, timeout=20)
        assert answer.json()["language_code"] == "en"
        assert upstream.calls[-1].get_value("language") is None
        requests.post(f"{gateway.url}/asr", files=files, timeout=20)
        assert upstream.calls[-1].get_value("language") == "de"
