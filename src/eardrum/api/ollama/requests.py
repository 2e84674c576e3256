"""Maps Ollama's requests to OpenAI's API: chat, generate, embed, messages, tools, options and attachments. Pure.

Clients put pictures and audio alike into `images`; the content decides, as nothing else tells them apart.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from eardrum.api.ollama.common_fields import ChatTurns, is_streaming, read_text, unpack_context
from eardrum.errors import InvalidRequestError

SHARED_OPTIONS = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Options that OpenAI has too."""

LOCAL_OPTIONS = (
    "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""Options that servers such as llama-server have, under the same names, and clouds refuse."""

INTEGER_OPTIONS = ("num_predict", "top_k", "seed", "repeat_last_n", "mirostat")
"""Options that are whole numbers. Languages that know one kind of number only send them as `10.0`."""

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""How hard to think, in OpenAI's words, which know no more than high everywhere."""


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """What an upstream may know beyond OpenAI's API."""

    local: bool = True
    """Sampling parameters and settings of templates."""
    infills: bool = False
    """llama-server's `/infill`; its `/v1/completions` passes over a suffix."""


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to an upstream."""

    path: str
    body: dict[str, Any]
    ignored: tuple[str, ...] = ()
    """What has no effect: options that a server takes only when it starts, if at all, and the `context` of another server."""
    turns: ChatTurns | None = None
    """What will have been said before the answer, for routes that remember it."""


def map_chat(wish: dict[str, Any], model: str, server: ServerFeatures) -> UpstreamRequest:
    """`/api/chat`.

    Args:
        wish: the body as it came.
        model: the name for the upstream.
        server: what the upstream may know.

    Raises:
        InvalidRequestError: a field is not of Ollama's shape.
    """
    body = {"model": model, "messages": map_messages(wish.get("messages"))} | _map_common(wish, local=server.local)
    if tools := wish.get("tools"):
        body["tools"] = _map_tools(tools)
    parameters, ignored = _map_options(wish, local=server.local)
    return UpstreamRequest("/v1/chat/completions", body | parameters, ignored)


def map_generate(wish: dict[str, Any], model: str, server: ServerFeatures) -> UpstreamRequest:
    """`/api/generate`: a chat of one message, because the upstream has the template; or with `raw`, or a suffix, the plain text.

    Raises:
        InvalidRequestError: a field is not of Ollama's shape, or asks for another template.
    """
    if read_text(wish, "template"):
        raise InvalidRequestError(
            "The template of a model cannot be changed here: leave it out, or send raw text.", param="template"
        )
    prompt, system, suffix = read_text(wish, "prompt"), read_text(wish, "system"), read_text(wish, "suffix")
    parameters, ignored = _map_options(wish, local=server.local)
    common = _map_common(wish, local=server.local)
    if wish.get("raw") or suffix:
        for field in ("images", "context"):
            if wish.get(field):
                raise InvalidRequestError(f"Raw text and text with a suffix have no place for {field}.", param=field)
        path, plain = _map_plain_prompt(prompt, suffix, server)
        if "logprobs" in common:  # which is a number on this route
            common["logprobs"] = common.pop("top_logprobs", 1)
        return UpstreamRequest(path, {"model": model} | plain | common | parameters, ignored)
    before = unpack_context(wish.get("context"))
    ignored += ("context",) if before is None else ()
    turns = tuple(turn for turn in before or () if not (system and turn[0] == "system"))
    turns = (("system", system), *turns) if system else turns
    said: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    said.append({"role": "user", "content": map_content(prompt, wish.get("images"))})
    body = {"model": model, "messages": said} | common | parameters
    return UpstreamRequest("/v1/chat/completions", body, ignored, (*turns, ("user", prompt)))


def _map_plain_prompt(prompt: str, suffix: str, server: ServerFeatures) -> tuple[str, dict[str, Any]]:
    """Route and fields for text without a template."""
    if suffix and server.infills:
        return "/infill", {"input_prefix": prompt, "input_suffix": suffix}
    return "/v1/completions", {"prompt": prompt} | ({"suffix": suffix} if suffix else {})


def map_embed(wish: dict[str, Any], model: str) -> UpstreamRequest | None:
    """`/api/embed`; None if there is nothing to embed.

    Raises:
        InvalidRequestError: the input is neither a string nor a list of strings.
    """
    given = wish.get("input")
    inputs = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise InvalidRequestError("invalid input type: input must be a string or a list of strings.", param="input")
    if not inputs or inputs == [""]:
        return None
    body: dict[str, Any] = {"model": model, "input": inputs, "encoding_format": "float"}
    if dimensions := wish.get("dimensions"):
        body["dimensions"] = dimensions
    return UpstreamRequest("/v1/embeddings", body)


def _map_common(wish: dict[str, Any], *, local: bool) -> dict[str, Any]:
    """What chat and generate share, options excepted."""
    body: dict[str, Any] = {"stream": is_streaming(wish)}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if wish.get("logprobs"):
        body["logprobs"] = True
        if top := wish.get("top_logprobs"):
            body["top_logprobs"] = top
    return body | _map_format(wish.get("format")) | _map_think(wish.get("think"), local=local)


def _map_format(wanted: Any) -> dict[str, Any]:
    """`json`, or a schema; the schema twice, because llama-server documents it beside the type and others inside an object."""
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, dict):
        named = {"name": "ollama", "schema": wanted}
        return {"response_format": {"type": "json_schema", "json_schema": named, "schema": wanted}}
    raise InvalidRequestError('format must be "json" or a JSON schema.', param="format")


def _map_think(wanted: Any, *, local: bool) -> dict[str, Any]:
    """Whether to think, which only templates know, or how hard."""
    if wanted is None:
        return {}
    if isinstance(wanted, bool):
        return {"chat_template_kwargs": {"enable_thinking": wanted}} if local else {}
    if effort := EFFORTS.get(wanted) if isinstance(wanted, str) else None:
        templated = {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": effort}} if local else {}
        return {"reasoning_effort": effort} | templated
    raise InvalidRequestError(f"think must be true, false, {', '.join(EFFORTS)}, not {str(wanted)[:40]!r}.", param="think")


def _map_options(wish: dict[str, Any], *, local: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters for the upstream, and the options for which it has none."""
    options = wish.get("options") or {}
    if not isinstance(options, dict):
        raise InvalidRequestError("options must be an object.", param="options")
    given = {name: _parse_option(name, value) for name, value in options.items() if value is not None}
    taken = SHARED_OPTIONS + (LOCAL_OPTIONS if local else ())
    parameters = {name: given[name] for name in taken if name in given}
    if (limit := given.get("num_predict", 0)) > 0:  # below that: as much as there is
        parameters["max_tokens"] = limit
    return parameters, tuple(sorted(given.keys() - {*taken, "num_predict"}))


MAX_NUMBER = sys.float_info.max
"""A whole number in JSON may have any number of digits, and no engine takes one beyond this."""


def _parse_option(name: str, value: Any) -> Any:
    """An option's value in the type that it has.

    Raises:
        InvalidRequestError: it is of another one, in Ollama's words.
    """
    if name == "stop" or name not in (*SHARED_OPTIONS, *LOCAL_OPTIONS, *INTEGER_OPTIONS):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    if not number:
        kind = "integer" if name in INTEGER_OPTIONS else "float32"
        raise InvalidRequestError(f'option "{name}" must be of type {kind}, not {str(value)[:40]!r}.', param="options")
    return int(value) if name in INTEGER_OPTIONS else value


def _map_tools(given: Any) -> list[Any]:
    """Tools, each with parameters: some clients leave them out and some servers insist."""
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise InvalidRequestError("tools must be a list of objects.", param="tools")
    nothing = {"type": "object", "properties": {}}
    return [
        {**tool, "function": {"parameters": nothing, **tool["function"]}} if isinstance(tool.get("function"), dict) else tool
        for tool in given
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
        """The id of a call: its own, or one made up."""
        self._count += 1
        self._pending.append(PendingToolCall(id or f"call_{self._count}", name))
        return self._pending[-1].id

    def match_reply(self, id: str, name: str) -> str:
        """The id of the call that a reply belongs to: by id, by name, else the oldest."""
        if not id:
            named = [call for call in self._pending if call.name == name] or self._pending
            id = named[0].id if named else self.add("", name)
        self._pending = [call for call in self._pending if call.id != id]
        return id


def map_messages(given: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Raises:
        InvalidRequestError: they are not of Ollama's shape.
    """
    if not isinstance(given, list):
        raise InvalidRequestError("messages must be a list.", param="messages")
    calls = ToolCallIds()
    return [_map_message(message, calls, f"messages[{number}]") for number, message in enumerate(given)]


def map_content(text: str, images: Any, where: str = "images") -> str | list[dict[str, Any]]:
    """Text and attachments as the content of a message."""
    parts = decode_attachments(images, where)
    for number, part in enumerate(parts):
        if not part.kind:
            raise InvalidRequestError(f"{where}[{number}] is neither a picture nor audio of a known format.", param="images")
    if not parts:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *(part.message_part for part in parts)]


def _map_message(given: Any, calls: ToolCallIds, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{where} must be an object.", param="messages")
    role = read_text(given, "role", where)
    if not role:  # templates know others than Ollama's four, such as `control`: what is none to them is for the upstream to say
        raise InvalidRequestError(f"{where}.role must say who speaks: system, user, assistant, tool ...", param="messages")
    said = read_text(given, "content", where)
    message: dict[str, Any] = {"role": role, "content": map_content(said, given.get("images"), f"{where}.images")}
    if role == "tool":
        name = read_text(given, "tool_name", where) or read_text(given, "name", where)
        message["tool_call_id"] = calls.match_reply(read_text(given, "tool_call_id", where), name)
    if thinking := read_text(given, "thinking", where):
        message["reasoning_content"] = thinking
    if made := given.get("tool_calls"):
        if not isinstance(made, list):
            raise InvalidRequestError(f"{where}.tool_calls must be a list.", param="messages")
        message["tool_calls"] = [_map_tool_call(call, calls, where) for call in made]
    return message


def _map_tool_call(given: Any, calls: ToolCallIds, where: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"{where}.tool_calls: each must have a function with a name.", param="messages")
    arguments = function.get("arguments") or {}
    id = given.get("id")
    return {
        "id": calls.add(id if isinstance(id, str) else "", function["name"]),
        "type": "function",
        "function": {
            "name": function["name"],
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
        },
    }


IMAGE_SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
AUDIO_SIGNATURES = {b"ID3": "mp3", b"OggS": "ogg", b"fLaC": "flac", b"\x1aE\xdf\xa3": "webm"}
INPUT_AUDIO_FORMATS = ("wav", "mp3")
"""Formats that `input_audio` can name."""


@dataclass(frozen=True, slots=True)
class MediaAttachment:
    """One entry of `images`: its bytes, and what they are."""

    data: bytes
    encoded: str
    """Base64 without line breaks."""
    kind: str
    """"image", "audio", or "" if nobody knows."""
    format: str

    @property
    def message_part(self) -> dict[str, Any]:
        """As a part of a message for OpenAI's chat."""
        if self.kind == "audio" and self.format in INPUT_AUDIO_FORMATS:
            return {"type": "input_audio", "input_audio": {"data": self.encoded, "format": self.format}}
        address = {"url": f"data:{self.kind or 'image'}/{self.format};base64,{self.encoded}"}
        return (
            {"type": "audio_url", "audio_url": address} if self.kind == "audio" else {"type": "image_url", "image_url": address}
        )


def decode_attachments(images: Any, where: str = "images") -> list[MediaAttachment]:
    """The decoded entries of a list of base64 strings, data URIs included.

    Raises:
        InvalidRequestError: it is no such list.
    """
    if images is None:
        return []
    if not isinstance(images, list):
        raise InvalidRequestError(f"{where} must be a list of base64 strings.", param="images")
    return [_decode_attachment(image, f"{where}[{number}]") for number, image in enumerate(images)]


def _decode_attachment(image: Any, where: str) -> MediaAttachment:
    if not isinstance(image, str):
        raise InvalidRequestError(f"{where} must be a base64 string.", param="images")
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
    """Kind and format by the first bytes."""
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
