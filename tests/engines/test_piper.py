"""Piper's voices: their files, their ids and their speakers, on scripted graphs. `make test-voices` has a real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eardrum.config import Settings
from eardrum.engines.base import VoiceEngine
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.runner.__main__ import load_engine
from tests.models.voices import PIPER_ID_S, PIPER_IDS, PIPER_RATE, build_piper, read_ids

NAME = "en_US-tones-medium"


def load(source: Path) -> VoiceEngine:
    loaded = load_engine("piper", source, {})
    assert isinstance(loaded, VoiceEngine)
    return loaded


def change_settings(directory: Path, **changes: object) -> None:
    path = directory / f"{NAME}.onnx.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_phonemes_become_ids_with_the_marks_around_them(tmp_path: Path) -> None:
    voice = load(build_piper(tmp_path))
    begin, pad, end = (PIPER_IDS[symbol][0] for symbol in "^_$")
    expected = [begin, pad]
    for letter in ("H", "i", ",", " ", "a", "\u0308"):  # decomposed, and the letter that the voice does not know is left out
        expected += [PIPER_IDS[letter][0], pad]
    assert read_ids(voice.speak("Hi, ä你", NAME, 1.0), PIPER_RATE, PIPER_ID_S) == [*expected, end]


def test_a_folder_of_voices_and_speakers(tmp_path: Path) -> None:
    build_piper(tmp_path)
    build_piper(tmp_path, "de_DE-low", rate=16_000, espeak_voice="de")
    build_piper(tmp_path, "old-name", speakers=("anna", "bert"), espeak_voice="en-gb-x-rp")
    voice = load(tmp_path)
    assert voice.capabilities.voices == (
        ("de_DE-low", "de-DE"),
        (NAME, "en-US"),
        ("old-name", "en"),
        ("old-name/anna", "en"),
        ("old-name/bert", "en"),
    )
    assert voice.capabilities.languages == ("de", "en")
    assert voice.sample_rate == PIPER_RATE
    low, medium = (voice.speak("One two three", name, 1.0) for name in ("de_DE-low", NAME))
    assert len(low) == pytest.approx(len(medium), rel=0.01), "brought to one rate"
    assert read_ids(low, PIPER_RATE, PIPER_ID_S)[:24] == read_ids(medium, PIPER_RATE, PIPER_ID_S)[:24]
    anna, bert = (voice.speak("aaaaaaaa", f"old-name/{speaker}", 1.0) for speaker in ("anna", "bert"))
    assert np.array_equal(anna, voice.speak("aaaaaaaa", "old-name", 1.0))
    assert not np.array_equal(anna, bert)


def test_voices_are_listed_before_they_are_loaded(tmp_path: Path) -> None:
    build_piper(tmp_path / "voices")
    build_piper(tmp_path / "voices", "de_DE-low", rate=16_000)
    model = ModelCatalog(Settings(models={"piper": {"source": str(tmp_path / "voices")}})).find_model("piper")
    assert (model.engine, model.is_voice_model) == ("piper", True)
    assert model.capabilities.voices == (("de_DE-low", "de-DE"), (NAME, "en-US"))
    assert model.capabilities.languages == ("de", "en")


def test_one_file_is_a_voice(tmp_path: Path) -> None:
    build_piper(tmp_path)
    build_piper(tmp_path, "de_DE-low")
    assert load(tmp_path / f"{NAME}.onnx").capabilities.voices == ((NAME, "en-US"),)


@pytest.mark.parametrize("text", ["你好", "...", "ξ"])
def test_a_text_without_known_phonemes_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnspeakableTextError, match="cannot pronounce"):
        load(build_piper(tmp_path)).speak(text, NAME, 1.0)


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = load(build_piper(tmp_path, phonemes="espeak"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelLoadError, match="needs the program espeak-ng on the server"):
        voice.speak("Hello.", NAME, 1.0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    build_piper(tmp_path)
    change_settings(tmp_path, audio={"sample_rate": "fast"})
    with pytest.raises(ModelLoadError, match=rf"{NAME}.onnx.json is damaged: audio.sample_rate"):
        load(tmp_path)
    change_settings(tmp_path, audio={"sample_rate": 22_050}, phoneme_id_map={"a": [1]})
    with pytest.raises(ModelLoadError, match=r"its phoneme_id_map lacks \^ _ \$"):
        load(tmp_path)
    build_piper(tmp_path)
    (tmp_path / f"{NAME}.onnx").write_bytes(b"half a graph")
    with pytest.raises(ModelLoadError, match="onnxruntime cannot read"):
        load(tmp_path)
    change_settings(tmp_path, phoneme_type="pinyin")
    with pytest.raises(ModelLoadError, match="holds no voice of Piper"):
        load(tmp_path)
