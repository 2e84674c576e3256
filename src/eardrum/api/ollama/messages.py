"""Ollama's messages as OpenAI's. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from eardrum.api.ollama.fields import text
from eardrum.api.ollama.images import attachments
from eardrum.errors import InvalidRequestError


@dataclass(slots=True)
class Call:
    """A tool call in the history that has no reply yet."""

    id: str
    name: str


@dataclass(slots=True)
class Calls:
    """Ids of tool calls. Ollama's clients may leave them out and reply by the tool's name, or only in order."""

    _open: list[Call] = field(default_factory=list)
    _made: int = 0

    def add(self, id: str, name: str) -> str:
        """The id of a call: its own, or one made up."""
        self._made += 1
        self._open.append(Call(id or f"call_{self._made}", name))
        return self._open[-1].id

    def reply(self, id: str, name: str) -> str:
        """The id of the call that a reply belongs to: by id, by name, else the oldest."""
        if not id:
            named = [call for call in self._open if call.name == name] or self._open
            id = named[0].id if named else self.add("", name)
        self._open = [call for call in self._open if call.id != id]
        return id


def messages(given: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Raises:
        InvalidRequestError: they are not of Ollama's shape.
    """
    if not isinstance(given, list):
        raise InvalidRequestError("messages must be a list.", param="messages")
    calls = Calls()
    return [_message(message, calls, f"messages[{number}]") for number, message in enumerate(given)]


def content(text: str, images: Any, where: str = "images") -> str | list[dict[str, Any]]:
    """Text and attachments as the content of a message."""
    parts = attachments(images, where)
    for number, part in enumerate(parts):
        if not part.kind:
            raise InvalidRequestError(f"{where}[{number}] is neither a picture nor audio of a known format.", param="images")
    if not parts:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *(part.part for part in parts)]


def _message(given: Any, calls: Calls, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{where} must be an object.", param="messages")
    role = text(given, "role", where)
    if not role:  # templates know others than Ollama's four, such as `control`: what is none to them is for the upstream to say
        raise InvalidRequestError(f"{where}.role must say who speaks: system, user, assistant, tool ...", param="messages")
    said = text(given, "content", where)
    message: dict[str, Any] = {"role": role, "content": content(said, given.get("images"), f"{where}.images")}
    if role == "tool":
        name = text(given, "tool_name", where) or text(given, "name", where)
        message["tool_call_id"] = calls.reply(text(given, "tool_call_id", where), name)
    if thinking := text(given, "thinking", where):
        message["reasoning_content"] = thinking
    if made := given.get("tool_calls"):
        if not isinstance(made, list):
            raise InvalidRequestError(f"{where}.tool_calls must be a list.", param="messages")
        message["tool_calls"] = [_tool_call(call, calls, where) for call in made]
    return message


def _tool_call(given: Any, calls: Calls, where: str) -> dict[str, Any]:
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
