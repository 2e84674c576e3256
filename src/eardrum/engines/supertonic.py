"""Supertonic 3: ten voices that speak 31 languages each, as four ONNX graphs that read letters and need no phonemes.

The predictor of durations and the encoder of the text run once for a sentence; the estimator turns noise into a spectrum in a few
steps; the vocoder makes samples of it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, Field, ValidationError

from eardrum.engines.base import Audio, Device, EngineOptions, VoiceEngine
from eardrum.engines.shared.onnx import build_session_options, check_device, choose_providers, find_onnx_device
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.speech import list_languages
from eardrum.transcription import Capabilities

DURATIONS, ENCODER, ESTIMATOR, VOCODER = "duration_predictor", "text_encoder", "vector_estimator", "vocoder"
PACE = 1.05
"""The factor by which the model's own programs multiply speeds."""
SEED = 0
"""Of the noise: the same text always gives the same audio."""
END_MARKS = tuple(".!?;:,'\")]}…。」』】〉》›»")

T = TypeVar("T", bound=BaseModel)

LETTERS = str.maketrans(
    {
        **dict.fromkeys("–‑—", "-"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‘’´`", "'"),
        **dict.fromkeys("_[]|/#→←<>", " "),
        "\\": "",
    }
)
"""Marks that the model does not know, and those that it does; `<` and `>` would begin a tag of a language."""


class SupertonicCodec(BaseModel):
    """The section `ae` of the settings: the samples behind a spectrum."""

    sample_rate: int = Field(gt=0, le=192_000)
    base_chunk_size: int = Field(gt=0)


class SupertonicLatent(BaseModel):
    """The section `ttl`: the shape of a spectrum."""

    latent_dim: int = Field(gt=0)
    chunk_compress_factor: int = Field(gt=0)


class SupertonicSettings(BaseModel):
    """The settings next to the graphs, `tts.json`."""

    ae: SupertonicCodec
    ttl: SupertonicLatent


class SupertonicTable(BaseModel):
    """A table of numbers in a voice's file."""

    dims: tuple[int, ...]
    data: Any

    @property
    def values(self) -> np.ndarray:
        """The numbers, float32, in the shape `dims`."""
        return np.array(self.data, np.float32).reshape(self.dims)


class SupertonicStyle(BaseModel):
    """A voice's file: one table for the spectrum, one for durations."""

    style_ttl: SupertonicTable
    style_dp: SupertonicTable


class SupertonicVoice(Struct, frozen=True):
    """A voice's tables, float32: for the spectrum [1, 50, 256], for durations [1, 8, 16]."""

    spectrum: np.ndarray
    durations: np.ndarray


class Supertonic(VoiceEngine):
    """The graphs of Supertonic with their voices, each in every language."""

    requires = ("onnxruntime",)
    layouts = (("onnx/vector_estimator.onnx", "onnx/tts.json", "voice_styles/*.json"),)
    names = {"supertonic": "Supertone/supertonic-3", "supertonic-3": "Supertone/supertonic-3"}
    repositories = ("supertone/supertonic-3",)
    downloads = ("config.json", "onnx/*.onnx", "onnx/*.json", "voice_styles/*.json")
    voice_files = "voice_styles/*.json"
    voice_languages = {"*": "en ar bg cs da de el es et fi fr hi hr hu id it ja ko lt lv nl pl pt ro ru sk sl sv tr uk vi"}
    title = "Supertonic 3: ten voices in 31 languages, on the CPU, without eSpeak (licence: OpenRAIL-M)"
    capabilities = Capabilities(speak=True)

    class Options(EngineOptions):
        """Options of a Supertonic model."""

        threads: int = Field(0, ge=0, le=512, description="Threads per sentence; 0 uses every core.")
        steps: int = Field(8, ge=1, le=50, description="Steps from noise to speech: more steps sound better, but take longer.")

    def __init__(
        self,
        graphs: dict[str, Any],
        voices: dict[str, SupertonicVoice],
        indices: list[int],
        settings: SupertonicSettings,
        steps: int,
    ):
        self._graphs = graphs
        self._voices = voices
        self._indices = indices
        self._settings = settings
        self._steps = steps
        languages = self.voice_languages["*"].split()
        listed = tuple((f"{name}-{language}", language) for name in voices for language in languages)
        self.capabilities = replace(type(self).capabilities, voices=listed, languages=list_languages(listed))
        self.sample_rate = settings.ae.sample_rate

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that this onnxruntime can use."""
        import onnxruntime

        return find_onnx_device(onnxruntime, options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the graphs and all voices in the directory `source`."""
        import onnxruntime as ort

        options = cast(Supertonic.Options, options)
        if options.compute_type != "auto":
            raise ModelLoadError(
                f"Supertonic's files fix their number format: compute_type {options.compute_type!r} is not available."
            )
        settings = _read_file(source / "onnx" / "tts.json", SupertonicSettings)
        indices = _read_indices(source / "onnx" / "unicode_indexer.json")
        voices = dict(_read_voices(source))
        if not voices:
            raise ModelLoadError(f"{source} holds no voice of Supertonic, such as voice_styles/F1.json.")
        session_options, where = build_session_options(ort, options.threads), choose_providers(ort, options.device)
        open_session = partial(ort.InferenceSession, sess_options=session_options, providers=where)
        graphs = {}
        for name in (DURATIONS, ENCODER, ESTIMATOR, VOCODER):
            path = source / "onnx" / f"{name}.onnx"
            try:
                graphs[name] = open_session(str(path))
            except Exception as error:  # onnxruntime raises its own class for each kind of damage
                raise ModelLoadError(f"onnxruntime cannot read {path}: {error}") from error
        engine = cls(graphs, voices, indices, settings, options.steps)
        engine.device, engine.compute_type = check_device(ort, graphs[ESTIMATOR], options.device), "float32"
        return engine

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence."""
        name, _, language = voice.rpartition("-")
        style, ids = self._voices[name], self._build_ids(text, language)
        if not ids:
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        read: dict[str, np.ndarray] = {"text_ids": np.array([ids], np.int64), "text_mask": np.ones((1, 1, len(ids)), np.float32)}
        seconds = float(self._run(DURATIONS, **read, style_dp=style.durations).reshape(-1)[0]) / (speed * PACE)
        encoded = {
            "text_emb": self._run(ENCODER, **read, style_ttl=style.spectrum),
            "text_mask": read["text_mask"],
            "style_ttl": style.spectrum,
        }
        spectrum = self._build_noise(seconds)
        frames = np.ones((1, 1, spectrum.shape[2]), np.float32)
        for step in range(self._steps):
            at = {"current_step": np.array([step], np.float32), "total_step": np.array([self._steps], np.float32)}
            spectrum = self._run(ESTIMATOR, noisy_latent=spectrum, latent_mask=frames, **encoded, **at)
        audio = self._run(VOCODER, latent=spectrum).reshape(-1)[: max(int(seconds * self.sample_rate), 1)]
        return cast(Audio, audio.astype(np.float32, copy=False))

    def _run(self, graph: str, **inputs: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, self._graphs[graph].run(None, inputs)[0])

    def _build_noise(self, seconds: float) -> np.ndarray:
        """Build the noise that becomes the spectrum, shape [1, channels, frames]."""
        factor = self._settings.ttl.chunk_compress_factor
        frames = int(np.ceil(seconds * self.sample_rate / (self._settings.ae.base_chunk_size * factor)))
        shape = (1, self._settings.ttl.latent_dim * factor, max(frames, 1))
        return np.random.default_rng(SEED).standard_normal(shape, np.float32)

    def _build_ids(self, text: str, language: str) -> list[int]:
        """Return the graphs' input for a sentence; empty if they know none of its letters."""
        letters = " ".join(unicodedata.normalize("NFKD", text.translate(LETTERS)).split())
        if not any(letter.isalnum() and self._get_index(letter) >= 0 for letter in letters):
            return []
        letters += "" if letters.endswith(END_MARKS) else "."
        indices = map(self._get_index, f"<{language}>{letters}</{language}>")
        return [index for index in indices if index >= 0]

    def _get_index(self, letter: str) -> int:
        return self._indices[ord(letter)] if ord(letter) < len(self._indices) else -1


def _read_file(path: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelLoadError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _read_indices(path: Path) -> list[int]:
    """Read the graphs' number of each code point; -1 for those that they do not know."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is missing or damaged: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(index, int) for index in found):
        raise ModelLoadError(f"{path} is damaged: it is no list of numbers.")
    return found


def _read_voices(source: Path) -> Iterator[tuple[str, SupertonicVoice]]:
    for path in sorted(source.glob("voice_styles/*.json")):
        style = _read_file(path, SupertonicStyle)
        try:
            yield path.stem, SupertonicVoice(style.style_ttl.values, style.style_dp.values)
        except (OverflowError, TypeError, ValueError) as error:
            raise ModelLoadError(f"{path} is damaged: {error}.") from error
