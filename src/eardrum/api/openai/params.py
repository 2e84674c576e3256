"""Parses the parameters of a transcription from form fields, in all spellings of OpenAI's clients."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from eardrum import bounded_json
from eardrum.api.json_body import check_surrogates
from eardrum.api.uploads import FormFields
from eardrum.config import LimitSettings
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.models import names
from eardrum.languages import parse_language
from eardrum.subtitles import MAX_RULE_VALUES, NO_RULES, PRESETS, RULE_NAMES, SubtitleRules
from eardrum.transcription import Capabilities, SpeechTask, TranscriptionRequest

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
TIMED_FORMATS = ("srt", "verbose_json", "vtt", "diarized_json")
"""Formats with timestamps."""
RAW_CONTENT_TYPES = ("audio/pcm", "audio/raw", "audio/l16", "audio/x-raw")
"""Content types that declare headerless s16le mono at 16 kHz."""
RAW_FORMATS = ("pcm", "pcm16", "raw", "s16le")
"""Values of the `format` of `input_audio` that declare the same."""

KNOWN_FIELDS = {
    "model", "language", "languages", "prompt", "keywords", "hotwords", "response_format", "temperature", "include",
    "timestamp_granularities", "stream", "chunking_strategy", "known_speaker_names", "known_speaker_references", "audio_track",
    "multilingual",
}  # fmt: skip

SUBTITLE_FORMATS = frozenset(("srt", "vtt"))
"""Formats of subtitles, to which subtitle rules apply."""
SUBTITLE_FIELDS = frozenset(("subtitles", *RULE_NAMES))
"""Fields that set these rules."""

MAX_PROMPT = 4000
"""Characters. Models use far fewer, and the parameters travel to the runner in a header."""

MAX_TRACKS = 1000

MAX_ITEMS = 1000
"""Maximum items of a list in a JSON body."""

BRACKETS = re.compile(r"(\w+)\[(\w*)\]")


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

    def is_same_request(self, other: TranscriptionParams) -> bool:
        """Whether one decoding answers both. Their response formats may differ, and so may their need for times."""
        return (self.model, replace(self.request, times=True)) == (other.model, replace(other.request, times=True))

    def build_external_request(self) -> TranscriptionRequest:
        """Return the request for an upstream, with the fields that only an upstream may support."""
        return replace(self.request, extra=self.extra)

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
    fields: FormFields, task: SpeechTask, *, file_content_type: str = "", audio_track: str = "", shape: SubtitleRules = NO_RULES
) -> TranscriptionParams:
    """Parse the fields. Empty strings count as unset; array fields may have brackets or not, or be JSON.

    `audio_track` is the request header's value, for clients with a fixed set of fields. `shape` holds the default subtitle rules.

    Raises:
        InvalidRequestError: a value is invalid; `param` names the field.
    """
    form = _remove_brackets(fields)
    chosen = _get_choice(form, "response_format", RESPONSE_FORMATS, "json")
    granularities = _get_items(form, "timestamp_granularities", ("word", "segment"))
    logprobs = "logprobs" in _get_items(form, "include", ("logprobs",))
    stream = _get_flag(form, "stream")
    # Granularities apply to verbose_json only; Subtitle Edit sends them with json, where they have no effect.
    words = "word" in granularities and chosen == "verbose_json"
    shaping = _get_subtitle_rules(form)
    shape = shape.with_changes(shaping)
    if 0 < shape.max_duration < shape.min_duration:
        raise InvalidRequestError(
            f"min_duration ({shape.min_duration:g}) is more than max_duration ({shape.max_duration:g}).", param="min_duration"
        )
    language = _get_language(form)
    request = replace(
        _parse_chunking(form),
        task=task,
        language=language,
        multilingual=_get_flag(form, "multilingual") and not language,
        prompt=_get_text(form, "prompt")[:MAX_PROMPT],
        hotwords=tuple(_get_strings(form, "keywords") or _get_text(form, "hotwords").split()),
        temperature=_get_number(form, "temperature", 0.0, 1.0) or 0.0,
        times=chosen in TIMED_FORMATS or bool(granularities) or stream,  # the last event of a stream holds the segments
        words=words,
        words_if_any=chosen in SUBTITLE_FORMATS and not shape.is_unrestricted,
        logprobs=logprobs and chosen == "json",
        speakers=chosen == "diarized_json" or bool(form.get("known_speaker_names") or form.get("known_speaker_references")),
        audio_track=_parse_track(_get_text(form, "audio_track") or audio_track.strip()),
        raw_pcm=file_content_type.partition(";")[0].strip().lower() in RAW_CONTENT_TYPES,
    )
    return TranscriptionParams(
        model=_get_text(form, "model"),
        request=request,
        response_format=chosen,
        stream=stream,
        segments=not granularities or "segment" in granularities,
        words=words,
        languages=tuple(_get_strings(form, "languages")),
        idle=(
            *(("timestamp_granularities",) if _has_idle_granularities(granularities, chosen, stream=stream) else ()),
            *(("include",) if logprobs and chosen != "json" else ()),
        ),
        unknown=tuple(sorted({name.split("[")[0] for name in form} - KNOWN_FIELDS - SUBTITLE_FIELDS)),
        shape=shape,
        shaping=tuple("subtitles" if name == "preset" else name for name in shaping),
        extra=tuple(
            (name, value) for name, values in fields.items() for value in values if value.strip() and _is_passed_on(name)
        ),
    )


def _has_idle_granularities(granularities: list[str], response_format: str, *, stream: bool) -> bool:
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
    fields: FormFields = {}
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
                fields.setdefault(name, []).append(item if isinstance(item, str) else json.dumps(item))
    return fields


def _remove_brackets(fields: FormFields) -> FormFields:
    """Rename `include[]` to `include`, merge `chunking_strategy[type]=y` into one JSON object, and drop empty values."""
    plain: FormFields = {}
    objects: dict[str, dict[str, str]] = {}
    for name, values in fields.items():
        present = [value for value in values if value.strip()]
        match = BRACKETS.fullmatch(name)
        if match and match[2] and not match[2].isdigit():
            if present:
                objects.setdefault(match[1], {})[match[2]] = present[-1]
        elif present:
            plain.setdefault(match[1] if match else name, []).extend(present)
    return plain | {name: [json.dumps(parts)] for name, parts in objects.items()}


def _is_passed_on(name: str) -> bool:
    return (
        name.partition("[")[0] in {"keywords", "hotwords", "languages", "chunking_strategy", "multilingual"}
        or name.partition("[")[0] not in KNOWN_FIELDS | SUBTITLE_FIELDS
    )


def _get_text(form: FormFields, name: str) -> str:
    return form.get(name, [""])[-1].strip()


def _get_items(form: FormFields, name: str, choices: tuple[str, ...]) -> list[str]:
    """Return an array field with a fixed set of values."""
    items = _get_strings(form, name)
    for item in items:
        if item not in choices:
            raise InvalidRequestError(f"{name} may hold {' and '.join(choices)}, not {item!r}.", param=name)
    return items


def _get_strings(form: FormFields, name: str) -> list[str]:
    """Return an array field: repeated, a JSON array, or separated by commas."""
    values: list[str] = []
    for value in form.get(name, []):
        if value.lstrip().startswith("["):
            try:
                items = bounded_json.parse_json(value)
            except (ValueError, EardrumError):
                raise InvalidRequestError(f"{name} is not valid JSON: {value[:200]!r}.", param=name) from None
            check_surrogates(value, items)
            values += [str(item) for item in items]
        else:
            values += [item.strip() for item in value.split(",") if item.strip()]
    return values


def _get_choice(form: FormFields, name: str, choices: tuple[str, ...], default: str) -> str:
    value = _get_text(form, name) or default
    if value not in choices:
        raise InvalidRequestError(f"{name} must be one of {', '.join(choices)}, not {value!r}.", param=name)
    return value


def _get_number(form: FormFields, name: str, minimum: float, maximum: float) -> float | None:
    value = _get_text(form, name)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not minimum <= number <= maximum:
        raise InvalidRequestError(f"{name} must be a number from {minimum:g} to {maximum:g}, not {value!r}.", param=name)
    return number


def _get_flag(form: FormFields, name: str) -> bool:
    value = _get_text(form, name).lower()
    if value in ("", "false", "0", "no", "off", "null"):
        return False
    if value in ("true", "1", "yes", "on"):
        return True
    raise InvalidRequestError(f"{name} must be true or false, not {value!r}.", param=name)


def _parse_track(value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MAX_TRACKS):
        message = f"audio_track must be the number of an audio track, counted from 1, not {value[:200]!r}."
        raise InvalidRequestError(message, param="audio_track")
    return int(value)


def _get_language(form: FormFields) -> str | None:
    """Return `language`, else the single item of `languages`. With several, the model detects the language."""
    if code := parse_language(_get_text(form, "language")):
        return code
    possible = {parse_language(value, param="languages") for value in _get_strings(form, "languages")}
    return possible.pop() if len(possible) == 1 else None


def _get_subtitle_rules(form: FormFields) -> dict[str, Any]:
    """Return the subtitle rules that the fields set."""
    rules: dict[str, Any] = {}
    if preset := _get_text(form, "subtitles"):
        rules["preset"] = _get_choice(form, "subtitles", tuple(PRESETS), preset)
    for name, maximum in MAX_RULE_VALUES.items():
        is_integer = name.startswith("max_line") or name == "max_words_per_line"
        if (number := _get_number(form, name, 0, maximum)) is not None:
            if is_integer and number != int(number):
                raise InvalidRequestError(f"{name} must be a whole number, not {number:g}.", param=name)
            rules[name] = int(number) if is_integer else number
    if _get_text(form, "highlight_words"):
        rules["highlight_words"] = _get_flag(form, "highlight_words")
    return rules


def _parse_chunking(form: FormFields) -> TranscriptionRequest:
    """Return a request with the chunking of `auto`, or of a `server_vad` object: a threshold, and two times in milliseconds."""
    value = _get_text(form, "chunking_strategy")
    if value in ("", "auto", "null"):
        return TranscriptionRequest()
    try:
        parts = bounded_json.parse_json(value)
        if parts.get("type") == "auto":
            return TranscriptionRequest()
        if parts.get("type") != "server_vad":
            raise ValueError
        options = {
            "vad_threshold": (parts.get("threshold"), 1.0, 1.0),
            "vad_silence_s": (parts.get("silence_duration_ms"), 1000.0, 10.0),
            "vad_padding_s": (parts.get("prefix_padding_ms"), 1000.0, 5.0),
        }
        return TranscriptionRequest.from_json(
            {
                name: _check_bounds(float(value) / unit, maximum)
                for name, (value, unit, maximum) in options.items()
                if value is not None
            }
        )
    except (ValueError, TypeError, AttributeError, OverflowError, EardrumError):
        raise InvalidRequestError(
            "chunking_strategy must be auto, or an object with type server_vad, threshold (0 to 1), "
            f"silence_duration_ms and prefix_padding_ms, not {value[:200]!r}.",
            param="chunking_strategy",
        ) from None


def _check_bounds(number: float, maximum: float) -> float:
    if not 0 <= number <= maximum:
        raise ValueError
    return number
