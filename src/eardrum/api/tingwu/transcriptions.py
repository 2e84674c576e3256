"""The HTTP routes of TingWu: one recording, several in a form, or one at a URL."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qsl

from msgspec import Struct
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import openapi, request_body, transcript_formats
from eardrum.api.asgi import (
    ErrorBodyBuilder,
    Receive,
    Scope,
    Send,
    build_error_headers,
    format_names,
    format_sentence,
    receive_disconnect,
)
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.fields import FormValues, RequestModel, describe_form
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_log import get_record
from eardrum.api.tingwu import hotwords
from eardrum.api.tingwu.hotwords import CONFIG_PATH, HotwordStore
from eardrum.api.tingwu.params import (
    AsrCompatibleForm,
    BatchForm,
    ResultForm,
    SpeechFields,
    TingWuForm,
    TingWuParams,
    UrlForm,
    parse_form,
)
from eardrum.api.tingwu.tasks import BackgroundTask, BackgroundTaskStore
from eardrum.api.uploads import AudioUpload, FormFields, MultipartForm, UploadEndpoint, get_media_type
from eardrum.concurrency import run_alongside
from eardrum.config import LimitSettings
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedMediaTypeError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.remote_audio import AudioFetcher
from eardrum.transcription import Segment, Transcript

FORM = "multipart/form-data"
MAX_FILES = 20
"""Recordings in a form, as in TingWu."""


def build_routes(service: Service, tasks: BackgroundTaskStore, words: HotwordStore) -> list[BaseRoute]:
    """Build TingWu's HTTP routes."""
    one = {"file": AUDIO_FILE}
    transcribe = "Turn speech into sentences with times in milliseconds"
    return [
        ApiRoute(TranscribeEndpoint(service, words), _describe("", transcribe, TingWuForm, one)),
        ApiRoute(
            VideoEndpoint(service, words),
            _describe("video", "Turn speech into sentences, under TingWu's path for videos", TingWuForm, one),
        ),
        ApiRoute(
            AsrCompatibleEndpoint(service, words),
            _describe("asr", "Turn speech into segments with times as hh:mm:ss.sss", AsrCompatibleForm, one),
        ),
        ApiRoute(
            BatchEndpoint(service, words), _describe("batch", "Turn several recordings into text", BatchForm, {"files": FILES})
        ),
        ApiRoute(UrlEndpoint(service, words), _describe("url", "Turn the recording at a URL into text", UrlForm, {})),
        ApiRoute(
            TaskEndpoint(service, tasks, words),
            _describe("task", "Turn the recording at a URL into text in the background; the answer is a task's id", UrlForm, {}),
        ),
        ApiRoute(ResultEndpoint(service, tasks), _describe("result", "The state of a task, and its result", ResultForm, {})),
        *(ApiRoute(endpoint, *endpoint.operations) for endpoint in hotwords.build_endpoints(service, words)),
    ]


AUDIO_FILE = {
    "description": "The recording: any audio or video, detected from the content.",
    "type": "string",
    "format": "binary",
}
FILES = {
    "description": f"At most {MAX_FILES} recordings.",
    "type": "array",
    "items": {"type": "string", "format": "binary"},
}
PATHS = {
    "": "/api/v1/transcribe",
    "video": "/api/v1/trans/video",
    "asr": "/api/v1/asr",
    "batch": "/api/v1/transcribe/batch",
    "url": "/api/v1/transcribe/url",
    "task": "/api/v1/trans/url",
    "result": "/api/v1/result",
}


def _describe(kind: str, summary: str, form: type[RequestModel], files: dict[str, dict[str, Any]]) -> ApiOperation:
    return ApiOperation(
        "post",
        PATHS[kind],
        summary,
        errors=(*openapi.INFERENCE_ERRORS, 415),
        body=lambda: {**files, **describe_form(form)},
        required=(*files, *(name for name, field in form.model_fields.items() if field.is_required())),
        body_kinds=(FORM,) if files else (FORM, "application/x-www-form-urlencoded", openapi.JSON),
    )


def is_tingwu_path(path: str) -> bool:
    """Whether errors at this path take TingWu's format."""
    return path.startswith(("/api/v1/", f"{CONFIG_PATH}/")) or path == CONFIG_PATH


def build_error_response(error: EardrumError, build_error_body: ErrorBodyBuilder) -> Response:
    """Build the response for an error. TingWu's clients read `detail`; `build_error_body` builds the part of an error that all
    of Eardrum's routes have."""
    body = {"detail": error.message, **build_error_body(error)}
    return JSONResponse(body, error.status, build_error_headers(error))


class TranscribeEndpoint(UploadEndpoint[TingWuParams]):
    """Transcribes one uploaded recording."""

    form: type[SpeechFields] = TingWuForm

    def __init__(self, service: Service, words: HotwordStore):
        super().__init__(service)
        self._words = words

    def parse_params(self, scope: Scope, upload: AudioUpload) -> TingWuParams:
        """Parse the fields that were read so far."""
        return parse_form(self.form, upload.fields, self._words.words)

    def may_begin(self, params: TingWuParams) -> bool:
        """Whether the model is known. Without one, a field after the file may still name it: TingWu's page sends it last."""
        return bool(params.model)

    async def build_response(self, scope: Scope, transcript: Transcript, params: TingWuParams, model: Model) -> Response:
        """Build the response with the whole transcript."""
        return build_response(self.describe(transcript), params.list_ignored(model.capabilities))

    def describe(self, transcript: Transcript) -> dict[str, Any]:
        """Describe the transcript."""
        return describe_transcript(transcript)


class VideoEndpoint(TranscribeEndpoint):
    """Transcribes one uploaded video, which is no different."""


class AsrCompatibleEndpoint(TranscribeEndpoint):
    """Transcribes one uploaded recording, in the shape that TingWu calls compatible with whisper-asr-webservice."""

    form = AsrCompatibleForm

    def describe(self, transcript: Transcript) -> dict[str, Any]:
        """Describe the transcript."""
        segments = [
            {
                "sentence_index": number,
                "text": segment.text.strip(),
                "start": transcript_formats.format_time(segment.start, "."),
                "end": transcript_formats.format_time(segment.end, "."),
                "speaker": None,
            }
            for number, segment in enumerate(transcript.segments, 1)
        ]
        text = transcript_formats.format_text(transcript.segments)
        return {"text": text, "segments": segments, "language": transcript.summary.language}


def describe_transcript(transcript: Transcript) -> dict[str, Any]:
    """Describe a transcript as TingWu does. `sentence_info` is FunASR's name for the sentences."""
    sentences = [_describe_sentence(segment) for segment in transcript.segments]
    text = transcript_formats.format_text(transcript.segments)
    return {
        "code": 0,
        "text": text,
        "text_accu": None,
        "sentences": sentences,
        "sentence_info": sentences,
        "speaker_turns": None,
        "transcript": None,
        "raw_text": text,
    }


def _describe_sentence(segment: Segment) -> dict[str, Any]:
    return {
        "text": segment.text.strip(),
        "start": round(segment.start * 1000),
        "end": round(segment.end * 1000),
        "speaker": None,
        "speaker_id": None,
    }


def build_response(body: dict[str, Any], ignored: list[str]) -> Response:
    """Build the response, with the fields without effect in a header."""
    return JSONResponse(body, headers={"x-eardrum-ignored": format_names(ignored)} if ignored else None)


class BatchEndpoint:
    """Transcribes several recordings of one form, some at a time. One that fails does not stop the others."""

    def __init__(self, service: Service, words: HotwordStore):
        self._service = service
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one form.

        Raises:
            EardrumError: the form is invalid.
        """
        if (kind := get_media_type(scope)) != FORM:
            raise UnsupportedMediaTypeError(f"Send {FORM} with the recordings in the field 'files', not {kind or 'nothing'}.")
        limits = self._service.settings.limits
        with ExitStack() as spools:
            body = request_body.RequestBody(scope, receive, limits, param="files")
            form = MultipartForm(scope, body, limits, file_field="files", max_files=MAX_FILES)
            recordings = await form.read_files(lambda: spools.enter_context(self._service.create_spool()))
            files = [BatchFile(file.name, spool) for file, spool in zip(form.files, recordings, strict=True)]
            params = parse_form(BatchForm, form.fields, self._words.words)
            if not files:
                raise InvalidRequestError("The form holds no files: send the audio in the field 'files'.", param="files")
            model = self._service.find_model(params.model, params.request)
            get_record(scope).model = model.id
            assert isinstance(params.form, BatchForm)
            places = asyncio.Semaphore(params.form.max_concurrent)
            async with DisconnectWatcher(scope, receive):
                results: list[dict[str, Any]] = [{} for _ in files]
                work = [self._fill_result(results, number, file, places, params, model) for number, file in enumerate(files)]
                await run_alongside(asyncio.gather(*work))
        failed = sum(not result["success"] for result in results)
        counts = {"total": len(results), "success_count": len(results) - failed, "failed_count": failed}
        answer = build_response({"code": int(failed > 0), **counts, "results": results}, params.list_ignored(model.capabilities))
        await answer(scope, receive_disconnect, send)

    async def _fill_result(
        self,
        results: list[dict[str, Any]],
        number: int,
        file: BatchFile,
        places: asyncio.Semaphore,
        params: TingWuParams,
        model: Model,
    ) -> None:
        found: dict[str, Any] = {"success": True, "result": None, "error": None}
        async with places:
            try:
                transcript = await self._service.transcribe(model, params.request, file.spool)
                found["result"] = describe_transcript(transcript)
            except EardrumError as error:
                found |= {"success": False, "error": error.message}
        results[number] = {"index": number, "filename": file.name, **found}


class UrlEndpoint:
    """Transcribes a recording that the server fetches."""

    def __init__(self, service: Service, words: HotwordStore):
        self._service = service
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            EardrumError: the form is invalid, the host is not allowed, or the recording cannot be fetched or transcribed.
        """
        params, model = await read_url_params(self._service, self._words, scope, receive)
        record = get_record(scope)
        async with DisconnectWatcher(scope, receive):
            transcript = await transcribe_url(self._service, params, model)
        record.set_transcription(model, transcript.summary)
        answer = build_response(describe_transcript(transcript), params.list_ignored(model.capabilities))
        answer.headers["x-eardrum-model"] = format_names([model.id])
        if transcript.summary.warnings:
            answer.headers["x-eardrum-warnings"] = format_sentence(" ".join(transcript.summary.warnings))
        await answer(scope, receive_disconnect, send)


async def read_url_params(service: Service, words: HotwordStore, scope: Scope, receive: Receive) -> tuple[TingWuParams, Model]:
    """Read a form with the URL of a recording, and find its model.

    Raises:
        EardrumError: the form is invalid, the host is not allowed, or the model does not exist.
    """
    fields = await read_fields(scope, receive, service.settings.limits)
    if "url" in fields:  # as TingWu's page calls it
        fields.setdefault("audio_url", fields.pop("url"))
    params = parse_form(UrlForm, fields, words.words)
    assert isinstance(params.form, UrlForm)
    AudioFetcher(service.settings.limits).check_address(params.form.audio_url)
    model = service.find_model(params.model, params.request)
    get_record(scope).model = model.id
    return params, model


async def transcribe_url(service: Service, params: TingWuParams, model: Model) -> Transcript:
    """Fetch and transcribe a recording.

    Raises:
        EardrumError: either failed.
    """
    assert isinstance(params.form, UrlForm)
    with service.create_spool() as spool:
        await AudioFetcher(service.settings.limits).fetch_into(params.form.audio_url, spool)
        return await service.transcribe(model, params.request, spool)


async def read_fields(scope: Scope, receive: Receive, limits: LimitSettings) -> FormFields:
    """Read the fields of a form without files, or those of a JSON object, as TingWu's page sends them.

    Raises:
        EardrumError: the body is of another kind, or invalid.
    """
    limits = request_body.limit_small_body(limits)
    body = request_body.open_body(scope, receive, limits)
    match get_media_type(scope):
        case "multipart/form-data":
            form = MultipartForm(scope, body, limits)
            if await form.read_until_file():
                raise InvalidRequestError("The form holds a file: send it to /api/v1/transcribe.", param="file")
            return form.fields
        case "application/x-www-form-urlencoded":
            data = (await request_body.read_body(scope, body, limits)).decode("latin-1")
            try:
                pairs = parse_qsl(data, keep_blank_values=True, errors="replace", max_num_fields=limits.fields)
            except ValueError:
                raise InvalidRequestError(f"The form has more than {limits.fields} fields (limits.fields).") from None
        case "application/json":
            found = request_body.parse_object(await request_body.read_body(scope, body, limits))
            given = {name: value for name, value in found.items() if value is not None}
            pairs = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items()]
        case other:
            raise UnsupportedMediaTypeError(f"Send a form or a JSON object, not {other or 'a body without a type'}.")
    sent: FormFields = {}
    for name, value in pairs:
        sent.setdefault(name, []).append(value)
    return sent


class TaskEndpoint(Struct, frozen=True):
    """Starts the transcription of a recording that the server fetches, and answers with the task's id."""

    service: Service
    tasks: BackgroundTaskStore
    words: HotwordStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            EardrumError: the form is invalid, the host is not allowed, or there are too many tasks.
        """
        params, model = await read_url_params(self.service, self.words, scope, receive)

        async def work() -> dict[str, Any]:
            return describe_transcript(await transcribe_url(self.service, params, model))

        task = self.tasks.submit(work)
        answer = describe_task(200, "success", "The task has been submitted.", task.id)
        await build_response(answer, params.list_ignored(model.capabilities))(scope, receive_disconnect, send)


class ResultEndpoint(Struct, frozen=True):
    """Answers with the state of a task, and its result. The HTTP status is always 200, as in TingWu; `code` tells the outcome."""

    service: Service
    tasks: BackgroundTaskStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            EardrumError: the form is invalid.
        """
        fields = await read_fields(scope, receive, self.service.settings.limits)
        form = ResultForm.parse({name: FormValues(values) for name, values in fields.items()})
        task = self.tasks.find(form.task_id)
        if task and form.wait:
            async with DisconnectWatcher(scope, receive):
                await asyncio.wait([task.work], timeout=form.timeout)
        if task and task.work.done() and form.delete:
            self.tasks.forget(task)
        await JSONResponse(_describe_outcome(form.task_id, task))(scope, receive_disconnect, send)


def _describe_outcome(id: str, task: BackgroundTask | None) -> dict[str, Any]:
    if not task:
        return describe_task(404, "error", "There is no such task, or its result was fetched.", id)
    if not task.work.done():
        state = "processing" if task.has_begun else "pending"
        return describe_task(202, state, f"The task is {state}.", id)
    if task.error:
        return describe_task(500, "error", task.error, id) | {"error": task.error}
    result = task.work.result()
    return describe_task(200, "success", "The task is complete.", id) | {"data": result, "result": result}


def describe_task(code: int, status: str, message: str, id: str) -> dict[str, Any]:
    """Describe a task as TingWu does, in `data`, and as its page expects it, outside of `data`."""
    return {"code": code, "status": status, "message": message, "task_id": id, "data": {"task_id": id}}


class BatchFile(Struct, frozen=True):
    """One recording of a form."""

    name: str
    spool: Spool
