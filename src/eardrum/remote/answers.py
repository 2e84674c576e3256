"""Reads upstreams' transcripts: the shapes of OpenAI and of those who nearly follow it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from eardrum.errors import InvalidRequestError
from eardrum.languages import language_code
from eardrum.types import Segment, Word

QWEN = re.compile(r"\s*language\s+(?P<language>[^<,]*)[^<]*<asr_text>")
"""What Qwen3-ASR puts before the text when its server does not take it away."""

TAG = re.compile(r"<\|([^|<>]*)\|>")
"""A special token that a server left in the text: `<|de|>`, `<|transcribe|>`, `<|NEUTRAL|>`."""


def _finite(value: Any) -> Any:
    """None, and numbers that are none, count as 0: JSON from C++ has them where a mean was taken of nothing."""
    return 0.0 if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _numbers(value: Any) -> Any:
    """Tokens are kept if they are numbers: some servers have their texts there."""
    return value if isinstance(value, list) and all(isinstance(item, int) for item in value) else []


Number = Annotated[float, BeforeValidator(_finite)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class AnsweredWord(BaseModel):
    """A word; LocalAI calls its text `text`."""

    word: Text = Field(validation_alias=AliasChoices("word", "text"))
    start: Number
    end: Number
    probability: Number = 1.0
    t_dtw: Any = None
    """Only whisper.cpp has it, and its words are tokens: parts of words."""


class AnsweredSegment(BaseModel):
    """A segment of verbose_json. Most servers leave some of it out."""

    start: Number
    end: Number
    text: Text
    avg_logprob: Number = 0.0
    no_speech_prob: Number = 0.0
    compression_ratio: Number = 1.0
    temperature: Number = 0.0
    tokens: Annotated[list[int], BeforeValidator(_numbers)] = []
    words: list[AnsweredWord] | None = None


class AnsweredLanguage(BaseModel):
    """An entry of `languages`, as newer models of OpenAI have it."""

    code: Text = ""


class AnsweredUsage(BaseModel):
    """What was paid for: tokens, or seconds rounded up."""

    seconds: Number = 0.0


class Answer(BaseModel):
    """The answer of a transcription in json or verbose_json."""

    text: Text
    task: Text = ""
    """What was done, as some say; whisper-server does."""
    language: Text = ""
    duration: Number = 0.0
    """Seconds; vLLM has them as a string."""
    languages: list[AnsweredLanguage] | None = None
    segments: list[AnsweredSegment] | None = None
    words: list[AnsweredWord] | None = None
    usage: AnsweredUsage | None = None

    def heard(self, speech: tuple[float, float], seconds: float) -> list[Segment]:
        """The segments of audio that is so long. Without any in the answer, the text spans the speech.

        `speech` is where it begins and ends, in seconds. Times past the end are Whisper's, which fills up 30 s with silence.
        """
        found = [segment for each in self.segments or () if (segment := _segment(each, seconds))]
        text, _ = plain(self.text)
        if not found and text:
            found = [Segment(*speech, text=text)]
        _distribute((_word(word, seconds) for word in _whole(self.words or ())), found)
        return found

    @property
    def spoken(self) -> str:
        """The code of the language that was heard; empty if the answer does not tell."""
        named = [self.language, *(language.code for language in self.languages or ()), plain(self.text)[1]]
        return next((code for name in named if (code := code_of(name))), "")


def plain(text: str) -> tuple[str, str]:
    """The text without what marks its language, and the language it was marked with: a name, a code or nothing."""
    language = ""
    if marked := QWEN.match(text):
        text, language = text[marked.end() :], marked["language"].strip()
    for tag in TAG.findall(text):
        language = language or code_of(tag)
    return TAG.sub("", text).strip(), language


def code_of(spelled: str) -> str:
    """The ISO 639 code of a language that an upstream named; empty when it is none we know."""
    try:
        return language_code(spelled) or ""
    except InvalidRequestError:
        return ""


def _segment(answered: AnsweredSegment, seconds: float) -> Segment | None:
    text, _ = plain(answered.text)
    if not text:
        return None
    start, end = _within(answered.start, answered.end, seconds)
    return Segment(
        start=start,
        end=end,
        text=text,
        avg_logprob=answered.avg_logprob,
        no_speech_prob=answered.no_speech_prob,
        compression_ratio=answered.compression_ratio,
        temperature=answered.temperature,
        tokens=answered.tokens,
        words=[_word(word, seconds) for word in _whole(answered.words or ())],
    )


def _whole(words: Iterable[AnsweredWord]) -> list[AnsweredWord]:
    """whisper.cpp's tokens joined into words: one that begins without a space continues the one before."""
    joined: list[AnsweredWord] = []
    for word in words:
        if not word.word.strip():
            continue
        if joined and word.t_dtw is not None and not word.word.startswith(" "):
            last = joined[-1]
            update = {"word": last.word + word.word, "end": word.end, "probability": min(last.probability, word.probability)}
            joined[-1] = last.model_copy(update=update)
        else:
            joined.append(word)
    return joined


def _word(answered: AnsweredWord, seconds: float) -> Word:
    start, end = _within(answered.start, answered.end, seconds)
    return Word(answered.word.strip(), start, end, answered.probability)


def _distribute(words: Iterable[Word], segments: list[Segment]) -> None:
    """Give words that stand beside the segments to the segment they are in: the last that begins before their middle."""
    for word in words:
        begun = [segment for segment in segments if segment.start <= (word.start + word.end) / 2]
        for segment in begun[-1:] or segments[:1]:
            segment.words.append(word)


def _within(start: float, end: float, seconds: float) -> tuple[float, float]:
    start = min(max(start, 0.0), seconds)
    return start, min(max(end, start), seconds)
