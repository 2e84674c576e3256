"""Kokoro: its files, its tokens and its styles, on a scripted graph. `make test-voices` has the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import hibari.g2p
import numpy as np
import pytest

from eardrum.config import Settings
from eardrum.engines.base import VoiceEngine
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.names import choose_match
from eardrum.runner.__main__ import load_engine
from tests.models.voices import KOKORO_ID_S, KOKORO_RATE, build_kokoro, read_ids


@pytest.fixture(scope="module", autouse=True)
def cached_readers() -> Iterator[None]:
    """Read the lexicon once: it takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hibari.g2p, "G2P", cache(hibari.g2p.G2P))
        yield


def load(source: Path, **options: object) -> VoiceEngine:
    loaded = load_engine("kokoro", source, options)
    assert isinstance(loaded, VoiceEngine)
    return loaded


def read_alphabet() -> dict[int, str]:
    spec = find_spec("hibari")
    assert spec
    assert spec.origin
    known = json.loads((Path(spec.origin).parent / "assets" / "vocab.json").read_bytes())
    return {number: letter for letter, number in known.items()}


@pytest.mark.slow
def test_english_becomes_phonemes_and_the_style_fits_their_number(tmp_path: Path) -> None:
    engine, alphabet = load(build_kokoro(tmp_path)), read_alphabet()
    for voice, expected in (("af_heart", "ðə bˈæθ."), ("bf_emma", "ðə bˈɑːθ.")):
        audio = engine.speak("The bath.", voice, 1.0)
        first, *ids, last = read_ids(audio, KOKORO_RATE, KOKORO_ID_S)
        assert (first, last) == (0, 0), "the graph wants an edge on both sides"
        assert "".join(alphabet[number] for number in ids) == expected
        row = (float(np.abs(audio).max()) / 0.5 - 0.2) * 1000
        assert row == pytest.approx(len(expected), abs=0.5), "the style's row for so many phonemes"


@pytest.mark.slow
def test_a_sentence_with_too_many_phonemes_is_split_between_words(tmp_path: Path) -> None:
    engine = load(build_kokoro(tmp_path))
    ids = read_ids(engine.speak("twelve " * 120, "af_heart", 1.0), KOKORO_RATE, KOKORO_ID_S)
    edges = [at for at, number in enumerate(ids) if number == 0]
    assert len(edges) == 4, "two parts, each with its edges"
    assert all(after - before <= 511 for before, after in zip(edges[::2], edges[1::2], strict=True))
    words = "".join(read_alphabet()[number] if number else " " for number in ids).split()
    assert set(words) == {words[0]}, "no word was cut"
    assert len(words) == 120


def test_voices_are_listed_before_and_after_loading(tmp_path: Path) -> None:
    build_kokoro(tmp_path, "am_adam", "zf_xiaobei", "ff_siwis", "af_heart")
    listed = (("af_heart", "en-US"), ("am_adam", "en-US"), ("ff_siwis", "fr-FR"))
    model = ModelCatalog(Settings(models={"natural": {"source": str(tmp_path)}})).find_model("natural")
    assert (model.engine, model.is_voice_model) == ("kokoro", True)
    assert model.capabilities.voices == listed
    assert load(tmp_path).capabilities.voices == listed


def test_the_two_files_of_kokoro_onnx(tmp_path: Path) -> None:
    build_kokoro(tmp_path / "parts")
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts" / "onnx" / "model.onnx").rename(tmp_path / "whole" / "kokoro-v1.0.onnx")
    table = np.full((510, 1, 256), 0.5, np.float32)
    with (tmp_path / "whole" / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, af_heart=table, jf_alpha=table)
    engine = load(tmp_path / "whole")
    assert engine.capabilities.voices == (("af_heart", "en-US"),)
    assert engine.speak("Hello.", "af_heart", 1.0).any()
    assert ModelCatalog(Settings(models={"k": {"source": str(tmp_path / "whole")}})).find_model("k").engine == "kokoro"


@pytest.fixture(scope="module")
def three_formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for graph in ("model", "model_fp16", "model_quantized"):
        build_kokoro(folder, graph=f"onnx/{graph}.onnx")
    return folder


@pytest.mark.parametrize(
    ("wanted", "found"), [("auto", "float32"), ("float32", "float32"), ("float16", "float16"), ("int8", "int8")]
)
def test_the_number_format_is_chosen(three_formats: Path, wanted: str, found: str) -> None:
    assert load(three_formats, compute_type=wanted).compute_type == found


def test_a_text_without_phonemes_and_a_missing_program_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(build_kokoro(tmp_path, "af_heart", "if_sara"))
    with pytest.raises(UnspeakableTextError, match="cannot pronounce"):
        engine.speak("...", "af_heart", 1.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelLoadError, match="needs the program espeak-ng on the server"):
        engine.speak("Buongiorno.", "if_sara", 1.0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    build_kokoro(tmp_path)
    (tmp_path / "voices" / "af_heart.bin").write_bytes(b"1234" * 257)
    with pytest.raises(ModelLoadError, match=r"The voice af_heart .* is damaged"):
        load(tmp_path)
    build_kokoro(tmp_path)
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"half a graph")
    with pytest.raises(ModelLoadError, match="onnxruntime cannot read"):
        load(tmp_path)
    build_kokoro(tmp_path, "zf_xiaobei")
    for name in ("af_heart", "bf_emma"):
        (tmp_path / "voices" / f"{name}.bin").unlink()
    with pytest.raises(ModelLoadError, match="holds no voice of Kokoro that is known here"):
        load(tmp_path)


def test_the_name_is_known_to_pull() -> None:
    assert {choose_match(name).repository for name in ("kokoro", "hexgrad/Kokoro-82M")} == {"onnx-community/Kokoro-82M-v1.0-ONNX"}
