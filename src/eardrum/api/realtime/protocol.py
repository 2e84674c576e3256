"""Turns the client's Realtime events into steps for a session, and the session's events into server events. Pure.

Every utterance becomes an item of a conversation.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from eardrum.api.fields import RequestModel, show_value
from eardrum.api.realtime.session_config import RealtimeConfig, is_beta
from eardrum.api.request_body import parse_object
from eardrum.api.websocket import CloseCode, get_close_code
from eardrum.errors import EardrumError, EmptyCommitError, InvalidRequestError, TooLargeError, UnsupportedFeatureError
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionSettings,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.transcription import Segment, TranscriptionRequest

WireEvent = dict[str, Any]
"""A server event without its id."""

UtteranceEvent = SpeechStarted | PartialTranscript | SpeechStopped | UtteranceCommitted | FinalTranscript | UtteranceFailed
"""Events of one utterance."""

TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class ConversationItem:
    """An utterance without its text yet."""

    id: str
    sent_text: str = ""
    """The part of the text that was sent in deltas."""


@dataclass(slots=True)
class ConversationItems:
    """The items of a session."""

    session: str
    beta: bool = False
    logprobs: bool = False
    """Whether each transcript has token probabilities."""
    language: str = ""
    """The language that the client named; empty if the model detects it."""
    _open: dict[int, ConversationItem] = field(default_factory=dict)
    """By utterance."""
    _last: str | None = None
    """The id of the last item that was committed."""
    _last_end: float = 0.0
    """The end of the last utterance, in seconds."""
    _count: int = 0

    def handle_event(self, event: UtteranceEvent) -> Iterator[WireEvent]:
        """Yield the server events for an event of an utterance."""
        item = self._get_item(event.utterance)
        match event:
            case SpeechStarted(at=at):
                yield _build_buffer_event("speech_started", audio_start_ms=_to_ms(at), item_id=item.id)
            case SpeechStopped(at=at):
                yield _build_buffer_event("speech_stopped", audio_end_ms=_to_ms(at), item_id=item.id)
            case PartialTranscript(stable=text):
                yield from _build_deltas(item, text)
            case UtteranceCommitted(end=end):
                self._last_end = end
                yield from self._commit_item(item)
            case FinalTranscript():
                yield from _build_deltas(item, event.text)
                yield self._build_completed(item, event)
                del self._open[event.utterance]
            case UtteranceFailed(error=error):
                yield {"type": f"{TRANSCRIPTION}.failed", "item_id": item.id, "content_index": 0, "error": build_error(error)}
                del self._open[event.utterance]

    def handle_idle(self, event: SpeechIdle) -> Iterator[WireEvent]:
        """Yield the server events for a silence, which becomes an item without text."""
        item, since = ConversationItem(self._make_id()), self._last_end
        yield _build_buffer_event(
            "timeout_triggered", audio_start_ms=_to_ms(since), audio_end_ms=_to_ms(event.at), item_id=item.id
        )
        self._last_end = event.at
        yield from self._commit_item(item)
        yield self._build_completed(item, FinalTranscript(0, since, event.at, ""))

    def discard(self, utterance: int) -> None:
        """Drop the item of an utterance whose audio was cleared."""
        self._open.pop(utterance, None)

    def _get_item(self, utterance: int) -> ConversationItem:
        if utterance not in self._open:
            self._open[utterance] = ConversationItem(self._make_id())
        return self._open[utterance]

    def _make_id(self) -> str:
        self._count += 1
        return f"item_{self.session}_{self._count}"

    def _commit_item(self, item: ConversationItem) -> Iterator[WireEvent]:
        before, self._last = self._last, item.id
        yield _build_buffer_event("committed", previous_item_id=before, item_id=item.id)
        content = [{"type": "input_audio", "transcript": None}]
        message = {"id": item.id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        for name in ("created",) if self.beta else ("added", "done"):
            yield {
                "type": f"conversation.item.{name}",
                "previous_item_id": before,
                "item": {**message, "content": content},
            }

    def _build_completed(self, item: ConversationItem, final: FinalTranscript) -> WireEvent:
        event: WireEvent = {
            "type": f"{TRANSCRIPTION}.completed",
            "item_id": item.id,
            "content_index": 0,
            "transcript": final.text,
            "usage": {"type": "duration", "seconds": round(final.end - final.start, 3)},
        }
        if final.language and not self.language:
            event["languages"] = [{"code": final.language}]
        if self.logprobs:
            event["logprobs"] = _describe_logprobs(final.segments)
        return event


def _build_deltas(item: ConversationItem, text: str) -> Iterator[WireEvent]:
    """Yield the text that was not sent yet. All deltas of an item, joined, are its transcript."""
    if len(text) > len(item.sent_text) and text.startswith(item.sent_text):
        delta, item.sent_text = text[len(item.sent_text) :], text
        yield {"type": f"{TRANSCRIPTION}.delta", "item_id": item.id, "content_index": 0, "delta": delta}


def _build_buffer_event(name: str, **facts: object) -> WireEvent:
    return {"type": f"input_audio_buffer.{name}", **facts}


def _describe_logprobs(segments: tuple[Segment, ...]) -> list[dict[str, Any]]:
    tokens = [token for segment in segments for token in segment.token_logprobs]
    return [{"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())} for token in tokens]


def _to_ms(seconds: float) -> int:
    return round(seconds * 1000)


MAX_AUDIO_BYTES = 15 << 20
"""Bytes of audio in one event."""
MAX_EVENT_CHARS = (MAX_AUDIO_BYTES + 2) // 3 * 4 + 4096
"""Characters of the longest event."""
MAX_EVENT_ID_CHARS = 512
"""Characters of a client's `event_id`: it is kept until the answer."""

CONVERSATION_PREFIXES = ("response.", "conversation.item.", "output_audio_buffer.")
"""Prefixes of the events for conversations, in which the model answers."""

ModelAdmission = Callable[[str, TranscriptionRequest], tuple[str, TranscriptionRequest]]
"""Returns the id of the model with this name, and the request completed for it. Raises an `EardrumError` if there is no
such model, or if it does not support the request."""


class UpdateEvent(RequestModel):
    """A client's change of the session's configuration."""

    session: dict[str, Any]


class OpenSession(Struct, frozen=True):
    """Begin a session with the model of this id. A session that was begun before has no audio, and is closed."""

    model: str
    settings: SessionSettings


class CloseConnection(Struct, frozen=True):
    """End the connection."""

    code: CloseCode
    reason: str


ProtocolStep = WireEvent | bytes | OpenSession | ConfigureCommand | CommitCommand | ClearCommand | CloseConnection
"""An event for the client, or audio or a command for the session."""


class RealtimeProtocol:
    """The state of one connection. Sans-IO: it turns messages and events into steps.

    Args:
        id: The session's id, which begins the ids of its items and events.
        admit: Finds the model and completes the request for it.
        config: The configuration until the client's first update.
        beta: Whether to speak the beta's events from the start. The first `transcription_session.update` has the same effect.
        certain: Whether the model in `config` is the one that will transcribe, and not a default that an update may replace.
    """

    def __init__(self, id: str, admit: ModelAdmission, config: RealtimeConfig, *, beta: bool = False, certain: bool = True):
        self._id = id
        self._admit = admit
        self._config = config
        self._certain = certain
        self._items = ConversationItems(id, beta, bool(config.include), config.language)
        self._opened = ""  # the id of the session's model, once there is a session
        self._audio = False  # whether the client has sent audio
        self._fresh = False  # whether the client has sent audio since its last commit or clear
        self._pending_commits: deque[str | None] = deque()  # ids of the client's commits without an answer
        self._last_commit: str | None = None  # id of the last commit that was answered
        self._events = 0

    def greet(self) -> Iterator[ProtocolStep]:
        """Yield the events before the client's first one. If the model is certain and not available, the connection ends."""
        name = "transcription_session.created" if self._items.beta and self._certain else "session.created"
        yield self._describe_session(name, beta=self._items.beta)
        if self._certain and self._config.model:
            try:
                self._admit_model(self._config)
            except EardrumError as error:
                yield from self.fail(error)

    def receive_message(self, message: str | bytes) -> Iterator[ProtocolStep]:
        """Yield the steps that a message of the client leads to. An invalid message leads to an error event."""
        id: str | None = None
        try:
            event = _parse_event(message)
            id = event["event_id"][:MAX_EVENT_ID_CHARS] if isinstance(event.get("event_id"), str) else None
            yield from self._handle_event(event, id)
        except EardrumError as error:
            yield self._add_event_id({"type": "error", "error": {**build_error(error), "event_id": id}})

    def receive_event(self, event: LiveEvent) -> Iterator[WireEvent]:
        """Yield the server events for an event of the session."""
        match event:
            case CommandRefused(error=error):
                id = self._pending_commits.popleft() if self._pending_commits else self._last_commit
                yield self._add_event_id({"type": "error", "error": {**build_error(error), "event_id": id}})
            case UtteranceCleared(utterance=utterance):
                self._items.discard(utterance)
                yield self._add_event_id({"type": "input_audio_buffer.cleared"})
            case SpeechIdle():
                yield from map(self._add_event_id, self._items.handle_idle(event))
            case UtteranceCommitted():
                if self._pending_commits:
                    self._last_commit = self._pending_commits.popleft()  # if a pause was first, the commit will be refused
                yield from map(self._add_event_id, self._items.handle_event(event))
            case SpeechStarted() | PartialTranscript() | SpeechStopped() | FinalTranscript() | UtteranceFailed():
                yield from map(self._add_event_id, self._items.handle_event(event))
            case _:
                return

    def fail(self, error: EardrumError) -> Iterator[ProtocolStep]:
        """Yield the error event that ends the connection, and the end."""
        yield self._add_event_id({"type": "error", "error": {**build_error(error), "event_id": None}})
        yield CloseConnection(get_close_code(error), get_close_reason(error))

    def _handle_event(self, event: dict[str, Any], id: str | None) -> Iterator[ProtocolStep]:
        match kind := event["type"]:
            case "input_audio_buffer.append":
                yield from self._append_audio(event)
            case "input_audio_buffer.commit":
                yield from self._commit(id)
            case "input_audio_buffer.clear":
                self._fresh = False
                yield ClearCommand() if self._opened else self._add_event_id({"type": "input_audio_buffer.cleared"})
            case "session.update" | "transcription_session.update":
                yield from self._update(event)
            case _ if kind.startswith(CONVERSATION_PREFIXES):
                raise UnsupportedFeatureError(f"This server only transcribes: it does not accept {kind[:80]}.", param="type")
            case _:
                raise UnknownEventError(
                    f"There is no event of the type {show_value(kind)}. "
                    "This server takes session.update, input_audio_buffer.append, "
                    "input_audio_buffer.commit and input_audio_buffer.clear.",
                    param="type",
                )

    def _append_audio(self, event: dict[str, Any]) -> Iterator[ProtocolStep]:
        audio = _decode_audio(event.get("audio"))
        if not audio:
            return
        if not self._opened:
            try:
                yield self._begin_session(*self._admit_model(self._config))
            except EardrumError as error:
                yield from self.fail(error)
                return
        self._audio = self._fresh = True
        yield audio

    def _commit(self, id: str | None) -> Iterator[ProtocolStep]:
        if not self._fresh:
            raise EmptyCommitError("There is no audio to commit: append some first.")
        self._fresh = False
        self._pending_commits.append(id)
        yield CommitCommand()

    def _update(self, event: dict[str, Any]) -> Iterator[ProtocolStep]:
        """Apply an update. An invalid one changes nothing."""
        session = UpdateEvent.parse({"session": event.get("session")}).session
        beta = self._items.beta or event["type"] == "transcription_session.update"
        is_flat = is_beta(session, beta=beta)
        new = self._config.update(session, beta=is_flat)
        model, settings = self._readmit_model(new)
        if self._audio:
            self._refuse_late(new, model)
        self._items.beta = beta
        self._items.logprobs, self._items.language = bool(new.include), new.language
        self._config = new
        yield self._describe_session(event["type"] + "d", beta=is_flat)
        yield ConfigureCommand(settings) if self._opened == model else self._begin_session(model, settings)

    def _refuse_late(self, new: RealtimeConfig, model: str) -> None:
        if new.audio_format != self._config.audio_format:
            raise InvalidRequestError("The format of the audio cannot change after the first audio: open another session.")
        if model != self._opened:
            raise InvalidRequestError("The model cannot change after the first audio: open another session.", param="model")

    def _admit_model(self, config: RealtimeConfig) -> tuple[str, SessionSettings]:
        model, request = self._admit(config.model, config.build_request())
        return model, config.build_settings(request)

    def _readmit_model(self, new: RealtimeConfig) -> tuple[str, SessionSettings]:
        """Admit the model of an updated config. The session keeps its model, although the name may stand for another one by now.

        If the client named no model, and the update names a language that the session's model does not support, a session
        without audio gets another model.
        """
        if not self._opened or new.model != self._config.model:
            return self._admit_model(new)
        try:
            _, request = self._admit(self._opened, new.build_request())
        except UnsupportedFeatureError:
            if self._audio:
                raise
            return self._admit_model(new)
        return self._opened, new.build_settings(request)

    def _begin_session(self, model: str, settings: SessionSettings) -> OpenSession:
        self._opened = model
        return OpenSession(model, settings)

    def _describe_session(self, type: str, *, beta: bool) -> WireEvent:
        return self._add_event_id({"type": type, "session": self._config.describe(f"sess_{self._id}", beta=beta)})

    def _add_event_id(self, event: WireEvent) -> WireEvent:
        """Return the event with the next id."""
        self._events += 1
        return {"type": event["type"], "event_id": f"event_{self._id}_{self._events}", **event}


def _parse_event(message: str | bytes) -> dict[str, Any]:
    """Parse a client event.

    Raises:
        InvalidRequestError: the message is not an event.
        TooLargeError: the event is larger than any valid one.
    """
    if isinstance(message, bytes):
        raise InvalidRequestError("Events are JSON in text frames: send audio as base64 in input_audio_buffer.append.")
    if len(message) > MAX_EVENT_CHARS:
        raise TooLargeError(f"An event may have {MAX_AUDIO_BYTES >> 20} MiB of audio: send smaller pieces.", param="audio")
    event = parse_object(
        message,
        not_json="The event is not valid JSON: {error}.",
        not_object='An event is a JSON object, as in {"type": "input_audio_buffer.commit"}.',
    )
    if not isinstance(event.get("type"), str):
        raise InvalidRequestError("An event needs the field `type`, a string.", param="type")
    return event


def _decode_audio(audio: object) -> bytes:
    if not isinstance(audio, str):
        raise InvalidRequestError(f"audio must be a string in base64, not {show_value(audio)}.", param="audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"audio is not valid base64: {error}.", param="audio") from None
    if len(data) > MAX_AUDIO_BYTES:
        raise TooLargeError(f"audio may be {MAX_AUDIO_BYTES >> 20} MiB at most: send smaller pieces.", param="audio")
    return data


class UnknownEventError(InvalidRequestError):
    """The API has no event of this type."""

    code = "unknown_event"


def build_error(error: EardrumError) -> dict[str, Any]:
    """Build the error object of an event."""
    return {"type": _get_error_type(error), "code": error.code, "message": error.message, "param": error.param}


def get_close_reason(error: EardrumError) -> str:
    """Return the close reason for this error, in OpenAI's form: `type.code`."""
    return f"{_get_error_type(error)}.{error.code}"


def _get_error_type(error: EardrumError) -> str:
    if error.status == 401:
        return "authentication_error"
    if error.status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"
