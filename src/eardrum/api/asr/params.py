"""Parses the parameters of `/asr` and `/detect-language`, which may be in the query or in the form."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from msgspec import Struct
from pydantic import BeforeValidator, Field

from eardrum.api import fields
from eardrum.api.asgi import Scope
from eardrum.api.fields import UNSET_IF_EMPTY, Flag, FormValues, Hotwords, Language, Prompt, RequestModel, SpeakerCount, Text
from eardrum.api.uploads import AudioUpload, FormFields
from eardrum.subtitles import NO_RULES, SubtitleRules
from eardrum.transcription import Capabilities, SpeakerOptions, SpeechTask, TranscriptionRequest

SUBTITLES = ("srt", "vtt")
TIMED = (*SUBTITLES, "tsv", "json")
"""Outputs with times."""

SPEAKER_FIELDS = ("diarize", "enable_diarization", "min_speakers", "max_speakers")
"""Fields about speakers."""
SPEAKER_OUTPUTS = (*SUBTITLES, "json")
"""Outputs with room for speakers."""


def _rename_text(value: Any) -> Any:
    """Take `text` for `txt`: many scripts send it, and the original serves any unknown output as txt."""
    return "txt" if isinstance(value, str) and value.lower() == "text" else value


class DetectionForm(RequestModel):
    """The parameters of `/detect-language` besides the recording."""

    encode: Flag = Field(True, description="false: the recording is raw 16-bit little-endian samples, mono, 16 kHz.")
    model: Text = Field("", description="A model of GET /v1/models or an alias; empty: the default model.")


class AsrForm(DetectionForm):
    """The parameters of `/asr` besides the recording."""

    task: Annotated[Literal["transcribe", "translate"], UNSET_IF_EMPTY] = Field(
        "transcribe", description="translate: into English, with models that translate."
    )
    language: Language = Field(None, description="ISO 639 code, locale or English name; empty: the model detects it.")
    output: Annotated[Literal["txt", "vtt", "srt", "tsv", "json"], BeforeValidator(_rename_text), UNSET_IF_EMPTY] = Field(
        "txt", description="Format of the response."
    )
    initial_prompt: Prompt = Field("", description="Text that guides the model, if it supports a prompt.")
    hotwords: Hotwords = Field((), description="Words to expect, if the model supports them.")
    word_timestamps: Flag = Field(False, description="Times of words in json, if the model has them.")
    vad_filter: Flag = Field(False, description="No effect: audio without speech is always left out.")
    diarize: Flag = Field(False, description="Label the speakers, in json, srt and vtt.")
    enable_diarization: Flag = Field(False, description="The same as diarize.")
    return_speaker_embeddings: Flag = Field(False, description="No effect: voice prints stay in the server.")
    min_speakers: SpeakerCount = Field(None, description="The smallest number of speakers, if they are labelled.")
    max_speakers: SpeakerCount = Field(None, description="The largest number of speakers, if they are labelled.")


class AsrParams(Struct, frozen=True):
    """The parameters of one call, as an upload needs them."""

    model: str
    request: TranscriptionRequest
    output: str
    unused: tuple[str, ...]
    """Parameters without effect on any model."""
    is_in_query: bool = False
    """Whether the query holds parameters."""
    file_name: str = ""
    shape: SubtitleRules = NO_RULES
    """Rules for cues."""
    stream: bool = False
    extra: tuple[tuple[str, str], ...] = ()

    def list_ignored(self, can: Capabilities) -> list[str]:
        """List the parameters without effect on this model."""
        hints = fields.list_ignored_hints(self.request, can)
        ignored = ["initial_prompt" if name == "prompt" else name for name in hints]
        if self.request.words_if_any and self.output == "json" and not can.words:
            ignored.append("word_timestamps")
        return [*ignored, *self.unused]


def parse_asr_params(scope: Scope, upload: AudioUpload, shape: SubtitleRules) -> AsrParams:
    """Parse the parameters of `/asr`. `shape` holds the rules for cues.

    Raises:
        InvalidRequestError: a value is invalid; `param` names it.
    """
    given = merge_fields(scope, upload.fields)
    form = AsrForm.parse(given)
    fields.check_speaker_counts(form.min_speakers, form.max_speakers)
    speakers = (form.diarize or form.enable_diarization) and form.output in SPEAKER_OUTPUTS
    request = TranscriptionRequest(
        task=SpeechTask(form.task),
        language=form.language,
        prompt=form.initial_prompt,
        hotwords=form.hotwords,
        times=form.output in TIMED,
        words_if_any=(form.word_timestamps and form.output == "json") or (form.output in SUBTITLES and not shape.is_unrestricted),
        raw_pcm=not form.encode,
        speakers=speakers,
        speaker_options=SpeakerOptions(form.min_speakers, form.max_speakers) if speakers else SpeakerOptions(),
    )
    no_effect = {
        "word_timestamps": form.word_timestamps and form.output != "json",
        "vad_filter": form.changes.get("vad_filter") is False,
        "return_speaker_embeddings": form.return_speaker_embeddings,
        **{name: bool(getattr(form, name)) and not speakers for name in SPEAKER_FIELDS},
    }
    unknown = sorted(given.keys() - AsrForm.model_fields.keys())
    return AsrParams(
        model=form.model,
        request=request,
        output=form.output,
        unused=(*(name for name, is_unused in no_effect.items() if is_unused), *unknown),
        is_in_query=bool(scope["query_string"]),
        file_name=upload.file_name,
        shape=shape,
    )


def parse_detection_params(scope: Scope, upload: AudioUpload) -> AsrParams:
    """Parse the parameters of `/detect-language`.

    Raises:
        InvalidRequestError: a value is invalid.
    """
    given = merge_fields(scope, upload.fields)
    form = DetectionForm.parse(given)
    return AsrParams(
        model=form.model,
        request=TranscriptionRequest(language_only=True, raw_pcm=not form.encode),
        output="json",
        unused=tuple(sorted(given.keys() - DetectionForm.model_fields.keys())),
        is_in_query=bool(scope["query_string"]),
    )


def merge_fields(scope: Scope, sent: FormFields) -> dict[str, FormValues]:
    """Merge the query and the form: of a field in both, the form's value counts. Empty values are left out."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=False, errors="replace")
    named: dict[str, FormValues] = {}
    for name, value in query:
        named[name] = FormValues((*named.get(name, ()), value))
    in_form = {name: FormValues(value for value in values if value.strip()) for name, values in sent.items()}
    return named | {name: values for name, values in in_form.items() if values}
