"""Turn detection on the wire, and what it means to a session. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eardrum.api.realtime.values import Part
from eardrum.live import Endpointing

SERVER, SEMANTIC = "server_vad", "semantic_vad"

PAUSES_S = {"low": 1.6, "medium": 0.8, "auto": 0.8, "high": 0.4}
"""Pauses that end a turn, by eagerness. No model here listens for the end of a thought, so a client who asks for that gets
patience in its stead."""

LONGEST_MS = 60_000


@dataclass(frozen=True, slots=True)
class Detection:
    """When the server commits by itself, in the words of the client."""

    type: str = SERVER
    threshold: float = 0.5
    prefix_padding_ms: float = 300
    silence_duration_ms: float = 500
    idle_timeout_ms: float | None = None
    eagerness: str = "auto"

    def endpointing(self) -> Endpointing:
        """The same for a session."""
        if self.type == SEMANTIC:
            return Endpointing(silence_s=PAUSES_S[self.eagerness])
        return Endpointing(
            threshold=self.threshold,
            prefix_s=self.prefix_padding_ms / 1000,
            silence_s=self.silence_duration_ms / 1000,
            idle_s=self.idle_timeout_ms / 1000 if self.idle_timeout_ms else None,
        )

    def shown(self) -> dict[str, Any]:
        """The same for the wire."""
        if self.type == SEMANTIC:
            return {"type": SEMANTIC, "eagerness": self.eagerness}
        return {
            "type": SERVER,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            "idle_timeout_ms": self.idle_timeout_ms,
        }


def changed(now: Detection | None, given: Part | None) -> Detection | None:
    """What a client's `turn_detection` makes of the one in force: null is none, what it leaves out stays.

    Raises:
        InvalidRequestError: a value is out of bounds.
    """
    if given is None:
        return None
    kind = given.choice("type", (SERVER, SEMANTIC), now.type if now else SERVER)
    old = now if now and now.type == kind else Detection(type=kind)
    if kind == SEMANTIC:
        return replace(old, eagerness=given.choice("eagerness", tuple(PAUSES_S), old.eagerness))
    idle = old.idle_timeout_ms
    if "idle_timeout_ms" in given:
        idle = given.number("idle_timeout_ms", 1, 24 * 3600_000, 0) or None
    return replace(
        old,
        threshold=given.number("threshold", 0.0, 1.0, old.threshold),
        prefix_padding_ms=given.number("prefix_padding_ms", 0, LONGEST_MS, old.prefix_padding_ms),
        silence_duration_ms=given.number("silence_duration_ms", 0, LONGEST_MS, old.silence_duration_ms),
        idle_timeout_ms=idle,
    )
