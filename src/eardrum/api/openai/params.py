"""Parses the parameters of a transcription from form fields, in every spelling that OpenAI's clients send."""

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
"""Formats with times in them."""
RAW_CONTENT_TYPES = ("audio/pcm", "audio/raw", "audio/l16", "audio/x-raw")
"""Content types that declare headerless s16le mono at 16 kHz."""
RAW_FORMATS = ("pcm", "pcm16", "raw", "s16le")
"""Formats of `input_audio` that do."""

KNOWN_FIELDS = {
    "model", "language", "languages", "prompt", "keywords", "hotwords", "response_format", "temperature", "include",
    "timestamp_granularities", "stream", "chunking_strategy", "known_speaker_names", "known_speaker_references", "audio_track",
    "multilingual",
}  # fmt: skip

SUBTITLE_FORMATS = frozenset(("srt", "vtt"))
"""Formats whose cues have a shape."""
SUBTITLE_FIELDS = frozenset(("subtitles", *RULE_NAMES))
"""Fields that give them one."""

MAX_PROMPT = 4000
"""Characters; models look at far fewer, and the wishes travel in a header."""

MAX_TRACKS = 1000

MAX_ITEMS = 1000
"""Of a list in a JSON body."""

BRACKETS = re.compile(r"(\w+)\[(\w*)\]")


@dataclass(frozen=True, slots=True)
class TranscriptionParams:
    """What one call asks for: the request proper, and how the answer should look."""

    model: str
    request: TranscriptionRequest
    response_format: str
    stream: bool
    segments: bool
    words: bool
    unknown: tuple[str, ...]
    """Fields nobody here understands; the answer names them."""
    languages: tuple[str, ...] = ()
    """Those that may be spoken, as the client writes them."""
    idle: tuple[str, ...] = ()
    """Fields that say nothing to this format of the answer."""
    shape: SubtitleRules = NO_RULES
    """What cues have to look like."""
    shaping: tuple[str, ...] = ()
    """Fields that ask for it."""
    extra: tuple[tuple[str, str], ...] = ()
    """What a server behind a model gets as the client sent it: fields nobody here understands, and hints."""

    def is_same_request(self, other: TranscriptionParams) -> bool:
        """Whether one decoding answers both; they may still differ in how the answer looks, and so in whether it has times."""
        return (self.model, replace(self.request, times=True)) == (other.model, replace(other.request, times=True))

    def build_external_request(self) -> TranscriptionRequest:
        """The request for a server that is not ours, with the fields that only it may understand."""
        return replace(self.request, extra=self.extra)

    def list_ignored(self, can: Capabilities, *, foreign: bool = False) -> list[str]:
        """Fields that had no effect: unknown ones, unless another server got them, those that say nothing to this format of the
        answer, and hints that the model cannot take.

        Hints (prompt, keywords, temperature) nudge a model and change nothing about what is asked, so a model
        without them still answers, and says so.
        """
        hints = {
            "prompt": bool(self.request.prompt) and not can.prompt,
            "keywords": bool(self.request.hotwords) and not can.hotwords,
            "temperature": self.request.temperature > 0 and not can.temperature,
            "multilingual": self.request.multilingual and not (can.detects_language or foreign),
        }
        if self.stream:
            hints["response_format"] = self.response_format in ("text", "srt", "vtt")
        if len(self.languages) > 1 and not self.request.language:
            hints["languages"] = not foreign
        if self.stream or self.response_format not in SUBTITLE_FORMATS:
            hints |= dict.fromkeys(self.shaping, True)
        return [name for name, unused in hints.items() if unused] + [*self.idle, *(() if foreign else self.unknown)]


def parse_params(
    fields: FormFields, task: SpeechTask, *, file_content_type: str = "", audio_track: str = "", shape: SubtitleRules = NO_RULES
) -> TranscriptionParams:
    """Read the fields. Empty strings count as unset; array fields may have brackets or not, or be JSON.

    `audio_track` is that of the request's header, for clients whose fields are fixed; `shape` is what subtitles have where no
    field says it.

    Raises:
        InvalidRequestError: a value is not one of those allowed; `param` names the field.
    """
    form = _remove_brackets(fields)
    chosen = _get_choice(form, "response_format", RESPONSE_FORMATS, "json")
    granularities = _get_strings(form, "timestamp_granularities")
    for value in granularities:
        if value not in ("word", "segment"):
            raise InvalidRequestError(
                f"timestamp_granularities may hold word and segment, not {value!r}.", param="timestamp_granularities"
            )
    for value in _get_strings(form, "include"):
        if value != "logprobs":
            raise InvalidRequestError(f"include may hold logprobs, not {value!r}.", param="include")
    # Granularities mean something in verbose_json only; Subtitle Edit sends them with json, where they are idle.
    stream = _get_flag(form, "stream")
    words = "word" in granularities and chosen == "verbose_json"
    logprobs = "logprobs" in _get_strings(form, "include")
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
        times=chosen in TIMED_FORMATS or bool(granularities) or _get_flag(form, "stream"),  # whose last event has the segments
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
        idle=tuple(
            name
            for name, without_effect in (
                ("timestamp_granularities", _has_idle_granularities(granularities, chosen, stream=stream)),
                ("include", logprobs and chosen != "json"),
            )
            if without_effect
        ),
        unknown=tuple(sorted({name.split("[")[0] for name in form} - KNOWN_FIELDS - SUBTITLE_FIELDS)),
        shape=shape,
        shaping=tuple("subtitles" if name == "preset" else name for name in shaping),
        extra=tuple(
            (name, value) for name, values in fields.items() for value in values if value.strip() and _is_passed_on(name)
        ),
    )


def _has_idle_granularities(asked: list[str], response_format: str, *, stream: bool) -> bool:
    """Whether one of them changes nothing: words are in verbose_json only, segments in subtitles and streams, too."""
    words = "word" in asked and (response_format != "verbose_json" or stream)
    return words or ("segment" in asked and response_format in ("json", "text") and not stream)


def flatten_json(body: dict[str, Any], limits: LimitSettings) -> FormFields:
    """The fields of a JSON body in a form's shape: lists become repeated fields, objects JSON.

    Raises:
        InvalidRequestError: they are more than a form may have, or a list or text is longer.
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
    """`include[]=x` as `include`, `chunking_strategy[type]=y` as one JSON object, empty values gone."""
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


def _get_strings(form: FormFields, name: str) -> list[str]:
    """An array field: repeated, a JSON array, or separated by commas."""
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


def _get_number(form: FormFields, name: str, least: float, most: float) -> float | None:
    value = _get_text(form, name)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise InvalidRequestError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}.", param=name)
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
    """`language`, else the only one of `languages`; several possible ones are left to the model to choose from."""
    if code := parse_language(_get_text(form, "language")):
        return code
    possible = {parse_language(value, param="languages") for value in _get_strings(form, "languages")}
    return possible.pop() if len(possible) == 1 else None


def _get_subtitle_rules(form: FormFields) -> dict[str, Any]:
    """The rules for subtitles that the fields set."""
    rules: dict[str, Any] = {}
    if preset := _get_text(form, "subtitles"):
        rules["preset"] = _get_choice(form, "subtitles", tuple(PRESETS), preset)
    for name, most in MAX_RULE_VALUES.items():
        whole = name.startswith("max_line") or name == "max_words_per_line"
        if (number := _get_number(form, name, 0, most)) is not None:
            if whole and number != int(number):
                raise InvalidRequestError(f"{name} must be a whole number, not {number:g}.", param=name)
            rules[name] = int(number) if whole else number
    if _get_text(form, "highlight_words"):
        rules["highlight_words"] = _get_flag(form, "highlight_words")
    return rules


def _parse_chunking(form: FormFields) -> TranscriptionRequest:
    """A request cut by `auto`, or by the server_vad object: threshold and two times in milliseconds."""
    value = _get_text(form, "chunking_strategy")
    if value in ("", "auto", "null"):
        return TranscriptionRequest()
    try:
        parts = bounded_json.parse_json(value)
        if parts.get("type") == "auto":
            return TranscriptionRequest()
        if parts.get("type") != "server_vad":
            raise ValueError
        wishes = {
            "vad_threshold": (parts.get("threshold"), 1.0, 1.0),
            "vad_silence_s": (parts.get("silence_duration_ms"), 1000.0, 10.0),
            "vad_padding_s": (parts.get("prefix_padding_ms"), 1000.0, 5.0),
        }
        given = {name: _check_bounds(float(v) / unit, most) for name, (v, unit, most) in wishes.items() if v is not None}
        return TranscriptionRequest.from_json(given)
    except (ValueError, TypeError, AttributeError, OverflowError, EardrumError):
        raise InvalidRequestError(
            "chunking_strategy must be auto, or an object with type server_vad, threshold (0 to 1), "
            f"silence_duration_ms and prefix_padding_ms, not {value[:200]!r}.",
            param="chunking_strategy",
        ) from None


def _check_bounds(number: float, most: float) -> float:
    if not 0 <= number <= most:
        raise ValueError
    return number
