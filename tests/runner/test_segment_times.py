"""Where in a recording lies what was heard in a window out of which pauses were cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.engines.base import Window
from eardrum.runner.postprocessing import place_segment
from eardrum.transcription import SAMPLE_RATE, Segment, Token, TranscriptionRequest, Word


def create_window(
    *pieces: tuple[float, float], seconds: float, spoken: tuple[tuple[float, float], ...] = (), start: float = 0.0
) -> Window:
    audio = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    return Window(audio, start, 1.0, (0.0, seconds), TranscriptionRequest(), pieces=pieces, speech_stretches=spoken)


TWO = create_window((0.0, 0.0), (3.0, 17.0), seconds=6.0, spoken=((0.5, 2.0), (4.0, 5.0)))
"""Speech from 0.5 to 2 s and from 18 to 19 s of the recording; in the window 3 s of audio are from each."""


def list_times(found: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.start, segment.end, segment.text) for segment in found]


def test_a_segment_that_reaches_over_the_cut_ends_there() -> None:
    assert list_times(place_segment(Segment(0.5, 3.5, "Turn down the music."), TWO)) == [(0.5, 3.0, "Turn down the music.")]


def test_a_segment_that_begins_before_the_cut_begins_there() -> None:
    assert list_times(place_segment(Segment(2.4, 5.0, "And the light."), TWO)) == [(17.0, 19.0, "And the light.")]


def test_a_segment_in_one_stretch_is_only_moved() -> None:
    assert list_times(place_segment(Segment(3.0, 5.5, "Yes."), TWO)) == [(17.0, 19.5, "Yes.")]
    assert list_times(place_segment(Segment(0.5, 3.0, "Yes."), TWO)) == [(0.5, 3.0, "Yes.")]
    assert list_times(place_segment(Segment(1.0, 2.0, "Yes."), create_window(seconds=5.0, start=7.0))) == [(8.0, 9.0, "Yes.")]


def test_words_on_both_sides_make_two_segments() -> None:
    words = [Word("Turn", 0.5, 0.8, 1), Word("down", 0.8, 2.0, 1), Word("the", 4.0, 4.2, 1), Word("music.", 4.2, 5.0, 1)]
    tokens = [Token(text, -0.1) for text in (" Turn", " down", " the", " music", ".")]
    found = place_segment(Segment(0.5, 5.5, "Turn down the music.", words=words, token_logprobs=tokens, tokens=[1, 2]), TWO)
    assert list_times(found) == [(0.5, 2.0, "Turn down"), (18.0, 19.5, "the music.")]
    assert [[word.word for word in segment.words] for segment in found] == [["Turn", "down"], ["the", "music."]]
    assert [[token.text for token in segment.token_logprobs] for segment in found] == [
        [" Turn", " down"],
        [" the", " music", "."],
    ]
    assert [(word.start, word.end) for word in found[1].words] == [(18.0, 18.2), (18.2, 19.0)]


def test_a_word_over_the_cut_ends_there() -> None:
    words = [Word("Turn", 0.5, 0.8, 1), Word("down.", 0.8, 3.9, 1)]
    (found,) = place_segment(Segment(0.5, 4.0, "Turn down.", words=words), TWO)
    assert list_times([found]) == [(0.5, 3.0, "Turn down.")]
    assert (found.words[-1].start, found.words[-1].end) == (0.8, 3.0)


def test_text_said_on_both_sides_is_shared_out() -> None:
    found = place_segment(Segment(0.5, 5.0, "It is late, they said. Go home."), TWO)
    assert list_times(found) == [(0.5, 3.0, "It is late, they said."), (17.0, 19.0, "Go home.")]


def test_words_that_are_not_those_of_the_text() -> None:
    words = [Word("turn", 0.5, 0.8, 1), Word("music", 4.2, 5.0, 1)]
    found = place_segment(Segment(0.5, 5.0, "Turn down, the music.", words=words), TWO)
    assert [segment.text for segment in found] == ["Turn down,", "the music."]
    assert all(segment.end - segment.start <= 3.0 for segment in found)


def test_words_without_time_get_some() -> None:
    words = [Word("a", 1.0, 1.0, 1), Word("b", 1.0, 2.0, 1)]
    (found,) = place_segment(Segment(1.0, 2.0, "a b", words=words), create_window(seconds=5.0))
    assert found.words[0].end - found.words[0].start >= 0.02


@settings(deadline=None)
@given(st.floats(0, 9), st.floats(0, 9), st.booleans(), st.booleans())
def test_no_segment_is_longer_than_its_audio(one: float, other: float, timed: bool, known: bool) -> None:
    begin, end = sorted((one, other))
    said = ["Some", "words,", "and", "more", "of", "them."]
    marks = np.linspace(begin, end, len(said) + 1)
    words = [Word(word, float(a), float(b), 1.0) for word, a, b in zip(said, marks[:-1], marks[1:], strict=True)]
    spoken = ((0.5, 2.5), (3.5, 5.5), (6.5, 8.5)) if known else ()
    three = create_window((0.0, 1.0), (3.0, 20.0), (6.0, 50.0), seconds=9.0, spoken=spoken)
    found = place_segment(Segment(begin, end, " ".join(said), words=words if timed else []), three)
    assert " ".join(segment.text for segment in found) == " ".join(said), "no word is lost"
    assert sum(segment.end - segment.start for segment in found) <= end - begin + 1e-6
    for segment in found:
        assert segment.start <= segment.end
        assert any(time <= segment.start <= segment.end <= time + 3.0 + 1e-9 for time in (1.0, 20.0, 50.0))
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)
    assert found[0].start == pytest.approx(three.clock(begin)) or found[0].start > three.clock(begin)
