"""The routes of whisper-asr-webservice.

Bazarr allows 5 s for each piece that it sends, repeats the whole upload when a connection breaks, and then leaves the server
alone for a day. So every body is read to its end before it is answered, also one that is refused.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from eardrum import __version__
from eardrum.api import openapi
from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope, Send, format_names, format_sentence, receive_disconnect
from eardrum.api.asr import responses
from eardrum.api.asr.params import AsrForm, AsrParams, DetectionForm, parse_asr_params, parse_detection_params
from eardrum.api.fields import describe_form
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_body import RequestBody
from eardrum.api.request_log import get_record
from eardrum.api.uploads import AudioUpload, UploadEndpoint
from eardrum.config import LimitSettings
from eardrum.errors import ClientStalledError, EardrumError, UnsupportedFeatureError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.transcription import Transcript

UPLOAD_PATHS = ("/asr", "/detect-language")
STATUS_PATH = "/status"


def is_asr_path(path: str) -> bool:
    """Whether errors at this path are lines of text."""
    return path in UPLOAD_PATHS or path == STATUS_PATH


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of whisper-asr-webservice, and subgen's `/status`."""
    return [
        ApiRoute(AsrEndpoint(service), _describe_operation("/asr", "Turn speech into text or subtitles", AsrForm)),
        ApiRoute(
            DetectionEndpoint(service),
            _describe_operation("/detect-language", "Detect the language of the first half minute of speech", DetectionForm),
        ),
        ApiRoute(
            show_status, ApiOperation("get", STATUS_PATH, "Return the version, for Bazarr's test button", sends_text_errors=True)
        ),
    ]


AUDIO_FILE = {
    "description": "The recording: any audio or video, detected from the content; with encode=false, raw samples.",
    "type": "string",
    "format": "binary",
}


def _describe_operation(path: str, summary: str, form: type[DetectionForm]) -> ApiOperation:
    def describe_query() -> dict[str, str]:
        return {name.removesuffix("[]"): field["description"] for name, field in describe_form(form).items()}

    return ApiOperation(
        "post",
        path,
        summary,
        (openapi.JSON if form is DetectionForm else openapi.TEXT,),
        (*openapi.INFERENCE_ERRORS, 415),
        query=describe_query,
        body=lambda: {"audio_file": AUDIO_FILE, **describe_form(form)},
        required=("audio_file",),
        body_kinds=("multipart/form-data",),
        sends_text_errors=True,
    )


async def show_status(_: Request) -> Response:
    """Serve `/status`."""
    return JSONResponse({"version": f"Eardrum {__version__}"})


class AsrEndpoint(UploadEndpoint[AsrParams]):
    """Transcribes an uploaded recording."""

    file_field = "audio_file"
    accepts_raw_body = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload. An error is sent once the client has sent everything."""
        body = TrackedBody(receive)
        try:
            await super().__call__(scope, body.receive, send)
        except EardrumError as error:
            if not isinstance(error, ClientStalledError):
                await discard_rest(scope, body, self.service.settings.limits)
            get_record(scope).note = error.message
            await self.answer_error(scope, error)(scope, receive_disconnect, send)

    def parse_params(self, scope: Scope, upload: AudioUpload) -> AsrParams:
        """Parse the query and the fields that were read so far."""
        return parse_asr_params(scope, upload, self.service.settings.subtitles.shape)

    def may_begin(self, params: AsrParams) -> bool:
        """Whether the parameters are known: clients that put some into the query have no others in a form."""
        return params.is_in_query or bool(params.model)

    async def build_response(self, scope: Scope, transcript: Transcript, params: AsrParams, model: Model) -> Response:
        """Build the response in the requested format, in a thread: a film has thousands of segments."""
        response = await asyncio.to_thread(responses.build_response, transcript, params, model.engine)
        return add_ignored_header(response, params.list_ignored(model.capabilities))

    def answer_error(self, scope: Scope, error: EardrumError) -> Response:
        """Build the response to a failed request."""
        return responses.build_error_response(error)


NAMED_MODEL_KEY = "eardrum.asr.model"
"""Scope key of the model that the client named."""


class DetectionEndpoint(AsrEndpoint):
    """Detects the language of an uploaded recording."""

    def parse_params(self, scope: Scope, upload: AudioUpload) -> AsrParams:
        """Parse the query and the fields that were read so far."""
        params = parse_detection_params(scope, upload)
        scope[NAMED_MODEL_KEY] = params.model
        return params

    async def build_response(self, scope: Scope, transcript: Transcript, params: AsrParams, model: Model) -> Response:
        """Build the response with the language."""
        return add_ignored_header(responses.build_detection(transcript), params.list_ignored(model.capabilities))

    def answer_error(self, scope: Scope, error: EardrumError) -> Response:
        """Build the response to a failed request. A server without a model that detects languages cannot determine any: a
        client that did not name a model gets that answer, since Bazarr would stop at an error."""
        if not isinstance(error, UnsupportedFeatureError) or scope.get(NAMED_MODEL_KEY):
            return super().answer_error(scope, error)
        response = responses.build_detection(None)
        response.headers["x-eardrum-warnings"] = format_sentence(error.message)
        return response


def add_ignored_header(response: Response, ignored: list[str]) -> Response:
    """List the parameters without effect in a header."""
    if ignored:
        response.headers["x-eardrum-ignored"] = format_names(ignored)
    return response


class LateResponse(Response):
    """A refusal of a request that was not read. It is sent once the client has sent the whole body."""

    def __init__(self, refusal: Response, limits: LimitSettings):
        super().__init__(refusal.body, refusal.status_code, dict(refusal.headers))
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then send the response."""
        if scope["type"] == "http":
            await discard_rest(scope, TrackedBody(receive), self._limits)
        await super().__call__(scope, receive_disconnect, send)


async def discard_rest(scope: Scope, body: TrackedBody, limits: LimitSettings) -> None:
    """Read the rest of a body, until the client stalls or sends more than is allowed.

    Raises:
        ClientGoneError: the client disconnected.
    """
    if body.has_left:
        raise ClientGoneError
    if body.has_ended:
        return
    with suppress(EardrumError):
        rest = RequestBody(scope, body.receive, limits)
        while await rest.read() is not None:
            pass


class TrackedBody:
    """Receives a request's messages, and remembers whether the body has ended, or the client has left."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.has_ended = self.has_left = False

    async def receive(self) -> Message:
        """Return the next message."""
        message = await self._receive()
        self.has_left = message["type"] == "http.disconnect"
        self.has_ended = self.has_ended or not message.get("more_body", False)
        return message
