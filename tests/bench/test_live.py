from __future__ import annotations

import pytest

from bench.live_delays import TimedMessage, compute_delays, spell_words
from bench.live_recording import SpokenWord, build_framed, build_recording, load_announcements

SAID = [
    SpokenWord("please", 0.0, 0.5),
    SpokenWord("try", 0.5, 0.8),
    SpokenWord("again", 0.8, 1.2),
    SpokenWord("goodbye", 3.0, 3.5),
]


def create_partial(at: float, text: str, end: float, utterance: int = 1) -> TimedMessage:
    return TimedMessage(at, {"type": "partial", "utterance": utterance, "text": text, "start": 0.0, "end": end})


def create_final(at: float, text: str, start: float, end: float, utterance: int = 1) -> TimedMessage:
    return TimedMessage(at, {"type": "final", "utterance": utterance, "text": text, "start": start, "end": end})


def test_a_word_counts_from_its_end_to_the_first_text_that_has_it_right() -> None:
    found = compute_delays(
        SAID,
        [
            create_partial(0.9, "Please fly", 0.8),
            create_partial(1.1, "Please, try", 1.0),
            create_final(1.9, "Please try again.", 0.0, 1.5),
            create_final(4.0, "Goodbye!", 2.8, 3.8, 2),
        ],
    )
    assert found.words == pytest.approx([0.4, 0.3, 0.7, 0.5])
    assert found.finals == {2: pytest.approx(0.7), 3: pytest.approx(0.5)}
    assert found.missed == 0


def test_words_that_no_text_has_are_missed_and_not_late() -> None:
    found = compute_delays(SAID, [create_final(1.9, "Please cry again.", 0.0, 1.5)])
    assert found.words == pytest.approx([1.4, 0.7])
    assert found.missed == 2


def test_a_word_is_not_found_in_what_was_heard_before_it_was_said() -> None:
    twice = [SpokenWord("no", 0.0, 0.3), SpokenWord("no", 2.0, 2.3)]
    found = compute_delays(twice, [create_partial(0.5, "No", 0.4), create_final(3.0, "No, no.", 0.0, 2.5)])
    assert found.words == pytest.approx([0.2, 0.7])


def test_words_are_compared_as_they_sound() -> None:
    assert spell_words("I'm afraid -- Open-Source!") == ["im", "afraid", "open", "source"]


def test_every_announcement_has_its_words_in_their_order_and_inside_it() -> None:
    for one in load_announcements():
        assert " ".join(word.word.replace("'", "") for word in one.words) == " ".join(spell_words(one.text)).strip()
        ends = [word.end for word in one.words]
        assert ends == sorted(ends)
        assert 0 <= one.words[0].start < ends[-1] < one.seconds


def test_a_recording_is_as_long_as_asked_and_ends_as_it_began() -> None:
    frames = build_framed(120, 20)
    spoken, length = frames.recording, frames.frame_s
    assert 120 <= spoken.seconds < 130
    assert 20 <= length < 26
    one, other = (
        [(word.word, pytest.approx(word.start - begin)) for word in spoken.words if begin <= word.start < begin + length]
        for begin in frames.begins
    )
    assert one == other
    assert 110 < frames.begins[1] + length < spoken.seconds
    assert spoken.words[-1].end < spoken.seconds
    assert len(spoken.pcm) == pytest.approx(spoken.seconds * 32_000, abs=2)
    assert build_recording(10, skip=3).text.startswith("Your call cannot be completed")
