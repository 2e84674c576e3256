"""Parses the transcripts of upstreams: OpenAI's shapes and similar ones.

Only the text is required. Everything else in a response is read if it can be understood and skipped if not: a server whose
segments have no times, or are plain strings, has still transcribed the audio. A text beside the segments is merged into them, so
that no word is lost where the segments have less.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Self

from msgspec import Struct
from msgspec.structs import replace
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
"""Times up to this long after the end still count as seconds: Whisper pads audio to 30 s with silence."""
MAX_DURATION_S = 1e6
"""No recording is this long. Larger times are not in seconds, even if the length of the audio is unknown."""
MIN_NANOSECONDS = 1e8
"""Times from here on are more likely nanoseconds than milliseconds."""
MAX_TIME = 1e18
"""No time is later than this in any unit: a larger number is not a time."""


def _to_finite(value: Any) -> Any:
    """Return a finite number, or 0 for anything else: servers in C++ send null or NaN for the mean of no values."""
    return value if isinstance(value, int | float) and _is_representable(value) else 0.0


def _is_representable(value: float) -> bool:
    """Whether a float can hold the number: an integer in JSON may have any number of digits."""
    return abs(value) <= sys.float_info.max


def _keep_numbers(value: Any) -> Any:
    """Return a list of token numbers, or an empty one: some servers send the tokens' texts."""
    return value if isinstance(value, list) and all(isinstance(item, int) for item in value) else []


def _parse_time(value: Any) -> float | None:
    """Parse a number, `"2.39"`, `"2.39s"`, `"2390ms"` or `"00:00:02,390"` into seconds; None for anything else."""
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
    """Return a text, or an empty one for anything else."""
    return value if isinstance(value, str) else ""


def _join_strings(value: Any) -> Any:
    """Join a text that may come in parts. Other types are left to the validation, which refuses them."""
    if isinstance(value, list):
        return join_texts(item for item in value if isinstance(item, str))
    return "" if value is None else value


def _keep_objects(value: Any) -> list[Any] | None:
    """Return the items of a list that are objects, with texts as objects; None if it is not a list."""
    if not isinstance(value, list | tuple):
        return None
    objects = ({"text": item} if isinstance(item, str) else item for item in value)
    return [item for item in objects if isinstance(item, dict)]


FiniteNumber = Annotated[float, BeforeValidator(_to_finite)]
OptionalSeconds = Annotated[float | None, BeforeValidator(_parse_time)]
LenientText = Annotated[str, BeforeValidator(_to_string)]


# The validators are built for the first response of an upstream: a gateway without upstreams starts 5 ms of CPU sooner.


class TimedItem(BaseModel, defer_build=True):
    """An item with times, by any of the names that servers use; None where a time is missing."""

    start: OptionalSeconds = None
    end: OptionalSeconds = None

    @model_validator(mode="before")
    @classmethod
    def _normalize_times(cls, item: Any) -> Any:
        """Read times from a pair (`timestamp` of Hugging Face's pipelines) or milliseconds (`offsets` of whisper.cpp's files)."""
        if not isinstance(item, dict) or "start" in item or "end" in item:
            return item
        if isinstance(pair := item.get("timestamp"), list | tuple) and len(pair) == 2:
            return {**item, "start": pair[0], "end": pair[1]}
        if isinstance(offsets := item.get("offsets"), Mapping):
            times = {name: _parse_time(offsets.get(key)) for name, key in (("start", "from"), ("end", "to"))}
            return {**item, **{name: time / 1000 for name, time in times.items() if time is not None}}
        return item


class UpstreamWord(TimedItem):
    """A word. LocalAI calls its text `text`, WhisperX calls its probability `score`."""

    word: LenientText = Field("", validation_alias=AliasChoices("word", "text"))
    probability: Annotated[float, BeforeValidator(lambda value: 1.0 if value is None else _to_finite(value))] = Field(
        1.0, validation_alias=AliasChoices("probability", "score", "confidence")
    )
    t_dtw: Any = None
    """Only whisper.cpp sends it. Its words are tokens, that is, parts of words."""


UpstreamWords = Annotated[list[UpstreamWord] | None, BeforeValidator(_keep_objects)]


class UpstreamSegment(TimedItem):
    """A segment of verbose_json. Most servers leave out some fields."""

    text: LenientText = ""
    avg_logprob: FiniteNumber = 0.0
    no_speech_prob: FiniteNumber = 0.0
    compression_ratio: Annotated[float, BeforeValidator(lambda value: _to_finite(value) or 1.0)] = 1.0
    temperature: FiniteNumber = 0.0
    tokens: Annotated[list[int], BeforeValidator(_keep_numbers)] = []
    words: UpstreamWords = None
    speaker: LenientText = ""


class UpstreamLanguage(BaseModel, defer_build=True):
    """An entry of `languages`, which newer models of OpenAI send."""

    code: LenientText = ""


class UpstreamUsage(BaseModel, defer_build=True):
    """The billed usage: tokens, or seconds rounded up."""

    seconds: FiniteNumber = 0.0


class UpstreamTranscript(BaseModel, defer_build=True):
    """A transcription in json or verbose_json. WhisperX and Hugging Face use other names for some fields."""

    text: Annotated[str, BeforeValidator(_join_strings)] = Field(
        "", validation_alias=AliasChoices("text", "transcript", "transcription")
    )
    task: LenientText = ""
    """The task that the server carried out; whisper-server reports it."""
    language: LenientText = ""
    duration: Annotated[float, BeforeValidator(lambda value: _parse_time(value) or 0.0)] = 0.0
    """Seconds; vLLM sends a string."""
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
        """Parse JSON (an object, a list of segments or a string), or plain text if the content type says so.

        Raises:
            ValueError: it is none of these.
        """
        content = body.decode(errors="replace").removeprefix("\ufeff").strip()
        if content.startswith("{"):
            bounded_json.check_upstream_json(content)
            return cls.model_validate_json(content)
        value = _parse_json(content)
        if isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
            return cls.model_validate({"segments": value})
        if isinstance(value, str):
            return cls.model_validate({"text": value})
        if content_type.partition(";")[0].strip().lower() != "text/plain" or content.startswith("<"):
            raise ValueError("it is no transcript")
        return cls.model_validate({"text": content})

    @property
    def is_empty(self) -> bool:
        """Whether neither the text nor the segments nor the words hold any text."""
        return not (self.text.strip() or any(segment.text.strip() for segment in self.segments or ()) or self.words)

    def estimate_duration(self, known: float) -> float:
        """Return the duration of the audio in seconds: as the answer states it, else `known`, else as billed; 0 if unknown."""
        stated = self.duration if self.duration < MAX_DURATION_S else self.duration * _guess_time_unit(self.duration, known)
        return max(0.0, stated) or known or max(0.0, self.usage.seconds if self.usage else 0.0)  # some send -1 for unknown

    def to_segments(self, speech: tuple[float, float], seconds: float, *, speakers: bool = False) -> list[Segment]:
        """Build the segments of audio of `seconds` with all of the text, also the text that is only beside the segments.

        `speech` is the start and the end of the speech in seconds. Text without times spans it, or shares it with other text
        without times. Times after the end are cut: Whisper pads audio to 30 s with silence. Names of speakers are kept only with
        `speakers`: of servers behind models, none is asked for them.
        """
        unit = _guess_time_unit(max(self._list_times(), default=0.0), seconds if math.isfinite(seconds) else 0.0)
        spoken = [segment for segment in self.segments or () if _get_segment_text(segment)]
        spans = _complete_spans(
            [_scale_span(s.start, s.end, unit) for s in spoken], [len(_get_segment_text(s)) for s in spoken], speech
        )
        found = [
            _build_segment(each, _clamp_span(*span, seconds), unit, seconds) for each, span in zip(spoken, spans, strict=True)
        ]
        if speakers:
            for segment, answered in zip(found, spoken, strict=True):
                segment.speaker = answered.speaker
        beside = _build_words(self.words or (), speech, unit, seconds)
        text = clean_text(self.text)[0] or ("" if found else " ".join(word.word.strip() for word in self.words or ()))
        found = restore_whole_text(text, found, speech)
        if not any(segment.words for segment in found):  # WhisperX sends the same words in the segments and beside them
            _distribute_words(beside, found)
        return found

    def _list_times(self) -> Iterable[float]:
        for segment in self.segments or ():
            yield from (time for time in (segment.start, segment.end) if time is not None)
            yield from (word.end for word in segment.words or () if word.end is not None)
        yield from (word.end for word in self.words or () if word.end is not None)

    @property
    def detected_language(self) -> str:
        """The code of the detected language; empty if the answer does not state it."""
        named = [self.language, *(language.code for language in self.languages or ()), clean_text(self.text)[1]]
        return next((code for name in named if (code := find_language_code(name))), "")


def _parse_json(text: str) -> Any:
    try:
        return bounded_json.parse_upstream_json(text)
    except ValueError:
        return None


def clean_text(text: str) -> tuple[str, str]:
    """Return the text in one line without marks of its language, and the marked language: a name, a code or empty."""
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
    """Return the ISO 639 code of a language as an upstream spells it; empty if it is unknown."""
    try:
        return parse_language(spelled) or ""
    except InvalidRequestError:
        return ""


def _get_segment_text(segment: UpstreamSegment) -> str:
    """Return the text of a segment, or its words if it has no text."""
    return clean_text(segment.text)[0] or " ".join(word.word.strip() for word in segment.words or ()).strip()


def _guess_time_unit(latest: float, seconds: float) -> float:
    """Return the unit of times in seconds, by the latest of them, in audio of `seconds` (0: unknown)."""
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
    """Give every item of a sequence a start and an end. Items without them share the gap between their neighbours by size."""
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
    """Return the position after the items from `at` on that share a span, and its end: the first known end or next start."""
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
    """Build words with times; words without them (WhisperX: numbers) get their neighbours'. Without any times, no words."""
    words = _join_tokens(answered)
    if not any(word.start is not None or word.end is not None for word in words):
        return []
    spans = _complete_spans([_scale_span(w.start, w.end, unit) for w in words], [len(w.word) for w in words], around)
    return [Word(w.word.strip(), *_clamp_span(*span, seconds), w.probability) for w, span in zip(words, spans, strict=True)]


def _join_tokens(words: Iterable[UpstreamWord]) -> list[UpstreamWord]:
    """Join whisper.cpp's tokens into words: a token that begins without a space continues the word before it."""
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
    """Add words from beside the segments to their segments: the last one that begins before a word's middle."""
    for word in words:
        begun = [segment for segment in segments if segment.start <= (word.start + word.end) / 2]
        for segment in begun[-1:] or segments[:1]:
            segment.words.append(word)


def _clamp_span(start: float, end: float, seconds: float) -> tuple[float, float]:
    start = min(max(start, 0.0), seconds)
    return start, min(max(end, start), seconds)


OPENING_MARKS = "\"'“‘«„¿¡([{（「『《"  # noqa: RUF001 -- they are meant
"""Marks that belong to what follows them."""


class NormalizedText(Struct, frozen=True):
    """A text without case, spaces and punctuation, and the position of each letter in the original text."""

    letters: str
    positions: Sequence[int]

    @classmethod
    def of(cls, text: str) -> NormalizedText:
        """Keep the letters and digits of a text."""
        found = [(low, place) for place, letter in enumerate(text) if letter.isalnum() for low in letter.casefold()]
        return cls("".join(letter for letter, _ in found), [place for _, place in found])


def restore_whole_text(text: str, segments: Sequence[Segment], speech: tuple[float, float]) -> list[Segment]:
    """Return the segments if they hold all of the text; else the text, cut where segments begin that are found in it.

    Text between two found segments goes to the first of them. `speech` is the start and the end of the speech in seconds, for a
    text without segments.
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
    """Count the characters except spaces, which is fast for a text of any length."""
    return len("".join(text.split()))


def _locate_segments(whole: NormalizedText, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Return the number of each segment that is found in the text, with the position of its first letter, in order."""
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
    """Move a cut before the opening marks that belong to the letter at `place`."""
    while place and text[place - 1] in OPENING_MARKS:
        place -= 1
    return place


def _merge_segments(segments: Sequence[Segment]) -> Segment:
    """Merge segments into one with the words of all."""
    first = segments[0]
    words = [word for segment in segments for word in segment.words]
    return replace(first, end=max(segment.end for segment in segments), words=words)


def _extend_segments(completed: list[Segment], segments: Sequence[Segment], firsts: Sequence[int], end: float) -> None:
    """Extend each segment that got more text to the start of the next one, or to the end of the speech."""
    for number, segment in enumerate(completed):
        before = join_texts(each.text for each in segments[firsts[number] : firsts[number + 1]])
        if len(NormalizedText.of(segment.text).letters) > len(NormalizedText.of(before).letters):
            segment.end = max(segment.end, completed[number + 1].start if number + 1 < len(completed) else end)
