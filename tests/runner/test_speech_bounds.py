"""Times of cues and words lie within speech."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.engines.base import Window
from eardrum.runner.segmenter import MARGIN_S, SpeechStretches, clamp_to_speech, find_stretches
from eardrum.runner.vad import FRAME_SAMPLES
from eardrum.transcription import Segment, TranscriptionRequest, Word


def create_window(*stretches: tuple[float, float]) -> Window:
    return Window(np.zeros(16_000 * 30, np.float32), 0.0, 1.0, (0.0, 30.0), TranscriptionRequest(), speech_stretches=stretches)


def create_segment(start: float, end: float, *words: tuple[float, float]) -> Segment:
    return Segment(start, end, "text", words=[Word("word", *times, 1.0) for times in words])


def list_times(segment: Segment) -> list[tuple[float, float]]:
    return [(segment.start, segment.end), *((word.start, word.end) for word in segment.words)]


def test_a_cue_that_begins_where_the_one_before_ended_begins_with_its_own_speech() -> None:
    clamped = clamp_to_speech(create_segment(4.0, 12.0), create_window((1.0, 4.1), (8.0, 11.0)))
    assert list_times(clamped) == [(pytest.approx(7.9), pytest.approx(11.1))]


def test_a_cue_of_several_sentences_keeps_the_pauses_between_them() -> None:
    clamped = clamp_to_speech(create_segment(0.0, 14.0), create_window((1.0, 4.0), (8.0, 11.0)))
    assert list_times(clamped) == [(pytest.approx(0.9), pytest.approx(11.1))]


def test_the_first_word_after_a_pause_does_not_reach_into_it() -> None:
    """As Whisper base says "Guten Morgen": the first word lasts from the end of the last sentence."""
    clamped = clamp_to_speech(create_segment(4.0, 10.0, (4.0, 8.2), (8.2, 10.0)), create_window((1.0, 4.1), (8.0, 9.5)))
    assert list_times(clamped) == [(7.9, 9.6), (7.9, 8.2), (8.2, 9.6)]


def test_a_word_that_ends_just_before_its_speech_is_heard_is_moved_to_it() -> None:
    clamped = clamp_to_speech(create_segment(4.0, 10.0, (4.6, 7.95), (7.95, 9.0)), create_window((1.0, 4.0), (8.0, 9.5)))
    assert list_times(clamped)[1] == (7.9, 7.95)


def test_the_last_word_before_a_pause_does_not_reach_into_it() -> None:
    clamped = clamp_to_speech(create_segment(1.0, 9.0, (1.0, 3.0), (3.0, 9.0)), create_window((1.0, 4.0), (20.0, 22.0)))
    assert list_times(clamped) == [(1.0, 4.1), (1.0, 3.0), (3.0, 4.1)]


def test_times_that_touch_no_speech_are_left() -> None:
    far = create_segment(20.0, 22.0, (20.0, 22.0))
    assert clamp_to_speech(far, create_window((1.0, 4.0))) == far
    assert clamp_to_speech(far, create_window()) == far, "nobody has looked for speech"


@given(
    st.lists(st.floats(0, 30), min_size=2, max_size=12, unique=True).map(sorted),
    st.lists(st.floats(0, 30), min_size=2, max_size=12, unique=True).map(sorted),
)
def test_words_keep_their_order_and_lose_no_length_below_zero(bounds: list[float], edges: list[float]) -> None:
    stretches: SpeechStretches = tuple(zip(edges[::2], edges[1::2], strict=False))
    words = list(itertools.pairwise(bounds))
    clamped = clamp_to_speech(create_segment(bounds[0], bounds[-1], *words), create_window(*stretches))
    assert len(clamped.words) == len(words)
    assert clamped.start <= clamped.end
    for word, (start, end) in zip(clamped.words, words, strict=True):
        assert start <= word.start <= word.end <= end
    assert bounds[0] <= clamped.start <= clamped.end <= bounds[-1]


def test_stretches_begin_with_certain_speech_and_join_over_short_pauses() -> None:
    probs = np.array([0.0, 0.3, 0.9, 0.3, 0.1, 0.9, *[0.0] * 10, 0.3, 0.3, *[0.0] * 10, 0.5], np.float32)
    found = find_stretches(probs, threshold=0.4, low=0.25)
    assert found == ((1 * FRAME_SAMPLES, 6 * FRAME_SAMPLES), (28 * FRAME_SAMPLES, 29 * FRAME_SAMPLES))
    assert find_stretches(probs[:2], 0.4, 0.25) == ()
    assert MARGIN_S < 0.15
