"""Uploaded recordings, for every protocol: multipart forms and raw bodies, answered while they arrive.

`UploadEndpoint` is the ASGI application of a route that takes a recording. A protocol's subclass parses the parameters and
builds the response; everything else is here: the upload goes into a spool, the transcription begins as soon as the parameters
are known, begins again if later fields change them, and ends when the client disconnects.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Set
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from urllib.parse import quote, unquote

from msgspec.structs import replace
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response

from eardrum.api.asgi import Receive, Scope, Send, StreamedResponse, format_sentence, get_header, receive_disconnect
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.request_body import RequestBody
from eardrum.api.request_log import get_record
from eardrum.concurrency import cancel_and_wait, run_alongside
from eardrum.config import LimitSettings
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedFeatureError, UnsupportedMediaTypeError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import ByteSink, Spool
from eardrum.transcription import AudioOpened, Segment, TextDelta, Transcript, TranscriptionEvent, TranscriptionRequest

HEAD_BYTES, HEAD_LINES = 8 << 10, 16
"""Limits of one part's headers: bytes of a line, and number of lines. Only the name of a file is ever long."""

EXTENDED_FILE_NAME = re.compile(rb"filename\*\s*=\s*\"?(utf-8|iso-8859-1)'[^']*'([^;\"\s]+)", re.IGNORECASE)
"""A file name in one of RFC 5987's two charsets. Older versions of Python's `requests` send names that are not ASCII so."""

Sink = TypeVar("Sink", bound=ByteSink)

FormFields = dict[str, list[str]]
"""Text fields by name, with brackets, in the order of arrival."""


@dataclass(slots=True)
class FormPart:
    """A form's part that is being read."""

    name: str = ""
    is_file: bool = False
    content_type: str = ""
    value: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class FormFile:
    """A form's file that is being read."""

    name: str = ""
    """The client's name for it; empty if it sent none."""
    content_type: str = ""
    data: bytearray = field(default_factory=bytearray)
    """Bytes that are in no spool yet."""
    has_ended: bool = False


class MultipartForm:
    """Parses a multipart form as it arrives: first `read_until_file`, then `read_file`; or `read_files` alone."""

    def __init__(
        self,
        scope: Scope,
        body: RequestBody,
        limits: LimitSettings,
        *,
        file_field: str = "file",
        max_files: int = 1,
        reference_fields: Set[str] = frozenset(),
    ):
        self.fields: FormFields = {}
        self.files: list[FormFile] = []
        self._max_files = max_files
        self._body = body
        self._limits = limits
        self._file_field = file_field
        self._reference_fields = reference_fields
        self._part = FormPart()
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._is_complete = False
        _, options = parse_options_header(get_header(scope, b"content-type"))
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidRequestError("The form has no boundary in its content-type header.")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
                max_header_count=HEAD_LINES,
                max_header_size=HEAD_BYTES,
            )
        except FormParserError as error:
            raise InvalidRequestError(f"The form's boundary is not valid: {error}") from error

    async def read_until_file(self) -> bool:
        """Read until the file begins, and return whether there is one. `fields` then holds the fields before it.

        Raises:
            InvalidRequestError: the form is malformed, has too many fields, or a field is too long.
            EardrumError, ClientGoneError: as `RequestBody.read`.
        """
        while not self.files and (chunk := await self._body.read()) is not None:
            self._feed(chunk)
        return bool(self.files)

    async def read_file(self, spool: ByteSink) -> None:
        """Read the rest: the file into `spool` as it arrives, and the fields after it into `fields`."""
        await self.read_files(lambda: spool)

    async def read_files(self, create_spool: Callable[[], Sink]) -> list[Sink]:
        """Read the rest: each file into its own spool as it arrives, and the fields into `fields`. Return the spools.

        Raises:
            InvalidRequestError: the form is malformed, or has too many files or fields, or a field is too long.
            EardrumError, ClientGoneError: as `RequestBody.read`.
        """
        spools: list[Sink] = []
        done = 0
        while True:
            spools += [create_spool() for _ in self.files[len(spools) :]]
            for file, spool in zip(self.files[done:], spools[done:], strict=True):
                if file.data:
                    data, file.data = bytes(file.data), bytearray()
                    await spool.write(data)
                if file.has_ended:
                    spool.finish()
                    done += 1
            if (chunk := await self._body.read()) is None:
                break
            self._feed(chunk)
        if not self._is_complete:
            raise InvalidRequestError("The form ends in the middle: its closing boundary is missing.")
        return spools

    def _feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequestError(f"The form cannot be parsed: {error}") from error

    def _on_part_begin(self) -> None:
        self._part = FormPart()
        self._headers = {}

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        self._part = FormPart(name, is_file=b"filename" in options or name == self._file_field)
        if self._part.is_file:
            if name != self._file_field:
                raise InvalidRequestError(
                    f"The audio belongs into the field {self._file_field!r}, not {name!r}.", param=self._file_field
                )
            if len(self.files) >= self._max_files:
                most = "two files: send one" if self._max_files == 1 else f"more than {self._max_files} files: send fewer"
                raise InvalidRequestError(f"The form holds {most} per request.", param=self._file_field)
            file_name = _decode_extended_name(disposition) or options.get(b"filename", b"").decode(errors="replace")
            self.files.append(FormFile(file_name, self._headers.get(b"content-type", b"").decode("latin-1")))
        elif sum(map(len, self.fields.values())) >= self._limits.fields:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields (limits.fields).")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.files[-1].data += data[start:end]
            return
        self._part.value += data[start:end]
        name = self._part.name
        setting = "reference_bytes" if name in self._reference_fields else "field_bytes"
        if len(self._part.value) > (limit := getattr(self._limits, setting)):
            raise InvalidRequestError(f"The field {name!r} is longer than {limit} bytes (limits.{setting}).", param=name)

    def _on_part_end(self) -> None:
        if self._part.is_file:
            self.files[-1].has_ended = True
        else:
            self.fields.setdefault(self._part.name, []).append(self._part.value.decode(errors="replace"))

    def _on_end(self) -> None:
        self._is_complete = True


def _decode_extended_name(disposition: bytes) -> str:
    """Return the file name in the encoding of RFC 5987; empty if there is none."""
    found = EXTENDED_FILE_NAME.search(disposition)
    return unquote(found[2].decode("latin-1"), found[1].decode()) if found else ""


class UploadParams(Protocol):
    """The parameters of one upload, as far as the exchange needs them."""

    @property
    def model(self) -> str:
        """The model's name; empty for the default model."""

    @property
    def request(self) -> TranscriptionRequest:
        """The transcription to run."""

    @property
    def stream(self) -> bool:
        """Whether the response is a stream of events."""

    @property
    def extra(self) -> tuple[tuple[str, str], ...]:
        """Fields that only an upstream may support, and gets unchanged."""


P = TypeVar("P", bound=UploadParams)


class AudioUpload(Protocol):
    """An upload in progress: `begin` reads up to the audio, `read_audio` the rest."""

    body: RequestBody
    fields: FormFields
    """Text fields that were read so far."""

    @property
    def content_type(self) -> str:
        """The content type of the audio; empty if the client sent none."""

    @property
    def file_name(self) -> str:
        """The client's name for the audio; empty if it sent none."""

    async def begin(self) -> bool:
        """Read up to the beginning of the audio, and return whether there is any.

        Raises:
            InvalidRequestError: the body is malformed.
            EardrumError, ClientGoneError: as `RequestBody.read`.
        """

    async def read_audio(self, spool: Spool) -> None:
        """Read the rest, and write the audio into `spool`."""


class FormUpload:
    """A multipart form that holds the recording in the field `file_field`."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        limits: LimitSettings,
        *,
        file_field: str = "file",
        reference_fields: Set[str] = frozenset(),
    ):
        self.body = RequestBody(scope, receive, limits, param=file_field)
        self._form = MultipartForm(scope, self.body, limits, file_field=file_field, reference_fields=reference_fields)
        self.fields = self._form.fields

    @property
    def content_type(self) -> str:
        """The content type of the form's file."""
        return self._form.files[0].content_type if self._form.files else ""

    @property
    def file_name(self) -> str:
        """The name of the form's file."""
        return self._form.files[0].name if self._form.files else ""

    async def begin(self) -> bool:
        """Read the fields before the file."""
        return await self._form.read_until_file()

    async def read_audio(self, spool: Spool) -> None:
        """Read the file and the fields after it."""
        await self._form.read_file(spool)


class RawUpload:
    """A body that is the recording itself."""

    def __init__(self, scope: Scope, receive: Receive, limits: LimitSettings):
        self.body = RequestBody(scope, receive, limits, param=None)
        self.fields: FormFields = {}
        self.content_type = get_header(scope, b"content-type")
        self.file_name = ""

    async def begin(self) -> bool:
        """Read nothing: the audio begins with the body."""
        return True

    async def read_audio(self, spool: Spool) -> None:
        """Read the body."""
        while (chunk := await self.body.read()) is not None:
            await spool.write(chunk)
        spool.finish()


class TranscriptStream(Protocol):
    """Encodes the response of one streamed transcription."""

    headers: list[tuple[bytes, bytes]]
    """The headers of the response."""

    def encode_event(self, event: Segment | TextDelta) -> bytes:
        """Encode what an event adds to the text; empty for nothing."""

    def encode_done(self, transcript: Transcript) -> bytes:
        """Encode the end of the stream."""

    def encode_error(self, error: EardrumError) -> bytes:
        """Encode an error that ends the stream."""


class UploadEndpoint(ABC, Generic[P]):
    """Transcribes an uploaded recording. An ASGI application."""

    file_field = "file"
    """The form's field with the recording."""
    reference_fields: Set[str] = frozenset()
    """The form's fields with recordings of known speakers."""
    accepts_raw_body = False
    """Whether a body of audio, or of any bytes, is the recording itself."""

    def __init__(self, service: Service):
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload."""
        upload = self.open_upload(scope, receive)
        with self.service.create_spool() as spool:
            if not await upload.begin():
                self.parse_params(scope, upload)  # reports an invalid field first, if there is one
                raise self._make_no_file_error()
            await UploadExchange(self, upload, spool, scope, receive, send).run()

    def open_upload(self, scope: Scope, receive: Receive) -> AudioUpload:
        """Open the upload by its content type.

        Raises:
            UnsupportedMediaTypeError: the body is compressed, or of another type.
            InvalidRequestError: the form cannot hold a file.
            TooLargeError: the content length exceeds the limit.
        """
        kind = get_media_type(scope)
        if kind == "multipart/form-data":
            limits = self.service.settings.limits
            return FormUpload(scope, receive, limits, file_field=self.file_field, reference_fields=self.reference_fields)
        if self.accepts_raw_body and (kind.startswith("audio/") or kind in ("", "application/octet-stream")):
            return RawUpload(scope, receive, self.service.settings.limits)
        if kind == "application/x-www-form-urlencoded":
            raise self._make_no_file_error()
        raise UnsupportedMediaTypeError(
            f"Send multipart/form-data with the audio in the field {self.file_field!r}, not {kind or 'a body without a type'}."
        )

    @abstractmethod
    def parse_params(self, scope: Scope, upload: AudioUpload) -> P:
        """Parse the parameters from the query, the headers, and the fields that were read so far.

        Raises:
            InvalidRequestError: a value is invalid.
        """

    def may_begin(self, params: P) -> bool:
        """Whether the transcription may begin before the upload is complete. If fields after the audio change the parameters,
        it begins again."""
        return True

    @abstractmethod
    async def build_response(self, scope: Scope, transcript: Transcript, params: P, model: Model) -> Response:
        """Build the response with the whole transcript. `model` is the one that made it."""

    def open_stream(self, scope: Scope, params: P, model: Model, opened: AudioOpened) -> TranscriptStream:
        """Begin a streamed response, if the protocol has one."""
        raise UnsupportedFeatureError("This protocol has no streamed responses.")

    def _make_no_file_error(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"The form holds no file: send the audio in the field {self.file_field!r} of multipart/form-data.",
            param=self.file_field,
        )


def get_media_type(scope: Scope) -> str:
    """Return the body's media type in lower case.

    Raises:
        UnsupportedMediaTypeError: the body is compressed.
    """
    if (encoding := get_header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it uncompressed.")
    return get_header(scope, b"content-type").partition(";")[0].strip().lower()


class UploadExchange(Generic[P]):
    """Answers one upload while it is still being received."""

    def __init__(
        self, endpoint: UploadEndpoint[P], upload: AudioUpload, spool: Spool, scope: Scope, receive: Receive, send: Send
    ):
        self._endpoint = endpoint
        self._service = endpoint.service
        self._upload = upload
        self._spool = spool
        self._scope = scope
        self._receive = receive
        self._send = send
        self._record = get_record(scope)
        self._received = asyncio.Event()
        """Set once the audio and all fields have been received."""
        self._stream: TranscriptStream | None = None
        """The encoder of a streamed response, once it has begun."""
        self._response = StreamedResponse(send, [])

    async def run(self) -> None:
        """Receive and answer at the same time. A disconnect or an invalid upload cancels the work.

        Raises:
            EardrumError: before the response began; later errors go into the stream.
            ClientGoneError: the client disconnected.
        """
        async with DisconnectWatcher(self._scope, self._receive, after=self._upload.body.received):
            try:
                await run_alongside(self._answer(), self._receive_upload())
            except EardrumError as error:
                if not self._stream or not self._response.has_begun:
                    raise
                self._record.note = error.message
                await self._response.send(self._stream.encode_error(error), last=True)

    async def _receive_upload(self) -> None:
        await self._upload.read_audio(self._spool)
        self._received.set()

    async def _answer(self) -> None:
        """Begin as soon as the parameters are known, and begin again if fields after the audio change them."""
        params = self._parse_params()
        begun = self._endpoint.may_begin(params)
        if begun and params.stream:
            await self._stream_response(params)
            return
        model = self._find_model(params) if begun else None
        early = asyncio.ensure_future(self._transcribe(params, model, is_final=False)) if model else None
        try:
            await self._wait_for_upload(early)
            final = self._parse_params()
            if early and model and not final.stream and _is_same_request(final, params, model):
                await self._send_response(await early, final, model)
                return
            if early:
                await cancel_and_wait(early)
            if final.stream:
                await self._stream_response(final)
            else:
                model = self._find_model(final)
                await self._send_response(await self._transcribe(final, model), final, model)
        finally:
            if early:
                await cancel_and_wait(early)

    async def _wait_for_upload(self, early: asyncio.Future[Transcript] | None) -> None:
        """Wait for the end of the upload, or for an earlier failure of the work."""
        work: list[Awaitable[Transcript]] = [asyncio.shield(early)] if early else []
        await run_alongside(self._received.wait(), *work)

    def _parse_params(self) -> P:
        return self._endpoint.parse_params(self._scope, self._upload)

    async def _transcribe(self, params: P, model: Model, *, is_final: bool = True) -> Transcript:
        """Transcribe. If later fields may still change the request, include times: they cost nothing, and a later field may ask
        for them."""
        request = _build_request(params, model)
        if not is_final and not _is_remote(model):
            request = replace(request, times=True)
        return await self._service.transcribe(model, request, self._spool)

    def _find_model(self, params: P) -> Model:
        model = self._service.find_model(params.model, params.request)
        self._record.model = model.id
        return model

    async def _send_response(self, transcript: Transcript, params: P, model: Model) -> None:
        served = transcript.summary.model  # a fallback's, perhaps; the config may have lost either meanwhile
        model = self._service.catalog.find_named(served) or model
        self._record.set_transcription(model, transcript.summary)
        response = await self._endpoint.build_response(self._scope, transcript, params, model)
        response.headers["x-eardrum-model"] = quote(served, safe="/ :@+")  # configured ids may be in any script
        if transcript.summary.warnings:
            response.headers["x-eardrum-warnings"] = format_sentence(" ".join(transcript.summary.warnings))
        await response(self._scope, receive_disconnect, self._send)

    async def _stream_response(self, params: P) -> None:
        model = self._find_model(params)
        transcript, opened = Transcript(), AudioOpened(None)
        async with aclosing(self._service.stream_events(model, _build_request(params, model), self._spool)) as events:
            async for event in events:
                if isinstance(event, AudioOpened):
                    opened = event
                await self._send_event(event, params, model, opened)
                transcript.add_event(event)
        await self._received.wait()
        if not _is_same_request(self._parse_params(), params, model):
            raise InvalidRequestError("A field after the file came too late for this stream: send all fields before the file.")
        stream = self._begin_stream(params, model, opened)
        self._record.set_transcription(model, transcript.summary)
        await self._response.send(stream.encode_done(transcript), last=True)

    async def _send_event(self, event: TranscriptionEvent, params: P, model: Model, opened: AudioOpened) -> None:
        if isinstance(event, TextDelta | Segment) and (data := self._begin_stream(params, model, opened).encode_event(event)):
            await self._response.send(data)

    def _begin_stream(self, params: P, model: Model, opened: AudioOpened) -> TranscriptStream:
        if not self._stream:
            self._stream = self._endpoint.open_stream(self._scope, params, model, opened)
            self._response.headers = self._stream.headers
        return self._stream


def _is_same_request(final: UploadParams, begun: UploadParams, model: Model) -> bool:
    """Whether the decoding that was begun with this model answers the final request, too. Its response format may differ."""
    if not need_same_decoding(final, begun):
        return False
    if _is_remote(model) and final.request.times and not begun.request.times:
        return False
    return final.extra == begun.extra or not model.is_external


def need_same_decoding(one: UploadParams, other: UploadParams) -> bool:
    """Whether one decoding answers both. Their response formats may differ, and so may their need for times."""
    return (one.model, replace(one.request, times=True)) == (other.model, replace(other.request, times=True))


def _build_request(params: UploadParams, model: Model) -> TranscriptionRequest:
    return replace(params.request, extra=params.extra) if model.is_external else params.request


def _is_remote(model: Model) -> bool:
    """Whether the request must ask for times: local engines always produce them."""
    return model.is_external or model.card.remote
