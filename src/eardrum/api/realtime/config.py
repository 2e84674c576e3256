"""What a client has configured, free of the two shapes in which it says so. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from eardrum.api.realtime.detection import Detection
from eardrum.api.realtime.values import Part
from eardrum.errors import InvalidRequestError, UnsupportedFeatureError
from eardrum.languages import language_code
from eardrum.live import Encoding, Format, Settings
from eardrum.types import Priority, Request

LOGPROBS = "item.input_audio_transcription.logprobs"

PCM_RATE = 24_000
"""Hz of PCM in OpenAI's API, always."""
PHONE_RATE = 8_000
"""Hz of G.711, always."""
RATES = 4_000, 192_000

COMMITTED = re.compile(r"(gpt-live-transcribe|gpt-realtime-whisper)(-\d{4}-\d{2}-\d{2})?(:latest)?", re.ASCII)
"""Names of models with which OpenAI has no turn detection unless it is asked for: their clients listen for pauses themselves."""

MAX_PROMPT = 4000
"""Characters; models look at far fewer."""

LONGEST_NAME = 500
"""Characters of a model's name, or of a language."""

MOST_ITEMS, LONGEST_LIST = 1000, 20_000
"""Keywords and languages, and the characters of all of them."""

CONVERSATION = (
    *("instructions", "tools", "tool_choice", "voice", "output_modalities", "max_output_tokens", "speed", "temperature"),
    *("output_audio_format", "max_response_output_tokens", "prompt", "tracing", "truncation", "reasoning"),
)
"""Fields of sessions that talk."""


@dataclass(frozen=True, slots=True)
class Config:
    """A transcription session's configuration, as far as it has an effect here."""

    model: str = ""
    """As the client calls it; empty is the default model."""
    language: str = ""
    languages: tuple[str, ...] = ()
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    format: Format = field(default_factory=lambda: pcm(PCM_RATE))
    wanted: Detection | None = field(default_factory=Detection)
    """What the client has said of turn detection, if it has."""
    chosen: bool = False
    """Whether it has."""
    logprobs: bool = False
    pcm_rate: int = PCM_RATE
    """Hz of PCM whose rate the client does not say."""

    @property
    def detection(self) -> Detection | None:
        """What is in force: the client's choice, else what its model's name means."""
        return self.wanted if self.chosen or not COMMITTED.fullmatch(self.model) else None

    def request(self) -> Request:
        """What is asked of the model.

        Raises:
            InvalidRequestError: nobody knows the language.
        """
        return Request(
            language=self._language(),
            prompt=self.prompt[:MAX_PROMPT],
            hotwords=self.keywords,
            logprobs=self.logprobs,
            priority=Priority.LIVE,
        )

    def settings(self, request: Request) -> Settings:
        """What the session goes by; `request` is this one's as the model gets it."""
        return Settings(request, self.format, self.detection.endpointing() if self.detection else None)

    def _language(self) -> str | None:
        """The language, else the only one of several possible ones; a choice is left to the model."""
        if code := language_code(self.language):
            return code
        possible = {language_code(spelled, param="languages") for spelled in self.languages}
        return possible.pop() if len(possible) == 1 else None


def transcription(now: Config, given: Part) -> Config:
    """The configuration with another `transcription`: what it leaves out stays, what is null or empty is unset.

    Raises:
        InvalidRequestError: a value is of the wrong kind.
    """
    texts = {name: _bounded(given, name) for name in ("model", "language", "prompt") if name in given}
    lists = {name: given.texts(name) for name in ("languages", "keywords") if name in given}
    for name, items in lists.items():
        if len(items) > MOST_ITEMS or sum(map(len, items)) > LONGEST_LIST:
            message = f"{given.path(name)} has at most {MOST_ITEMS} entries and {LONGEST_LIST} characters."
            raise InvalidRequestError(message, param=given.path(name))
    return replace(now, **texts, **lists)  # type: ignore[arg-type]


def _bounded(given: Part, name: str) -> str:
    """The text, cut where no model looks any more if it is a prompt: a configuration is kept, and told to the client."""
    text = given.text(name)
    if name == "prompt":
        return text[:MAX_PROMPT]
    if len(text) > LONGEST_NAME:
        raise InvalidRequestError(f"{given.path(name)} has at most {LONGEST_NAME} characters.", param=given.path(name))
    return text


def included(now: Config, session: Part) -> Config:
    """The configuration with what the client wants to have in events.

    Raises:
        InvalidRequestError: there is nothing of that name.
    """
    if "include" not in session:
        return now
    for name in (names := session.texts("include")):
        if name != LOGPROBS:
            raise InvalidRequestError(f"{session.path('include')} may hold {LOGPROBS}, not {name!r}.", param="session.include")
    return replace(now, logprobs=bool(names))


def refuse_conversation(session: Part) -> None:
    """Refuse what only a session that talks could do.

    Raises:
        UnsupportedFeatureError: the message names the field.
    """
    if (kind := session.raw("type")) not in (None, "transcription"):
        raise UnsupportedFeatureError(
            f"This server transcribes and does not talk: session.type must be transcription, not {kind!r}.", param="session.type"
        )
    for name in CONVERSATION:
        if session.raw(name):
            raise UnsupportedFeatureError(
                f"This server transcribes and does not talk: leave {session.path(name)} out.", param=session.path(name)
            )
    if session.raw("model"):
        raise UnsupportedFeatureError(
            "session.model is that of a conversation: name the one that transcribes in session.audio.input.transcription.model.",
            param="session.model",
        )


def pcm(rate: float) -> Format:
    """PCM of 16 bits at this rate."""
    return Format(Encoding.PCM16, round(rate))
