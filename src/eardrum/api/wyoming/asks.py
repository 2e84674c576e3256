"""What a `transcribe` event asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eardrum.errors import InvalidRequestError
from eardrum.languages import language_code
from eardrum.types import Priority, Request


@dataclass(frozen=True, slots=True)
class Ask:
    """The wishes for the utterance that follows; without the event there are none."""

    name: str = ""
    """Of a model."""
    language: str | None = None
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    """Names and terms of a house, in the order of their weight."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Ask:
        """What the event's data says; what is not known is passed over, as other servers do.

        Raises:
            InvalidRequestError: a field is not of its kind, or the language is none.
        """
        context = data.get("context") or {}
        return cls(
            name=_text(data, "name").strip(),
            language=language_code(_text(data, "language")),
            prompt=_prompt(context) if isinstance(context, dict) else "",
            hotwords=(*_texts(data, "transcript_names"), *_texts(data, "transcript_terms")),
        )

    @property
    def request(self) -> Request:
        """The wishes in the words of the house."""
        return Request(language=self.language, prompt=self.prompt, hotwords=self.hotwords, priority=Priority.LIVE)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequestError(f"`{name}` of a transcribe event is a text, not {value!r:.40}.", param=name)
    return value


def _texts(data: dict[str, Any], name: str) -> tuple[str, ...]:
    values = data.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidRequestError(f"`{name}` of a transcribe event is a list of texts.", param=name)
    return tuple(value.strip() for value in values if value.strip())


def _prompt(context: dict[str, Any]) -> str:
    """`context` is free; these are the words that other servers read in it."""
    found = (context.get(name) for name in ("initial_prompt", "prompt"))
    return next((text for text in found if isinstance(text, str) and text), "")
