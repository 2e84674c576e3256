"""Parses the parameters of a transcription from form fields, in all spellings of OpenAI's clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model
from pydantic_core import PydanticUseDefault

from eardrum.api import fields
from eardrum.api.fields import (
    NUMBER,
    UNSET_IF_EMPTY,
    Flag,
    FormValues,
    Hotwords,
    ListOf,
    Prompt,
    RequestModel,
    Temperature,
    Text,
    expect,
)
from eardrum.api.uploads import FormFields
from eardrum.config import LimitSettings
from eardrum.config.settings import SubtitleSettings
from eardrum.errors import InvalidRequestError
from eardrum.gateway.models import names
from eardrum.subtitles import NO_RULES, SubtitleRules
from eardrum.transcription import Capabilities, SpeechTask, TranscriptionRequest

TIMED_FORMATS = ("srt", "verbose_json", "vtt", "diarized_json")
"""Formats with timestamps."""
RAW_CONTENT_TYPES = ("audio/pcm", "audio/raw", "audio/l16", "audio/x-raw")
"""Content types that declare headerless s16le mono at 16 kHz."""
RAW_FORMATS = ("pcm", "pcm16", "raw", "s16le")
"""Values of the `format` of `input_audio` that declare the same."""

SUBTITLE_FORMATS = frozenset(("srt", "vtt"))
"""Formats of subtitles, to which subtitle rules apply."""

MAX_ITEMS = 1000
"""Maximum items of a list in a JSON body."""

BRACKETS = re.compile(r"(\w+)\[(\w*)\]")


class ServerVad(RequestModel):
    """A chunking by pauses. What it leaves out is up to the runner."""

    type: Literal["server_vad"]
    threshold: Annotated[float | None, Field(ge=0, le=1), NUMBER] = None
    silence_duration_ms: Annotated[float | None, Field(ge=0, le=10_000), NUMBER] = None
    prefix_padding_ms: Annotated[float | None, Field(ge=0, le=5_000), NUMBER] = None


def _parse_chunking(value: Any) -> Any:
    if isinstance(value, str):
        value = {"type": "auto"} if value == "auto" else fields.parse_json_text(value)
    if isinstance(value, dict) and value.get("type") == "auto":
        raise PydanticUseDefault
    return value


class AudioForm(RequestModel):
    """The fields of a form beside the file and the rules for cues."""

    model: Text = Field("", description="A model of GET /v1/models or an alias; empty: the default model.")
    language: Text = Field("", description="ISO 639 code, locale or English name; empty: the model detects it.")
    languages: ListOf[str] = Field((), description="Languages that may be spoken; the model detects which one is.")
    response_format: Annotated[Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"], UNSET_IF_EMPTY] = Field(
        "json", description="Format of the response."
    )
    stream: Flag = Field(False, description="Stream segments as server-sent events while they are decoded.")
    timestamp_granularities: ListOf[Literal["word", "segment"]] = Field((), description="Timestamps in verbose_json.")
    include: ListOf[Literal["logprobs"]] = Field((), description="`logprobs`: tokens with their probabilities, in json.")
    prompt: Prompt = Field("", description="Text that guides the model, if it supports a prompt.")
    keywords: ListOf[str] = Field((), description="Words to expect, if the model supports them.")
    hotwords: Hotwords = Field((), description="The same; words may be separated by spaces.")
    multilingual: Flag = Field(False, description="Detect the language of each window, if the model detects languages.")
    temperature: Temperature = Field(0.0, description="Sampling temperature, if the model supports it.")
    audio_track: fields.AudioTrack = Field(
        None, description="Number of the audio track, counted from 1; empty: the default track, or the first with sound."
    )
    chunking_strategy: Annotated[
        ServerVad,
        BeforeValidator(_parse_chunking),
        UNSET_IF_EMPTY,
        expect("auto, or an object with type server_vad, threshold (0 to 1), silence_duration_ms and prefix_padding_ms"),
    ] = Field(
        default_factory=lambda: ServerVad(type="server_vad"),
        description="`auto`, or server_vad with threshold, silence_duration_ms, prefix_padding_ms.",
    )
    known_speaker_names: ListOf[str] = Field((), description="Only for models that tell speakers apart.")
    known_speaker_references: Any = Field((), description="Only for models that tell speakers apart.")


RULE_FIELDS: dict[str, Any] = {
    "subtitles" if name == "preset" else name: (
        Annotated[field.annotation, *field.metadata, NUMBER if field.metadata else UNSET_IF_EMPTY],
        Field(None, description=f"srt and vtt: {field.description}"),
    )
    for name, field in SubtitleSettings.model_fields.items()
}
"""Rules for cues, as in the config."""

SUBTITLE_FIELDS = frozenset(RULE_FIELDS)
"""Fields with rules for cues."""

TranscriptionForm = create_model("TranscriptionForm", __base__=AudioForm, **RULE_FIELDS)
"""The fields of a form beside the file."""

OWN_FIELDS = TranscriptionForm.model_fields.keys() - {"keywords", "hotwords", "languages", "chunking_strategy", "multilingual"}
"""Fields that an upstream does not get unchanged."""


@dataclass(frozen=True, slots=True)
class TranscriptionParams:
    """Parameters of one call: the transcription request, and the format of the response."""

    model: str
    request: TranscriptionRequest
    response_format: str
    stream: bool
    segments: bool
    words: bool
    unknown: tuple[str, ...]
    """Unknown fields, which the response lists as ignored."""
    languages: tuple[str, ...] = ()
    """Languages that may be spoken, in the client's spelling."""
    idle: tuple[str, ...] = ()
    """Fields without effect on this response format."""
    shape: SubtitleRules = NO_RULES
    """Rules for cues."""
    shaping: tuple[str, ...] = ()
    """Fields that set these rules."""
    extra: tuple[tuple[str, str], ...] = ()
    """Fields that an upstream gets unchanged: unknown fields, and hints."""

    def list_ignored(self, capabilities: Capabilities, *, is_external: bool = False) -> list[str]:
        """List the fields without effect: fields that do not apply to the response format, hints that the model does not
        support, and unknown fields, unless an upstream got them.

        A hint (prompt, keywords, temperature) only improves the result, so a model that does not support it still answers.
        """
        ignored = {
            "prompt": bool(self.request.prompt) and not capabilities.prompt,
            "keywords": bool(self.request.hotwords) and not capabilities.hotwords,
            "temperature": self.request.temperature > 0 and not capabilities.temperature,
            "multilingual": self.request.multilingual and not (capabilities.detects_language or is_external),
        }
        if self.stream:
            ignored["response_format"] = self.response_format in ("text", "srt", "vtt")
        if len(self.languages) > 1 and not self.request.language:
            ignored["languages"] = not is_external
        if self.stream or self.response_format not in SUBTITLE_FORMATS:
            ignored |= dict.fromkeys(self.shaping, True)
        return [name for name, unused in ignored.items() if unused] + [*self.idle, *(() if is_external else self.unknown)]


def parse_params(
    sent: FormFields, task: SpeechTask, *, file_content_type: str = "", audio_track: str = "", shape: SubtitleRules = NO_RULES
) -> TranscriptionParams:
    """Parse the fields. Empty strings count as unset; array fields may have brackets or not, or be JSON.

    `audio_track` is the request header's value, for clients with a fixed set of fields. `shape` holds the default subtitle rules.

    Raises:
        InvalidRequestError: a value is invalid; `param` names the field.
    """
    named = _remove_brackets({"audio_track": [audio_track], **sent})
    form = TranscriptionForm.parse(named)
    chosen, granularities, logprobs = form.response_format, form.timestamp_granularities, "logprobs" in form.include
    # Granularities apply to verbose_json only; Subtitle Edit sends them with json, where they have no effect.
    words = "word" in granularities and chosen == "verbose_json"
    rules = {name: value for name, value in form.changes.items() if name in SUBTITLE_FIELDS}
    shape = shape.with_changes({"preset" if name == "subtitles" else name: value for name, value in rules.items()})
    if 0 < shape.max_duration < shape.min_duration:
        raise InvalidRequestError(
            f"min_duration ({shape.min_duration:g}) is more than max_duration ({shape.max_duration:g}).", param="min_duration"
        )
    language, vad = fields.choose_language(form.language, form.languages), form.chunking_strategy
    request = TranscriptionRequest(
        task=task,
        language=language,
        multilingual=form.multilingual and not language,
        prompt=form.prompt,
        hotwords=form.keywords or form.hotwords,
        temperature=form.temperature,
        times=chosen in TIMED_FORMATS or bool(granularities) or form.stream,  # the last event of a stream holds the segments
        words=words,
        words_if_any=chosen in SUBTITLE_FORMATS and not shape.is_unrestricted,
        logprobs=logprobs and chosen == "json",
        speakers=chosen == "diarized_json" or bool(form.known_speaker_names or form.known_speaker_references),
        audio_track=form.audio_track,
        raw_pcm=file_content_type.partition(";")[0].strip().lower() in RAW_CONTENT_TYPES,
        vad_threshold=vad.threshold,
        vad_silence_s=fields.to_seconds(vad.silence_duration_ms),
        vad_padding_s=fields.to_seconds(vad.prefix_padding_ms),
    )
    return TranscriptionParams(
        model=form.model,
        request=request,
        response_format=chosen,
        stream=form.stream,
        segments=not granularities or "segment" in granularities,
        words=words,
        languages=form.languages,
        idle=(
            *(("timestamp_granularities",) if _has_idle_granularities(granularities, chosen, stream=form.stream) else ()),
            *(("include",) if logprobs and chosen != "json" else ()),
        ),
        unknown=tuple(sorted({name.split("[")[0] for name in named} - TranscriptionForm.model_fields.keys())),
        shape=shape,
        shaping=tuple(rules),
        extra=tuple(
            (name, value)
            for name, values in sent.items()
            for value in values
            if value.strip() and name.partition("[")[0] not in OWN_FIELDS
        ),
    )


def _has_idle_granularities(granularities: Iterable[str], response_format: str, *, stream: bool) -> bool:
    """Whether a granularity has no effect: words are in verbose_json only, segments in subtitles and streams, too."""
    idle_words = "word" in granularities and (response_format != "verbose_json" or stream)
    return idle_words or ("segment" in granularities and response_format in ("json", "text") and not stream)


def flatten_json(body: dict[str, Any], limits: LimitSettings) -> FormFields:
    """Convert a JSON body to form fields: lists become repeated fields, and objects JSON strings.

    Raises:
        InvalidRequestError: the body has more fields than a form may have, or a list or string is too long.
    """
    if len(body) > limits.fields:
        raise InvalidRequestError(f"The body has more than {limits.fields} fields (limits.fields).")
    sent: FormFields = {}
    for name, value in body.items():
        if isinstance(value, list) and len(value) > MAX_ITEMS:
            raise InvalidRequestError(
                f"{names.quote_name(name)} has more than {MAX_ITEMS} items.", param=name[: names.MAX_QUOTED_LENGTH]
            )
        if isinstance(value, str) and len(value) > limits.field_bytes:
            message = f"The field {names.quote_name(name)} is longer than {limits.field_bytes} bytes (limits.field_bytes)."
            raise InvalidRequestError(message, param=name[: names.MAX_QUOTED_LENGTH])
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                sent.setdefault(name, []).append(item if isinstance(item, str) else json.dumps(item))
    return sent


def _remove_brackets(sent: FormFields) -> dict[str, FormValues]:
    """Rename `include[]` to `include`, merge `chunking_strategy[type]=y` into one JSON object, and drop empty values."""
    plain: dict[str, FormValues] = {}
    objects: dict[str, dict[str, str]] = {}
    for name, values in sent.items():
        present = [value for value in values if value.strip()]
        match = BRACKETS.fullmatch(name)
        if match and match[2] and not match[2].isdigit():
            if present:
                objects.setdefault(match[1], {})[match[2]] = present[-1]
        elif present:
            own = match[1] if match else name
            plain[own] = FormValues((*plain.get(own, ()), *present))
    return plain | {name: FormValues((json.dumps(parts),)) for name, parts in objects.items()}
