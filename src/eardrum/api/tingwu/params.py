"""Parses the fields of TingWu's forms. Those that tune its own engines have no effect here, and are named as ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BeforeValidator, Field

from eardrum.api import fields
from eardrum.api.fields import UNSET_IF_EMPTY, WHOLE, Between, Flag, FormValues, Hotwords, Language, RequestModel, Text, expect
from eardrum.api.uploads import FormFields
from eardrum.transcription import Capabilities, TranscriptionRequest

OPTION_GROUPS = ("preprocess", "chunking", "backend", "postprocess", "speaker", "debug")
"""Keys of `asr_options`."""

MAX_WAIT_S = 60
"""Longest wait for a task's end in one request."""


def _split_lines(value: Any) -> Any:
    """Take each line as a term, as TingWu's Whisper does, without the comment at its end."""
    text = value[-1] if isinstance(value, FormValues) else value
    if not isinstance(text, str) or "\n" not in text.strip():
        return value
    return [line.partition("#")[0] for line in text.splitlines()]


def _parse_options(value: Any) -> Any:
    found = fields.parse_json_text(value) if isinstance(value, str) else value
    if not isinstance(found, dict) or not found.keys() <= set(OPTION_GROUPS):
        raise ValueError
    return found


class SpeechFields(RequestModel):
    """The fields that all forms share. `model` and `language` are Eardrum's own."""

    model: Text = Field("", description="A model of GET /v1/models or an alias; empty: the default model.")
    language: Language = Field(None, description="ISO 639 code, locale or English name; empty: the model detects it.")
    with_speaker: Flag = Field(False, description="No effect. `/v1/audio/transcriptions` labels speakers.")
    apply_hotword: Flag = Field(True, description="Whether `hotwords` are used.")
    hotwords: Annotated[Hotwords, BeforeValidator(_split_lines)] = Field(
        (), description="Words to expect, one per line or separated by spaces or commas."
    )


class TingWuForm(SpeechFields):
    """The fields of `/api/v1/transcribe` and its relatives besides the recording."""

    apply_llm: Flag = Field(False, description="No effect.")
    llm_role: Text = Field("default", description="No effect.")
    asr_options: Annotated[
        dict[str, Any],
        BeforeValidator(_parse_options),
        expect(f"a JSON object with keys of {', '.join(OPTION_GROUPS)}"),
        UNSET_IF_EMPTY,
    ] = Field(
        {}, description="Settings of TingWu's own engines, as a JSON object. No effect.", json_schema_extra={"type": "string"}
    )


class AsrCompatibleForm(SpeechFields):
    """The fields of `/api/v1/asr` besides the recording."""

    with_speaker: Flag = Field(True, description="No effect. `/v1/audio/transcriptions` labels speakers.")
    file_type: Annotated[Literal["audio", "video"], UNSET_IF_EMPTY] = Field("audio", description="No effect: it is detected.")


class BatchForm(TingWuForm):
    """The fields of `/api/v1/transcribe/batch` besides the recordings."""

    max_concurrent: Annotated[int, Between(1, 20, WHOLE)] = Field(3, description="Recordings that are transcribed at a time.")


class UrlForm(TingWuForm):
    """The fields of `/api/v1/transcribe/url`."""

    audio_url: Text = Field(description="The recording's address, on a host of `limits.fetch_hosts`.")


class ResultForm(RequestModel):
    """The fields of `/api/v1/result`."""

    task_id: Text = Field(description="The task's id.")
    delete: Flag = Field(True, description="Whether the server forgets a task that has ended.")
    wait: Flag = Field(False, description="Whether to wait for the task's end, for `timeout` seconds.")
    timeout: Annotated[float, Between(0, MAX_WAIT_S), UNSET_IF_EMPTY] = Field(30.0, description="Seconds.")


class TingWuParams(Struct, frozen=True):
    """A form, and the transcription that follows from it."""

    form: SpeechFields
    request: TranscriptionRequest
    unknown: tuple[str, ...]
    stream: bool = False
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def model(self) -> str:
        """The client's name for the model; empty for the default model."""
        return self.form.model

    def list_ignored(self, can: Capabilities) -> list[str]:
        """List the fields that the client sent, and that have no effect on this model."""
        sent: Mapping[str, Any] = self.form.changes
        idle = {
            "with_speaker": sent.get("with_speaker"),
            "apply_llm": sent.get("apply_llm"),
            "llm_role": sent.get("llm_role", "default") != "default",
            "asr_options": sent.get("asr_options"),
            "hotwords": self.form.hotwords and not self.form.apply_hotword,
        }
        own = replace(self.request, hotwords=self.form.hotwords if self.form.apply_hotword else ())
        hints = fields.list_ignored_hints(own, can)
        return [*hints, *(name for name, is_idle in idle.items() if is_idle), *self.unknown]


def parse_form(kind: type[SpeechFields], sent: FormFields, default_hotwords: tuple[str, ...] = ()) -> TingWuParams:
    """Parse the fields that were read so far. `default_hotwords` are those of a form without any.

    Raises:
        InvalidRequestError: a value is invalid.
    """
    present = {name: FormValues(value for value in values if value.strip()) for name, values in sent.items()}
    form = kind.parse({name: values for name, values in present.items() if values})
    hotwords = (form.hotwords or default_hotwords) if form.apply_hotword else ()
    request = TranscriptionRequest(language=form.language, hotwords=hotwords)
    return TingWuParams(form, request, tuple(sorted(sent.keys() - kind.model_fields.keys())))
