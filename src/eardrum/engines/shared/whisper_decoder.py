"""Decodes windows of any requests with any library's Whisper, as rows of common batches.

A batch goes through rounds. In each the rows are encoded once; on that output languages are found, rows are decoded at one
temperature after another while their text is doubtful, and words are timed. A row in which the model broke off in the middle
of a segment continues from there in the next round.

Where the library can, and gains from it, a round encodes only as much silence behind the audio as the model needs, and not 30 s.
A row whose text is in doubt then is decoded again in a round with all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from math import log
from threading import Lock
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from msgspec.structs import replace
from pydantic import Field

from eardrum.engines.base import Audio, EngineResult, Window
from eardrum.engines.shared.whisper_rules import (
    FORGETFUL_TEMPERATURE,
    FRAMES_PER_SECOND,
    SURE_LANGUAGE,
    WINDOW_S,
    DecodedText,
    DecodingThresholds,
    Features,
    SpecialTokens,
    TimestampSpan,
    build_previous_tokens,
    build_timed_words,
    build_whole_span,
    choose_context,
    compute_compression_ratio,
    drop_heard_repetitions,
    find_favourite,
    is_plausible,
    is_settled,
    list_temperatures,
    repeats_words,
    split_spans,
    vote,
)
from eardrum.transcription import Capabilities, Segment, SpeechTask, Token

# Options that engines on this decoder share; each declares them in its `Options` with these types.

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
Temperatures = Annotated[
    tuple[Annotated[float, Field(ge=0, le=2)], ...],
    Field(
        min_length=1,
        description="Temperatures, tried in turn while the text is doubtful; a request's temperature is the first of them.",
    ),
]
BestOf = Annotated[int, Field(ge=1, le=50, description="Samples drawn above temperature 0, of which the likeliest is taken.")]
CompressionRatioThreshold = Annotated[
    float | None,
    Field(description="Text with a higher compression ratio is repetitive and doubtful; null switches the check off."),
]
LogProbThreshold = Annotated[
    float | None, Field(description="Text with a lower mean log probability is doubtful; null switches the check off.")
]
NoSpeechThreshold = Annotated[
    float | None,
    Field(description="Doubtful text above this probability of silence is dropped; null switches the check off."),
]
ConditionOnPreviousText = Annotated[
    bool,
    Field(
        description="Give the model the text of the previous window: style and spelling are consistent, but errors persist, and "
        "the windows of a request are decoded one after another."
    ),
]
DefaultPrompt = Annotated[str, Field(description="Prompt for requests without one: names, spelling, style.")]


class DecoderOptions(Protocol):
    """The options of an engine that set up its decoder."""

    @property
    def temperatures(self) -> Temperatures: ...

    @property
    def compression_ratio_threshold(self) -> CompressionRatioThreshold: ...

    @property
    def log_prob_threshold(self) -> LogProbThreshold: ...

    @property
    def no_speech_threshold(self) -> NoSpeechThreshold: ...

    @property
    def condition_on_previous_text(self) -> ConditionOnPreviousText: ...

    @property
    def prompt(self) -> DefaultPrompt: ...


LEAST_S = 0.3
"""Less speech than this is not worth a round, and less progress than this is none."""
LEAST_OWN_S = 0.5
"""Speech shorter than this has no language vote: the rest decides."""
REMEMBERED = 2000
"""Characters of earlier text that are kept; more than fits into the model's context."""
SURE_OF_NOTHING = 1e-10
"""Least probability of a token, so that it has a logarithm."""


class WhisperModel(Protocol):
    """The interface a library must implement. Its encoder's output for a batch is opaque to the caller; rows are indices into
    it."""

    special: SpecialTokens
    multilingual: bool

    def extract_features(self, audio: Audio) -> Features:
        """Log-mel of at most 30 s of audio."""

    def encode(self, features: Sequence[Features]) -> Any:
        """Encode rows of features, of which short ones are to be filled up with silence."""

    def detect_languages(self, encoded: Any, rows: Sequence[int]) -> list[dict[str, float]]:
        """The probability of each language, for each of these rows."""

    def decode(self, encoded: Any, rows: Sequence[int], prompts: list[list[int]], temperature: float) -> list[DecodedText]:
        """Decode these rows with times; in all prompts the text begins at the same place."""

    def align(
        self, encoded: Any, rows: Sequence[int], beginning: list[int], texts: list[list[int]], seconds: Sequence[float]
    ) -> list[tuple[list[float], list[float]]]:
        """When each text token begins, and the end, in seconds; and each token's probability given those before it."""

    def encode_text(self, text: str) -> list[int]:
        """The text as tokens, without special ones."""

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The tokens' text, without times and special tokens."""

    def split_pieces(self, tokens: list[int], language: str) -> list[tuple[str, int]]:
        """Text tokens as words and punctuation marks, each with its number of tokens."""


@runtime_checkable
class ShorteningWhisperModel(WhisperModel, Protocol):
    """The interface of a library whose encoder takes less than 30 s."""

    shortens_context: bool
    """Whether that saves anything on this device."""

    def encode_short(self, features: Sequence[Features], frames: int) -> Any:
        """Encode rows of features, filled up with silence to so many frames."""


def refine_capabilities(declared: Capabilities, model: WhisperModel) -> Capabilities:
    """The engine's declared capabilities, reduced for English-only models."""
    many = model.multilingual
    languages = tuple(model.special.languages) if many else ("en",)
    return replace(declared, languages=languages, detects_language=many, translate=many)


@dataclass(slots=True, eq=False)
class DecodingRow:
    """A window on its way through the rounds, and what this round found in it."""

    window: Window
    features: Features
    at: float = 0.0
    """Second of the window at which the features begin."""
    result: EngineResult = field(default_factory=EngineResult)
    previous: list[int] = field(default_factory=list)
    ladder: list[float] = field(default_factory=list)
    tried: list[DecodedText] = field(default_factory=list)
    best: DecodedText | None = None
    """The decoding that is used."""
    voted: dict[str, float] = field(default_factory=dict)
    """This row's votes on the request's language."""
    unheard: float = 0.0
    """Seconds of speech by which this row lowered its request's `unheard`: those that its votes count for beside its own."""
    spans: list[TimestampSpan] = field(default_factory=list)
    rest: float | None = None
    """Second of the features from which to continue."""
    needs_whole: bool = False
    """Whether the language or the text was in doubt with less than 30 s encoded, so that it is decoded again with 30 s."""

    @property
    def seconds(self) -> float:
        """How much of the features is audio."""
        return min(self.window.seconds, WINDOW_S) - self.at

    @property
    def temperature(self) -> float:
        """The next to try."""
        return self.ladder[len(self.tried)]

    def split(self, decoding: DecodedText, times: int) -> None:
        """Take the decoding's spans, and continue after them if there is speech left and the model came forward at all.

        Where too little speech is left to continue, it may still hold a short word: then what the model wrote of it is taken.
        """
        self.spans, self.rest = split_spans(decoding.tokens, times, self.seconds)
        if self.rest is not None and self.rest < LEAST_S:
            self.spans, self.rest = [build_whole_span(decoding.tokens, times, self.seconds)], None
        speech_s = self.window.speech_span[1] - self.at
        if self.rest is not None and self.rest > speech_s - LEAST_S:
            unfinished = decoding.tokens[sum(len(span.tokens) for span in self.spans) :]
            if self.rest < speech_s and any(token < times for token in unfinished):
                self.spans.append(build_whole_span(unfinished, times, self.seconds))
            self.rest = None

    def count_speech_seconds(self) -> float:
        """Seconds of speech in the features."""
        stretches = self.window.speech_stretches or (self.window.speech_span,)
        return sum(max(0.0, end - max(start, self.at)) for start, end in stretches)

    def skip(self, seconds: float) -> None:
        """Leave out the first seconds of the features."""
        frames = round(seconds * FRAMES_PER_SECOND)
        self.features = self.features[:, frames:]
        self.at += frames / FRAMES_PER_SECOND


class WhisperDecoder:
    """Transcribes with one model. May be called from several threads if the model may."""

    def __init__(
        self, model: WhisperModel, *, thresholds: DecodingThresholds, temperatures: Sequence[float], prompt: str, remembers: bool
    ):
        self._model = model
        self._shortening = model if isinstance(model, ShorteningWhisperModel) and model.shortens_context else None
        self._special = model.special
        self._thresholds = thresholds
        self._temperatures = temperatures
        self._prompt = prompt
        self._remembers = remembers
        self._hints = lru_cache(maxsize=256)(partial(_build_hint_tokens, model))
        self._voting = Lock()

    @classmethod
    def from_options(cls, model: WhisperModel, options: DecoderOptions) -> Self:
        """Create the decoder that an engine's options describe."""
        return cls(
            model,
            thresholds=DecodingThresholds(
                options.compression_ratio_threshold, options.log_prob_threshold, options.no_speech_threshold
            ),
            temperatures=options.temperatures,
            prompt=options.prompt,
            remembers=options.condition_on_previous_text,
        )

    def batch_key(self, window: Window) -> Hashable:
        """Windows with equal keys may share a batch: the key holds where the text begins, and the first temperature."""
        return len(self._find_previous_tokens(window)), window.request.temperature

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows; returns one result per window, empty for silent and cancelled ones."""
        rows = [DecodingRow(window, self._model.extract_features(window.audio)) for window in windows]
        current = rows
        while current := [row for row in current if not row.window.cancelled]:
            encoded, is_short = self._encode(current)
            self._find_languages(current, encoded, is_short=is_short)
            self._decode(current, encoded, is_short=is_short)
            self._decode_rows(current, encoded)
            current = [row for row in current if row.rest is not None]
            for row in current:
                row.skip(row.rest or 0.0)
        return [EngineResult() if row.window.cancelled or not row.result.segments else row.result for row in rows]

    def _encode(self, rows: Sequence[DecodingRow]) -> tuple[Any, bool]:
        """The encoder's output, and whether it is that of less than 30 s."""
        features = [row.features for row in rows]
        frames = choose_context(max(one.shape[1] for one in features))
        if self._shortening is None or frames is None or any(row.needs_whole for row in rows):
            return self._model.encode(features), False
        return self._shortening.encode_short(features, frames), True

    def _find_languages(self, rows: Sequence[DecodingRow], encoded: Any, *, is_short: bool) -> None:
        """A row's language is its request's, or the one with most votes of the request's windows so far, or its own.

        With less than 30 s encoded, a row whose language is in doubt needs the whole 30 s.
        """
        for row in rows:
            row.needs_whole = False
        unknown = [n for n, row in enumerate(rows) if self._model.multilingual and not row.result.language]
        unsettled = [n for n in unknown if self._is_unsettled(rows[n])]
        detected = self._model.detect_languages(encoded, unsettled) if unsettled else []
        with self._voting:
            for number, probabilities in zip(unsettled, detected, strict=True):
                row = rows[number]
                context = row.window.context
                row.unheard, context.unheard = context.unheard, 0.0
                spoken = _count_speech_seconds(row.window) + row.unheard
                row.voted = {code: p * spoken for code, p in probabilities.items() if code in self._special.languages}
                vote(context.votes, row.voted)
            for number in unknown:
                row, request = rows[number], rows[number].window.request
                if request.language:
                    row.result.language = request.language
                    continue
                own = row.voted if request.multilingual and _count_speech_seconds(row.window) >= LEAST_OWN_S else {}
                votes = own or row.window.context.votes
                row.result.language = favourite = find_favourite(votes)
                row.needs_whole = is_short and votes[favourite] < SURE_LANGUAGE * sum(votes.values())
        if not self._model.multilingual:
            for row in rows:
                row.result.language = "en"

    def _is_unsettled(self, row: DecodingRow) -> bool:
        """Whether the language has to be looked for in this row's window."""
        if row.window.request.language:
            return False
        context, spoken = row.window.context, _count_speech_seconds(row.window)
        with self._voting:
            if row.window.request.multilingual or not is_settled(context.votes, context.unheard + spoken):
                return True
            row.unheard = -spoken
            context.unheard += spoken
        return False

    def _decode(self, rows: Sequence[DecodingRow], encoded: Any, *, is_short: bool) -> None:
        """Try each row at one temperature after another until there is no doubt; rows at the same one go together.

        With less than 30 s encoded there is one try: if that is in doubt, the row needs the whole 30 s.
        """
        for row in rows:
            row.previous = self._find_previous_tokens(row.window)
            row.ladder = list_temperatures(self._temperatures, row.window.request.temperature)[: 1 if is_short else None]
            row.tried, row.best = [], None
        waiting = [n for n, row in enumerate(rows) if not row.needs_whole]
        while waiting:
            for alike in _group_by(waiting, lambda n: (len(rows[n].previous), rows[n].temperature)):
                if active := [n for n in alike if not rows[n].window.cancelled]:
                    prompts = [self._build_prefix(rows[n]) + self._build_prompt(rows[n]) for n in active]
                    decodings = self._model.decode(encoded, active, prompts, rows[active[0]].temperature)
                    for number, decoding in zip(active, decodings, strict=True):
                        rows[number].tried.append(self._listen_for_repetitions(rows[number], decoding))
            waiting = [n for n in waiting if self._is_doubtful(rows[n])]
        for row in rows:
            row.needs_whole |= is_short and bool(row.tried) and not self._is_sure(row)

    def _is_doubtful(self, row: DecodingRow) -> bool:
        if row.window.cancelled or len(row.tried) == len(row.ladder):
            return False
        if not self._thresholds.is_doubtful(row.tried[-1]):
            return False
        texts = [self._model.decode_text(decoding.tokens) for decoding in row.tried]
        return not self._thresholds.is_confirmed(row.tried, texts, row.count_speech_seconds())

    def _is_sure(self, row: DecodingRow) -> bool:
        """Whether the text that was decoded with less than 30 s needs no other try."""
        decoding = row.tried[0]
        if self._thresholds.is_doubtful(decoding) or self._thresholds.is_silent(decoding):
            return False
        spans, rest = split_spans(decoding.tokens, self._special.times, row.seconds)
        speech_end = row.window.speech_span[1] - row.at if rest is None else 0.0
        texts = [self._model.decode_text(span.tokens) for span in spans]
        if repeats_words(texts) and repeats_words(drop_heard_repetitions(spans, texts, row.features)):
            return False
        return is_plausible(spans, texts, speech_end)

    def _listen_for_repetitions(self, row: DecodingRow, decoding: DecodedText) -> DecodedText:
        """The decoding with the compression ratio of its text less what is repeated in the audio, too."""
        if not self._thresholds.is_repetitive(decoding):
            return decoding
        spans, _ = split_spans(decoding.tokens, self._special.times, row.seconds)
        texts = drop_heard_repetitions(spans, [self._model.decode_text(span.tokens) for span in spans], row.features)
        return replace(decoding, compression_ratio=compute_compression_ratio("".join(texts).strip()))

    def _decode_rows(self, rows: Sequence[DecodingRow], encoded: Any) -> None:
        """Turn the best decodings into segments, and find out which rows continue."""
        for row in rows:
            row.spans, row.rest = [], None
            if row.needs_whole:
                row.rest = 0.0
            elif row.tried and not row.window.cancelled:
                best = row.best = self._choose_best(row)
                if not self._thresholds.is_silent(best):
                    row.split(best, self._special.times)
        aligned = self._align(rows, encoded)
        for number, row in enumerate(rows):
            if row.spans:
                row.result.segments += self._build_segments(row, aligned.get(number))
                if self._remembers:
                    self._store_context(row)
            if not row.result.segments:
                self._take_back(row)
                if row.needs_whole:
                    row.result.language = ""

    def _choose_best(self, row: DecodingRow) -> DecodedText:
        if len(row.tried) == 1:
            return row.tried[0]
        texts = [self._model.decode_text(decoding.tokens) for decoding in row.tried]
        return self._thresholds.choose_decoding(row.tried, texts, row.seconds)

    def _take_back(self, row: DecodingRow) -> None:
        """Remove the votes of a row without speech, or one that is decoded again and votes then. Speech that these counted for
        beside the row's own is without a vote again."""
        with self._voting:
            vote(row.window.context.votes, row.voted, -1)
            context = row.window.context
            context.unheard = max(context.unheard + row.unheard, 0.0)  # another row may have voted for them meanwhile
        row.voted, row.unheard = {}, 0.0

    def _align(self, rows: Sequence[DecodingRow], encoded: Any) -> dict[int, tuple[list[float], list[float]]]:
        """Return times and probabilities of the text tokens, for the rows that need them and have text."""
        texts = {
            number: [token for span in row.spans for token in self._special.strip_special(span.tokens)]
            for number, row in enumerate(rows)
            if row.window.request.words or row.window.request.logprobs
        }
        aligned: dict[int, tuple[list[float], list[float]]] = {}
        for alike in _group_by([n for n in texts if texts[n]], lambda n: tuple(self._build_prompt(rows[n]))):
            active = [n for n in alike if not rows[n].window.cancelled]
            if not active:
                continue
            results = self._model.align(
                encoded,
                active,
                self._build_prompt(rows[active[0]]),
                [texts[n] for n in active],
                [rows[n].seconds for n in active],
            )
            aligned |= dict(zip(active, results, strict=True))
        return aligned

    def _build_segments(self, row: DecodingRow, aligned: tuple[list[float], list[float]] | None) -> list[Segment]:
        best = row.best or self._choose_best(row)
        texts = [self._special.strip_special(span.tokens) for span in row.spans]
        firsts = accumulate((len(text) for text in texts), initial=0)
        segments = []
        for span, tokens, first in zip(row.spans, texts, firsts, strict=False):
            segment = Segment(
                start=row.at + span.start,
                end=row.at + span.end,
                text=self._model.decode_text(tokens).strip(),
                avg_logprob=best.avg_logprob,
                no_speech_prob=best.no_speech_prob,
                compression_ratio=best.compression_ratio,
                temperature=best.temperature,
                tokens=span.tokens,
            )
            if segment.text and segment.end > segment.start:
                segments.append(segment)
                if aligned:
                    starts, probabilities = aligned
                    last = first + len(tokens)
                    self._build_segment(row, segment, tokens, starts[first : last + 1], probabilities[first:last])
        return segments

    def _build_segment(
        self, row: DecodingRow, segment: Segment, tokens: list[int], starts: Sequence[float], probabilities: Sequence[float]
    ) -> None:
        """Add the words and token probabilities that the request needs."""
        request = row.window.request
        if request.words:
            language = "en" if request.task is SpeechTask.TRANSLATE else row.result.language
            times = [row.at + start for start in starts]
            segment.words = build_timed_words(
                self._model.split_pieces(tokens, language), times, probabilities, (segment.start, segment.end)
            )
        if request.logprobs:
            segment.token_logprobs = [
                Token(self._model.decode_text([token]), log(max(probability, SURE_OF_NOTHING)))
                for token, probability in zip(tokens, probabilities, strict=True)
            ]

    def _store_context(self, row: DecodingRow) -> None:
        text = "".join(self._model.decode_text(span.tokens) for span in row.spans)
        forget = row.tried[-1].temperature > FORGETFUL_TEMPERATURE
        row.window.context.text = "" if forget else (row.window.context.text + text)[-REMEMBERED:]

    def _find_previous_tokens(self, window: Window) -> list[int]:
        request = window.request
        text = self._model.encode_text(window.context.text) if self._remembers and window.context.text else []
        return build_previous_tokens(self._hints(", ".join(request.hotwords), request.prompt or self._prompt), text)

    def _build_prefix(self, row: DecodingRow) -> list[int]:
        return [self._special.previous, *row.previous] if row.previous else []

    def _build_prompt(self, row: DecodingRow) -> list[int]:
        if not self._model.multilingual:
            return [self._special.start]
        return self._special.build_prompt(row.result.language, row.window.request.task)


def _build_hint_tokens(model: WhisperModel, hotwords: str, prompt: str) -> list[int]:
    return [token for text in (hotwords, prompt) if text.strip() for token in model.encode_text(" " + text.strip())]


def _count_speech_seconds(window: Window) -> float:
    begin, end = window.speech_span
    return max(end - begin, LEAST_S)


def _group_by(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The numbers with equal keys together, in order."""
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())
