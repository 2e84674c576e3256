"""Types of request fields with the same meaning in every protocol, and pydantic's errors as sentences.

Null and empty text mean that a field is unset: it takes its default. Every sentence names the values that the field's JSON
schema accepts, and repeats only the beginning of the client's value.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import PydanticUseDefault

from eardrum import bounded_json
from eardrum.api.request_body import check_surrogates
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.languages import parse_language
from eardrum.live import EndpointingSettings

MAX_PROMPT = 4000
"""Characters. Models use far fewer, and the request travels to the runner in a header."""

ECHO = reprlib.Repr()
"""Bounds the client's value in a message, whatever it holds."""
ECHO.maxstring = ECHO.maxother = 80


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
            raise _build_error(cls, error, path) from None

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


def _unset_if_empty(value: Any) -> Any:
    if isinstance(value, FormValues):
        value = value[-1]
    if isinstance(value, str):
        value = value.strip()
    if value is None or value in ("", "null"):
        raise PydanticUseDefault
    return value


def use_default_for_null(value: Any) -> Any:
    """Unset a field that is null, and keep empty text."""
    if value is None:
        raise PydanticUseDefault
    return value


def _read_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError
    return _unset_if_empty(value)


def _split_list(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    if isinstance(value, FormValues):
        value = [item for part in value for item in _split_list(part)]
    elif isinstance(value, str):
        value = parse_json_text(value) if value.lstrip().startswith("[") else value.split(",")
    if not isinstance(value, list):
        return value
    stripped = [item.strip() if isinstance(item, str) else item for item in value]
    return [item for item in stripped if item != ""]


def _split_hotwords(value: Any) -> Any:
    if isinstance(value, FormValues):
        return [item for part in value for item in _split_hotwords(part)]
    has_words = isinstance(value, str) and not value.lstrip().startswith("[") and "," not in value
    return value.split() if has_words else _split_list(value)


def expect(sentence: str) -> Any:
    """Word what a field accepts, where its JSON schema does not tell."""
    return Field(json_schema_extra={"expected": sentence})


UNSET_IF_EMPTY = BeforeValidator(_unset_if_empty)
NUMBER = BeforeValidator(_read_number)
"""Takes numbers as text, too, but no booleans. Bounds come before it."""

Text = Annotated[str, UNSET_IF_EMPTY]
"""Text without spaces around it."""

Prompt = Annotated[Text, AfterValidator(lambda text: text[:MAX_PROMPT])]
"""Text that guides the model, cut to `MAX_PROMPT` characters."""

Flag = Annotated[bool, UNSET_IF_EMPTY]
"""A boolean, or a word for one: true, 1, yes, on, and their opposites. An empty one is unset, as in forms of web pages."""

Temperature = Annotated[float, Field(ge=0, le=1), NUMBER]

AudioTrack = Annotated[int | None, Field(ge=1, le=1000), NUMBER, expect("the number of an audio track, counted from 1 to 1000")]

Language = Annotated[str | None, AfterValidator(parse_language), UNSET_IF_EMPTY]
"""A language in any spelling that `parse_language` takes; None lets the model detect it."""

T = TypeVar("T")
ListOf = Annotated[
    tuple[T, ...], FailFast(), BeforeValidator(_split_list), expect("a list of strings, as JSON or separated by commas")
]
"""A list, JSON, or text separated by commas."""

Hotwords = Annotated[
    tuple[str, ...],
    FailFast(),
    BeforeValidator(_split_hotwords),
    expect("a list of strings, as JSON or separated by commas or spaces"),
]
"""The same, or text without commas, of which each word is one."""


class TurnDetection(RequestModel):
    """When a pause ends an utterance, in the terms of OpenAI's `server_vad`."""

    threshold: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.5
    prefix_padding_ms: Annotated[float, Field(ge=0, le=60_000), NUMBER] = 300.0
    silence_duration_ms: Annotated[float, Field(ge=0, le=60_000), NUMBER] = 500.0
    idle_timeout_ms: Annotated[float | None, Field(ge=0, le=86_400_000), NUMBER] = None

    def to_endpointing(self) -> EndpointingSettings:
        """Convert to a session's settings."""
        return EndpointingSettings(
            self.threshold,
            self.prefix_padding_ms / 1000,
            self.silence_duration_ms / 1000,
            self.idle_timeout_ms / 1000 if self.idle_timeout_ms else None,
        )


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


def _build_error(model: type[BaseModel], error: ValidationError, path: str) -> InvalidRequestError:
    """Word the first of pydantic's errors."""
    first = error.errors(include_url=False, include_context=False)[0]
    steps, schema = _find_field(_build_schema(model), first["loc"])
    names = [*([path] if path else []), *steps]
    param = (".".join(name for name in names if isinstance(name, str)) if path else str(names[0])) if names else None
    where = re.sub(r"\.(?=\[)", "", ".".join(name if isinstance(name, str) else f"[{name}]" for name in names)) or "The body"
    if first["type"] == "extra_forbidden":
        unknown = show_value(first["loc"][-1])
        known = ", ".join(schema["properties"])
        message = f"{where} has no setting {unknown}" if names else f"Unknown setting {unknown}"
        return InvalidRequestError(f"{message}; the settings are {known}.", param=param or str(first["loc"][-1]))
    if first["type"] == "missing":
        return InvalidRequestError(f"{where} is required.", param=param)
    must = "must be"
    if names and isinstance(names[-1], int) and "enum" in schema:
        where, must = where.rpartition("[")[0], "may hold"
    return InvalidRequestError(f"{where} {must} {describe_schema(schema)}, not {show_value(first['input'])}.", param=param)


def describe_form(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field of a form; the names of lists end with brackets."""
    root, described = _build_schema(model), {}
    for name, field in root["properties"].items():
        schema = {"description": field["description"], **next(_list_types(field))}
        for internal in ("title", "expected", *(() if schema.get("default") else ("default",))):
            schema.pop(internal, None)
        is_object = "$ref" in schema or "properties" in schema
        described[f"{name}[]" if schema.get("type") == "array" else name] = (
            {"description": field["description"], "type": "string"} if is_object else schema
        )
    return described


@cache
def _build_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _find_field(root: dict[str, Any], location: Iterable[str | int]) -> tuple[list[str | int], dict[str, Any]]:
    """Return the path of an error's field, without pydantic's names of types, and its schema."""
    steps: list[str | int] = []
    schema = _resolve(root, root)
    for step in location:
        child = schema.get("items") if isinstance(step, int) else schema.get("properties", {}).get(step)
        if child is None:
            continue
        steps.append(step)
        schema = _resolve(root, child)
    return steps, schema


def _resolve(root: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and the only type beside null."""
    while True:
        types = list(_list_types(schema))
        if len(types) == 1 and types[0] is not schema and "expected" not in schema:
            schema = types[0]
        elif "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        else:
            return schema


def _list_types(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schema's alternatives except null."""
    return (kind for kind in schema.get("anyOf", (schema,)) if kind.get("type") != "null")


def describe_schema(schema: Mapping[str, Any]) -> str:
    """Word what a JSON schema accepts, as the end of "must be ..."."""
    describe: dict[str, Callable[[], str]] = {
        "boolean": lambda: "true or false",
        "integer": lambda: "a whole number" + _describe_bounds(schema),
        "number": lambda: "a number" + _describe_bounds(schema),
        "array": lambda: "a list of " + ("strings" if schema["items"].get("type") == "string" else "objects"),
        "object": lambda: "an object",
        "string": lambda: f"a string of at most {schema['maxLength']} characters" if "maxLength" in schema else "a string",
    }
    if expected := schema.get("expected"):
        return str(expected)
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        *others, last = map(str, choices)
        return f"{', '.join(others)} or {last}" if others else last
    return describe[schema.get("type", "object")]()


def _describe_bounds(schema: Mapping[str, Any]) -> str:
    return f" from {schema['minimum']:g} to {schema['maximum']:g}" if "maximum" in schema else ""
