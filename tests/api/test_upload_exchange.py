"""Uploads for any protocol: the file in a field of its own name, or as the whole body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import pytest
import requests
from aiohttp import web
from starlette.responses import PlainTextResponse, Response

from eardrum.api.asgi import ClientGoneError, Message, Scope
from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.api.transcript_formats import format_text
from eardrum.api.uploads import AudioUpload, UploadEndpoint
from eardrum.config import LimitSettings, Settings
from eardrum.errors import InvalidRequestError, TooLargeError, UnsupportedMediaTypeError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.transcription import Transcript, TranscriptionRequest
from eardrum.wav import build_wav_header
from tests.api.proxy.conftest import run_gateway
from tests.conftest import wait_for
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.upstreams import UpstreamCall, fake_upstream, fake_whisper_server

FORM = "multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Params:
    model: str = ""
    request: TranscriptionRequest = field(default_factory=TranscriptionRequest)
    stream: bool = False
    extra: tuple[tuple[str, str], ...] = ()


class Endpoint(UploadEndpoint[Params]):
    """A protocol with the recording in `audio_file`, or as the body."""

    file_field = "audio_file"
    accepts_raw_body = True

    def parse_params(self, scope: Scope, upload: AudioUpload) -> Params:
        return Params(upload.fields.get("model", [""])[-1])

    async def build_response(self, scope: Scope, transcript: Transcript, params: Params, model: Model) -> Response:
        return PlainTextResponse(format_text(transcript.segments))


class Client:
    """The other side of one request."""

    def __init__(self, body: bytes, content_type: str, *, leaves: bool = False):
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/upload",
            "query_string": b"",
            "headers": [(b"content-type", content_type.encode())],
        }
        self.scope["eardrum.record"] = RequestRecord("req_1", self.scope, RequestTracker())
        self.status, self.text = 0, ""
        self._body = body
        self._leaves = leaves
        self._sent = False

    async def receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        if not self._leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"").decode()


def form(name: str, data: bytes) -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.wav"\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service(Settings())
    service.start()
    yield service
    await service.shutdown()


async def serve(service: Service, body: bytes, content_type: str, **options: Any) -> Client:
    client = Client(body, content_type, **options)
    await Endpoint(service)(client.scope, client.receive, client.send)
    return client


@pytest.mark.slow
async def test_the_file_may_be_in_any_field_or_be_the_body(service: Service) -> None:
    recording = encode_speech("wav")
    for body, content_type in ((form("audio_file", recording), FORM), (recording, "audio/wav"), (recording, "")):
        client = await serve(service, body, content_type)
        assert (client.status, client.text) == (200, SPEECH_TEXT)
        assert client.scope["eardrum.record"].model == "moonshine-tiny-en"


async def test_errors_name_the_protocols_field() -> None:
    service = Service(Settings(limits=LimitSettings(upload_bytes=200)))
    with pytest.raises(InvalidRequestError, match="field 'audio_file', not 'file'") as wrong:
        await serve(service, form("file", b"RIFF"), FORM)
    assert wrong.value.param == "audio_file"
    for body, content_type in ((b"--x--\r\n", FORM), (b"a=b", "application/x-www-form-urlencoded")):
        with pytest.raises(InvalidRequestError, match="no file: send the audio in the field 'audio_file'"):
            await serve(service, body, content_type)
    with pytest.raises(TooLargeError) as large:
        await serve(service, form("audio_file", bytes(200)), FORM)
    assert large.value.param == "audio_file"


async def test_a_body_of_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="'audio_file', not text/plain"):
        await serve(Service(Settings()), b"hello", "text/plain")


@pytest.mark.slow
async def test_a_client_that_disconnects_cancels_the_transcription(service: Service) -> None:
    with pytest.raises(ClientGoneError):
        await serve(service, encode_speech("wav"), "audio/wav", leaves=True)


@pytest.mark.parametrize("moment", ["during the upload", "before the answer"])
def test_a_transcript_is_sent_although_the_config_has_lost_its_model(moment: str) -> None:
    begun, reloaded = Event(), Event()

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        begun.set()
        await asyncio.to_thread(reloaded.wait, 60)
        return await fake_whisper_server(call, request)

    def send_body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nfar\r\n'
        whole = form("file", build_wav_header(64_000, 16_000) + bytes(64_000))
        yield whole[:32_000]
        if moment == "during the upload":
            reloaded.wait(60)
        yield whole[32_000:]

    with (
        fake_upstream(answer) as far,
        run_gateway(models={"far": {"proxy": far.url}}) as gateway,
        ThreadPoolExecutor(1) as client,
    ):
        model = gateway.service.find_named("far")
        assert model
        url, headers = f"{gateway.url}/v1/audio/transcriptions", {"content-type": FORM}
        asking = client.submit(requests.post, url, send_body(), headers=headers, timeout=60)
        try:
            wait_for(lambda: gateway.service.count_requests(model) and gateway.service.get_ready_time(model))
            assert moment == "during the upload" or begun.wait(60)
            applying = asyncio.run_coroutine_threadsafe(gateway.service.apply_settings(Settings()), gateway.loop)
            assert applying.result(60).removed == {"far"}
        finally:
            reloaded.set()
        answered = asking.result()
        assert (answered.status_code, answered.headers.get("x-eardrum-model")) == (200, "far"), answered.text
