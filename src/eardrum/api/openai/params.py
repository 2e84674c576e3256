"""Parses the parameters of a transcription from form fields, in all spellings of OpenAI's clients."""

from __future__ import annotations

import base64
import json
import re
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from eardrum.api import fields
from eardrum.api.fields import UNSET_IF_EMPTY, WHOLE, Between, Flag, FormValues, ListOf, RequestModel, Text, TranscriptionFields
from eardrum.api.uploads import FormFields
from eardrum.config import LimitSettings
from eardrum.config.settings import SubtitleSettings
from eardrum.errors import InvalidRequestError
from eardrum.gateway.models import names
from eardrum.subtitles import MAX_RULE_VALUES, NO_RULES, SubtitleRules
from eardrum.transcription import Capabilities, KnownSpeaker, SpeakerOptions, SpeechTask, TranscriptionRequest

TIMED_FORMATS = ("srt", "verbose_json", "vtt", "diarized_json")
"""Formats with timestamps."""
RAW_CONTENT_TYPES = ("audio/pcm", "audio/raw", "audio/l16", "audio/x-raw")
"""Content types that declare headerless s16le mono at 16 kHz."""
RAW_FORMATS = ("pcm", "pcm16", "raw", "s16le")
"""Values of the `format` of `input_audio` that declare the same."""

SUBTITLE_FORMATS = frozenset(("srt", "vtt"))
"""Formats of subtitles, to which subtitle rules apply."""

MAX_KNOWN_SPEAKERS = 10
"""Each has a recording that is decoded before anything else; OpenAI takes four."""

DATA_URL = re.compile(r"data:[^,]*?;base64,", re.IGNORECASE)

MAX_ITEMS = 1000
"""Maximum items of a list in a JSON body."""

BRACKETS = re.compile(r"(\w+)\[(\w*)\]")


class ServerVad(RequestModel):
    """A chunking by pauses. What it leaves out is up to the runner."""

    type: Literal["server_vad"]
    threshold: Annotated[float | None, Between(0, 1)] = None
    silence_duration_ms: Annotated[float | None, Between(0, 10_000)] = None
    prefix_padding_ms: Annotated[float | None, Between(0, 5_000)] = None


def _parse_chunking(value: Any) -> Any:
    if isinstance(value, str):
        value = {"type": "auto"} if value == "auto" else fields.parse_json_text(value)
    return {"type": "server_vad"} if isinstance(value, dict) and value.get("type") == "auto" else value


def _keep_values(value: Any) -> Any:
    """Take repeated fields, or JSON, as they are: names and data URLs may hold commas."""
    if isinstance(value, FormValues):
        value = value[0] if len(value) == 1 and value[0].lstrip().startswith("[") else list(value)
    if isinstance(value, str):
        value = fields.parse_json_text(value) if value.lstrip().startswith("[") else [value]
    return value


ListOfTexts = Annotated[
    tuple[str, ...], BeforeValidator(_keep_values), fields.expect("a list of strings, as JSON or repeated"), fields.UNSET_IF_NULL
]
"""A list whose items may hold commas."""


class AudioForm(TranscriptionFields):
    """The fields of a form besides the file and the rules for cues."""

    model_config = ConfigDict(extra="allow")

    language: Text = Field("", description="ISO 639 code, locale or English name; empty: the model detects it.")
    languages: ListOf[str] = Field((), description="Languages that may be spoken; the model detects which one is.")
    response_format: Annotated[Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"], UNSET_IF_EMPTY] = Field(
        "json", description="Format of the response."
    )
    stream: Flag = Field(False, description="Stream segments as server-sent events while they are decoded.")
    include: ListOf[Literal["logprobs", "srt", "vtt"]] = Field(
        (), description="`logprobs`: tokens with their probabilities, in json. `srt`, `vtt`: subtitles, in verbose_json."
    )
    keywords: ListOf[str] = Field((), description="The same as `hotwords`; words may not be separated by spaces.")
    multilingual: Flag = Field(False, description="Detect the language of each window, if the model detects languages.")
    chunking_strategy: Annotated[
        ServerVad,
        BeforeValidator(_parse_chunking),
        fields.expect("auto, or an object with type server_vad, threshold (0 to 1), silence_duration_ms and prefix_padding_ms"),
        UNSET_IF_EMPTY,
        WithJsonSchema({"type": "string"}),
    ] = Field(
        default_factory=lambda: ServerVad(type="server_vad"),
        description="`auto`, or server_vad with threshold, silence_duration_ms, prefix_padding_ms.",
    )
    diarize: Flag = Field(False, description="Label the speakers, also in verbose_json, srt and vtt.")
    min_speakers: fields.SpeakerCount = Field(None, description="The smallest number of speakers, if they are labelled.")
    max_speakers: fields.SpeakerCount = Field(None, description="The largest number of speakers, if they are labelled.")
    known_speaker_names: ListOfTexts = Field(
        (), description=f"Names of up to {MAX_KNOWN_SPEAKERS} speakers, which replace A, B, C."
    )
    known_speaker_references: ListOfTexts = Field(
        (), description="For each name a recording of 2 to 10 seconds of that voice alone, as a data URL with base64."
    )


RULE_FIELDS: dict[str, Any] = {
    "subtitles" if name == "preset" else name: (
        Annotated[
            field.annotation,
            Between(0, MAX_RULE_VALUES[name], WHOLE if field.annotation == int | None else "a number")
            if name in MAX_RULE_VALUES
            else UNSET_IF_EMPTY,
        ],
        Field(None, description=f"srt and vtt: {field.description}"),
    )
    for name, field in SubtitleSettings.model_fields.items()
}
"""Rules for cues, as in the config."""

TranscriptionForm = create_model("TranscriptionForm", __base__=AudioForm, **RULE_FIELDS)
"""The fields of a form besides the file."""

SPEAKER_FIELDS = ("diarize", "min_speakers", "max_speakers", "known_speaker_names", "known_speaker_references")
"""Fields about speakers."""

SPEAKER_FORMATS = ("diarized_json", "verbose_json", *SUBTITLE_FORMATS)
"""Formats with room for speakers."""

OWN_FIELDS = TranscriptionForm.model_fields.keys() - {"keywords", "hotwords", "languages", "chunking_strategy", "multilingual"}
"""Fields that an upstream does not get unchanged."""


class TranscriptionParams(Struct, frozen=True):
    """Parameters of one call: the client's form, and the transcription request and subtitle rules that follow from it."""

    form: AudioForm
    request: TranscriptionRequest
    shape: SubtitleRules = NO_RULES
    extra: tuple[tuple[str, str], ...] = ()
    """Fields that an upstream gets unchanged: unknown fields, and hints."""

    @property
    def model(self) -> str:
        """The client's name for the model; empty for the default model."""
        return self.form.model

    @property
    def stream(self) -> bool:
        """Whether the response is a stream of events."""
        return self.form.stream

    @property
    def has_segments(self) -> bool:
        """Whether verbose_json holds segments."""
        return not self.form.timestamp_granularities or "segment" in self.form.timestamp_granularities

    @property
    def subtitle_formats(self) -> list[str]:
        """The formats of subtitles in the response: its own, or those inside verbose_json."""
        return _list_subtitle_formats(self.form)

    def list_ignored(self, capabilities: Capabilities, *, is_external: bool = False) -> list[str]:
        """List the fields without effect: fields that do not apply to the response format, hints that the model does not
        support, and unknown fields, unless an upstream got them.
        """
        form, format = self.form, self.form.response_format
        has_cues = bool(self.subtitle_formats) and not form.stream
        idle_words = "word" in form.timestamp_granularities and format != "verbose_json"
        idle_segments = "segment" in form.timestamp_granularities and format in ("json", "text") and not form.stream
        ignored = {
            "multilingual": self.request.multilingual and not (capabilities.detects_language or is_external),
            "response_format": form.stream and format in ("text", *SUBTITLE_FORMATS),
            "languages": len(form.languages) > 1 and not self.request.language and not is_external,
            **dict.fromkeys((name for name in form.changes if name in RULE_FIELDS), not has_cues),
            "timestamp_granularities": idle_words or idle_segments,
            "include": ("logprobs" in form.include and format != "json")
            or (not SUBTITLE_FORMATS.isdisjoint(form.include) and (format != "verbose_json" or form.stream)),
            **dict.fromkeys((name for name in SPEAKER_FIELDS if form.changes.get(name)), not self.request.speakers),
        }
        hints = fields.list_ignored_hints(self.request, capabilities, "keywords")
        unknown = () if is_external else sorted({name.partition("[")[0] for name in form.model_extra or {}})
        return [*hints, *(name for name, unused in ignored.items() if unused), *unknown]


def parse_params(
    sent: FormFields, task: SpeechTask, *, file_content_type: str = "", audio_track: str = "", shape: SubtitleRules = NO_RULES
) -> TranscriptionParams:
    """Parse the fields. Empty strings count as unset; array fields may have brackets or not, or be JSON.

    `audio_track` is the request header's value, for clients with a fixed set of fields. `shape` holds the default subtitle rules.

    Raises:
        InvalidRequestError: a value is invalid; `param` names the field.
    """
    form = TranscriptionForm.parse(_remove_brackets({"audio_track": [audio_track], **sent}))
    rules = {"preset" if name == "subtitles" else name: value for name, value in form.changes.items() if name in RULE_FIELDS}
    shape = shape.with_changes(rules)
    if 0 < shape.max_duration < shape.min_duration:
        raise InvalidRequestError(
            f"min_duration ({shape.min_duration:g}) is more than max_duration ({shape.max_duration:g}).", param="min_duration"
        )
    chosen, vad = form.response_format, form.chunking_strategy
    language = fields.choose_language(form.language, form.languages)
    request = TranscriptionRequest(
        task=task,
        language=language,
        multilingual=form.multilingual and not language,
        prompt=form.prompt,
        hotwords=form.keywords or form.hotwords,
        temperature=form.temperature,
        # The last event of a stream holds the segments.
        times=chosen in TIMED_FORMATS or bool(form.timestamp_granularities) or form.stream,
        # Granularities apply to verbose_json only; Subtitle Edit sends them with json, where they have no effect.
        words="word" in form.timestamp_granularities and chosen == "verbose_json",
        words_if_any=bool(_list_subtitle_formats(form)) and not shape.is_unrestricted,
        logprobs="logprobs" in form.include and chosen == "json",
        speakers=_wants_speakers(form),
        speaker_options=parse_speaker_options(form) if _wants_speakers(form) else SpeakerOptions(),
        audio_track=form.audio_track,
        raw_pcm=file_content_type.partition(";")[0].strip().lower() in RAW_CONTENT_TYPES,
        vad_threshold=vad.threshold,
        vad_silence_s=fields.to_seconds(vad.silence_duration_ms),
        vad_padding_s=fields.to_seconds(vad.prefix_padding_ms),
    )
    extra = [(name, value) for name, values in sent.items() if name.partition("[")[0] not in OWN_FIELDS for value in values]
    return TranscriptionParams(form, request, shape, tuple(item for item in extra if item[1].strip()))


def _list_subtitle_formats(form: AudioForm) -> list[str]:
    asked = form.include if form.response_format == "verbose_json" else (form.response_format,)
    return [name for name in dict.fromkeys(asked) if name in SUBTITLE_FORMATS]


def _wants_speakers(form: AudioForm) -> bool:
    asked = form.diarize or bool(form.known_speaker_names or form.known_speaker_references)
    return form.response_format == "diarized_json" or (asked and (form.stream or form.response_format in SPEAKER_FORMATS))


def parse_speaker_options(form: AudioForm) -> SpeakerOptions:
    """Parse the fields about speakers.

    Raises:
        InvalidRequestError: names and references do not match, or a reference is no data URL.
    """
    fields.check_speaker_counts(form.min_speakers, form.max_speakers)
    names_, references = [name.strip() for name in form.known_speaker_names], form.known_speaker_references
    if len(names_) != len(references):
        raise InvalidRequestError(
            f"There are {len(names_)} known_speaker_names and {len(references)} known_speaker_references: send one reference "
            "for each name.",
            param="known_speaker_references" if len(references) < len(names_) else "known_speaker_names",
        )
    if len(names_) > MAX_KNOWN_SPEAKERS:
        message = f"There are {len(names_)} known_speaker_names: send {MAX_KNOWN_SPEAKERS} at most."
        raise InvalidRequestError(message, param="known_speaker_names")
    for number, name in enumerate(names_):
        if not name or not name.isprintable() or len(name) > names.MAX_QUOTED_LENGTH or name in names_[:number]:
            message = f"known_speaker_names must be different names of 1 to {names.MAX_QUOTED_LENGTH} letters, not "
            message += f"{fields.show_value(name)}."
            raise InvalidRequestError(message, param="known_speaker_names")
    known = tuple(KnownSpeaker(name, _decode_reference(name, url)) for name, url in zip(names_, references, strict=True))
    return SpeakerOptions(form.min_speakers, form.max_speakers, known)


def _decode_reference(name: str, url: str) -> bytes:
    """Decode a data URL.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        head = DATA_URL.match(url := url.strip())
        recording = base64.b64decode(url[head.end() :], validate=True) if head else b""
    except ValueError:
        recording = b""
    if not recording:
        message = f"known_speaker_references: that of {name!r} must be a data URL such as data:audio/wav;base64,UklGR..."
        raise InvalidRequestError(message, param="known_speaker_references")
    return recording


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
