"""What is thrown away as made up, and what must stay."""

from __future__ import annotations

import pytest

from eardrum.runner.hallucination import reason_to_drop
from eardrum.types import Segment
from tests.recordings import SPEECH_TEXT, phone

SURE, UNSURE = -0.1, -0.9
SPEECH, SILENCE = 0.95, 0.45


def reason(text: str, avg_logprob: float = SURE, speech: float = SPEECH) -> str | None:
    return reason_to_drop(Segment(0.0, 1.0, text, avg_logprob=avg_logprob), speech)


@pytest.mark.parametrize("text", ["♪", "♪♪♪", " ♪ ♫ ♪ ", "🎵", "♪ [Music] ♪", "♪ (music)", "🎶 applause 🎶"])
def test_music_notes_are_dropped(text: str) -> None:
    assert reason(text) == "only music notes"


@pytest.mark.parametrize("text", ["Music", "music.", "[Applause] for him", "♪ Happy birthday to you ♪", "Laughter"])
def test_words_about_music_stay(text: str) -> None:
    assert reason(text) is None


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the the the the the the the the the the", "the"),
        ("I'm going to go. " * 6, "I'm going to go."),
        ("Well, thank you very much. " * 5, "Well, thank you very much."),
        ("So he said and then we go on and on " + "and we go on " * 9, "go on and we"),
        ("Thank you for watching and see you soon. " * 4, "Thank you for watching and see you soon."),
        ("So " + "thank you for watching and see you soon. " * 4, "thank you for watching and see you soon."),
    ],
)
def test_loops_are_dropped(text: str, phrase: str) -> None:
    assert (found := reason(text.strip()))
    assert found.startswith("repeats ")
    assert set(found.removeprefix("repeats ").strip("\"'").split()) == set(phrase.split())


@pytest.mark.parametrize(
    "text",
    [
        "no no no no",
        "No, no, no, no, no.",
        "very, very, very, very good",
        "very, very, very, very, very, very good",
        "very, very, very good",
        "ha ha ha ha ha ha",
        "Ten, ten, ten, ten. That is the number I want, so write it down and do not forget it.",
        "no no no no no no no no no no no said the child, who did not want to go to bed before the end of the film",
        "bye bye bye bye, see you all on Monday, and thanks for everything you did for us",
        "We shall fight on the beaches, we shall fight on the landing grounds, we shall fight in the fields and in the streets.",
        "",
        "a",
    ],
)
def test_what_people_say_stays(text: str) -> None:
    assert reason(text) is None


def test_real_speech_stays() -> None:
    assert [text for _, _, text in phone() if reason(text)] == []
    assert reason(SPEECH_TEXT) is None


def test_unsure_text_is_dropped_only_where_speech_is_unlikely() -> None:
    text = "Thanks for watching!"
    assert (found := reason(text, UNSURE, SILENCE))
    assert "-0.90" in found
    assert "0.45" in found
    assert reason(text, UNSURE, SPEECH) is None
    assert reason(text, SURE, SILENCE) is None
