"""Windows over `/chat/completions`: speech models that are served as chat models only."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from eardrum.engines.base import Hearing, Window
from eardrum.engines.openai.audio import Clip
from eardrum.engines.openai.client import Client
from eardrum.languages import get_language_name
from eardrum.openai_responses.transcript import clean_text, find_language_code
from eardrum.transcription import Segment, TranscriptionRequest

Part = Literal["audio_url", "input_audio"]


class TextPart(BaseModel):
    """A part of a message that is given in parts."""

    text: str = ""


class Message(BaseModel):
    """What the model said."""

    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""


class Choice(BaseModel):
    """One of the answers; there is one."""

    message: Message


class Completion(BaseModel):
    """The answer of a chat."""

    choices: list[Choice] = Field(min_length=1)


@dataclass(slots=True)
class Chat:
    """An upstream that takes audio as a part of a chat message."""

    client: Client
    path: str
    part: Part
    model: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    instruction: str = ""

    async def hear(self, window: Window, clip: Clip) -> Hearing:
        """Send the clip and read the answer: one segment, for a chat knows no times.

        Raises:
            UpstreamError: the upstream fails, refuses, or answers with something else.
        """
        body = self.body(window.request, clip)
        reply = await self.client.post(self.path, lambda: {"json": body})
        if reply.is_error:
            raise self.client.refused(reply)
        try:
            answer = Completion.model_validate_json(reply.body)
        except ValidationError as error:
            what = f"answered with {reply.headers.get('content-type', 'no content type')} that is no chat completion"
            raise self.client.error(f"{what}: {self.client.quote(reply)}", " Check the options url, path and via.") from error
        text, language = clean_text(answer.choices[0].message.text)
        segments = [Segment(*window.speech_span, text=text)] if text else []
        return Hearing(segments, find_language_code(language) or window.request.language or "")

    def body(self, request: TranscriptionRequest, clip: Clip) -> dict[str, Any]:
        """The request: what is known beforehand as the system's message, the audio and the instruction as the user's."""
        messages: list[dict[str, Any]] = []
        if known := _known(request):
            messages.append({"role": "system", "content": known})
        instruction = [{"type": "text", "text": self.instruction}] if self.instruction else []
        messages.append({"role": "user", "content": [self._audio(clip), *instruction]})
        # Servers have a temperature of their own for chats, made for invention.
        asked = {"temperature": request.temperature, "messages": messages}
        return {**self.fields, **({"model": self.model} if self.model else {}), **asked}

    def _audio(self, clip: Clip) -> dict[str, Any]:
        data = b64encode(clip.data).decode()
        if self.part == "input_audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": clip.format}}
        return {"type": "audio_url", "audio_url": {"url": f"data:{clip.media_type};base64,{data}"}}


def _known(request: TranscriptionRequest) -> str:
    """What the client tells of the speech, one line each."""
    language = f"The language is {get_language_name(request.language).title()}." if request.language else ""
    return "\n".join(filter(None, (language, request.prompt, ", ".join(request.hotwords))))
