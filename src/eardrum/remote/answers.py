"""Reads upstreams' transcripts: the shapes of OpenAI and of those who nearly follow it.

Only the text is needed. Whatever else an answer holds is read if it can be understood and passed over if not: a server whose
segments have no times, or are plain strings, has still heard what was said.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, field_validator, model_validator

from eardrum import json_text
from eardrum.errors import InvalidRequestError
from eardrum.languages import language_code
from eardrum.remote.reconciliation import with_whole_text
from eardrum.text import joined
from eardrum.types import Segment, Word

QWEN = re.compile(r"\s*language\s+(?P<language>[^<,]*)[^<]*<asr_text>")
"""What Qwen3-ASR puts before the text when its server does not take it away."""

TAG = re.compile(r"<\|([^|<>]*)\|>")
"""A special token that a server left in the text: `<|de|>`, `<|transcribe|>`, `<|NEUTRAL|>`."""

CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")
AMOUNT = re.compile(r"(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*(ns|us|µs|ms|s|sec|seconds?)?", re.IGNORECASE)
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3}

FINER = (1e-3, 1e-6, 1e-9)
"""Units other than seconds in which servers give times; LocalAI counts nanoseconds."""
SLACK_S = 120.0
"""Times this far behind the end are still taken for seconds: a Whisper fills up 30 s with silence."""
NOBODY_S = 1e6
"""No recording is so long: times beyond that are not in seconds even if nobody knows how long the audio is."""
NANOSECONDS = 1e8
"""And those beyond that are more likely nanoseconds than milliseconds."""
LATEST = 1e18
"""No time is later in any unit: what a server says beyond that is none."""


def _finite(value: Any) -> Any:
    """None, and what is no number, count as 0: JSON from C++ has them where a mean was taken of nothing."""
    return value if isinstance(value, int | float) and _fits(value) else 0.0


def _fits(value: float) -> bool:
    """Whether it is a number that can be reckoned with: a whole one in JSON may have any number of digits."""
    return abs(value) <= sys.float_info.max


def _numbers(value: Any) -> Any:
    """Tokens are kept if they are numbers: some servers have their texts there."""
    return value if isinstance(value, list) and all(isinstance(item, int) for item in value) else []


def _time(value: Any) -> float | None:
    """Seconds of a number, `"2.39"`, `"2.39s"`, `"2390ms"` or `"00:00:02,390"`; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= LATEST else None
    if not isinstance(value, str):
        return None
    value, time = value.strip(), math.inf
    if clock := CLOCK.fullmatch(value):
        time = float(clock[1] or 0) * 3600 + float(clock[2]) * 60 + float(clock[3].replace(",", "."))
    elif amount := AMOUNT.fullmatch(value):
        time = float(amount[1].replace(",", ".")) * UNITS.get((amount[2] or "").lower(), 1.0)
    return time if abs(time) <= LATEST else None


def _string(value: Any) -> str:
    """A text, or nothing in the place of one."""
    return value if isinstance(value, str) else ""


def _strings(value: Any) -> Any:
    """As `_string`, for a text that may come in pieces. What is none is left for the validation to refuse."""
    if isinstance(value, list):
        return joined(item for item in value if isinstance(item, str))
    return "" if value is None else value


def _items(value: Any) -> list[Any] | None:
    """The items of a list that are objects, or texts in the place of objects. What is no list is none."""
    if not isinstance(value, list | tuple):
        return None
    objects = ({"text": item} if isinstance(item, str) else item for item in value)
    return [item for item in objects if isinstance(item, dict)]


Number = Annotated[float, BeforeValidator(_finite)]
Seconds = Annotated[float | None, BeforeValidator(_time)]
Text = Annotated[str, BeforeValidator(_string)]


class Timed(BaseModel):
    """Something with times, under the names that servers have for them; None where it has none."""

    start: Seconds = None
    end: Seconds = None

    @model_validator(mode="before")
    @classmethod
    def _with_times(cls, said: Any) -> Any:
        """Times as a pair (`timestamp`, of Hugging Face's pipelines) or in milliseconds (`offsets`, of whisper.cpp's files)."""
        if not isinstance(said, dict) or "start" in said or "end" in said:
            return said
        if isinstance(pair := said.get("timestamp"), list | tuple) and len(pair) == 2:
            return {**said, "start": pair[0], "end": pair[1]}
        if isinstance(offsets := said.get("offsets"), Mapping):
            times = {name: _time(offsets.get(key)) for name, key in (("start", "from"), ("end", "to"))}
            return {**said, **{name: time / 1000 for name, time in times.items() if time is not None}}
        return said


class AnsweredWord(Timed):
    """A word; LocalAI calls its text `text`, WhisperX its probability `score`."""

    word: Text = Field("", validation_alias=AliasChoices("word", "text"))
    probability: Annotated[float, BeforeValidator(lambda value: 1.0 if value is None else _finite(value))] = Field(
        1.0, validation_alias=AliasChoices("probability", "score", "confidence")
    )
    t_dtw: Any = None
    """Only whisper.cpp has it, and its words are tokens: parts of words."""


Words = Annotated[list[AnsweredWord] | None, BeforeValidator(_items)]


class AnsweredSegment(Timed):
    """A segment of verbose_json. Most servers leave some of it out."""

    text: Text = ""
    avg_logprob: Number = 0.0
    no_speech_prob: Number = 0.0
    compression_ratio: Annotated[float, BeforeValidator(lambda value: _finite(value) or 1.0)] = 1.0
    temperature: Number = 0.0
    tokens: Annotated[list[int], BeforeValidator(_numbers)] = []
    words: Words = None


class AnsweredLanguage(BaseModel):
    """An entry of `languages`, as newer models of OpenAI have it."""

    code: Text = ""


class AnsweredUsage(BaseModel):
    """What was paid for: tokens, or seconds rounded up."""

    seconds: Number = 0.0


class Answer(BaseModel):
    """The answer of a transcription in json or verbose_json. WhisperX and Hugging Face have other names for some of it."""

    text: Annotated[str, BeforeValidator(_strings)] = Field(
        "", validation_alias=AliasChoices("text", "transcript", "transcription")
    )
    task: Text = ""
    """What was done, as some say; whisper-server does."""
    language: Text = ""
    duration: Annotated[float, BeforeValidator(lambda value: _time(value) or 0.0)] = 0.0
    """Seconds; vLLM has them as a string."""
    languages: Annotated[list[AnsweredLanguage] | None, BeforeValidator(_items)] = None
    segments: Annotated[list[AnsweredSegment] | None, BeforeValidator(_items)] = Field(
        None, validation_alias=AliasChoices("segments", "chunks", "transcription")
    )
    words: Words = Field(None, validation_alias=AliasChoices("words", "word_segments"))
    usage: AnsweredUsage | None = None

    @field_validator("usage", mode="before")
    @classmethod
    def _if_it_is_one(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else None

    @model_validator(mode="after")
    def _is_a_transcript(self) -> Self:
        if "text" not in self.model_fields_set and self.segments is None and self.words is None:
            raise ValueError("neither text nor segments")
        return self

    @classmethod
    def read(cls, body: bytes, content_type: str) -> Self:
        """The answer in JSON, be it an object, a list of segments or a text; or in plain text, if it says that it is one.

        Raises:
            ValueError: it is none of these.
        """
        said = body.decode(errors="replace").removeprefix("\ufeff").strip()
        if said.startswith("{"):
            json_text.check_of_server(said)
            return cls.model_validate_json(said)
        value = _parsed(said)
        if isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
            return cls.model_validate({"segments": value})
        if isinstance(value, str):
            return cls.model_validate({"text": value})
        if content_type.partition(";")[0].strip().lower() != "text/plain" or said.startswith("<"):
            raise ValueError("it is no transcript")
        return cls.model_validate({"text": said})

    @property
    def empty(self) -> bool:
        """Whether there is no text in it, wherever one looks."""
        return not (self.text.strip() or any(segment.text.strip() for segment in self.segments or ()) or self.words)

    def seconds(self, known: float) -> float:
        """How long the audio is, by what is known besides, else by what the answer says; 0 if neither tells."""
        said = self.duration if self.duration < NOBODY_S else self.duration * _unit(self.duration, known)
        return said or known or (self.usage.seconds if self.usage else 0.0)

    def heard(self, speech: tuple[float, float], seconds: float) -> list[Segment]:
        """The segments of audio that is so long: all the text there is, whether it is in segments or beside them.

        `speech` is where it begins and ends, in seconds; text without times spans it, or shares it with what else has none.
        Times past the end are Whisper's, which fills up 30 s with silence.
        """
        unit = _unit(max(self._times(), default=0.0), seconds if math.isfinite(seconds) else 0.0)
        spoken = [segment for segment in self.segments or () if _spoken(segment)]
        spans = _spans([_scaled(s.start, s.end, unit) for s in spoken], [len(_spoken(s)) for s in spoken], speech)
        found = [_segment(each, _within(*span, seconds), unit, seconds) for each, span in zip(spoken, spans, strict=True)]
        beside = _words(self.words or (), speech, unit, seconds)
        text = plain(self.text)[0] or ("" if found else " ".join(word.word.strip() for word in self.words or ()))
        found = with_whole_text(text, found, speech)
        if not any(segment.words for segment in found):  # else they are told twice, as WhisperX does
            _distribute(beside, found)
        return found

    def _times(self) -> Iterable[float]:
        for segment in self.segments or ():
            yield from (time for time in (segment.start, segment.end) if time is not None)
            yield from (word.end for word in segment.words or () if word.end is not None)
        yield from (word.end for word in self.words or () if word.end is not None)

    @property
    def spoken(self) -> str:
        """The code of the language that was heard; empty if the answer does not tell."""
        named = [self.language, *(language.code for language in self.languages or ()), plain(self.text)[1]]
        return next((code for name in named if (code := code_of(name))), "")


def _parsed(said: str) -> Any:
    try:
        return json_text.parsed_of_server(said)
    except ValueError:
        return None


def plain(text: str) -> tuple[str, str]:
    """The text in one line, without what marks its language, and the language it was marked with: a name, a code or nothing."""
    language = ""
    if "\n" in text:
        # whisper.cpp ends each segment with a line break, and begins it with a space unless it continues a word.
        text = text.replace("\n", "") if text.startswith(" ") else joined(text.splitlines())
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


def _spoken(segment: AnsweredSegment) -> str:
    """The text of a segment, by its words if it has none itself."""
    return plain(segment.text)[0] or " ".join(word.word.strip() for word in segment.words or ()).strip()


def _unit(latest: float, seconds: float) -> float:
    """In which unit times are whose latest is this, in audio of so many seconds (0: nobody knows)."""
    if seconds:
        if latest <= seconds + SLACK_S:
            return 1.0
        return next((unit for unit in FINER if latest * unit <= seconds + SLACK_S), 1.0)
    if latest < NOBODY_S:
        return 1.0
    return FINER[-1] if latest >= NANOSECONDS else FINER[0]


def _scaled(start: float | None, end: float | None, unit: float) -> tuple[float | None, float | None]:
    return None if start is None else start * unit, None if end is None else end * unit


def _spans(
    known: Sequence[tuple[float | None, float | None]], sizes: Sequence[int], around: tuple[float, float]
) -> list[tuple[float, float]]:
    """Times for all of a row of things. Those that have none share what their neighbours leave, by their sizes."""
    spans: list[tuple[float, float]] = []
    while (at := len(spans)) < len(known):
        stop, end = _sharing(known, at)
        finish = around[1] if end is None else end
        begin = known[at][0]
        if begin is None:
            begin = spans[-1][1] if spans else min(around[0], finish)
        spans += _shared(begin, max(begin, finish), sizes[at:stop])
    return spans


def _sharing(known: Sequence[tuple[float | None, float | None]], at: int) -> tuple[int, float | None]:
    """Up to which one things from `at` on share a time, and when it ends: with the first that has an end, or where one begins."""
    for i in range(at, len(known)):
        start, end = known[i]
        if i > at and start is not None:
            return i, start
        if end is not None:
            return i + 1, end
    return len(known), None


def _shared(begin: float, end: float, sizes: Sequence[int]) -> list[tuple[float, float]]:
    whole, done, shared = sum(sizes) or 1, 0, []
    for size in sizes:
        shared.append((begin + (end - begin) * done / whole, begin + (end - begin) * (done + size) / whole))
        done += size
    return shared


def _segment(answered: AnsweredSegment, span: tuple[float, float], unit: float, seconds: float) -> Segment:
    return Segment(
        start=span[0],
        end=span[1],
        text=_spoken(answered),
        avg_logprob=answered.avg_logprob,
        no_speech_prob=answered.no_speech_prob,
        compression_ratio=answered.compression_ratio,
        temperature=answered.temperature,
        tokens=answered.tokens,
        words=_words(answered.words or (), span, unit, seconds),
    )


def _words(answered: Iterable[AnsweredWord], around: tuple[float, float], unit: float, seconds: float) -> list[Word]:
    """Words with times. For some that have none (numbers, with WhisperX) the neighbours tell; if none has any, there are none."""
    words = _whole(answered)
    if not any(word.start is not None or word.end is not None for word in words):
        return []
    spans = _spans([_scaled(w.start, w.end, unit) for w in words], [len(w.word) for w in words], around)
    return [Word(w.word.strip(), *_within(*span, seconds), w.probability) for w, span in zip(words, spans, strict=True)]


def _whole(words: Iterable[AnsweredWord]) -> list[AnsweredWord]:
    """whisper.cpp's tokens joined into words: one that begins without a space continues the one before."""
    whole: list[AnsweredWord] = []
    for word in words:
        if not word.word.strip():
            continue
        if whole and word.t_dtw is not None and not word.word.startswith(" "):
            last = whole[-1]
            update = {"word": last.word + word.word, "end": word.end, "probability": min(last.probability, word.probability)}
            whole[-1] = last.model_copy(update=update)
        else:
            whole.append(word)
    return whole


def _distribute(words: Iterable[Word], segments: list[Segment]) -> None:
    """Give words that stand beside the segments to the segment they are in: the last that begins before their middle."""
    for word in words:
        begun = [segment for segment in segments if segment.start <= (word.start + word.end) / 2]
        for segment in begun[-1:] or segments[:1]:
            segment.words.append(word)


def _within(start: float, end: float, seconds: float) -> tuple[float, float]:
    start = min(max(start, 0.0), seconds)
    return start, min(max(end, start), seconds)
