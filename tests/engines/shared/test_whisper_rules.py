"""What every Whisper shares: pure functions on tokens, times and text."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from eardrum.engines.base import Window
from eardrum.engines.shared.whisper_decoder import DecodingRow, WhisperDecoder
from eardrum.engines.shared.whisper_rules import (
    MOST_PREVIOUS,
    PREVIOUS_STEP,
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
    compute_likeness,
    drop_heard_repetitions,
    find_favourite,
    is_plausible,
    is_settled,
    list_temperatures,
    repeats_words,
    split_spans,
    vote,
)
from eardrum.transcription import SpeechTask, TranscriptionRequest
from tests.models import tiny_whisper

TIMES = 50364


def get_time_token(seconds: float) -> int:
    return TIMES + round(seconds / 0.02)


def create_decoding(logprob: float = -0.1, *, silence: float = 0.0, ratio: float = 1.0, temperature: float = 0.0) -> DecodedText:
    return DecodedText([1], logprob, silence, ratio, temperature)


def test_one_segment_begins_and_ends_where_its_times_say() -> None:
    found, rest = split_spans([get_time_token(0.6), 1, 2, get_time_token(1.4)], TIMES, 5.0)
    assert [(s.start, s.end, s.tokens) for s in found] == [
        (0.6, pytest.approx(1.4), [get_time_token(0.6), 1, 2, get_time_token(1.4)])
    ]
    assert rest is None


def test_a_segment_without_times_is_the_whole_row() -> None:
    found, rest = split_spans([1, 2], TIMES, 5.0)
    assert [(s.start, s.end) for s in found] == [(0.0, 5.0)]
    assert rest is None


def test_a_time_that_only_begins_does_not_end() -> None:
    ((one,), _) = split_spans([get_time_token(1.0), 1, 2], TIMES, 5.0)
    assert (one.start, one.end) == (1.0, 5.0)


def test_segments_are_cut_between_two_times() -> None:
    tokens = [get_time_token(0), 1, get_time_token(1), get_time_token(2), 2, 3, get_time_token(3)]
    found, rest = split_spans(tokens, TIMES, 5.0)
    assert [(s.start, s.end) for s in found] == [(0.0, 1.0), (2.0, 3.0)]
    assert [token for span in found for token in span.tokens] == tokens
    assert rest is None


@pytest.mark.parametrize("unfinished", [[], [4, 5]])
def test_what_was_not_finished_is_left_for_the_next_round(unfinished: list[int]) -> None:
    found, rest = split_spans(
        [get_time_token(0), 1, get_time_token(1), get_time_token(2), 2, get_time_token(3), get_time_token(3), *unfinished],
        TIMES,
        5.0,
    )
    assert [(s.start, s.end) for s in found] == [(0.0, 1.0), (2.0, 3.0)]
    assert rest == pytest.approx(3.0)


def test_a_decoder_is_freed_with_its_last_reference_and_its_model_too() -> None:
    model: Any = SimpleNamespace(special=None)
    decoder = WhisperDecoder(model, thresholds=DecodingThresholds(), temperatures=(0.0,), prompt="", remembers=False)
    watched = weakref.ref(decoder)
    del decoder
    assert watched() is None, "a cycle keeps the weights until the garbage collector finds it"


def split_row(
    unfinished: list[int], speech_end: float, *, at: float = 0.0
) -> tuple[list[tuple[float, float, list[int]]], float | None]:
    """The spans of a row that the model broke off behind a segment of two seconds, and where it continues."""
    window = Window(np.zeros(round((at + 2.6) * 16_000), np.float32), 0.0, 1.0, (0.0, at + speech_end), TranscriptionRequest())
    row = DecodingRow(window, np.zeros((80, 260), np.float32), at)
    tokens = [get_time_token(0), 1, get_time_token(2.0), get_time_token(2.1), *unfinished]
    row.split(DecodedText(tokens, -0.1, 0.0, 1.0, 0.0), TIMES)
    return [(round(span.start, 2), round(span.end, 2), span.tokens) for span in row.spans], row.rest


@pytest.mark.parametrize("at", [0.0, 4.0], ids=["first round", "later round"])
def test_a_short_last_word_is_kept_though_the_model_broke_off_in_it(at: float) -> None:
    spans, rest = split_row([2, 3], 2.25, at=at)
    first = (0.0, 2.0, [get_time_token(0), 1, get_time_token(2.0)])
    assert spans == [first, (2.1, 2.6, [get_time_token(2.1), 2, 3])]
    assert rest is None


@pytest.mark.parametrize(
    ("unfinished", "speech_end", "expected_rest"),
    [
        pytest.param([], 2.25, None, id="nothing was written"),
        pytest.param([2, 3], 1.95, None, id="no speech is left"),
        pytest.param([2, 3], 2.5, pytest.approx(2.0), id="there is enough speech for another round"),
    ],
)
def test_text_behind_the_last_segment_is_left_out(unfinished: list[int], speech_end: float, expected_rest: float | None) -> None:
    spans, rest = split_row(unfinished, speech_end)
    assert spans == [(0.0, 2.0, [get_time_token(0), 1, get_time_token(2.0)])]
    assert rest == expected_rest


def test_no_span_leaves_the_audio() -> None:
    ((one,), _) = split_spans([get_time_token(1), 1, get_time_token(20)], TIMES, 2.0)
    assert (one.start, one.end) == (1.0, 2.0)
    assert build_whole_span([get_time_token(0), get_time_token(0), 1], TIMES, 2.0).end == 2.0


def test_nothing_decoded_is_a_span_without_text() -> None:
    assert split_spans([], TIMES, 2.0)[0][0].tokens == []


def test_doubt() -> None:
    rule = DecodingThresholds()
    assert not rule.is_doubtful(create_decoding())
    assert rule.is_doubtful(create_decoding(-1.1))
    assert rule.is_doubtful(create_decoding(ratio=2.5))
    assert not rule.is_doubtful(create_decoding(-1.1, silence=0.7)), "nobody speaks: nothing to try again"
    assert not rule.is_silent(create_decoding(-0.1, silence=0.99)), "sure of its text"
    assert rule.is_silent(create_decoding(-1.1, silence=0.7))
    assert not DecodingThresholds(None, None, None).is_doubtful(create_decoding(-9, ratio=9))
    assert not DecodingThresholds(None, None, None).is_silent(create_decoding(-9, silence=1.0))


def test_the_best_is_the_first_without_doubt_else_the_likeliest_that_does_not_repeat_itself() -> None:
    rule = DecodingThresholds()
    tries = [create_decoding(-1.5), create_decoding(-1.2, ratio=3.0), create_decoding(-0.2, temperature=0.4)]
    assert rule.choose_best(tries) is tries[2]
    assert rule.choose_best(tries[:2]) is tries[0]
    assert rule.choose_best(tries[1:2]) is tries[1]


def test_the_ladder_begins_at_what_the_request_asks_for() -> None:
    assert list_temperatures((0.0, 0.2, 0.6), 0.0) == [0.0, 0.2, 0.6]
    assert list_temperatures((0.0, 0.2, 0.6), 0.3) == [0.3, 0.6]
    assert list_temperatures((0.0, 0.2, 0.6), 1.0) == [1.0]


def test_repetition_packs_well() -> None:
    assert (
        compute_compression_ratio("no no no " * 40)
        > 2.4
        > compute_compression_ratio("He might even have been made amiable himself.")
    )


def test_hints_stay_and_the_oldest_text_goes() -> None:
    assert build_previous_tokens([1, 2], []) == [1, 2]
    assert build_previous_tokens(range(300), [7]) == list(range(300 - MOST_PREVIOUS, 300))
    long = build_previous_tokens([1, 2], range(1000, 2000))
    assert long[:2] == [1, 2]
    assert long[-1] == 1999
    assert len(long) - 2 == MOST_PREVIOUS // PREVIOUS_STEP * PREVIOUS_STEP
    assert build_previous_tokens([], range(40)) == list(range(8, 40)), "lengths agree, so that windows share a batch"
    assert build_previous_tokens([], range(20)) == list(range(20))


def test_languages_are_voted_on() -> None:
    votes: dict[str, float] = {}
    vote(votes, {"de": 1.5, "en": 0.5})
    vote(votes, {"de": 4.0, "en": 16.0})
    assert find_favourite(votes) == "en"
    assert not is_settled(votes)
    vote(votes, {"de": 4.0, "en": 16.0}, -1)
    assert find_favourite(votes) == "de"
    vote(votes, {"de": 28.0})
    assert is_settled(votes)


def test_words_have_their_punctuation_but_not_its_time() -> None:
    pieces = [(" (", 1), ("Hello", 2), (",", 1), (" world", 1), (".", 1), (")", 1)]
    starts = [0.0, 0.1, 0.5, 1.0, 1.2, 2.0, 2.1, 2.2]
    words = build_timed_words(pieces, starts, [0.5, 0.2, 0.4, 1.0, 0.9, 1.0, 1.0], (0.0, 3.0))
    assert [(w.word, w.start, w.end) for w in words] == [("(Hello,", 0.1, 1.0), ("world.)", 1.2, 2.0)]
    assert [w.probability for w in words] == [pytest.approx(0.3), 0.9]


def test_words_aligned_outside_their_segment_are_spread_over_it() -> None:
    pieces = [(" a", 1), (" b", 1), (" c", 1), (" d", 1)]

    def times(*starts: float) -> list[float]:
        words = build_timed_words(pieces, starts, [1.0] * 4, (2.0, 4.0))
        assert [w.end for w in words[:-1]] == [w.start for w in words[1:]]
        return [*(w.start for w in words), words[-1].end]

    assert times(2.1, 2.5, 2.5, 3.0, 3.9) == [2.1, 2.5, 2.5, 3.0, 3.9]
    assert times(0.0, 1.0, 3.0, 3.5, 5.0) == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert times(0.0, 0.1, 0.2, 0.3, 0.4) == times(5.0, 5.1, 5.2, 5.3, 5.4) == [2.0, 2.5, 3.0, 3.5, 4.0]


def test_blank_pieces_are_no_words() -> None:
    assert build_timed_words([(" ", 1)], [0.0, 1.0], [1.0], (0.0, 1.0)) == []
    assert build_timed_words([], [0.0], [], (0.0, 1.0)) == []


@pytest.mark.slow
def test_special_tokens_are_read_from_the_vocabulary() -> None:
    special = SpecialTokens.of(tiny_whisper.build_tokenizer().token_to_id)
    assert (special.end, special.start, special.times) == (tiny_whisper.END_OF_TEXT, tiny_whisper.START, TIMES)
    assert special.languages == tiny_whisper.LANGUAGE_IDS
    assert list(special.languages)[:3] == ["en", "zh", "de"]
    assert special.build_prompt("de", SpeechTask.TRANSLATE) == [
        tiny_whisper.START,
        tiny_whisper.LANGUAGE_IDS["de"],
        tiny_whisper.TRANSLATE,
    ]
    assert special.strip_special([5, tiny_whisper.END_OF_TEXT, get_time_token(1), 6]) == [5, 6]
    with pytest.raises(LookupError, match="startofprev"):
        SpecialTokens.of(lambda name: None if "startofprev" in name else 1)


ZEROS = "zero, " * 10


@pytest.mark.parametrize(
    ("texts", "decodings", "seconds", "chosen"),
    [
        # Hot decodings of repeated speech leave some of it out, or are noise.
        ([ZEROS, "zero, zero, zero."], [create_decoding(ratio=4), create_decoding(ratio=2, temperature=0.4)], 8.0, 0),
        (
            [ZEROS, ZEROS, "a noise"],
            [create_decoding(ratio=4), create_decoding(ratio=4), create_decoding(-1.5, temperature=1.0)],
            8.0,
            0,
        ),
        # A loop is faster than speech, unsure, or something else is heard once it is broken.
        ([ZEROS, "zero, zero."], [create_decoding(ratio=4), create_decoding(ratio=2, temperature=0.4)], 2.0, 1),
        ([ZEROS, "zero, zero."], [create_decoding(-1.2, ratio=4), create_decoding(ratio=2, temperature=0.4)], 8.0, 1),
        ([ZEROS, "And then he left."], [create_decoding(ratio=4), create_decoding(ratio=1, temperature=0.4)], 8.0, 1),
        ([ZEROS, "a noise"], [create_decoding(ratio=4), create_decoding(-1.5, temperature=1.0)], 8.0, 1),
        ([ZEROS, ""], [create_decoding(ratio=4), create_decoding(temperature=1.0)], 8.0, 1),
    ],
)
def test_repeated_speech_is_told_from_loops(texts: list[str], decodings: list[DecodedText], seconds: float, chosen: int) -> None:
    numbered = [replace(one, tokens=[number]) for number, one in enumerate(decodings)]
    assert DecodingThresholds().choose_decoding(numbered, texts, seconds) is numbered[chosen]


def test_what_repeats_itself_is_confirmed_by_the_same_words_at_a_much_higher_temperature() -> None:
    rule = DecodingThresholds()

    def is_confirmed(
        *temperatures: float, logprob: float = -0.2, spoken: float = 8.0, tokens: int = 30, last: str = ZEROS
    ) -> bool:
        decodings = [replace(create_decoding(logprob, ratio=4, temperature=t), tokens=[1] * tokens) for t in temperatures]
        return rule.is_confirmed(decodings, [ZEROS] * (len(decodings) - 1) + [last], spoken)

    assert is_confirmed(0.0, 0.2, 0.4)
    assert is_confirmed(0.0, 0.2, 0.4, last=ZEROS.upper().replace(",", "."))
    assert not is_confirmed(0.0), "by itself"
    assert not is_confirmed(0.0, 0.2), "loops come again at the next temperature"
    assert not is_confirmed(0.0, 0.2, 0.4, last="zero, zero."), "other words"
    assert not is_confirmed(0.0, 0.2, 0.4, logprob=-0.6), "unsure"
    assert not is_confirmed(0.0, 0.2, 0.4, spoken=4.0), "faster than speech"
    assert not is_confirmed(0.0, 0.2, 0.4, tokens=224, spoken=60.0), "stopped by the decoder's limit"


def create_sounds(*seeds: int) -> Features:
    """A second of features each; the same seed is the same sound."""
    return np.concatenate([np.random.default_rng(seed).normal(size=(80, 100)).astype(np.float32) for seed in seeds], axis=1)


def create_spans(count: int, shift: float = 0.0) -> list[TimestampSpan]:
    return [TimestampSpan(number + (shift if number else 0.0), number + 1.0, []) for number in range(count)]


def test_repetitions_that_are_heard_are_told_from_those_that_are_only_written() -> None:
    said = [" Please hold.", " please hold", " Please, hold!", " Goodbye."]
    assert drop_heard_repetitions(create_spans(4), said, create_sounds(1, 1, 1, 2)) == [said[0], said[3]]
    assert drop_heard_repetitions(create_spans(4), said, create_sounds(1, 2, 3, 4)) == said, "a loop"
    assert drop_heard_repetitions(create_spans(4), said, create_sounds(1, 2, 2, 4)) == [said[0], said[1], said[3]]
    assert drop_heard_repetitions(create_spans(4), [*"abcd"], create_sounds(1, 1, 1, 1)) == [*"abcd"], "other words"


def test_sounds_are_alike_though_their_times_are_a_little_off() -> None:
    sounds = create_sounds(1, 2, 1, 3)
    assert compute_likeness(sounds, TimestampSpan(0.0, 1.0, []), TimestampSpan(2.2, 2.9, [])) > 0.95
    assert compute_likeness(sounds, TimestampSpan(0.0, 1.0, []), TimestampSpan(3.0, 4.0, [])) < 0.3
    assert compute_likeness(sounds, TimestampSpan(0.0, 0.2, []), TimestampSpan(2.0, 2.2, [])) == 0.0, "too short to tell"


@pytest.mark.parametrize(
    ("frames", "context"),
    [(1, 1500), (1000, 1500), (1001, 1600), (1500, 2000), (1501, None), (3000, None)],
)
def test_a_few_seconds_of_silence_are_encoded_behind_the_audio(frames: int, context: int | None) -> None:
    assert choose_context(frames) == context


@pytest.mark.parametrize(
    ("texts", "plausible"),
    [
        ([" The letter came yesterday.", " It lies on the desk.", " Thanks."], True),
        ([" Yes.", " Yes.", " Yes."], True),
        (["", " ", ""], False),
        ([" Yes.", " Nobody says as many words as these are within one second of time", ""], False),
    ],
)
def test_text_of_a_shortened_context_is_as_long_as_its_speech(texts: list[str], plausible: bool) -> None:
    spans = create_spans(3)
    assert is_plausible(spans, texts, 3.0) is plausible
    assert is_plausible(spans, texts, 5.0) is plausible
    assert not is_plausible(spans, texts, 5.1), "nothing is written for the last seconds"


def test_words_that_come_twice_are_found_across_segments() -> None:
    assert repeats_words([" Please hold the line.", " please hold", " the line!"])
    assert repeats_words([" and then, and then and then", " and then it stopped"])
    assert not repeats_words([" Please hold the line.", " Please hold the door.", " Yes.", " Yes.", " Yes."])
    assert not repeats_words([])
