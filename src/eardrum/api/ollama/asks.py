"""What Ollama's requests become for an upstream that speaks OpenAI's API. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from eardrum.api.ollama.context import Turns, unpacked
from eardrum.api.ollama.fields import streams, text
from eardrum.api.ollama.messages import content, messages
from eardrum.errors import InvalidRequestError

SHARED = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Options that OpenAI has too."""

LOCAL = (
    "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""Options that servers such as llama-server have, under the same names, and clouds refuse."""

WHOLE = ("num_predict", "top_k", "seed", "repeat_last_n", "mirostat")
"""Options that are whole numbers. Languages that know one kind of number only send them as `10.0`."""

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""How hard to think, in OpenAI's words, which know no more than high everywhere."""


@dataclass(frozen=True, slots=True)
class Server:
    """What an upstream may know beyond OpenAI's API."""

    local: bool = True
    """Sampling parameters and settings of templates."""
    infills: bool = False
    """llama-server's `/infill`; its `/v1/completions` passes over a suffix."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to an upstream."""

    path: str
    body: dict[str, Any]
    ignored: tuple[str, ...] = ()
    """What has no effect: options that a server takes only when it starts, if at all, and the `context` of another server."""
    turns: Turns | None = None
    """What will have been said before the answer, for routes that remember it."""


def chat(wish: dict[str, Any], model: str, server: Server) -> Ask:
    """`/api/chat`.

    Args:
        wish: the body as it came.
        model: the name for the upstream.
        server: what the upstream may know.

    Raises:
        InvalidRequestError: a field is not of Ollama's shape.
    """
    body = {"model": model, "messages": messages(wish.get("messages"))} | _common(wish, local=server.local)
    if tools := wish.get("tools"):
        body["tools"] = _tools(tools)
    parameters, ignored = _options(wish, local=server.local)
    return Ask("/v1/chat/completions", body | parameters, ignored)


def generate(wish: dict[str, Any], model: str, server: Server) -> Ask:
    """`/api/generate`: a chat of one message, because the upstream has the template; or with `raw`, or a suffix, the plain text.

    Raises:
        InvalidRequestError: a field is not of Ollama's shape, or asks for another template.
    """
    if text(wish, "template"):
        raise InvalidRequestError(
            "The template of a model cannot be changed here: leave it out, or send raw text.", param="template"
        )
    prompt, system, suffix = text(wish, "prompt"), text(wish, "system"), text(wish, "suffix")
    parameters, ignored = _options(wish, local=server.local)
    common = _common(wish, local=server.local)
    if wish.get("raw") or suffix:
        for field in ("images", "context"):
            if wish.get(field):
                raise InvalidRequestError(f"Raw text and text with a suffix have no place for {field}.", param=field)
        path, plain = _plain(prompt, suffix, server)
        if "logprobs" in common:  # which is a number on this route
            common["logprobs"] = common.pop("top_logprobs", 1)
        return Ask(path, {"model": model} | plain | common | parameters, ignored)
    before = unpacked(wish.get("context"))
    ignored += ("context",) if before is None else ()
    turns = tuple(turn for turn in before or () if not (system and turn[0] == "system"))
    turns = (("system", system), *turns) if system else turns
    said: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    said.append({"role": "user", "content": content(prompt, wish.get("images"))})
    body = {"model": model, "messages": said} | common | parameters
    return Ask("/v1/chat/completions", body, ignored, (*turns, ("user", prompt)))


def _plain(prompt: str, suffix: str, server: Server) -> tuple[str, dict[str, Any]]:
    """Route and fields for text without a template."""
    if suffix and server.infills:
        return "/infill", {"input_prefix": prompt, "input_suffix": suffix}
    return "/v1/completions", {"prompt": prompt} | ({"suffix": suffix} if suffix else {})


def embed(wish: dict[str, Any], model: str) -> Ask | None:
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
    return Ask("/v1/embeddings", body)


def _common(wish: dict[str, Any], *, local: bool) -> dict[str, Any]:
    """What chat and generate share, options excepted."""
    body: dict[str, Any] = {"stream": streams(wish)}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if wish.get("logprobs"):
        body["logprobs"] = True
        if top := wish.get("top_logprobs"):
            body["top_logprobs"] = top
    return body | _format(wish.get("format")) | _think(wish.get("think"), local=local)


def _format(wanted: Any) -> dict[str, Any]:
    """`json`, or a schema; the schema twice, because llama-server documents it beside the type and others inside an object."""
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, dict):
        named = {"name": "ollama", "schema": wanted}
        return {"response_format": {"type": "json_schema", "json_schema": named, "schema": wanted}}
    raise InvalidRequestError('format must be "json" or a JSON schema.', param="format")


def _think(wanted: Any, *, local: bool) -> dict[str, Any]:
    """Whether to think, which only templates know, or how hard."""
    if wanted is None:
        return {}
    if isinstance(wanted, bool):
        return {"chat_template_kwargs": {"enable_thinking": wanted}} if local else {}
    if effort := EFFORTS.get(wanted) if isinstance(wanted, str) else None:
        templated = {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": effort}} if local else {}
        return {"reasoning_effort": effort} | templated
    raise InvalidRequestError(f"think must be true, false, {', '.join(EFFORTS)}, not {str(wanted)[:40]!r}.", param="think")


def _options(wish: dict[str, Any], *, local: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters for the upstream, and the options for which it has none."""
    options = wish.get("options") or {}
    if not isinstance(options, dict):
        raise InvalidRequestError("options must be an object.", param="options")
    given = {name: _option(name, value) for name, value in options.items() if value is not None}
    taken = SHARED + (LOCAL if local else ())
    parameters = {name: given[name] for name in taken if name in given}
    if (limit := given.get("num_predict", 0)) > 0:  # below that: as much as there is
        parameters["max_tokens"] = limit
    return parameters, tuple(sorted(given.keys() - {*taken, "num_predict"}))


LARGEST = sys.float_info.max
"""A whole number in JSON may have any number of digits, and no engine takes one beyond this."""


def _option(name: str, value: Any) -> Any:
    """An option's value in the type that it has.

    Raises:
        InvalidRequestError: it is of another one, in Ollama's words.
    """
    if name == "stop" or name not in (*SHARED, *LOCAL, *WHOLE):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if not number:
        kind = "integer" if name in WHOLE else "float32"
        raise InvalidRequestError(f'option "{name}" must be of type {kind}, not {str(value)[:40]!r}.', param="options")
    return int(value) if name in WHOLE else value


def _tools(given: Any) -> list[Any]:
    """Tools, each with parameters: some clients leave them out and some servers insist."""
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise InvalidRequestError("tools must be a list of objects.", param="tools")
    nothing = {"type": "object", "properties": {}}
    return [
        {**tool, "function": {"parameters": nothing, **tool["function"]}} if isinstance(tool.get("function"), dict) else tool
        for tool in given
    ]
