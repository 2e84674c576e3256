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

from eardrum.api.fields import RequestModel, show_value
from eardrum.api.realtime import session_config
from eardrum.api.realtime.session_config import RealtimeConfig
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
"""An event as the client gets it, less its id."""

UtteranceEvent = SpeechStarted | PartialTranscript | SpeechStopped | UtteranceCommitted | FinalTranscript | UtteranceFailed
"""Events of one utterance."""

TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class ConversationItem:
    """An utterance without its text yet."""

    id: str
    sent_text: str = ""
    """The text that deltas have told."""


@dataclass(slots=True)
class ConversationItems:
    """The items of a session."""

    session: str
    beta: bool = False
    logprobs: bool = False
    """Token probabilities are wanted with each transcript."""
    language: str = ""
    """What the client says is spoken; nothing is detected then."""
    _open: dict[int, ConversationItem] = field(default_factory=dict)
    """By utterance."""
    _last: str | None = None
    """The id of the last item that was committed."""
    _last_end: float = 0.0
    """The end of the last utterance, in seconds."""
    _count: int = 0

    def handle_event(self, event: UtteranceEvent) -> Iterator[WireEvent]:
        """What the client is told of an event."""
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
        """The silence, which becomes an item without text."""
        item, since = ConversationItem(self._make_id()), self._last_end
        yield _build_buffer_event(
            "timeout_triggered", audio_start_ms=_to_ms(since), audio_end_ms=_to_ms(event.at), item_id=item.id
        )
        self._last_end = event.at
        yield from self._commit_item(item)
        yield self._build_completed(item, FinalTranscript(0, since, event.at, ""))

    def discard(self, utterance: int) -> None:
        """The audio of the utterance was cleared."""
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
    """The text behind what was told; deltas joined are the transcript."""
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
"""Characters of an event with that much."""
MAX_EVENT_ID_CHARS = 512
"""Characters of a client's `event_id`: it is kept until the answer."""

CONVERSATION_PREFIXES = ("response.", "conversation.item.", "output_audio_buffer.")
"""How the types of events begin that are for sessions that talk."""

ModelAdmission = Callable[[str, TranscriptionRequest], tuple[str, TranscriptionRequest]]
"""The id of the model of this name, and the request as it gets it; raises an `EardrumError` if there is none, or if it cannot do
that."""


class UpdateEvent(RequestModel):
    """A client's change of the session's configuration."""

    session: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Begin a session with the model of this id; one that is there already has heard nothing and is given up."""

    model: str
    settings: SessionSettings


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """End the connection."""

    code: CloseCode
    reason: str


ProtocolStep = WireEvent | bytes | OpenSession | ConfigureCommand | CommitCommand | ClearCommand | CloseConnection
"""What is to be done: tell the client, or the session, the audio included."""


class RealtimeProtocol:
    """The state of a connection.

    Args:
        id: of the session; what it numbers begins with it.
        admit: says which model is meant and what it gets, or that it cannot.
        config: what is in force until the client says otherwise.
        beta: speak the beta's events from the start; the first `transcription_session.update` has the same effect.
        certain: the model that the config names is the one that is to transcribe.
    """

    def __init__(self, id: str, admit: ModelAdmission, config: RealtimeConfig, *, beta: bool = False, certain: bool = True):
        self._id = id
        self._admit = admit
        self._config = config
        self._certain = certain
        self._items = ConversationItems(id, beta)
        self._opened = ""  # the id of the session's model, once there is a session
        self._audio = False  # some has come
        self._fresh = False  # some has come that was neither committed nor cleared by the client
        self._pending_commits: deque[str | None] = deque()  # ids of the client's events that are commits without an answer
        self._last_commit: str | None = None  # the last of them that had one
        self._events = 0

    def greet(self) -> Iterator[ProtocolStep]:
        """What comes before the client has said anything. A model that cannot be had ends the connection, if it is certain that
        it is meant."""
        name = "transcription_session.created" if self._items.beta and self._certain else "session.created"
        yield self._describe_session(name, self._shape)
        if self._certain and self._config.model:
            try:
                self._admit_model(self._config)
            except EardrumError as error:
                yield from self.fail(error)

    def receive_message(self, message: str | bytes) -> Iterator[ProtocolStep]:
        """What is to be done about the client's next message."""
        id: str | None = None
        try:
            event = _parse_event(message)
            id = event["event_id"][:MAX_EVENT_ID_CHARS] if isinstance(event.get("event_id"), str) else None
            yield from self._handle_event(event, id)
        except EardrumError as error:
            yield self._add_event_id({"type": "error", "error": {**build_error(error), "event_id": id}})

    def receive_event(self, event: LiveEvent) -> Iterator[WireEvent]:
        """What the client is told of the session's next event."""
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
                    self._last_commit = self._pending_commits.popleft()  # or a pause came first, and the commit will be refused
                yield from map(self._add_event_id, self._items.handle_event(event))
            case SpeechStarted() | PartialTranscript() | SpeechStopped() | FinalTranscript() | UtteranceFailed():
                yield from map(self._add_event_id, self._items.handle_event(event))
            case _:
                return

    def fail(self, error: EardrumError) -> Iterator[ProtocolStep]:
        """The session is over, or cannot begin: the client is told, and the connection ends."""
        yield self._add_event_id({"type": "error", "error": {**build_error(error), "event_id": None}})
        yield CloseConnection(get_close_code(error), get_close_reason(error))

    @property
    def _shape(self) -> session_config.SessionShape:
        return session_config.BETA if self._items.beta else session_config.GA

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
                raise UnsupportedFeatureError(
                    f"This server transcribes and does not talk: it does not take {kind[:80]}.", param="type"
                )
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
        """All of the update counts, or, if anything of it is wrong, nothing."""
        session = UpdateEvent.parse({"session": event.get("session")}).session
        beta = self._items.beta or event["type"] == "transcription_session.update"
        shape = session_config.choose_shape(session, beta=beta)
        new = shape.apply_update(self._config, session, "session")
        model, settings = self._readmit_model(new)
        if self._audio:
            self._refuse_late(new, model)
        self._items.beta = beta
        self._items.logprobs, self._items.language = new.logprobs, new.language
        self._config = new
        yield self._describe_session(event["type"] + "d", shape)
        yield ConfigureCommand(settings) if self._opened == model else self._begin_session(model, settings)

    def _refuse_late(self, new: RealtimeConfig, model: str) -> None:
        if new.format != self._config.format:
            raise InvalidRequestError("The format of the audio cannot change once audio has come: open another session.")
        if model != self._opened:
            raise InvalidRequestError("The model cannot change once audio has come: open another session.", param="model")

    def _admit_model(self, config: RealtimeConfig) -> tuple[str, SessionSettings]:
        model, request = self._admit(config.model, config.build_request())
        return model, config.build_settings(request)

    def _readmit_model(self, new: RealtimeConfig) -> tuple[str, SessionSettings]:
        """The same for a config that follows another: with the model of the session, as its name may mean another by now.

        Who names no model and then a language that this one does not know gets another one, while nothing has been heard.
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

    def _describe_session(self, type: str, shape: session_config.SessionShape) -> WireEvent:
        return self._add_event_id({"type": type, "session": shape.describe(self._config, f"sess_{self._id}")})

    def _add_event_id(self, event: WireEvent) -> WireEvent:
        """The event with its id."""
        self._events += 1
        return {"type": event["type"], "event_id": f"event_{self._id}_{self._events}", **event}


def _parse_event(message: str | bytes) -> dict[str, Any]:
    """The client's event, whose type is a string.

    Raises:
        InvalidRequestError: it is none.
        TooLargeError: nobody needs so much for one event.
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
        raise InvalidRequestError("An event says its type, as a string.", param="type")
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
    """The error as an object."""
    return {"type": _get_error_type(error), "code": error.code, "message": error.message, "param": error.param}


def get_close_reason(error: EardrumError) -> str:
    """Why a connection ends with this error."""
    return f"{_get_error_type(error)}.{error.code}"


def _get_error_type(error: EardrumError) -> str:
    if error.status == 401:
        return "authentication_error"
    if error.status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"
