"""What clients send: a form, or JSON with the audio inside. Read as it arrives."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Protocol

from eardrum import json_text
from eardrum.api import json_body
from eardrum.api.asgi import Receive, Scope, header
from eardrum.api.multipart import Body, Fields, Form
from eardrum.api.openai import fields
from eardrum.api.openai.fields import Wish
from eardrum.api.whole_text import check_whole
from eardrum.config import Limits, Settings
from eardrum.errors import InvalidRequestError, UnsupportedMediaTypeError
from eardrum.gateway.spool import Spool
from eardrum.subtitles import Shape
from eardrum.types import Task

AUDIO_TRACK = b"x-eardrum-audio-track"
"""Request header that says what the field `audio_track` does."""

NO_FILE = "The form holds no file: send the audio in the field 'file' of multipart/form-data."


PIECE = 4 << 20
"""Characters of base64 that are decoded in one go."""


class Upload(Protocol):
    """An upload in progress: `begin` reads what precedes the audio, `pour` the rest."""

    body: Body

    async def begin(self) -> None:
        """Read up to where the audio begins."""

    async def pour(self, spool: Spool) -> None:
        """Read all the rest, the audio into `spool`."""

    def wish(self) -> Wish:
        """What is asked, by the fields read so far.

        Raises:
            InvalidRequestError: a field has a value it cannot have.
        """


def open_upload(scope: Scope, receive: Receive, task: Task, settings: Settings) -> Upload:
    """The upload by its content type.

    Raises:
        UnsupportedMediaTypeError: neither a form nor JSON.
        InvalidRequestError: a form of the kind that cannot carry a file.
        TooLargeError: it announces more bytes than allowed.
    """
    if (encoding := header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it as it is.")
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return FormUpload(scope, receive, task, settings.limits, settings.subtitles.shape)
    if kind == "application/json":
        return JsonUpload(scope, receive, task, settings.limits, settings.subtitles.shape)
    if kind == "application/x-www-form-urlencoded":
        raise InvalidRequestError(NO_FILE, param="file")
    raise UnsupportedMediaTypeError(
        f"Send multipart/form-data with the audio in the field 'file', not {kind or 'a body without a type'}."
    )


async def _decoded(encoded: str) -> bytes:
    """Bytes of base64, a piece at a time: others have their turn between two.

    Raises:
        ValueError: it is not base64.
    """
    if len(encoded) <= PIECE:
        return base64.b64decode(encoded, validate=True)
    audio, end = bytearray(), len(encoded)
    for at in range(0, end, PIECE):
        piece = encoded[at : at + PIECE]
        if "=" in piece and at + PIECE < end:
            raise ValueError("it goes on behind its end")
        audio += base64.b64decode(piece, validate=True)
        await asyncio.sleep(0)
    return bytes(audio)


class FormUpload:
    """The usual way: a multipart form."""

    def __init__(self, scope: Scope, receive: Receive, task: Task, limits: Limits, shape: Shape):
        self.body = Body(scope, receive, limits)
        self._task = task
        self._audio_track = header(scope, AUDIO_TRACK)
        self._shape = shape
        self._form = Form(scope, self.body, limits)

    async def begin(self) -> None:
        """Read the fields before the file.

        Raises:
            InvalidRequestError: there is no file.
        """
        if not await self._form.until_file():
            self.wish()  # a wrong field is the better complaint, if there is one
            raise InvalidRequestError(NO_FILE, param="file")

    async def pour(self, spool: Spool) -> None:
        """Read the file and the fields after it."""
        await self._form.pour(spool)

    def wish(self) -> Wish:
        """What is asked, by the fields read so far."""
        return fields.wish(
            self._form.fields,
            self._task,
            file_content_type=self._form.file_content_type,
            audio_track=self._audio_track,
            shape=self._shape,
        )


class JsonUpload:
    """The way of OpenRouter and Open WebUI: a JSON body with the audio in base64 as `input_audio`."""

    def __init__(self, scope: Scope, receive: Receive, task: Task, limits: Limits, shape: Shape):
        self.body = json_body.opened(scope, receive, limits)
        self._scope = scope
        self._limits = limits
        self._task = task
        self._audio_track = header(scope, AUDIO_TRACK)
        self._shape = shape
        self._fields: Fields = {}
        self._audio = b""
        self._format = ""

    async def begin(self) -> None:
        """Read and take apart the whole body.

        Raises:
            InvalidRequestError: not JSON, or no audio in it.
        """
        data = await json_body.received(self._scope, self.body, self._limits)
        try:
            body = json_text.parsed(data)
        except ValueError as error:
            raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
        check_whole(data, body)
        del data
        try:
            audio = body.pop("input_audio")
            self._format = str(audio.get("format") or "")
            encoded = audio["data"].rpartition("base64,")[2]
        except (KeyError, TypeError, AttributeError):
            message = 'A JSON body must hold {"model": ..., "input_audio": {"data": base64, "format": "wav"}}.'
            raise InvalidRequestError(message, param="input_audio") from None
        try:
            self._audio = await _decoded(encoded)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequestError(f"input_audio.data is not valid base64: {error}.", param="input_audio") from None
        self._fields = fields.from_json(body, self._limits)

    async def pour(self, spool: Spool) -> None:
        """Hand the audio over."""
        await spool.write(self._audio)
        self._audio = b""
        spool.finish()

    def wish(self) -> Wish:
        """What is asked."""
        pcm = "audio/pcm" if self._format in fields.RAW_FORMATS else ""
        return fields.wish(self._fields, self._task, file_content_type=pcm, audio_track=self._audio_track, shape=self._shape)
