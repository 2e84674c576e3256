"""Windows over `/audio/transcriptions` and `/audio/translations`: a form with a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic import ValidationError

from eardrum.engines.base import Hearing, Window
from eardrum.engines.openai.audio import Clip
from eardrum.engines.openai.client import Client
from eardrum.errors import UnsupportedFeatureError
from eardrum.remote.answers import Answer
from eardrum.remote.refusal import Reply
from eardrum.types import Request, Task

FORMAT_WORDS = ("response_format", "verbose_json", "timestamp_granularities")
"""A refusal that has one of these in it is about the format of the answer and not about the audio."""

Form = dict[str, str | list[str]]


@dataclass(slots=True)
class Transcriptions:
    """An upstream with OpenAI's audio routes, or one route that is like them."""

    client: Client
    path: str
    translations_path: str
    """Empty: translations go to `path` too, with the field `translate`."""
    model: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    hotwords_field: str = ""
    response_format: str = "auto"

    async def hear(self, window: Window, clip: Clip) -> Hearing:
        """Send the clip and read the answer.

        With the format `auto`, an upstream that refuses verbose_json is asked for json from then on.

        Raises:
            UpstreamError: it fails, refuses, or answers with something else.
            UnsupportedFeatureError: word times were asked of an upstream that has none.
        """
        finding_out = self.response_format == "auto"  # as of now: other windows may find out meanwhile
        chosen = "verbose_json" if finding_out else self.response_format
        reply = await self._post(window.request, clip, chosen)
        if finding_out and _about_the_format(reply) and not window.request.words:
            reply = await self._post(window.request, clip, "json")
            if not reply.refused:
                self.response_format = "json"
        hearing = self._read(reply, window)
        if window.request.words and hearing.segments and not any(segment.words for segment in hearing.segments):
            raise self._no_words("gives no word times")
        return hearing

    async def _post(self, request: Request, clip: Clip, response_format: str) -> Reply:
        translating = request.task is Task.TRANSLATE
        if request.words and response_format != "verbose_json":
            raise self._no_words("answers in json only, without word times")
        form = self.form(request, response_format)
        path = (self.translations_path if translating else "") or self.path

        def body() -> dict[str, Any]:
            data = aiohttp.FormData(quote_fields=False)
            for name, value in form.items():
                for each in value if isinstance(value, list) else [value]:
                    data.add_field(name, each)
            data.add_field("file", clip.data, filename=clip.name, content_type=clip.media_type)
            return {"data": data}

        reply = await self.client.post(path, body)
        if request.words and _about_the_format(reply):
            raise self._no_words(f"refuses word times ({self.client.quote(reply).rstrip('.')})")
        return reply

    def form(self, request: Request, response_format: str) -> Form:
        """The fields beside the file: those of the options, and over them what is asked."""
        elsewhere = request.task is Task.TRANSLATE and self.translations_path
        prompt = request.prompt if self.hotwords_field else _joined(request)
        asked: Form = {
            "model": self.model,
            "language": "" if elsewhere else request.language or "",  # translations of OpenAI's kind find it themselves
            "prompt": prompt,
            "response_format": response_format,
            "temperature": f"{request.temperature:g}" if request.temperature else "",
        }
        if request.task is Task.TRANSLATE and not elsewhere:
            asked["translate"] = "true"
        if request.words:
            asked["timestamp_granularities[]"] = ["word", "segment"]
        if self.hotwords_field and request.hotwords:
            repeated = self.hotwords_field.endswith("[]")
            asked[self.hotwords_field] = list(request.hotwords) if repeated else ", ".join(request.hotwords)
        return {**self.fields, **{name: value for name, value in asked.items() if value}}

    def _read(self, reply: Reply, window: Window) -> Hearing:
        if reply.refused:
            raise self.client.refused(reply)
        try:
            answer = Answer.model_validate_json(reply.body)
        except ValidationError as error:
            what = f"answered with {reply.headers.get('content-type', 'no content type')} that is no transcript in JSON"
            raise self.client.error(f"{what}: {self.client.quote(reply)}", " Check the options url and path.") from error
        return Hearing(answer.heard(window.speech_span, window.seconds), answer.spoken or window.request.language or "")

    def _no_words(self, why: str) -> UnsupportedFeatureError:
        message = self.client.error(why, " Say so with `words: false` in the model's options.").message
        return UnsupportedFeatureError(message, param="timestamp_granularities")


def _joined(request: Request) -> str:
    """Prompt and hotwords as one text: models lean towards words they have seen."""
    return " ".join(filter(None, (request.prompt, ", ".join(request.hotwords))))


def _about_the_format(reply: Reply) -> bool:
    return reply.refused and reply.status in (200, 400, 422) and any(word in reply.text for word in FORMAT_WORDS)
