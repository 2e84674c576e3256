"""Types of request fields with the same meaning in every protocol, and pydantic's errors as sentences.

Null and empty text mean that a field is unset: it takes its default. Every sentence names the values that the field accepts,
and repeats only the beginning of the client's value.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from annotated_types import Ge, GroupedMetadata, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticUseDefault

from eardrum import bounded_json
from eardrum.api.request_body import check_surrogates
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.languages import parse_language
from eardrum.live import EndpointingSettings
from eardrum.transcription import Capabilities, TranscriptionRequest

MAX_PROMPT = 4000
"""Characters. Models use far fewer, and the request travels to the runner in a header."""

ECHO = reprlib.Repr()
"""Bounds the client's value in a message, for any content."""
ECHO.maxstring = ECHO.maxother = 80

EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string",
    "dict_type": "an object",
    "model_type": "an object",
    "tuple_type": "a list",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""What a field must be, by pydantic's type of the error, where pydantic's own message speaks of Python."""


class FormValues(tuple[str, ...]):
    """The values of a form's field, which may be repeated."""

    __slots__ = ()


class RequestModel(BaseModel):
    """A request's body, form or settings."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    @classmethod
    def parse(cls, given: Any, path: str = "") -> Self:
        """Parse what the client sent.

        Args:
            given: the fields.
            path: the place of the fields in the client's message. The error's `param` is the whole path of a field if there is
                one, else the name of the outermost field.

        Raises:
            InvalidRequestError: a field has an invalid value.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
        names = [*([path] if path else []), *first["loc"]]
        kind, shown = first["type"], show_value(first["input"])
        if kind == "extra_forbidden":
            unknown, known = show_value(names.pop()), ", ".join(cls.model_fields)
            message = f"{path} has no setting {unknown}" if path else f"Unknown setting {unknown}"
            raise InvalidRequestError(f"{message}; the settings are {known}.", param=path or str(first["loc"][-1]))
        param = (".".join(name for name in names if isinstance(name, str)) if path else str(names[0])) if names else None
        where = re.sub(r"\.(?=\[)", "", ".".join(name if isinstance(name, str) else f"[{name}]" for name in names)) or "The body"
        if kind == "missing":
            raise InvalidRequestError(f"{where} is required.", param=param)
        expected = EXPECTED.get(kind) or first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").replace(
            "'", ""
        )
        raise InvalidRequestError(f"{where} must be {expected}, not {shown}.", param=param)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that the client sent; the unset ones among them have their defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def parse_json_text(value: str) -> Any:
    """Parse JSON in a text field.

    Raises:
        ValueError: the text is not valid JSON, or too large.
        InvalidRequestError: a string holds half a surrogate pair.
    """
    try:
        found = bounded_json.parse_json(value)
    except EardrumError as error:
        raise ValueError(error.message) from None
    check_surrogates(value, found)
    return found


def show_value(value: object) -> str:
    """Format a client's value for a message, within bounds."""
    return ECHO.repr(value[-1] if isinstance(value, FormValues) else value)


def expect(sentence: str) -> WrapValidator:
    """Word what a field accepts, as the end of "must be ...". An item of a list keeps a separate error."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            location = error.errors(include_url=False)[0]["loc"]
            if location and isinstance(location[0], int):
                raise
            raise ValueError(sentence) from None

    return WrapValidator(validate)


def _unset_if_empty(value: Any) -> Any:
    if isinstance(value, FormValues):
        value = value[-1]
    if isinstance(value, str):
        value = value.strip()
    if value is None or value in ("", "null"):
        raise PydanticUseDefault
    return value


def _unset_if_null(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError
    return value


def _split_list(value: Any, separator: str | None = ",") -> Any:
    if isinstance(value, FormValues):
        value = [item for part in value for item in _split_list(part, separator)]
    elif isinstance(value, str):
        is_json = value.lstrip().startswith("[")
        value = parse_json_text(value) if is_json else value.split("," if "," in value else separator)
    if not isinstance(value, list):
        return value
    stripped = [item.strip() if isinstance(item, str) else item for item in value]
    return [item for item in stripped if item != ""]


UNSET_IF_EMPTY = BeforeValidator(_unset_if_empty)
"""Stands last in an annotation, so that nothing else is validated."""
UNSET_IF_NULL = BeforeValidator(_unset_if_null)
"""The same, but keeps empty text."""


@dataclass(frozen=True, slots=True)
class Between(GroupedMetadata):
    """Bounds of a number. Clients may also send it as text, but not as a boolean."""

    low: float
    high: float
    kind: str = "a number"

    def __iter__(self) -> Iterator[object]:
        """Yield the annotations that pydantic applies, the innermost first."""
        sentence = f"{self.kind} from {self.low:g} to {self.high:g}"
        yield from (Ge(self.low), Le(self.high), BeforeValidator(_refuse_boolean), expect(sentence), UNSET_IF_EMPTY)


WHOLE = "a whole number"

Text = Annotated[str, UNSET_IF_EMPTY]
"""Text without spaces around it."""

Prompt = Annotated[Text, AfterValidator(lambda text: text[:MAX_PROMPT])]
"""Text that guides the model, cut to `MAX_PROMPT` characters."""

Flag = Annotated[bool, UNSET_IF_EMPTY]
"""A boolean, or a word for one: true, 1, yes, on, and their opposites. An empty one is unset, as in forms of web pages."""

Temperature = Annotated[float, Between(0, 1)]

AudioTrack = Annotated[int | None, Between(1, 1000, "the number of an audio track, counted")]

SpeakerCount = Annotated[int | None, Between(1, 1000, WHOLE)]

Language = Annotated[str | None, AfterValidator(parse_language), UNSET_IF_EMPTY]
"""A language in any spelling that `parse_language` takes; None lets the model detect it."""

T = TypeVar("T")
ListOf = Annotated[
    tuple[T, ...],
    FailFast(),
    BeforeValidator(_split_list),
    expect("a list of strings, as JSON or separated by commas"),
    UNSET_IF_NULL,
]
"""A list, JSON, or text separated by commas."""

Hotwords = Annotated[
    tuple[str, ...],
    FailFast(),
    BeforeValidator(partial(_split_list, separator=None)),
    expect("a list of strings, as JSON or separated by commas or spaces"),
    UNSET_IF_NULL,
]
"""The same, or text without commas, of which each word is one."""


class TranscriptionFields(RequestModel):
    """Fields of uploads and live sessions."""

    model: Text = Field("", description="A model of GET /v1/models or an alias; empty: the default model.")
    prompt: Prompt = Field("", description="Text that guides the model, if it supports a prompt.")
    hotwords: Hotwords = Field((), description="Words to expect, if the model supports them.")
    temperature: Temperature = Field(0.0, description="Sampling temperature, if the model supports it.")
    timestamp_granularities: ListOf[Literal["word", "segment"]] = Field((), description="Timestamps in verbose_json.")
    audio_track: AudioTrack = Field(
        None, description="Number of the audio track, counted from 1; empty: the default track, or the first with sound."
    )


class TurnDetection(RequestModel):
    """When a pause ends an utterance, in the terms of OpenAI's `server_vad`."""

    threshold: Annotated[float, Between(0, 1)] = 0.5
    prefix_padding_ms: Annotated[float, Between(0, 60_000)] = 300.0
    silence_duration_ms: Annotated[float, Between(0, 60_000)] = 500.0
    idle_timeout_ms: Annotated[float | None, Between(0, 86_400_000)] = None

    def to_endpointing(self) -> EndpointingSettings:
        """Convert to a session's settings."""
        return EndpointingSettings(
            self.threshold,
            self.prefix_padding_ms / 1000,
            self.silence_duration_ms / 1000,
            self.idle_timeout_ms / 1000 if self.idle_timeout_ms else None,
        )


def check_speaker_counts(least: int | None, most: int | None) -> None:
    """Check the bounds of a number of speakers against each other.

    Raises:
        InvalidRequestError: the lower bound is above the upper one.
    """
    if least and most and least > most:
        raise InvalidRequestError(f"min_speakers ({least}) is more than max_speakers ({most}).", param="min_speakers")


def to_seconds(ms: float | None) -> float | None:
    """Convert milliseconds; None stays None."""
    return None if ms is None else ms / 1000


def choose_language(language: str, possible: Iterable[str]) -> str | None:
    """Return the code of the language, else of the only possible one. Of several, the model detects the language.

    Raises:
        InvalidRequestError: a language is unknown.
    """
    if code := parse_language(language):
        return code
    codes = {parse_language(spelled, param="languages") for spelled in possible}
    return codes.pop() if len(codes) == 1 else None


def list_ignored_hints(request: TranscriptionRequest, capabilities: Capabilities, hotwords: str = "hotwords") -> list[str]:
    """List the hints that the model does not support. A hint only improves the transcript, so the model still transcribes.

    Args:
        request: the client's request.
        capabilities: those of the model.
        hotwords: the client's name for hotwords.
    """
    hints = {
        "prompt": bool(request.prompt) and not capabilities.prompt,
        hotwords: bool(request.hotwords) and not capabilities.hotwords,
        "temperature": request.temperature > 0 and not capabilities.temperature,
    }
    return [name for name, unused in hints.items() if unused]


def describe_form(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field of a form; the names of lists end with brackets."""
    described = {}
    whole = model.model_json_schema()
    for name, field in whole["properties"].items():
        schema = field | next(kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null")
        if reference := schema.pop("$ref", ""):  # an enumeration
            schema = whole["$defs"][reference.rpartition("/")[2]] | schema
        for internal in ("title", "anyOf", *(() if schema.get("default") else ("default",))):
            schema.pop(internal, None)
        described[f"{name}[]" if schema.get("type") == "array" else name] = schema
    return described
