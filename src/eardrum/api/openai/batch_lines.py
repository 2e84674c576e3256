"""Lines of batches in OpenAI's format: requests for transcriptions and for speech, and their results."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from msgspec.structs import replace

from eardrum import bounded_json
from eardrum.api.openai import responses
from eardrum.api.openai.params import TranscriptionParams, flatten_json, parse_params
from eardrum.api.openai.speech import MEDIA_TYPES, SpeechForm, check_text, choose_voice
from eardrum.api.request_body import check_surrogates
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedFeatureError, error_from_json
from eardrum.gateway import speech
from eardrum.gateway.key_usage import check_model_allowed
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.remote_audio import AudioFetcher
from eardrum.jobs.line_format import ParsedLine
from eardrum.jobs.records import (
    SPEECH,
    SPEECH_ENDPOINT,
    TEXT,
    TURNS,
    AudioReference,
    ItemRecord,
    ItemStatus,
    JobRecord,
    NewItem,
    build_end_error,
)
from eardrum.speech import SpeechRequest, SpeechSummary
from eardrum.transcription import SpeechTask, Transcript, TranscriptionRequest

TASKS = {"/v1/audio/transcriptions": SpeechTask.TRANSCRIBE, "/v1/audio/translations": SpeechTask.TRANSLATE}
"""Endpoints of jobs with recordings, and their tasks."""

ENDPOINTS = (*TASKS, SPEECH_ENDPOINT)
"""Endpoints of batches."""

AUDIO_FIELDS = ("file", "file_url", "url", "audio_url")
"""Fields of a line's body that name its audio: an id of /v1/files, or an address."""

METHODS = ("POST", "FILE")
"""OpenAI's, and Together's for recordings."""

URL_PREFIXES = ("http://", "https://")


class OpenAIBatchLines:
    """Parses and renders the lines of batches."""

    def __init__(self, service: Service):
        self._service = service

    def parse_line(self, line: bytes, endpoint: str) -> ParsedLine:
        """Parse a line of an input file.

        Raises:
            InvalidRequestError: the line is no request for this endpoint.
        """
        try:
            found = bounded_json.parse_json(line)
        except ValueError as error:
            raise InvalidRequestError(f"The line is not valid JSON: {error}.") from None
        if not isinstance(found, dict) or not isinstance(found.get("body"), dict):
            raise InvalidRequestError("The line must be a JSON object with custom_id, method, url and body.", param="body")
        check_surrogates(line, found)
        key, url, method = found.get("custom_id"), found.get("url", endpoint), found.get("method", "POST")
        if not isinstance(key, str) or not key:
            raise InvalidRequestError("custom_id must be a string that is not empty.", param="custom_id")
        if any("\0" in value for value in (key, *found["body"].values()) if isinstance(value, str)):
            raise InvalidRequestError("A line must not contain the character U+0000.", param="body")  # Postgres stores none
        if url != endpoint:
            raise InvalidRequestError(f"url must be the batch's endpoint, {endpoint}.", param="url")
        if method not in METHODS:
            raise InvalidRequestError("method must be POST.", param="method")
        item = NewItem(key)
        try:
            if endpoint == SPEECH_ENDPOINT:
                fill_speech_item(item, found["body"])
                return ParsedLine(item)
            return ParsedLine(item, self._parse_body(item, found["body"], TASKS[endpoint]))
        except EardrumError as error:
            item.error = error.to_json()
            return ParsedLine(item)

    def _parse_body(self, item: NewItem, body: dict[str, Any], task: SpeechTask) -> bytes:
        """Parse the body into the item; returns audio that it holds."""
        name, place = pop_audio(body)
        audio, content_type = b"", ""
        if place.startswith("data:"):
            head, _, encoded = place.removeprefix("data:").partition(",")
            content_type, _, encoding = head.rpartition(";")
            audio = _decode_audio(encoded, encoding, name)
        elif place.startswith(URL_PREFIXES):
            item.source = AudioReference(url=place)
        else:
            item.source = AudioReference(file=place)
        fill_item(item, flatten_json(body, self._service.settings.limits), task, content_type, self._service)
        return audio

    async def resolve_item(self, item: NewItem) -> None:
        """Find the item's model, and complete its request."""
        try:
            if SPEECH in item.request:
                await resolve_speech_item(item, self._service)
            else:
                resolve_item(item, self._service)
        except EardrumError as error:
            item.error = error.to_json()

    def render_line(self, job: JobRecord, item: ItemRecord, transcript: Transcript | None) -> dict[str, Any]:
        """Render the line of an item that has ended."""
        number = hashlib.sha256(f"{item.job}/{item.n}".encode()).hexdigest()[:32]
        line: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": item.key, "response": None, "error": None}
        if item.status is ItemStatus.DONE:
            body = self._render_body(job, item, transcript) if transcript else render_speech(item)
            line["response"] = self._render_response(item, 200, body)
            return line
        error = error_from_json(build_end_error(item))
        if item.status is ItemStatus.FAILED:
            line["response"] = self._render_response(item, error.status, responses.build_error_body(error))
        else:
            line["error"] = {"code": error.code, "message": error.message}
        return line

    def _render_response(self, item: ItemRecord, status: int, body: Any) -> dict[str, Any]:
        return {"status_code": status, "request_id": f"req_{item.job}_{item.n}", "body": body}

    def _render_body(self, job: JobRecord, item: ItemRecord, transcript: Transcript) -> Any:
        return responses.build_body(transcript, parse_item_params(item, TASKS[job.endpoint], self._service))


def fill_speech_item(item: NewItem, body: dict[str, Any]) -> None:
    """Fill in the request of an item to speak from a client's body.

    Raises:
        EardrumError: a field is invalid, or has no meaning in a job.
    """
    form = SpeechForm.parse(body)
    if form.stream_format != "audio":
        raise UnsupportedFeatureError("A job's result is not streamed: leave out `stream_format`.", param="stream_format")
    item.model = form.model
    item.request = {SPEECH: replace(form.build_request(form.voice), streamed=False, bulk=True).to_json(), TEXT: form.input}


async def resolve_speech_item(item: NewItem, service: Service) -> None:
    """Find the model of an item to speak, and its name of the voice, and check the text.

    Raises:
        EardrumError: there is no such model or voice, or it cannot speak the text.
    """
    request = SpeechRequest.from_json(item.request[SPEECH])
    model = speech.find_voice_model(service, item.model, request.voice)
    check_model_allowed(model.id, model.aliases)
    if model.is_external:
        message = f"{model.id} is another server's model. Batches of speech are for models that this server runs."
        raise UnsupportedFeatureError(message, param="model")
    request = replace(request, voice=choose_voice(model, request.voice, item.model))
    language = speech.get_voice_language(model, request.voice)
    await check_text(item.request[TEXT], language, request.voice or model.id, service.settings.limits.speech_chars)
    item.request = {**item.request, SPEECH: request.to_json()}
    item.model = model.id


def render_speech(item: ItemRecord) -> dict[str, Any]:
    """Render the result of an item that was spoken: its audio is a file."""
    kind = SpeechRequest.from_json(item.request[SPEECH]).format
    summary = SpeechSummary.from_json(item.result)
    return {
        "object": "audio.speech",
        "file_id": item.result["file"],
        "bytes": item.result["bytes"],
        "content_type": MEDIA_TYPES[kind],
        "duration": round(summary.duration, 3),
        "characters": summary.characters,
    }


def pop_audio(body: dict[str, Any]) -> tuple[str, str]:
    """Remove the field that names the audio from a body; returns the field's name and its value.

    Raises:
        InvalidRequestError: there is none, or more than one.
    """
    given = {name: body.pop(name) for name in AUDIO_FIELDS if body.get(name)}
    if len(given) != 1:
        raise InvalidRequestError(
            "The body must name the audio once: in `file` an id of /v1/files, or in `file_url` an address.", param="file"
        )
    ((name, place),) = given.items()
    if not isinstance(place, str):
        raise InvalidRequestError(f"{name} must be a string.", param=name)
    return name, place


def fill_item(item: NewItem, fields: dict[str, list[str]], task: SpeechTask, content_type: str, service: Service) -> None:
    """Fill in an item's request from a client's fields.

    Raises:
        EardrumError: a field is invalid, or has no meaning in a job.
    """
    params = parse_params(fields, task, file_content_type=content_type, shape=service.settings.subtitles.shape)
    if params.request.speaker_options.known:
        message = "The recordings of known speakers are not kept for jobs: leave them out, or use /v1/audio/transcriptions."
        raise UnsupportedFeatureError(message, param="known_speaker_references")
    if params.stream:
        raise UnsupportedFeatureError("A job's result is not streamed: leave out `stream`.", param="stream")
    item.model = params.model
    item.fields = fields
    item.request = {**params.request.to_json(), "upstream": list(params.extra)}


def resolve_item(item: NewItem, service: Service) -> None:
    """Find the model of an item, and complete its request with the server's defaults: nothing else is read later.

    Raises:
        EardrumError: there is no such model, it does not support the request, or the audio's address is not allowed.
    """
    request = TranscriptionRequest.from_json(item.request)
    model = service.find_model(item.model, request)
    check_model_allowed(model.id, model.aliases)
    if item.source.url:
        AudioFetcher(service.settings.limits).check_address(item.source.url)
    request = service.prepare_request(model, replace(request, times=True, words_if_any=request.words_if_any or request.speakers))
    item.request = {**request.to_json(), "upstream": item.request["upstream"]}
    item.model = model.id


def parse_item_params(
    item: ItemRecord, task: SpeechTask, service: Service, changes: dict[str, list[str]] | None = None
) -> TranscriptionParams:
    """Parse the fields of an item again, for the format of its result. `changes` replace some of them.

    Raises:
        InvalidRequestError: a changed field is invalid.
        UnsupportedFeatureError: a changed field asks for speakers, which the job has not labelled.
    """
    params = parse_params({**item.fields, **(changes or {})}, task, shape=service.settings.subtitles.shape)
    if params.request.speakers and item.status is ItemStatus.DONE and TURNS not in item.result:
        raise UnsupportedFeatureError("This job did not request speakers.", param="response_format")
    return params


def _decode_audio(encoded: str, encoding: str, param: str) -> bytes:
    if encoding != "base64":
        raise InvalidRequestError("A data: address must be in base64.", param=param)
    try:
        audio = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequestError(f"{param} is not valid base64: {error}.", param=param) from None
    if not audio:
        raise InvalidRequestError("The audio is empty.", param=param)
    return audio
