"""The contract of every engine that speaks: one test over all of them, on models loaded by the real loaders."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eardrum.config import Settings
from eardrum.engines import registry
from eardrum.engines.base import Audio, EngineOptions, VoiceEngine
from eardrum.errors import DeviceError, ModelLoadError, UnspeakableTextError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_FILES, EMBEDDED_VOICE_ID
from eardrum.gateway.models.names import VOICE_ALIASES
from eardrum.gateway.speech import adapt_to_fallback
from eardrum.runner.__main__ import load_engine
from eardrum.speech import SpeechRequest
from eardrum.spoken_text import MAX_SENTENCE_CHARS
from eardrum.transcription import Capabilities
from tests.models.voices import build_kokoro, build_piper, build_supertonic

pytestmark = pytest.mark.slow

TEXTS = {
    "en": "The train to London leaves from platform nine.",
    "de": "Der Zug nach Berlin fährt von Gleis neun.",
    "es": "El tren a Madrid sale del andén nueve.",
    "fr": "Le train pour Paris part du quai neuf.",
    "it": "Il treno per Roma parte dal binario nove.",
}
VOICE_ENGINES = [card.name for card in registry.list_cards().values() if card.capabilities.speak]


def find_source(engine: str) -> Path:
    module, folder = next((module, folder) for module, folder, _, name in EMBEDDED_FILES if name == engine)
    spec = find_spec(module)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a model for each engine: scripted ones where no package ships any."""
    return {
        "hibari": find_source("hibari"),
        "nanotts": find_source("nanotts"),
        "piper": build_piper(tmp_path_factory.mktemp("piper")),
        "kokoro": build_kokoro(tmp_path_factory.mktemp("kokoro")),
        "supertonic": build_supertonic(tmp_path_factory.mktemp("supertonic")),
    }


@pytest.fixture(scope="module", params=VOICE_ENGINES)
def voices(request: pytest.FixtureRequest, sources: dict[str, Path]) -> VoiceEngine:
    loaded = load_engine(request.param, sources[request.param], {})
    assert isinstance(loaded, VoiceEngine)
    return loaded


def test_every_voice_speaks_its_language(voices: VoiceEngine) -> None:
    assert voices.capabilities.speak
    assert voices.capabilities.voices
    for voice, language in voices.capabilities.voices:
        code = language.partition("-")[0]
        assert code in voices.capabilities.languages
        audio = voices.speak(TEXTS.get(code, TEXTS["en"]), voice, 1.0)
        assert (audio.dtype, audio.ndim) == (np.float32, 1)
        assert 1.5 < len(audio) / voices.sample_rate < 6
        assert 0.02 < np.sqrt(np.mean(audio**2)) < 0.7
        assert np.abs(audio).max() <= 1.5


def test_speed_changes_the_length(voices: VoiceEngine) -> None:
    voice, language = voices.capabilities.voices[0]
    text = TEXTS.get(language.partition("-")[0], TEXTS["en"])
    slow, normal, fast = (len(voices.speak(text, voice, speed)) for speed in (0.5, 1.0, 2.0))
    assert slow > 1.5 * normal > 1.5 * 1.4 * fast


@pytest.mark.parametrize("speed", [0.25, 4.0])
def test_the_ends_of_the_speeds(voices: VoiceEngine, speed: float) -> None:
    assert len(voices.speak("One, two, three.", voices.capabilities.voices[0][0], speed)) > 1000


@pytest.mark.parametrize("text", ["a", "1", "A" * MAX_SENTENCE_CHARS, "3 < 4 & 5 > 2 <b>bold</b>", "é ü ñ ß 9 €", "x.y;z:w/v\\u"])
def test_odd_texts_are_spoken(voices: VoiceEngine, text: str) -> None:
    assert voices.speak(text, voices.capabilities.voices[0][0], 1.0).any()


def test_the_same_twice_is_the_same(voices: VoiceEngine) -> None:
    first, second = (voices.speak(TEXTS["en"], voices.capabilities.voices[0][0], 1.0) for _ in range(2))
    assert len(first) == len(second)
    assert np.corrcoef(first, second)[0, 1] > 0.95, "Pico's noise goes on from call to call"


def test_a_text_without_sounds_is_an_error_and_not_silence() -> None:
    """The runner refuses such a text before; this is for the letters of a script that it does not know."""
    hibari = load_engine("hibari", find_source("hibari"), {})
    assert isinstance(hibari, VoiceEngine)
    with pytest.raises(UnspeakableTextError, match="cannot pronounce"):
        hibari.speak("你好，世界。", "heart", 1.0)


@pytest.mark.parametrize(("text", "plain"), [("See ¹below.", "See 1below."), ("①abc", "1abc"), ("¹þ", "1þ"), ("x²", "x2")])
def test_raised_and_circled_digits_are_read_as_numbers(text: str, plain: str) -> None:
    hibari = load_engine("hibari", find_source("hibari"), {})
    assert isinstance(hibari, VoiceEngine)
    np.testing.assert_array_equal(hibari.speak(text, "heart", 1.0), hibari.speak(plain, "heart", 1.0))


@pytest.mark.parametrize("engine", VOICE_ENGINES)
def test_what_cannot_be_loaded_is_told(engine: str, sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=str(tmp_path)):
        load_engine(engine, tmp_path, {})
    with pytest.raises(ModelLoadError, match="compute_type 'float16' is not available"):
        load_engine(engine, sources[engine], {"compute_type": "float16"})
    with pytest.raises(DeviceError, match=r"runs on the CPU only|without CUDA"):
        load_engine(engine, sources[engine], {"device": "cuda"})


def test_a_changed_file_of_hibari_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hibari.onnx"
    shutil.copy(find_source("hibari") / "hibari.onnx", file)
    with file.open("r+b") as changed:
        changed.seek(1000)
        changed.write(b"changed")
    with pytest.raises(ModelLoadError, match=r"hibari\.onnx is damaged"):
        load_engine("hibari", tmp_path, {})


def test_voices_in_a_folder_are_found_by_their_files(tmp_path: Path) -> None:
    shutil.copy(find_source("hibari") / "hibari.onnx", tmp_path / "hibari.onnx")
    catalog = ModelCatalog(Settings(models={"mine": {"source": str(tmp_path), "aliases": ["tts-1"]}}))
    mine = catalog.find_model("tts-1")
    assert (mine.id, mine.engine, mine.is_voice_model, mine.is_speech_model) == ("mine", "hibari", True, False)
    loaded = load_engine("hibari", tmp_path, {"threads": 2})
    assert loaded.capabilities.voices == (("heart", "en-US"),)


def test_the_example_in_the_guide_speaks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "own-engine.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(class Beeps.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {
        "np": np,
        "Capabilities": Capabilities,
        "Path": Path,
        "VoiceEngine": VoiceEngine,
        "EngineOptions": EngineOptions,
        "Audio": Audio,
    }
    exec(example, scope)
    beeps = scope["Beeps"].load(Path(), EngineOptions(device="cpu", compute_type="auto"))
    audio = beeps.speak("three words here", "high", 1.0)
    assert audio.dtype == np.float32
    assert len(audio) / beeps.sample_rate == pytest.approx(0.9, abs=0.001)


def test_a_fallback_speaks_the_same_language() -> None:
    own = {"source": str(find_source("nanotts")), "fallback": ["nanotts"]}
    catalog = ModelCatalog(Settings(models={"mine": own}))
    mine, fallback = catalog.find_model("mine"), catalog.find_model("nanotts")
    assert adapt_to_fallback(SpeechRequest("de-DE", 2.0), mine, fallback) == SpeechRequest("de-DE", 2.0)
    english = adapt_to_fallback(SpeechRequest("de-DE"), mine, catalog.find_model(EMBEDDED_VOICE_ID))
    assert english.voice == "", "a model without the language speaks with its first voice"


def test_the_default_voice_model() -> None:
    catalog = ModelCatalog(Settings())
    assert catalog.default_voice
    assert catalog.default_voice.id == EMBEDDED_VOICE_ID
    assert catalog.default.id == "moonshine-tiny-en", "a voice is no default for transcriptions"
    assert {catalog.find_model(name).id for name in VOICE_ALIASES} == {EMBEDDED_VOICE_ID}
    nano = ModelCatalog(Settings(default_voice_model="nanotts"))
    assert nano.find_model("tts-1").id == "nanotts"
