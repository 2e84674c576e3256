"""`/detect-language` with a real Whisper: four languages, silence, music, and a film of which only the beginning is heard."""

from __future__ import annotations

import numpy as np
import pytest
import requests

from tests.conftest import ServerUnderTest
from tests.recordings import RATE, Samples, create_silence, create_tone, encode, encode_pcm
from tests.test_server_whisper_base import WORD_ERRORS, load_sentences, server, weights

__all__ = ["server", "weights"]

pytestmark = pytest.mark.whisper_base


def detect(server: ServerUnderTest, samples: Samples) -> dict[str, object]:
    answer = requests.post(
        f"{server.address}/detect-language", params={"encode": "false"}, files={"audio_file": encode_pcm(samples)}, timeout=120
    )
    assert answer.status_code == 200
    assert answer.json().keys() == {"detected_language", "language_code", "confidence"}
    return answer.json()


def create_music(seconds: float) -> Samples:
    """Chords with a beat, and no voice."""
    time = np.arange(int(seconds * RATE)) / RATE
    chords = sum(create_tone(seconds, hertz * step) for hertz in (220, 277, 330) for step in (1, 2)) / 6
    beat = np.exp(-8 * (time % 0.5))
    return np.asarray(chords * beat, np.float32)


NAMES = {"en": "english", "de": "german", "es": "spanish", "fr": "french"}


@pytest.mark.parametrize("language", WORD_ERRORS)
def test_the_language_of_speech(server: ServerUnderTest, language: str) -> None:
    speech = np.concatenate([sentence.samples for sentence in load_sentences(language)[:4]])
    found = detect(server, speech)
    assert (found["language_code"], found["detected_language"]) == (language, NAMES[language])
    assert isinstance(found["confidence"], float)
    assert 0.5 < found["confidence"] <= 1


def test_nobody_speaks(server: ServerUnderTest) -> None:
    for samples in (create_silence(30), create_music(30)):
        assert detect(server, samples) == {"detected_language": "undetermined", "language_code": "und", "confidence": 0.0}


def test_a_film_is_judged_by_its_beginning(server: ServerUnderTest) -> None:
    """What comes after the first half minute of speech is received and not decoded."""
    german = [sentence.samples for sentence in load_sentences("de")]
    french = [sentence.samples for sentence in load_sentences("fr")]
    beginning = np.resize(np.concatenate(german), 45 * RATE)
    film = np.concatenate([create_silence(60), beginning, np.resize(np.concatenate(french), 240 * RATE)])
    before = server.count_windows()
    answer = requests.post(f"{server.address}/detect-language", files={"audio_file": encode(film, "flac")}, timeout=300)
    assert answer.json()["language_code"] == "de"
    assert server.count_windows() - before < 6
