"""Messages of TingWu's `/ws/realtime`: what its clients say, and what they are told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from eardrum import json_text
from eardrum.api.whole_text import check_whole
from eardrum.errors import InvalidRequestError, TooLargeError
from eardrum.live import Settings
from eardrum.types import Capabilities

CHUNK_BYTES = 9600
"""How much audio a client had best send at a time: 300 ms."""
HEARTBEAT_S = 30
LARGEST = 4 << 20
"""Bytes of one message."""
MAX_PROMPT = 4000


class Mode(StrEnum):
    """Which text a client wants: while somebody speaks, once it is over, or both."""

    BOTH = "2pass"
    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client has said of itself so far."""

    mode: Mode = Mode.BOTH
    hotwords: tuple[str, ...] = ()
    speaking: bool = True
    """False from when it says that nobody speaks any more."""

    def changed(self, said: Mapping[str, Any]) -> Wishes:
        """The same, but for what is said. What else a message has (`chunk_interval` ...) has no effect here.

        Raises:
            InvalidRequestError: a value cannot be.
        """
        return Wishes(
            mode=_mode(said["mode"]) if said.get("mode") else self.mode,
            hotwords=_hotwords(said["hotwords"]) if "hotwords" in said else self.hotwords,
            speaking=bool(said.get("is_speaking", self.speaking)),
        )

    def settings(self, base: Settings, can: Capabilities) -> Settings:
        """The session's settings. Hotwords become the prompt of a model that has no ear for them."""
        words = self.hotwords
        prompt = base.request.prompt if can.hotwords or not words else " ".join(words)[:MAX_PROMPT]
        return replace(base, request=replace(base.request, hotwords=words, prompt=prompt), partials=self.mode is not Mode.OFFLINE)


def parsed(message: str) -> dict[str, Any]:
    """A text message.

    Raises:
        InvalidRequestError: it is no JSON object.
    """
    try:
        said = json_text.parsed(message)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise InvalidRequestError('A text message is a JSON object, as in {"is_speaking": false}; audio goes into binary ones.')
    check_whole(message, said)
    return said


def check_size(message: str | bytes) -> None:
    """Refuse what no client of sense sends.

    Raises:
        TooLargeError: the message is larger.
    """
    if len(message) > LARGEST:
        raise TooLargeError(f"One message holds at most {LARGEST >> 20} MiB: send smaller ones.")


def connected(id: str) -> dict[str, Any]:
    """The greeting."""
    config = {"chunk_size": CHUNK_BYTES, "heartbeat_interval": HEARTBEAT_S, "compression": False}
    return {"type": "connected", "connection_id": id, "config": config}


def text(mode: Mode, text: str, *, final: bool) -> dict[str, Any]:
    """Text, which takes the place of all that came since the last final one."""
    kind: str = mode
    if mode is Mode.BOTH:
        kind = "2pass-offline" if final else "2pass-online"
    return {"mode": kind, "text": text.strip(), "is_final": final}


def ping(now: float) -> dict[str, Any]:
    """A heartbeat at a Unix time."""
    return {"type": "ping", "timestamp": now}


def warning(sentence: str, backend: str) -> dict[str, Any]:
    """What went wrong; TingWu's own page shows it."""
    return {"warning": sentence, "backend": backend}


def _mode(value: Any) -> Mode:
    try:
        return Mode(value)
    except ValueError:
        shown = json.dumps(value)[:100]
        raise InvalidRequestError(f"mode must be {', '.join(Mode)}, not {shown}.", param="mode") from None


def _hotwords(value: Any) -> tuple[str, ...]:
    """One per word or line, or a list."""
    if isinstance(value, str):
        return tuple(re.split(r"\s+", value.strip())) if value.strip() else ()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if value is None:
        return ()
    raise InvalidRequestError("hotwords must be a text with words or lines, or a list of texts.", param="hotwords")
