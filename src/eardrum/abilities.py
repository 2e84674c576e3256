"""What a request needs of a model, and in which words it is told that the model cannot."""

from __future__ import annotations

from enum import StrEnum

from eardrum.errors import InvalidRequestError, UnsupportedFeatureError
from eardrum.languages import language_name
from eardrum.types import Capabilities, Request, Task

MOST_HOTWORDS = 1000
HOTWORDS_LENGTH = 64 << 10
"""Characters of all of them. Models look at a few hundred words."""


class Ability(StrEnum):
    """What some models can and others cannot. The value is the parameter by which clients ask for it."""

    LANGUAGE = "language"
    TRANSLATION = "model"
    WORDS = "timestamp_granularities"
    LOGPROBS = "include"
    SPEAKERS = "response_format"


def has(can: Capabilities, ability: Ability, request: Request) -> bool:
    """Whether a model that can do this has what the request needs of this ability."""
    return {
        Ability.LANGUAGE: not (request.language and can.languages) or request.language in can.languages,
        Ability.TRANSLATION: request.task is not Task.TRANSLATE or can.translate,
        Ability.WORDS: not request.words or can.words,
        Ability.LOGPROBS: not request.logprobs or can.logprobs,
        Ability.SPEAKERS: not request.speakers or can.speakers,
    }[ability]


def check_hints(request: Request) -> None:
    """Refuse more words to expect than any model looks at: every window would carry them.

    Raises:
        InvalidRequestError: they are too many, or too long.
    """
    if len(request.hotwords) > MOST_HOTWORDS or sum(map(len, request.hotwords)) > HOTWORDS_LENGTH:
        most = f"{MOST_HOTWORDS} words with {HOTWORDS_LENGTH} characters together"
        raise InvalidRequestError(f"keywords (or hotwords) may be {most} at most.", param="keywords")


def lacking(can: Capabilities, request: Request) -> Ability | None:
    """The first ability that the request needs and the model does not have."""
    return next((ability for ability in Ability if not has(can, ability, request)), None)


def in_words(can: Capabilities, ability: Ability, request: Request) -> str:
    """What the model cannot, to be read after its name: `does not know German (de), only English (en)`."""
    if ability is Ability.LANGUAGE:
        knows = ", ".join(map(_spelled, can.languages))
        return f"does not know {_spelled(request.language or '')}, only {knows}"
    return {
        Ability.TRANSLATION: "transcribes but does not translate",
        Ability.WORDS: "gives times per segment but not per word",
        Ability.LOGPROBS: "gives no token probabilities",
        Ability.SPEAKERS: "does not tell speakers apart",
    }[ability]


def untold_language(can: Capabilities, request: Request) -> UnsupportedFeatureError | None:
    """The refusal of a translation from a language that nobody named, by a model that cannot find it out."""
    if request.task is not Task.TRANSLATE or request.language or can.detects_language:
        return None
    message = "This model translates, but does not detect languages: name the spoken one in `language`."
    return UnsupportedFeatureError(message, param=Ability.LANGUAGE)


def _spelled(code: str) -> str:
    return f"{language_name(code)} ({code})"
