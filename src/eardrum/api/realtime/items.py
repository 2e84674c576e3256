"""What happens in a session, as the Realtime API tells it: every utterance becomes an item of a conversation. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eardrum.api.realtime import refusals
from eardrum.live import Committed, Failed, Final, Idle, Partial, SpeechStarted, SpeechStopped
from eardrum.types import Segment

Wire = dict[str, Any]
"""An event as the client gets it, less its id."""

Spoken = SpeechStarted | Partial | SpeechStopped | Committed | Final | Failed
"""Events of one utterance."""

TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class Item:
    """An utterance without its text yet."""

    id: str
    told: str = ""
    """The text that deltas have told."""


@dataclass(slots=True)
class Items:
    """The items of a session."""

    session: str
    beta: bool = False
    logprobs: bool = False
    """Token probabilities are wanted with each transcript."""
    language: str = ""
    """What the client says is spoken; nothing is detected then."""
    _open: dict[int, Item] = field(default_factory=dict)
    """By utterance."""
    _last: str | None = None
    """The id of the last item that was committed."""
    _heard: float = 0.0
    """The end of the last utterance, in seconds."""
    _count: int = 0

    def told(self, event: Spoken) -> Iterator[Wire]:
        """What the client is told of an event."""
        item = self._item(event.utterance)
        match event:
            case SpeechStarted(at=at):
                yield _buffer("speech_started", audio_start_ms=_ms(at), item_id=item.id)
            case SpeechStopped(at=at):
                yield _buffer("speech_stopped", audio_end_ms=_ms(at), item_id=item.id)
            case Partial(stable=text):
                yield from _deltas(item, text)
            case Committed(end=end):
                self._heard = end
                yield from self._committed(item)
            case Final():
                yield from _deltas(item, event.text)
                yield self._completed(item, event)
                del self._open[event.utterance]
            case Failed(error=error):
                yield {"type": f"{TRANSCRIPTION}.failed", "item_id": item.id, "content_index": 0, "error": refusals.worded(error)}
                del self._open[event.utterance]

    def idle(self, event: Idle) -> Iterator[Wire]:
        """The silence, which becomes an item without text."""
        item, since = Item(self._new()), self._heard
        yield _buffer("timeout_triggered", audio_start_ms=_ms(since), audio_end_ms=_ms(event.at), item_id=item.id)
        self._heard = event.at
        yield from self._committed(item)
        yield self._completed(item, Final(0, since, event.at, ""))

    def given_up(self, utterance: int) -> None:
        """The audio of the utterance was cleared."""
        self._open.pop(utterance, None)

    def _item(self, utterance: int) -> Item:
        if utterance not in self._open:
            self._open[utterance] = Item(self._new())
        return self._open[utterance]

    def _new(self) -> str:
        self._count += 1
        return f"item_{self.session}_{self._count}"

    def _committed(self, item: Item) -> Iterator[Wire]:
        before, self._last = self._last, item.id
        yield _buffer("committed", previous_item_id=before, item_id=item.id)
        content = [{"type": "input_audio", "transcript": None}]
        message = {"id": item.id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        for name in ("created",) if self.beta else ("added", "done"):
            yield {
                "type": f"conversation.item.{name}",
                "previous_item_id": before,
                "item": {**message, "content": content},
            }

    def _completed(self, item: Item, final: Final) -> Wire:
        event: Wire = {
            "type": f"{TRANSCRIPTION}.completed",
            "item_id": item.id,
            "content_index": 0,
            "transcript": final.text,
            "usage": {"type": "duration", "seconds": round(final.end - final.start, 3)},
        }
        if final.language and not self.language:
            event["languages"] = [{"code": final.language}]
        if self.logprobs:
            event["logprobs"] = _logprobs(final.segments)
        return event


def _deltas(item: Item, text: str) -> Iterator[Wire]:
    """The text behind what was told; deltas joined are the transcript."""
    if len(text) > len(item.told) and text.startswith(item.told):
        delta, item.told = text[len(item.told) :], text
        yield {"type": f"{TRANSCRIPTION}.delta", "item_id": item.id, "content_index": 0, "delta": delta}


def _buffer(name: str, **facts: object) -> Wire:
    return {"type": f"input_audio_buffer.{name}", **facts}


def _logprobs(segments: tuple[Segment, ...]) -> list[dict[str, Any]]:
    tokens = [token for segment in segments for token in segment.token_logprobs]
    return [{"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())} for token in tokens]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
