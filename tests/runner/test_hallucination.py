"""What is thrown away as made up, and what must stay."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from eardrum.runner.postprocessing import remove_hallucinations
from eardrum.transcription import Segment, Token, Word
from tests.recordings import SPEECH_TEXT, load_announcements

SURE, UNSURE = -0.1, -0.9
SPEECH, SILENCE = 0.95, 0.45


def find_reason(text: str, avg_logprob: float = SURE, speech: float = SPEECH) -> str | None:
    return remove_hallucinations(Segment(0.0, 1.0, text, avg_logprob=avg_logprob), speech).reason or None


@pytest.mark.parametrize("text", ["♪", "♪♪♪", " ♪ ♫ ♪ ", "🎵", "♪ [Music] ♪", "♪ (music)", "🎶 applause 🎶"])
def test_music_notes_are_dropped(text: str) -> None:
    assert find_reason(text) == "only music notes"


@pytest.mark.parametrize("text", ["Music", "music.", "[Applause] for him", "♪ Happy birthday to you ♪", "Laughter"])
def test_words_about_music_stay(text: str) -> None:
    assert find_reason(text) is None


LOOPS = [
    ("the the the the the the the the the the", "the"),
    ("I'm going to go. " * 6, "I'm going to go."),
    ("Well, thank you very much. " * 5, "Well, thank you very much."),
    ("Well, thank you very much. " * 5 + "Well, thank", "Well, thank you very much."),
    ("So he said and then we go on and on " + "and we go on " * 9, "So he said and then we go on and on and we go"),
    ("Thank you for watching and see you soon. " * 4, "Thank you for watching and see you soon."),
    ("So " + "thank you for watching and see you soon. " * 4, "So thank you for watching and see you soon."),
    ("Yes. " * 40 + "Of course.", "Yes. Of course."),
    ("谢谢大家。" * 12, "谢谢大家。"),
    ("ありがとう" * 12, "ありがとう"),
]


@pytest.mark.parametrize(("text", "left"), LOOPS)
def test_loops_are_collapsed(text: str, left: str) -> None:
    found = remove_hallucinations(Segment(0.0, 1.0, text.strip(), avg_logprob=SURE), SPEECH)
    assert found.segment
    assert found.segment.text == left
    assert found.reason.startswith("repeats ")
    assert sorted(f"{left} {found.dropped}".replace(" ", "")) == sorted(text.replace(" ", "")), "what is dropped is told"


@pytest.mark.parametrize(("text", "left"), LOOPS)
def test_loops_where_nobody_speaks_are_dropped(text: str, left: str) -> None:
    found = remove_hallucinations(Segment(0.0, 1.0, text.strip(), avg_logprob=SURE), SILENCE)
    assert found.segment is None
    assert found.dropped == text.strip()
    assert left.rsplit(maxsplit=1)[-1].strip(".") in found.reason or "repeats" in found.reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("zero " * 10, 6.0),
        ("Zero, " * 9 + "zero.", 4.0),
        ("one " * 50, 20.0),
        ("Mayday, mayday, mayday. " * 3, 5.0),
        ("Thank you very much. " * 6, 8.0),
        ("We want our money back! " * 8, 16.0),
        ("零" * 40, 10.0),
        ("もう一回。" * 8, 8.0),
    ],
)
def test_what_is_repeated_at_the_rate_of_speech_stays(text: str, seconds: float) -> None:
    segment = Segment(3.0, 3.0 + seconds, text.strip(), avg_logprob=SURE)
    assert remove_hallucinations(segment, SPEECH).segment is segment


def test_a_decoder_that_was_stopped_was_in_a_loop() -> None:
    text = "thank you very much " * 8
    spoken = Segment(0.0, 10.0, text.strip(), avg_logprob=SURE)
    assert remove_hallucinations(spoken, SPEECH).segment is spoken
    stopped = remove_hallucinations(replace(spoken, unended=True), SPEECH).segment
    assert stopped
    assert stopped.text == "thank you very much"


def test_words_and_tokens_go_with_the_text() -> None:
    said = ["So", *["no"] * 30, "then."]
    words = [Word(word, at / 32, (at + 1) / 32, 1.0) for at, word in enumerate(said)]
    tokens = [Token(f" {word}", -0.1) for word in said]
    left = remove_hallucinations(Segment(0.0, 1.0, " ".join(said), words=words, token_logprobs=tokens), SPEECH).segment
    assert left
    assert left.text == "So no then."
    assert [word.word for word in left.words] == ["So", "no", "then."]
    assert "".join(token.text for token in left.token_logprobs).strip() == left.text
    assert (left.words[1].start, left.words[2].start) == (1 / 32, 31 / 32)


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
    assert find_reason(text) is None


def test_real_speech_stays() -> None:
    assert [text for _, _, text in load_announcements() if find_reason(text)] == []
    assert find_reason(SPEECH_TEXT) is None


def test_unsure_text_is_dropped_only_where_speech_is_unlikely() -> None:
    text = "Thanks for watching!"
    assert (found := find_reason(text, UNSURE, SILENCE))
    assert "-0.90" in found
    assert "0.45" in found
    assert find_reason(text, UNSURE, SPEECH) is None
    assert find_reason(text, SURE, SILENCE) is None
