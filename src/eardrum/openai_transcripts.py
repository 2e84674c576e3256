"""Parses the transcripts of upstreams: OpenAI's shapes and their near relatives.

Only the text is required. Everything else in a response is read if it can be understood and skipped if not: a server whose
segments have no times, or are plain strings, has still transcribed the audio. A text beside the segments is merged into them, so
that no word is lost where the segments have less.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, field_validator, model_validator

from eardrum import bounded_json
from eardrum.errors import InvalidRequestError
from eardrum.languages import parse_language
from eardrum.text import join_texts
from eardrum.transcription import Segment, Word

QWEN_PREFIX = re.compile(r"\s*language\s+(?P<language>[^<,]*)[^<]*<asr_text>")
"""The prefix that Qwen3-ASR puts before the text if its server does not remove it."""

SPECIAL_TOKEN = re.compile(r"<\|([^|<>]*)\|>")
"""A special token that a server left in the text: `<|de|>`, `<|transcribe|>`, `<|NEUTRAL|>`."""

CLOCK_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")
TIME_AMOUNT = re.compile(r"(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*(ns|us|µs|ms|s|sec|seconds?)?", re.IGNORECASE)
TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3}

SMALL_UNITS = (1e-3, 1e-6, 1e-9)
"""Units other than seconds in which servers give times; LocalAI counts nanoseconds."""
SLACK_S = 120.0
"""Times this far behind the end are still taken for seconds: a Whisper fills up 30 s with silence."""
MAX_DURATION_S = 1e6
"""No recording is so long: times beyond that are not in seconds even if the length of the audio is unknown."""
MIN_NANOSECONDS = 1e8
"""And those beyond that are more likely nanoseconds than milliseconds."""
MAX_TIME = 1e18
"""No time is later in any unit: what a server says beyond that is none."""


def _to_finite(value: Any) -> Any:
    """None, and what is no number, count as 0: JSON from C++ has them where a mean was taken of nothing."""
    return value if isinstance(value, int | float) and _is_representable(value) else 0.0


def _is_representable(value: float) -> bool:
    """Whether it is a number that can be reckoned with: a whole one in JSON may have any number of digits."""
    return abs(value) <= sys.float_info.max


def _keep_numbers(value: Any) -> Any:
    """Tokens are kept if they are numbers: some servers have their texts there."""
    return value if isinstance(value, list) and all(isinstance(item, int) for item in value) else []


def _parse_time(value: Any) -> float | None:
    """Seconds of a number, `"2.39"`, `"2.39s"`, `"2390ms"` or `"00:00:02,390"`; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= MAX_TIME else None
    if not isinstance(value, str):
        return None
    value, time = value.strip(), math.inf
    if clock := CLOCK_TIME.fullmatch(value):
        time = float(clock[1] or 0) * 3600 + float(clock[2]) * 60 + float(clock[3].replace(",", "."))
    elif amount := TIME_AMOUNT.fullmatch(value):
        time = float(amount[1].replace(",", ".")) * TIME_UNITS.get((amount[2] or "").lower(), 1.0)
    return time if abs(time) <= MAX_TIME else None


def _to_string(value: Any) -> str:
    """A text, or nothing in the place of one."""
    return value if isinstance(value, str) else ""


def _join_strings(value: Any) -> Any:
    """As `_to_string`, for a text that may come in parts. The validation refuses any other type."""
    if isinstance(value, list):
        return join_texts(item for item in value if isinstance(item, str))
    return "" if value is None else value


def _keep_objects(value: Any) -> list[Any] | None:
    """The items of a list that are objects, or texts in the place of objects. What is no list is none."""
    if not isinstance(value, list | tuple):
        return None
    objects = ({"text": item} if isinstance(item, str) else item for item in value)
    return [item for item in objects if isinstance(item, dict)]


FiniteNumber = Annotated[float, BeforeValidator(_to_finite)]
OptionalSeconds = Annotated[float | None, BeforeValidator(_parse_time)]
LenientText = Annotated[str, BeforeValidator(_to_string)]


# The validators are built for the first response of an upstream: a gateway without upstreams starts 5 ms of CPU sooner.


class TimedItem(BaseModel, defer_build=True):
    """Something with times, under the names that servers have for them; None where it has none."""

    start: OptionalSeconds = None
    end: OptionalSeconds = None

    @model_validator(mode="before")
    @classmethod
    def _normalize_times(cls, said: Any) -> Any:
        """Times as a pair (`timestamp`, of Hugging Face's pipelines) or in milliseconds (`offsets`, of whisper.cpp's files)."""
        if not isinstance(said, dict) or "start" in said or "end" in said:
            return said
        if isinstance(pair := said.get("timestamp"), list | tuple) and len(pair) == 2:
            return {**said, "start": pair[0], "end": pair[1]}
        if isinstance(offsets := said.get("offsets"), Mapping):
            times = {name: _parse_time(offsets.get(key)) for name, key in (("start", "from"), ("end", "to"))}
            return {**said, **{name: time / 1000 for name, time in times.items() if time is not None}}
        return said


class UpstreamWord(TimedItem):
    """A word; LocalAI calls its text `text`, WhisperX its probability `score`."""

    word: LenientText = Field("", validation_alias=AliasChoices("word", "text"))
    probability: Annotated[float, BeforeValidator(lambda value: 1.0 if value is None else _to_finite(value))] = Field(
        1.0, validation_alias=AliasChoices("probability", "score", "confidence")
    )
    t_dtw: Any = None
    """Only whisper.cpp has it, and its words are tokens: parts of words."""


UpstreamWords = Annotated[list[UpstreamWord] | None, BeforeValidator(_keep_objects)]


class UpstreamSegment(TimedItem):
    """A segment of verbose_json. Most servers leave some of it out."""

    text: LenientText = ""
    avg_logprob: FiniteNumber = 0.0
    no_speech_prob: FiniteNumber = 0.0
    compression_ratio: Annotated[float, BeforeValidator(lambda value: _to_finite(value) or 1.0)] = 1.0
    temperature: FiniteNumber = 0.0
    tokens: Annotated[list[int], BeforeValidator(_keep_numbers)] = []
    words: UpstreamWords = None


class UpstreamLanguage(BaseModel, defer_build=True):
    """An entry of `languages`, as newer models of OpenAI have it."""

    code: LenientText = ""


class UpstreamUsage(BaseModel, defer_build=True):
    """The billed usage: tokens, or seconds rounded up."""

    seconds: FiniteNumber = 0.0


class UpstreamTranscript(BaseModel, defer_build=True):
    """The answer of a transcription in json or verbose_json. WhisperX and Hugging Face have other names for some of it."""

    text: Annotated[str, BeforeValidator(_join_strings)] = Field(
        "", validation_alias=AliasChoices("text", "transcript", "transcription")
    )
    task: LenientText = ""
    """The task that was done; whisper-server reports it."""
    language: LenientText = ""
    duration: Annotated[float, BeforeValidator(lambda value: _parse_time(value) or 0.0)] = 0.0
    """Seconds; vLLM has them as a string."""
    languages: Annotated[list[UpstreamLanguage] | None, BeforeValidator(_keep_objects)] = None
    segments: Annotated[list[UpstreamSegment] | None, BeforeValidator(_keep_objects)] = Field(
        None, validation_alias=AliasChoices("segments", "chunks", "transcription")
    )
    words: UpstreamWords = Field(None, validation_alias=AliasChoices("words", "word_segments"))
    usage: UpstreamUsage | None = None

    @field_validator("usage", mode="before")
    @classmethod
    def _drop_malformed_usage(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else None

    @model_validator(mode="after")
    def _check_transcript(self) -> Self:
        if "text" not in self.model_fields_set and self.segments is None and self.words is None:
            raise ValueError("neither text nor segments")
        return self

    @classmethod
    def parse(cls, body: bytes, content_type: str) -> Self:
        """The answer in JSON, be it an object, a list of segments or a text; or in plain text, if it says that it is one.

        Raises:
            ValueError: it is none of these.
        """
        said = body.decode(errors="replace").removeprefix("\ufeff").strip()
        if said.startswith("{"):
            bounded_json.check_upstream_json(said)
            return cls.model_validate_json(said)
        value = _parse_json(said)
        if isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
            return cls.model_validate({"segments": value})
        if isinstance(value, str):
            return cls.model_validate({"text": value})
        if content_type.partition(";")[0].strip().lower() != "text/plain" or said.startswith("<"):
            raise ValueError("it is no transcript")
        return cls.model_validate({"text": said})

    @property
    def is_empty(self) -> bool:
        """Whether there is no text in it, wherever one looks."""
        return not (self.text.strip() or any(segment.text.strip() for segment in self.segments or ()) or self.words)

    def estimate_duration(self, known: float) -> float:
        """How long the audio is, by what is known besides, else by what the answer says; 0 if neither tells."""
        said = self.duration if self.duration < MAX_DURATION_S else self.duration * _guess_time_unit(self.duration, known)
        return said or known or (self.usage.seconds if self.usage else 0.0)

    def to_segments(self, speech: tuple[float, float], seconds: float) -> list[Segment]:
        """The segments of audio that is so long: all the text there is, whether it is in segments or beside them.

        `speech` is where it begins and ends, in seconds; text without times spans it, or shares it with what else has none.
        Times past the end are Whisper's, which fills up 30 s with silence.
        """
        unit = _guess_time_unit(max(self._list_times(), default=0.0), seconds if math.isfinite(seconds) else 0.0)
        spoken = [segment for segment in self.segments or () if _get_segment_text(segment)]
        spans = _complete_spans(
            [_scale_span(s.start, s.end, unit) for s in spoken], [len(_get_segment_text(s)) for s in spoken], speech
        )
        found = [
            _build_segment(each, _clamp_span(*span, seconds), unit, seconds) for each, span in zip(spoken, spans, strict=True)
        ]
        beside = _build_words(self.words or (), speech, unit, seconds)
        text = clean_text(self.text)[0] or ("" if found else " ".join(word.word.strip() for word in self.words or ()))
        found = restore_whole_text(text, found, speech)
        if not any(segment.words for segment in found):  # else they are told twice, as WhisperX does
            _distribute_words(beside, found)
        return found

    def _list_times(self) -> Iterable[float]:
        for segment in self.segments or ():
            yield from (time for time in (segment.start, segment.end) if time is not None)
            yield from (word.end for word in segment.words or () if word.end is not None)
        yield from (word.end for word in self.words or () if word.end is not None)

    @property
    def detected_language(self) -> str:
        """The code of the language that was heard; empty if the answer does not tell."""
        named = [self.language, *(language.code for language in self.languages or ()), clean_text(self.text)[1]]
        return next((code for name in named if (code := find_language_code(name))), "")


def _parse_json(said: str) -> Any:
    try:
        return bounded_json.parse_upstream_json(said)
    except ValueError:
        return None


def clean_text(text: str) -> tuple[str, str]:
    """The text in one line, without what marks its language, and the language it was marked with: a name, a code or nothing."""
    language = ""
    if "\n" in text:
        # whisper.cpp ends each segment with a line break, and begins it with a space unless it continues a word.
        text = text.replace("\n", "") if text.startswith(" ") else join_texts(text.splitlines())
    if marked := QWEN_PREFIX.match(text):
        text, language = text[marked.end() :], marked["language"].strip()
    for tag in SPECIAL_TOKEN.findall(text):
        language = language or find_language_code(tag)
    return SPECIAL_TOKEN.sub("", text).strip(), language


def find_language_code(spelled: str) -> str:
    """The ISO 639 code of a language that an upstream named; empty when it is none we know."""
    try:
        return parse_language(spelled) or ""
    except InvalidRequestError:
        return ""


def _get_segment_text(segment: UpstreamSegment) -> str:
    """The text of a segment, by its words if it has none itself."""
    return clean_text(segment.text)[0] or " ".join(word.word.strip() for word in segment.words or ()).strip()


def _guess_time_unit(latest: float, seconds: float) -> float:
    """In which unit times are whose latest is this, in audio of so many seconds (0: unknown)."""
    if seconds:
        if latest <= seconds + SLACK_S:
            return 1.0
        return next((unit for unit in SMALL_UNITS if latest * unit <= seconds + SLACK_S), 1.0)
    if latest < MAX_DURATION_S:
        return 1.0
    return SMALL_UNITS[-1] if latest >= MIN_NANOSECONDS else SMALL_UNITS[0]


def _scale_span(start: float | None, end: float | None, unit: float) -> tuple[float | None, float | None]:
    return None if start is None else start * unit, None if end is None else end * unit


def _complete_spans(
    known: Sequence[tuple[float | None, float | None]], sizes: Sequence[int], around: tuple[float, float]
) -> list[tuple[float, float]]:
    """Times for all of a row of things. Those that have none share what their neighbours leave, by their sizes."""
    spans: list[tuple[float, float]] = []
    while (at := len(spans)) < len(known):
        stop, end = _find_shared_end(known, at)
        finish = around[1] if end is None else end
        begin = known[at][0]
        if begin is None:
            begin = spans[-1][1] if spans else min(around[0], finish)
        spans += _share_span(begin, max(begin, finish), sizes[at:stop])
    return spans


def _find_shared_end(known: Sequence[tuple[float | None, float | None]], at: int) -> tuple[int, float | None]:
    """Up to which one things from `at` on share a time, and when it ends: with the first that has an end, or where one begins."""
    for i in range(at, len(known)):
        start, end = known[i]
        if i > at and start is not None:
            return i, start
        if end is not None:
            return i + 1, end
    return len(known), None


def _share_span(begin: float, end: float, sizes: Sequence[int]) -> list[tuple[float, float]]:
    whole, done, shared = sum(sizes) or 1, 0, []
    for size in sizes:
        shared.append((begin + (end - begin) * done / whole, begin + (end - begin) * (done + size) / whole))
        done += size
    return shared


def _build_segment(answered: UpstreamSegment, span: tuple[float, float], unit: float, seconds: float) -> Segment:
    return Segment(
        start=span[0],
        end=span[1],
        text=_get_segment_text(answered),
        avg_logprob=answered.avg_logprob,
        no_speech_prob=answered.no_speech_prob,
        compression_ratio=answered.compression_ratio,
        temperature=answered.temperature,
        tokens=answered.tokens,
        words=_build_words(answered.words or (), span, unit, seconds),
    )


def _build_words(answered: Iterable[UpstreamWord], around: tuple[float, float], unit: float, seconds: float) -> list[Word]:
    """Words with times. For some that have none (numbers, with WhisperX) the neighbours tell; if none has any, there are none."""
    words = _join_tokens(answered)
    if not any(word.start is not None or word.end is not None for word in words):
        return []
    spans = _complete_spans([_scale_span(w.start, w.end, unit) for w in words], [len(w.word) for w in words], around)
    return [Word(w.word.strip(), *_clamp_span(*span, seconds), w.probability) for w, span in zip(words, spans, strict=True)]


def _join_tokens(words: Iterable[UpstreamWord]) -> list[UpstreamWord]:
    """whisper.cpp's tokens joined into words: one that begins without a space continues the one before."""
    whole: list[UpstreamWord] = []
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


def _distribute_words(words: Iterable[Word], segments: list[Segment]) -> None:
    """Give words that stand beside the segments to the segment they are in: the last that begins before their middle."""
    for word in words:
        begun = [segment for segment in segments if segment.start <= (word.start + word.end) / 2]
        for segment in begun[-1:] or segments[:1]:
            segment.words.append(word)


def _clamp_span(start: float, end: float, seconds: float) -> tuple[float, float]:
    start = min(max(start, 0.0), seconds)
    return start, min(max(end, start), seconds)


OPENING_MARKS = "\"'“‘«„¿¡([{（「『《"  # noqa: RUF001 -- they are meant
"""Marks that belong to what follows them."""


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """A text without case, spaces and punctuation, and where in the text each of its letters is."""

    letters: str
    positions: Sequence[int]

    @classmethod
    def of(cls, text: str) -> NormalizedText:
        """Only the letters and digits."""
        found = [(low, place) for place, letter in enumerate(text) if letter.isalnum() for low in letter.casefold()]
        return cls("".join(letter for letter, _ in found), [place for _, place in found])


def restore_whole_text(text: str, segments: Sequence[Segment], speech: tuple[float, float]) -> list[Segment]:
    """The segments, if all of the text is in them. Else the text cut where they begin, as far as they are found in it.

    What lies between two segments that are found goes to the first of them. `speech` is where the speech begins and ends, in
    seconds, for a text of which nothing is found.
    """
    if not segments:
        return [Segment(*speech, text=text)] if text else []
    if sum(_count_characters(segment.text) for segment in segments) >= _count_characters(text):
        return list(segments)
    whole = NormalizedText.of(text)
    if len(NormalizedText.of(join_texts(segment.text for segment in segments)).letters) >= len(whole.letters):
        return list(segments)
    found = _locate_segments(whole, segments)
    if not found:
        return [replace(_merge_segments(segments), text=text)]
    cuts = [0, *(_find_cut(text, whole.positions[begin]) for _, begin in found[1:]), len(text)]
    firsts = [0, *(number for number, _ in found[1:]), len(segments)]
    pieces = zip(pairwise(cuts), pairwise(firsts), strict=True)
    completed = [replace(_merge_segments(segments[a:b]), text=text[begin:end].strip()) for (begin, end), (a, b) in pieces]
    _extend_segments(completed, segments, firsts, speech[1])
    return completed


def _count_characters(text: str) -> int:
    """Characters but for spaces: soon counted, also those of a day."""
    return len("".join(text.split()))


def _locate_segments(whole: NormalizedText, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The segments that are in the text, each by its number, with the place of its first letter there; in order."""
    found: list[tuple[int, int]] = []
    at = 0
    for number, segment in enumerate(segments):
        letters = NormalizedText.of(segment.text).letters
        begin = whole.letters.find(letters, at) if letters else -1
        if begin >= 0:
            found.append((number, begin))
            at = begin + len(letters)
    return found


def _find_cut(text: str, place: int) -> int:
    """Where a piece begins whose first letter is there: at the marks that open it."""
    while place and text[place - 1] in OPENING_MARKS:
        place -= 1
    return place


def _merge_segments(segments: Sequence[Segment]) -> Segment:
    """One segment over the time of several, with the words of all."""
    first = segments[0]
    words = [word for segment in segments for word in segment.words]
    return replace(first, end=max(segment.end for segment in segments), words=words)


def _extend_segments(completed: list[Segment], segments: Sequence[Segment], firsts: Sequence[int], end: float) -> None:
    """Let a segment that has got more text last until the next one begins, or the speech ends."""
    for number, segment in enumerate(completed):
        before = join_texts(each.text for each in segments[firsts[number] : firsts[number + 1]])
        if len(NormalizedText.of(segment.text).letters) > len(NormalizedText.of(before).letters):
            segment.end = max(segment.end, completed[number + 1].start if number + 1 < len(completed) else end)
