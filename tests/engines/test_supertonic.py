"""Supertonic: its files, its letters, languages and steps, on scripted graphs. No package ships the real ones."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from eardrum.config import Settings
from eardrum.engines.base import VoiceEngine
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.names import choose_match
from eardrum.runner.__main__ import load_engine
from tests.models.voices import (
    SUPERTONIC_CHUNK,
    SUPERTONIC_FACTOR,
    SUPERTONIC_LETTERS,
    SUPERTONIC_RATE,
    build_supertonic,
    read_ids,
)

FRAME_S = SUPERTONIC_CHUNK * SUPERTONIC_FACTOR / SUPERTONIC_RATE


def load(source: Path, **options: object) -> VoiceEngine:
    loaded = load_engine("supertonic", source, options)
    assert isinstance(loaded, VoiceEngine)
    return loaded


def read_letters(audio: np.ndarray) -> str:
    """The letters that a scripted Supertonic read, without doubled ones: a letter may last two frames."""
    ids = read_ids(audio, SUPERTONIC_RATE, FRAME_S)
    return "".join(SUPERTONIC_LETTERS[number] for number, _ in groupby(ids))


@pytest.mark.parametrize(
    ("text", "voice", "expected"),
    [
        ("Guten Tag", "F1-de", "<de>Guten Tag.</de"),
        ("“Olá” — sim!", "M1-pt", '<pt>"Ola\u0301" - sim!</pt'),
        ("a <b> [c]你", "F1-en", "<en>a b c .</en"),
    ],
)
def test_letters_are_read_between_tags_of_the_language(tmp_path: Path, text: str, voice: str, expected: str) -> None:
    """The last frame is cut off in the middle of the last mark."""
    engine = load(build_supertonic(tmp_path))
    assert read_letters(engine.speak(text, voice, 0.7)) == expected


def test_voices_and_languages_are_listed_before_and_after_loading(tmp_path: Path) -> None:
    build_supertonic(tmp_path, "F1", "M3")
    model = ModelCatalog(Settings(models={"many": {"source": str(tmp_path)}})).find_model("many")
    assert (model.engine, model.is_voice_model) == ("supertonic", True)
    loaded = load(tmp_path).capabilities
    assert model.capabilities.voices == loaded.voices
    assert model.capabilities.languages == loaded.languages
    assert len(loaded.voices) == 2 * 31
    assert loaded.voices[0] == ("F1-en", "en")
    assert ("M3-uk", "uk") in loaded.voices


@pytest.mark.parametrize("steps", [3, 8])
def test_the_estimator_takes_so_many_steps(tmp_path: Path, steps: int) -> None:
    audio = load(build_supertonic(tmp_path), steps=steps).speak("Hello.", "F1-en", 1.0)
    assert np.abs(audio).max() == pytest.approx(0.5 * 0.05 * steps, rel=0.05)


def test_the_same_text_is_the_same_audio(tmp_path: Path) -> None:
    engine = load(build_supertonic(tmp_path))
    assert np.array_equal(engine.speak("Hello.", "F1-en", 1.0), engine.speak("Hello.", "F1-en", 1.0))


def test_a_text_without_known_letters_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnspeakableTextError, match="cannot pronounce"):
        load(build_supertonic(tmp_path)).speak("你好。", "F1-en", 1.0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("onnx/tts.json", b"{}", "tts.json is damaged: ae"),
        ("onnx/unicode_indexer.json", b"[", "unicode_indexer.json is missing or damaged"),
        ("onnx/unicode_indexer.json", b'["a"]', "unicode_indexer.json is damaged"),
        ("onnx/vocoder.onnx", b"half a graph", "onnxruntime cannot read .*vocoder.onnx"),
        ("voice_styles/F1.json", b"{}", "F1.json is damaged: style_ttl"),
        (
            "voice_styles/F1.json",
            json.dumps({name: {"dims": [1, 3, 2], "data": [1, 2]} for name in ("style_ttl", "style_dp")}).encode(),
            "F1.json is damaged: cannot reshape",
        ),
        *(
            (
                "voice_styles/F1.json",
                json.dumps({name: {"dims": [1], "data": data} for name in ("style_ttl", "style_dp")}).encode(),
                "F1.json is damaged",
            )
            for data in ({"0": 1.0}, [10**400])
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    build_supertonic(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)


def test_the_name_is_known_to_pull() -> None:
    assert choose_match("supertonic").repository == "Supertone/supertonic-3"
