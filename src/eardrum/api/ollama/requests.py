"""Maps Ollama's requests to OpenAI's API: chat, generate, embed, messages, tools, options and attachments. Pure.

Clients send both pictures and audio in `images`; only the content distinguishes them.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import Field

from eardrum.api.fields import UNSET_IF_EMPTY, RequestModel, expect, show_value
from eardrum.api.ollama.common_fields import ChatTurns, ModelRequest, Verbatim, unpack_context
from eardrum.errors import InvalidRequestError

SHARED_OPTIONS = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Options that OpenAI's API has under the same names."""

LOCAL_OPTIONS = (
    "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""Options that servers such as llama-server have under the same names, and cloud services reject."""

INTEGER_OPTIONS = ("num_predict", "top_k", "seed", "repeat_last_n", "mirostat")
"""Integer options. Clients in languages with a single number type send them as `10.0`."""

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""Ollama's reasoning efforts to OpenAI's, of which `high` is the highest that all servers accept."""


class Attachments(RequestModel):
    """Pictures and recordings, in base64."""

    images: Annotated[
        tuple[Annotated[str, expect("a base64 string")], ...], expect("a list of base64 strings"), UNSET_IF_EMPTY
    ] = ()


class ToolFunction(RequestModel):
    """The function of a tool call."""

    name: str
    arguments: Any = None


class ToolCall(RequestModel):
    """A tool call of the model, in the history of a chat."""

    id: Any = ""
    function: ToolFunction


class ChatMessage(Attachments):
    """A message of a chat. Templates have more roles than Ollama's four, so the upstream checks the role."""

    role: Annotated[str, Field(min_length=1), expect("a role such as system, user, assistant or tool")]
    content: Verbatim = ""
    thinking: Verbatim = ""
    tool_calls: Annotated[tuple[ToolCall, ...], UNSET_IF_EMPTY] = ()
    tool_call_id: Verbatim = ""
    tool_name: Verbatim = ""
    name: Verbatim = ""


class InferenceRequest(ModelRequest):
    """Fields that chat and generate share."""

    options: Annotated[dict[str, Any], UNSET_IF_EMPTY] = Field(default_factory=dict)
    format: Annotated[Literal["json"] | dict[str, Any] | None, expect('"json" or a JSON schema'), UNSET_IF_EMPTY] = None
    think: Annotated[
        Annotated[bool, Field(strict=True)] | Literal["low", "medium", "high", "max"] | None,
        expect("true, false, low, medium, high or max"),
    ] = None
    logprobs: Any = None
    top_logprobs: Any = None


class ChatRequest(InferenceRequest):
    """The body of `/api/chat`."""

    messages: tuple[ChatMessage, ...]
    tools: Annotated[tuple[dict[str, Any], ...], expect("a list of objects"), UNSET_IF_EMPTY] = ()


class GenerateRequest(InferenceRequest, Attachments):
    """The body of `/api/generate`."""

    prompt: Verbatim = ""
    system: Verbatim = ""
    suffix: Verbatim = ""
    template: Verbatim = ""
    raw: Any = None
    context: Any = None


class ServerFeatures(Struct, frozen=True):
    """Features of an upstream beyond OpenAI's API."""

    local: bool = True
    """Accepts llama-server's sampling parameters and template settings."""
    infills: bool = False
    """Has llama-server's `/infill`, whose `/v1/completions` ignores a suffix."""


class UpstreamRequest(Struct, frozen=True):
    """A request to an upstream."""

    path: str
    body: dict[str, Any]
    ignored: tuple[str, ...] = ()
    """Fields without effect: options that a server takes only at its start, if at all, and the `context` of another server."""
    turns: ChatTurns | None = None
    """The turns before the response, for routes that return a `context`."""


def map_chat(given: dict[str, Any], model: str, server: ServerFeatures) -> UpstreamRequest:
    """`/api/chat`.

    Args:
        given: the client's body.
        model: the name for the upstream.
        server: features of the upstream.

    Raises:
        InvalidRequestError: a field has the wrong type.
    """
    request = ChatRequest.parse(given)
    body = {"model": model, "messages": map_messages(request.messages)} | _map_common(request, local=server.local)
    if request.tools:
        body["tools"] = _map_tools(request.tools)
    parameters, ignored = _map_options(request, local=server.local)
    return UpstreamRequest("/v1/chat/completions", body | parameters, ignored)


def map_generate(given: dict[str, Any], model: str, server: ServerFeatures) -> UpstreamRequest:
    """Map `/api/generate` to a chat, because the upstream has the template; with `raw` or a suffix, to a plain completion.

    Raises:
        InvalidRequestError: a field has the wrong type, or the request has a template.
    """
    request = GenerateRequest.parse(given)
    if request.template:
        raise InvalidRequestError(
            "template is not supported: leave it out, or set raw and send the formatted prompt.", param="template"
        )
    prompt, system, suffix = request.prompt, request.system, request.suffix
    parameters, ignored = _map_options(request, local=server.local)
    common = _map_common(request, local=server.local)
    if request.raw or suffix:
        for field in ("images", "context"):
            if getattr(request, field):
                raise InvalidRequestError(f"{field} cannot be combined with raw or suffix.", param=field)
        path, plain = _map_plain_prompt(prompt, suffix, server)
        if "logprobs" in common:  # which is a number on this route
            common["logprobs"] = common.pop("top_logprobs", 1)
        return UpstreamRequest(path, {"model": model} | plain | common | parameters, ignored)
    before = unpack_context(request.context)
    ignored += ("context",) if before is None else ()
    turns = tuple(turn for turn in before or () if not (system and turn[0] == "system"))
    turns = (("system", system), *turns) if system else turns
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages.append({"role": "user", "content": map_content(prompt, request.images)})
    body = {"model": model, "messages": messages} | common | parameters
    return UpstreamRequest("/v1/chat/completions", body, ignored, (*turns, ("user", prompt)))


def _map_plain_prompt(prompt: str, suffix: str, server: ServerFeatures) -> tuple[str, dict[str, Any]]:
    """Route and fields for text without a template."""
    if suffix and server.infills:
        return "/infill", {"input_prefix": prompt, "input_suffix": suffix}
    return "/v1/completions", {"prompt": prompt} | ({"suffix": suffix} if suffix else {})


def map_embed(request: dict[str, Any], model: str) -> UpstreamRequest | None:
    """`/api/embed`; None if there is nothing to embed.

    Raises:
        InvalidRequestError: the input is neither a string nor a list of strings.
    """
    given = request.get("input")
    inputs = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise InvalidRequestError("invalid input type: input must be a string or a list of strings.", param="input")
    if not inputs or inputs == [""]:
        return None
    body: dict[str, Any] = {"model": model, "input": inputs, "encoding_format": "float"}
    if dimensions := request.get("dimensions"):
        body["dimensions"] = dimensions
    return UpstreamRequest("/v1/embeddings", body)


def _map_common(request: InferenceRequest, *, local: bool) -> dict[str, Any]:
    """Map the fields that chat and generate share, except the options."""
    body: dict[str, Any] = {"stream": request.stream}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if request.logprobs:
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    return body | _map_format(request.format) | _map_think(request.think, local=local)


def _map_format(wanted: str | dict[str, Any] | None) -> dict[str, Any]:
    """Map `format`. A schema is sent twice: llama-server documents it next to the type, others inside an object."""
    if wanted is None:
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    named = {"name": "ollama", "schema": wanted}
    return {"response_format": {"type": "json_schema", "json_schema": named, "schema": wanted}}


def _map_think(wanted: bool | str | None, *, local: bool) -> dict[str, Any]:
    """Map `think`, a boolean for the template or an effort."""
    if wanted is None:
        return {}
    if isinstance(wanted, bool):
        return {"chat_template_kwargs": {"enable_thinking": wanted}} if local else {}
    effort = EFFORTS[wanted]
    templated = {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": effort}} if local else {}
    return {"reasoning_effort": effort} | templated


def _map_options(request: InferenceRequest, *, local: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the upstream's parameters, and the options that have no counterpart."""
    given = {name: _parse_option(name, value) for name, value in request.options.items() if value is not None}
    taken = SHARED_OPTIONS + (LOCAL_OPTIONS if local else ())
    parameters = {name: given[name] for name in taken if name in given}
    if (limit := given.get("num_predict", 0)) > 0:  # zero and below: unlimited
        parameters["max_tokens"] = limit
    return parameters, tuple(sorted(given.keys() - {*taken, "num_predict"}))


MAX_NUMBER = sys.float_info.max
"""JSON integers may have any number of digits; no engine accepts one beyond this."""


def _parse_option(name: str, value: Any) -> Any:
    """Convert an option's value to the option's type.

    Raises:
        InvalidRequestError: the value has the wrong type; the message is Ollama's.
    """
    if name == "stop" or name not in (*SHARED_OPTIONS, *LOCAL_OPTIONS, *INTEGER_OPTIONS):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    if not number:
        kind = "integer" if name in INTEGER_OPTIONS else "float32"
        raise InvalidRequestError(f'option "{name}" must be of type {kind}, not {show_value(value)}.', param="options")
    return int(value) if name in INTEGER_OPTIONS else value


def _map_tools(tools: Sequence[dict[str, Any]]) -> list[Any]:
    """Map the tools and add missing parameters: some clients leave them out, and some servers require them."""
    nothing = {"type": "object", "properties": {}}
    return [
        {**tool, "function": {"parameters": nothing, **tool["function"]}} if isinstance(tool.get("function"), dict) else tool
        for tool in tools
    ]


@dataclass(slots=True)
class PendingToolCall:
    """A tool call in the history that has no reply yet."""

    id: str
    name: str


@dataclass(slots=True)
class ToolCallIds:
    """Ids of tool calls. Ollama's clients may leave them out and reply by the tool's name, or only in order."""

    _pending: list[PendingToolCall] = field(default_factory=list)
    _count: int = 0

    def add(self, id: str, name: str) -> str:
        """Return the id of a call, generated if it has none."""
        self._count += 1
        self._pending.append(PendingToolCall(id or f"call_{self._count}", name))
        return self._pending[-1].id

    def match_reply(self, id: str, name: str) -> str:
        """Return the id of the call that a reply answers: by id, by name, else the oldest."""
        if not id:
            named = [call for call in self._pending if call.name == name] or self._pending
            id = named[0].id if named else self.add("", name)
        self._pending = [call for call in self._pending if call.id != id]
        return id


def map_messages(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """Map the messages of a chat.

    Raises:
        InvalidRequestError: an attachment is neither an image nor audio.
    """
    calls = ToolCallIds()
    return [_map_message(message, calls, f"messages[{number}].images") for number, message in enumerate(messages)]


def map_content(text: str, images: Sequence[str], where: str = "images") -> str | list[dict[str, Any]]:
    """Build the content of a message from text and attachments."""
    parts = decode_attachments(images, where)
    for number, part in enumerate(parts):
        if not part.kind:
            raise InvalidRequestError(f"{where}[{number}] is neither an image nor audio of a known format.", param="images")
    if not parts:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *(part.message_part for part in parts)]


def _map_message(given: ChatMessage, calls: ToolCallIds, where: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": given.role, "content": map_content(given.content, given.images, where)}
    if given.role == "tool":
        message["tool_call_id"] = calls.match_reply(given.tool_call_id, given.tool_name or given.name)
    if given.thinking:
        message["reasoning_content"] = given.thinking
    if given.tool_calls:
        message["tool_calls"] = [_map_tool_call(call, calls) for call in given.tool_calls]
    return message


def _map_tool_call(call: ToolCall, calls: ToolCallIds) -> dict[str, Any]:
    name, arguments = call.function.name, call.function.arguments or {}
    return {
        "id": calls.add(call.id if isinstance(call.id, str) else "", name),
        "type": "function",
        "function": {
            "name": name,
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
        },
    }


IMAGE_SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
AUDIO_SIGNATURES = {b"ID3": "mp3", b"OggS": "ogg", b"fLaC": "flac", b"\x1aE\xdf\xa3": "webm"}
INPUT_AUDIO_FORMATS = ("wav", "mp3")
"""Formats that `input_audio` can name."""


class MediaAttachment(Struct, frozen=True):
    """One entry of `images`, decoded, with its detected format."""

    data: bytes
    encoded: str
    """Base64 without line breaks."""
    kind: str
    """"image", "audio", or "" for an unknown format."""
    format: str

    @property
    def message_part(self) -> dict[str, Any]:
        """The content part for a message of OpenAI's chat API."""
        if self.kind == "audio" and self.format in INPUT_AUDIO_FORMATS:
            return {"type": "input_audio", "input_audio": {"data": self.encoded, "format": self.format}}
        address = {"url": f"data:{self.kind or 'image'}/{self.format};base64,{self.encoded}"}
        return (
            {"type": "audio_url", "audio_url": address} if self.kind == "audio" else {"type": "image_url", "image_url": address}
        )


def decode_attachments(images: Iterable[str], where: str = "images") -> list[MediaAttachment]:
    """Decode base64 strings or data URIs.

    Raises:
        InvalidRequestError: one of them is not valid base64.
    """
    return [_decode_attachment(image, f"{where}[{number}]") for number, image in enumerate(images)]


def _decode_attachment(image: str, where: str) -> MediaAttachment:
    encoded = "".join((image.partition("base64,")[2] if image.startswith("data:") else image).split())
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{where}: illegal base64 data: {error}.", param="images") from None
    if not data:
        raise InvalidRequestError(f"{where} is empty.", param="images")
    kind, format = _sniff_format(data)
    return MediaAttachment(data, encoded, kind, format)


def _sniff_format(data: bytes) -> tuple[str, str]:
    """Detect kind and format from the first bytes."""
    if data[:4] == b"RIFF":
        return {b"WAVE": ("audio", "wav"), b"WEBP": ("image", "webp")}.get(data[8:12], ("", "octet-stream"))
    if data[4:8] == b"ftyp":
        return ("image", "avif") if data[8:12] in (b"avif", b"heic", b"mif1") else ("audio", "mp4")
    for magic, format in IMAGE_SIGNATURES.items():
        if data.startswith(magic):
            return "image", format
    for magic, format in AUDIO_SIGNATURES.items():
        if data.startswith(magic):
            return "audio", format
    if data[0] == 0xFF and len(data) > 1 and data[1] & 0xE0 == 0xE0:  # the sync word of a frame of MPEG audio
        return "audio", "mp3"
    return "", "octet-stream"
