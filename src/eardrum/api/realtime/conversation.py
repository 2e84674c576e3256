"""A Realtime connection without its socket: what a client says becomes what a session is told, and the other way round. Pure."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eardrum import json_text
from eardrum.api.realtime import refusals, shapes
from eardrum.api.realtime.config import Config
from eardrum.api.realtime.items import Items, Wire
from eardrum.api.realtime.refusals import UnknownEventError
from eardrum.api.realtime.values import Part, shown
from eardrum.api.sockets import Closing, closing
from eardrum.api.whole_text import check_whole
from eardrum.errors import EardrumError, EmptyCommitError, InvalidRequestError, TooLargeError, UnsupportedFeatureError
from eardrum.live import (
    Clear,
    Cleared,
    Commit,
    Committed,
    Configure,
    Failed,
    Final,
    Idle,
    LiveEvent,
    Partial,
    Refused,
    Settings,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.types import Request

LARGEST = 15 << 20
"""Bytes of audio in one event."""
LONGEST = (LARGEST + 2) // 3 * 4 + 4096
"""Characters of an event with that much."""
LONGEST_ID = 512
"""Characters of a client's `event_id`: it is kept until the answer."""

TALKING = ("response.", "conversation.item.", "output_audio_buffer.")
"""How the types of events begin that are for sessions that talk."""

Admit = Callable[[str, Request], tuple[str, Request]]
"""The id of the model of this name, and the request as it gets it; raises an `EardrumError` if there is none, or if it cannot do
that."""


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a session with the model of this id; one that is there already has heard nothing and is given up."""

    model: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class HangUp:
    """End the connection."""

    code: Closing
    reason: str


Step = Wire | bytes | Open | Configure | Commit | Clear | HangUp
"""What is to be done: tell the client, or the session, the audio included."""


class Conversation:
    """The state of a connection.

    Args:
        id: of the session; what it numbers begins with it.
        admit: says which model is meant and what it gets, or that it cannot.
        config: what is in force until the client says otherwise.
        beta: speak the beta's events from the start; the first `transcription_session.update` has the same effect.
        certain: the model that the config names is the one that is to transcribe.
    """

    def __init__(self, id: str, admit: Admit, config: Config, *, beta: bool = False, certain: bool = True):
        self._id = id
        self._admit = admit
        self._config = config
        self._certain = certain
        self._items = Items(id, beta)
        self._opened = ""  # the id of the session's model, once there is a session
        self._audio = False  # some has come
        self._fresh = False  # some has come that was neither committed nor cleared by the client
        self._asked: deque[str | None] = deque()  # ids of the client's events that are commits without an answer
        self._answered: str | None = None  # the last of them that had one
        self._events = 0

    def greeting(self) -> Iterator[Step]:
        """What comes before the client has said anything. A model that cannot be had ends the connection, if it is certain that
        it is meant."""
        name = "transcription_session.created" if self._items.beta and self._certain else "session.created"
        yield self._session(name, self._shape)
        if self._certain and self._config.model:
            try:
                self._admitted(self._config)
            except EardrumError as error:
                yield from self.broken(error)

    def heard(self, message: str | bytes) -> Iterator[Step]:
        """What is to be done about the client's next message."""
        id: str | None = None
        try:
            event = _parsed(message)
            id = event["event_id"][:LONGEST_ID] if isinstance(event.get("event_id"), str) else None
            yield from self._act(event, id)
        except EardrumError as error:
            yield self._wire({"type": "error", "error": {**refusals.worded(error), "event_id": id}})

    def told(self, event: LiveEvent) -> Iterator[Wire]:
        """What the client is told of the session's next event."""
        match event:
            case Refused(error=error):
                id = self._asked.popleft() if self._asked else self._answered
                yield self._wire({"type": "error", "error": {**refusals.worded(error), "event_id": id}})
            case Cleared(utterance=utterance):
                self._items.given_up(utterance)
                yield self._wire({"type": "input_audio_buffer.cleared"})
            case Idle():
                yield from map(self._wire, self._items.idle(event))
            case Committed():
                if self._asked:
                    self._answered = self._asked.popleft()  # or a pause came first, and the commit will be refused
                yield from map(self._wire, self._items.told(event))
            case SpeechStarted() | Partial() | SpeechStopped() | Final() | Failed():
                yield from map(self._wire, self._items.told(event))
            case _:
                return

    def broken(self, error: EardrumError) -> Iterator[Step]:
        """The session is over, or cannot begin: the client is told, and the connection ends."""
        yield self._wire({"type": "error", "error": {**refusals.worded(error), "event_id": None}})
        yield HangUp(closing(error), refusals.reason(error))

    @property
    def _shape(self) -> shapes.Shape:
        return shapes.BETA if self._items.beta else shapes.GA

    def _act(self, event: dict[str, Any], id: str | None) -> Iterator[Step]:
        match kind := event["type"]:
            case "input_audio_buffer.append":
                yield from self._append(event)
            case "input_audio_buffer.commit":
                yield from self._commit(id)
            case "input_audio_buffer.clear":
                self._fresh = False
                yield Clear() if self._opened else self._wire({"type": "input_audio_buffer.cleared"})
            case "session.update" | "transcription_session.update":
                yield from self._update(event)
            case _ if kind.startswith(TALKING):
                raise UnsupportedFeatureError(
                    f"This server transcribes and does not talk: it does not take {kind[:80]}.", param="type"
                )
            case _:
                raise UnknownEventError(
                    f"There is no event of the type {shown(kind)}. This server takes session.update, input_audio_buffer.append, "
                    "input_audio_buffer.commit and input_audio_buffer.clear.",
                    param="type",
                )

    def _append(self, event: dict[str, Any]) -> Iterator[Step]:
        audio = _decoded(event.get("audio"))
        if not audio:
            return
        if not self._opened:
            try:
                yield self._begun(*self._admitted(self._config))
            except EardrumError as error:
                yield from self.broken(error)
                return
        self._audio = self._fresh = True
        yield audio

    def _commit(self, id: str | None) -> Iterator[Step]:
        if not self._fresh:
            raise EmptyCommitError("There is no audio to commit: append some first.")
        self._fresh = False
        self._asked.append(id)
        yield Commit()

    def _update(self, event: dict[str, Any]) -> Iterator[Step]:
        """All of the update counts, or, if anything of it is wrong, nothing."""
        session = Part(event.get("session"), "session")
        beta = self._items.beta or event["type"] == "transcription_session.update"
        shape = shapes.of(session, beta=beta)
        new = shape.changed(self._config, session)
        model, settings = self._readmitted(new)
        if self._audio:
            self._refuse_late(new, model)
        self._items.beta = beta
        self._items.logprobs, self._items.language = new.logprobs, new.language
        self._config = new
        yield self._session(event["type"] + "d", shape)
        yield Configure(settings) if self._opened == model else self._begun(model, settings)

    def _refuse_late(self, new: Config, model: str) -> None:
        if new.format != self._config.format:
            raise InvalidRequestError("The format of the audio cannot change once audio has come: open another session.")
        if model != self._opened:
            raise InvalidRequestError("The model cannot change once audio has come: open another session.", param="model")

    def _admitted(self, config: Config) -> tuple[str, Settings]:
        model, request = self._admit(config.model, config.request())
        return model, config.settings(request)

    def _readmitted(self, new: Config) -> tuple[str, Settings]:
        """The same for a config that follows another: with the model of the session, as its name may mean another by now.

        Who names no model and then a language that this one does not know gets another one, while nothing has been heard.
        """
        if not self._opened or new.model != self._config.model:
            return self._admitted(new)
        try:
            _, request = self._admit(self._opened, new.request())
        except UnsupportedFeatureError:
            if self._audio:
                raise
            return self._admitted(new)
        return self._opened, new.settings(request)

    def _begun(self, model: str, settings: Settings) -> Open:
        self._opened = model
        return Open(model, settings)

    def _session(self, type: str, shape: shapes.Shape) -> Wire:
        return self._wire({"type": type, "session": shape.shown(self._config, f"sess_{self._id}")})

    def _wire(self, event: Wire) -> Wire:
        """The event with its id."""
        self._events += 1
        return {"type": event["type"], "event_id": f"event_{self._id}_{self._events}", **event}


def _parsed(message: str | bytes) -> dict[str, Any]:
    """The client's event, whose type is a string.

    Raises:
        InvalidRequestError: it is none.
        TooLargeError: nobody needs so much for one event.
    """
    if isinstance(message, bytes):
        raise InvalidRequestError("Events are JSON in text frames: send audio as base64 in input_audio_buffer.append.")
    if len(message) > LONGEST:
        raise TooLargeError(f"An event may have {LARGEST >> 20} MiB of audio: send smaller pieces.", param="audio")
    try:
        event = json_text.parsed(message)
    except ValueError as error:
        raise InvalidRequestError(f"The event is not valid JSON: {error}.") from None
    if not isinstance(event, dict):
        raise InvalidRequestError('An event is a JSON object, as in {"type": "input_audio_buffer.commit"}.')
    if not isinstance(event.get("type"), str):
        raise InvalidRequestError("An event says its type, as a string.", param="type")
    check_whole(message, event)
    return event


def _decoded(audio: object) -> bytes:
    if not isinstance(audio, str):
        raise InvalidRequestError(f"audio must be a string in base64, not {shown(audio)}.", param="audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"audio is not valid base64: {error}.", param="audio") from None
    if len(data) > LARGEST:
        raise TooLargeError(f"audio may be {LARGEST >> 20} MiB at most: send smaller pieces.", param="audio")
    return data
