"""Decides how a Whisper decodes a window: prompts, temperatures, thresholds and timestamps, for any library. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import ceil
from typing import Self

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from eardrum.languages import LANGUAGE_NAMES
from eardrum.text import normalize_word
from eardrum.transcription import SpeechTask, Word

Features = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Log-mel, shape [bands, frames]."""

FRAMES_PER_SECOND = 100
WINDOW_S = 30.0
"""The encoder's fixed input length."""
TIME_STEP_S = 0.02
"""Seconds between one time token and the next."""
MOST_PREVIOUS = 223
"""Tokens before the start of the text: half of what the decoder holds, less the token that announces them."""
PREVIOUS_STEP = 32
"""The previous text is cut to a multiple of this many tokens, so that windows agree on its length and can share a batch."""
HEARD_ENOUGH_S = 30.0
"""Seconds of a request's speech after which its language is looked for less and less often."""
HEARD_AGAIN = 0.5
"""Then it is once that share of what was voted before has followed: a dozen times an hour, and most of the speech decides."""
FORGETFUL_TEMPERATURE = 0.5
"""Text sampled at more than this is no guide to the text after it."""

LEAST_CONTEXT, MOST_CONTEXT = 1500, 2000
"""Frames that are encoded at least, and at most: longer audio would gain little, and has more errors."""
CONTEXT_MARGIN = 500
"""Frames of silence that are encoded behind the audio."""
SURE_LANGUAGE = 0.5
"""Probability of a language, below which it is looked for again in all of the 30 s."""
REPEATED_WORDS = 4
"""As many words in a row that come twice are a repetition."""
MISSING_S = 2.0
"""Speech behind the end of the text."""

LETTERS_A_SECOND = 20.0
"""Nobody speaks faster for long."""

SURE_LOGPROB = -0.5
"""Mean log probability of text that is not doubted for repeating itself if it was confirmed."""
SPOKEN_TOKENS_A_SECOND = 6.0
"""Tokens in a second of speech, at most; loops are faster, or continue until the decoder stops them."""
MOST_TEXT_TOKENS = 220
"""A text this long was ended by the decoder's limit and not by the model."""
CONFIRMING_STEP = 0.35
"""Temperatures this far apart confirm each other: loops often come again at the next one, and seldom word for word at this."""

ALIKE = 0.8
"""Likeness of two stretches of audio with the same words, spoken once and played twice. Other words come to 0.6 at most."""
LIKENESS_REACH, LIKENESS_STEP = 40, 2
"""Frames by which the times of stretches may be off, and from one comparison to the next."""
LEAST_COMPARED, MOST_COMPARED = 30, 400
"""Frames of a stretch that are compared."""

OPENING = "\"'“¿([{-"
CLOSING = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 -- full-width on purpose


class SpecialTokens(Struct, frozen=True):
    """Numbers of the tokens that are not text. Time tokens begin at `times`, text ends before `end`."""

    end: int
    start: int
    transcribe: int
    translate: int
    previous: int
    times: int
    languages: dict[str, int]

    @classmethod
    def of(cls, number: Callable[[str], int | None]) -> Self:
        """The numbers by a vocabulary's own account.

        Raises:
            LookupError: it is not Whisper's vocabulary; the message is the token it lacks.
        """

        def needed(name: str) -> int:
            if (found := number(f"<|{name}|>")) is None:
                raise LookupError(f"<|{name}|>")
            return found

        languages = {code: found for code in LANGUAGE_NAMES if (found := number(f"<|{code}|>")) is not None}
        return cls(
            end=needed("endoftext"),
            start=needed("startoftranscript"),
            transcribe=needed("transcribe"),
            translate=needed("translate"),
            previous=needed("startofprev"),
            times=needed("notimestamps") + 1,
            languages=dict(sorted(languages.items(), key=lambda item: item[1])),
        )

    def build_prompt(self, language: str, task: SpeechTask) -> list[int]:
        """The first tokens of a multilingual model's text."""
        return [self.start, self.languages[language], self.translate if task is SpeechTask.TRANSLATE else self.transcribe]

    def strip_special(self, tokens: Iterable[int]) -> list[int]:
        """The tokens that are text."""
        return [token for token in tokens if token < self.end]


def build_previous_tokens(hints: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Tokens to put before the text: prompt and hotwords, then the end of the earlier text, within `MOST_PREVIOUS`."""
    kept = list(hints[-MOST_PREVIOUS:])
    room = MOST_PREVIOUS - len(kept)
    recent = list(earlier[-room:]) if room else []
    if len(recent) > PREVIOUS_STEP:
        recent = recent[len(recent) % PREVIOUS_STEP :]
    return kept + recent


def list_temperatures(temperatures: Sequence[float], requested: float) -> list[float]:
    """List the temperatures to try in order: the request's and higher ones of the model."""
    return [requested, *(t for t in temperatures if t > requested)] if requested else list(temperatures)


def compute_compression_ratio(text: str) -> float:
    """How many times smaller the text can be packed: repetitions pack well."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def choose_context(frames: int) -> int | None:
    """Choose how many frames are encoded for so many frames of audio: with enough silence behind it. None is all of the 30 s."""
    context = max(LEAST_CONTEXT, ceil((frames + CONTEXT_MARGIN) / FRAMES_PER_SECOND) * FRAMES_PER_SECOND)
    return context if context <= MOST_CONTEXT else None


class DecodedText(Struct, frozen=True):
    """One attempt at a window: its tokens, times included, and how far to believe it."""

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float


class DecodingThresholds(Struct, frozen=True):
    """When not to believe a decoding; None switches a check off."""

    compression_ratio: float | None = 2.4
    log_prob: float | None = -1.0
    no_speech: float | None = 0.6

    def is_silent(self, decoding: DecodedText) -> bool:
        """Whether the window is silent: the model gives a high probability of silence and a low one of the text."""
        if self.no_speech is None or decoding.no_speech_prob <= self.no_speech:
            return False
        return self.log_prob is None or decoding.avg_logprob <= self.log_prob

    def is_doubtful(self, decoding: DecodedText) -> bool:
        """Whether to try again at a higher temperature."""
        unsure = self.log_prob is not None and decoding.avg_logprob < self.log_prob
        return (unsure or self.is_repetitive(decoding)) and not self.is_silent(decoding)

    def choose_best(self, decodings: Sequence[DecodedText]) -> DecodedText:
        """The last one if it is beyond doubt, else the likeliest of those that do not repeat themselves."""
        if not self.is_doubtful(decodings[-1]):
            return decodings[-1]
        believable = [decoding for decoding in decodings if not self.is_repetitive(decoding)]
        return max(believable or decodings, key=lambda decoding: decoding.avg_logprob)

    def choose_decoding(self, decodings: Sequence[DecodedText], texts: Sequence[str], seconds: float) -> DecodedText:
        """Return `best`, unless the speakers repeated themselves: then the text that looked like a loop is right.

        It is, if it is sure, no faster than speech, and either the best has nothing but fewer of the same words, or is in
        doubt itself while another attempt had the same text. `texts` are those of the decodings, of so much audio.
        """
        best = self.choose_best(decodings)
        earlier = set(map(normalize_word, texts[decodings.index(best)].split()))
        for decoding, text in zip(decodings, texts, strict=True):
            unsure = self.log_prob is not None and decoding.avg_logprob < self.log_prob
            if decoding is best or not self.is_repetitive(decoding) or unsure or len(text) > seconds * LETTERS_A_SECOND:
                continue
            words = list(map(normalize_word, text.split()))
            confirmed = sum(list(map(normalize_word, other.split())) == words for other in texts) > 1
            if (earlier and earlier <= set(words)) or (confirmed and self.is_doubtful(best)):
                return decoding
        return best

    def is_confirmed(self, decodings: Sequence[DecodedText], texts: Sequence[str], spoken: float) -> bool:
        """Whether the last decoding, doubtful for repeating itself, is what was said: sure, no faster than speech, and word for
        word that of a temperature well below. `texts` are those of the decodings, of so many seconds of speech.
        """
        last = decodings[-1]
        if not self.is_repetitive(last) or (self.log_prob is not None and last.avg_logprob < self.log_prob):
            return False
        if last.avg_logprob < SURE_LOGPROB or len(last.tokens) > min(MOST_TEXT_TOKENS, spoken * SPOKEN_TOKENS_A_SECOND):
            return False
        words = list(map(normalize_word, texts[-1].split()))
        return any(
            last.temperature - decoding.temperature >= CONFIRMING_STEP and list(map(normalize_word, text.split())) == words
            for decoding, text in zip(decodings, texts, strict=True)
        )

    def is_repetitive(self, decoding: DecodedText) -> bool:
        """Whether the text repeats itself as the loops of a decoder do."""
        return self.compression_ratio is not None and decoding.compression_ratio > self.compression_ratio


class TimestampSpan(Struct, frozen=True):
    """Tokens between two times in seconds, the time tokens included."""

    start: float
    end: float
    tokens: list[int]


def split_spans(tokens: Sequence[int], times: int, duration: float) -> tuple[list[TimestampSpan], float | None]:
    """Cut decoded tokens at their times.

    Returns the spans, and the second at which the model broke off in the middle of a segment, which is then left out:
    Whisper continues from there with a fresh window. None means that it came to the end.
    """
    cuts = [i for i in range(1, len(tokens)) if tokens[i - 1] >= times and tokens[i] >= times]
    if not cuts:
        return [_build_span(tokens, times, duration)], None
    ended = tokens[-2] < times <= tokens[-1]
    if ended:
        cuts.append(len(tokens))
    found = [_build_span(tokens[a:b], times, duration) for a, b in zip([0, *cuts], cuts, strict=False)]
    return found, None if ended else (tokens[cuts[-1] - 1] - times) * TIME_STEP_S


def drop_heard_repetitions(spans: Sequence[TimestampSpan], texts: Sequence[str], features: Features) -> list[str]:
    """The texts of spans, without those that repeat an earlier one and sound like it.

    An announcement that is played again and again packs as well as a decoder's loop; but a loop writes the same text for other
    sounds. People who repeat themselves sound too different to be told from a loop by this.
    """
    kept, earlier = [], dict[tuple[str, ...], list[TimestampSpan]]()
    for span, text in zip(spans, texts, strict=True):
        same = earlier.setdefault(tuple(map(normalize_word, text.split())), [])
        if not any(compute_likeness(features, one, span) >= ALIKE for one in same):
            kept.append(text)
        same.append(span)
    return kept


def compute_likeness(features: Features, one: TimestampSpan, other: TimestampSpan) -> float:
    """The correlation of two stretches of log-mel, one moved along the other to where it is highest; 0 if one is too short."""
    first = features[:, round(one.start * FRAMES_PER_SECOND) : round(one.end * FRAMES_PER_SECOND)]
    begin = max(round(other.start * FRAMES_PER_SECOND) - LIKENESS_REACH, 0)
    second = features[:, begin : round(other.end * FRAMES_PER_SECOND) + LIKENESS_REACH]
    length = min(first.shape[1], second.shape[1], MOST_COMPARED)
    if length < LEAST_COMPARED:
        return 0.0
    middle = (first.shape[1] - length) // 2
    sought = _normalize_rows(first[:, middle : middle + length])
    places = range(0, second.shape[1] - length + 1, LIKENESS_STEP)
    return max(float((sought * _normalize_rows(second[:, place : place + length])).sum()) for place in places)


def _normalize_rows(features: Features) -> Features:
    centred = features - features.mean(axis=1, keepdims=True)
    normalized: Features = centred / (np.linalg.norm(centred) + 1e-9)
    return normalized


def is_plausible(spans: Sequence[TimestampSpan], texts: Sequence[str], speech_end: float) -> bool:
    """Whether the texts of spans are no faster than speech, and reach to the last seconds before it ends.

    With a shortened context, the model sometimes writes a sentence again in no time, or stops early.
    """
    if not any(map(str.strip, texts)) or speech_end - spans[-1].end > MISSING_S:
        return False
    return all(len(text) <= (span.end - span.start + 1.0) * LETTERS_A_SECOND for span, text in zip(spans, texts, strict=True))


def repeats_words(texts: Sequence[str]) -> bool:
    """Whether some words in a row, `REPEATED_WORDS` of them, come twice."""
    words = [normalize_word(word) for text in texts for word in text.split()]
    runs = [tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words) - REPEATED_WORDS + 1)]
    return len(runs) > len(set(runs))


def _build_span(tokens: Sequence[int], times: int, duration: float) -> TimestampSpan:
    marks = [(token - times) * TIME_STEP_S for token in tokens if token >= times]
    start = marks[0] if tokens and tokens[0] >= times else 0.0
    end = marks[-1] if marks and marks[-1] > start else duration
    return TimestampSpan(min(start, duration), min(end, duration), list(tokens))


def build_whole_span(tokens: Sequence[int], times: int, duration: float) -> TimestampSpan:
    """All tokens as one span: for a decoding whose times lead nowhere."""
    return replace(_build_span(tokens, times, duration), end=duration)


def build_timed_words(
    pieces: Sequence[tuple[str, int]], starts: Sequence[float], probabilities: Sequence[float], within: tuple[float, float]
) -> list[Word]:
    """Words with their times, punctuation joined to them.

    `pieces` are texts, leading space included, with their number of tokens; `starts` has the second at which each of these
    tokens begins and, last, the end; `probabilities` those of the tokens. No word leaves the seconds `within`.
    """
    words: list[Word] = []
    firsts = list(accumulate((count for _, count in pieces), initial=0))
    bounds = _clamp_times([starts[first] for first in firsts], *within)
    for number, (text, count) in enumerate(pieces):
        first = firsts[number]
        word = Word(text, bounds[number], bounds[number + 1], sum(probabilities[first : first + count]) / count)
        if words and _consists_of(CLOSING, text):
            words[-1] = replace(words[-1], word=words[-1].word + text)
        elif words and words[-1].word.startswith(" ") and _consists_of(OPENING, words[-1].word[1:]):
            words[-1] = replace(word, word=words[-1].word + text.lstrip())
        else:
            words.append(word)
    return [replace(word, word=word.word.strip()) for word in words if word.word.strip()]


def _clamp_times(bounds: Sequence[float], begin: float, end: float) -> list[float]:
    """Rising bounds of words, those outside their segment spread over what is left of it before or after the others.

    A segment's times are within a tenth of a second, while the alignment can be off by a whole word.
    """
    last = len(bounds) - 1
    inside = [(number, bound) for number, bound in enumerate(bounds) if begin < bound < end and 0 < number < last]
    opens = min(max(bounds[0], begin), end) if bounds[0] < end else begin
    closes = min(max(bounds[-1], begin), end) if bounds[-1] > begin else end
    numbers, known = zip((0, opens), *inside, (last, closes), strict=True)
    return [float(bound) for bound in np.interp(range(len(bounds)), numbers, known)]


def _consists_of(marks: str, text: str) -> bool:
    return bool(text) and all(letter in marks for letter in text)


def vote(votes: dict[str, float], seconds: Mapping[str, float], sign: int = 1) -> None:
    """Add the language probabilities of some speech to its request's votes, or with -1 remove them.

    `seconds` are the length of the speech, shared among the languages by their probability.
    """
    for language, share in seconds.items():
        votes[language] = votes.get(language, 0.0) + sign * share


def is_settled(votes: Mapping[str, float], unheard: float = 0.0) -> bool:
    """Whether enough speech has voted to be sure of the language, with `unheard` seconds without a vote."""
    voted = sum(votes.values())
    return voted > HEARD_ENOUGH_S * 0.99 and unheard < voted * HEARD_AGAIN


def find_favourite(votes: Mapping[str, float]) -> str:
    """The language with the most votes."""
    return max(votes, key=votes.__getitem__)
