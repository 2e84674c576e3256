"""Piper's voices, for some 40 languages: VITS as ONNX graphs.

A folder may hold many of them, each a graph with its settings next to it (`de_DE-thorsten-medium.onnx` and `.onnx.json`). Piper's
own code is under the GPL and is not used: the graphs run on onnxruntime, and phonemes come from eSpeak NG as a program.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, Field, ValidationError

from eardrum.engines.base import Audio, Device, EngineOptions, VoiceEngine
from eardrum.engines.shared.espeak import phonemize
from eardrum.engines.shared.onnx import build_session_options, check_device, choose_providers, find_onnx_device
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.speech import list_languages
from eardrum.transcription import Capabilities

LANGUAGE_CODE = re.compile(r"([a-z]{2,3})_([A-Z]{2})(?![A-Za-z])")
"""At the beginning of a voice's name: `de_DE-thorsten-medium`."""

BEGIN, PAD, END = "^", "_", "$"
"""Symbols around the phonemes, and between each two."""


class PiperAudio(BaseModel):
    """The section `audio` of a voice's settings."""

    sample_rate: int = Field(gt=0, le=192_000)


class PiperEspeak(BaseModel):
    """The section `espeak`."""

    voice: str = ""


class PiperInference(BaseModel):
    """The section `inference`: how much the voice varies, and its pace."""

    noise_scale: float = 0.667
    length_scale: float = Field(1.0, gt=0)
    noise_w: float = 0.8


class PiperLanguage(BaseModel):
    """The section `language`, which newer voices have."""

    code: str = ""


class PiperSettings(BaseModel):
    """The settings next to a voice's graph."""

    audio: PiperAudio
    espeak: PiperEspeak = PiperEspeak()
    inference: PiperInference = PiperInference()
    language: PiperLanguage = PiperLanguage()
    phoneme_type: str = "espeak"
    phoneme_id_map: dict[str, list[int]]
    num_speakers: int = 1
    speaker_id_map: dict[str, int] = {}


class PiperVoice(Struct, frozen=True):
    """One way to speak: a graph, and for graphs with several speakers one of these."""

    graph: Path
    settings: PiperSettings
    language: str
    speaker: int = 0


class Piper(VoiceEngine):
    """The voices of Piper in one folder. A voice's graph is opened when it first speaks."""

    requires = ("onnxruntime",)
    layouts = (("*.onnx", "*.onnx.json#phoneme_id_map"),)
    voice_files = "*.onnx.json"
    title = "Piper's voices for some 40 languages, on the CPU, with phonemes of the program espeak-ng"
    capabilities = Capabilities(speak=True)

    class Options(EngineOptions):
        """Options of Piper's voices."""

        threads: int = Field(0, ge=0, le=512, description="Threads per sentence; 0 uses every core.")

    def __init__(self, voices: dict[str, PiperVoice], open_session: Any):
        self._voices = voices
        self._open_session = open_session
        self._sessions: dict[Path, Any] = {}
        self._lock = Lock()
        listed = tuple((name, voice.language) for name, voice in voices.items())
        self.capabilities = replace(type(self).capabilities, voices=listed, languages=list_languages(listed))
        self.sample_rate = max(voice.settings.audio.sample_rate for voice in voices.values())

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that this onnxruntime can use."""
        import onnxruntime

        return find_onnx_device(onnxruntime, options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Read the settings of all voices in the directory `source`, and open the first one's graph."""
        import onnxruntime as ort

        options = cast(Piper.Options, options)
        if options.compute_type != "auto":
            raise ModelLoadError(
                f"Piper's files fix their number format: compute_type {options.compute_type!r} is not available."
            )
        voices = dict(_list_voices(source))
        if not voices:
            raise ModelLoadError(f"{source} holds no voice of Piper: no .onnx file has a .onnx.json of the same name.")
        settings, where = build_session_options(ort, options.threads), choose_providers(ort, options.device)

        def open_session(graph: Path) -> Any:
            try:
                return ort.InferenceSession(str(graph), sess_options=settings, providers=where)
            except Exception as error:  # onnxruntime raises its own class for each kind of damage
                raise ModelLoadError(f"onnxruntime cannot read {graph}: {error}") from error

        engine = cls(voices, open_session)
        first = engine._get_session(next(iter(voices.values())))
        engine.device, engine.compute_type = check_device(ort, first, options.device), "float32"
        return engine

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence."""
        chosen = self._voices[voice]
        ids = _build_ids(_list_phonemes(text, chosen.settings), chosen.settings.phoneme_id_map)
        if not ids:
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        scales = chosen.settings.inference
        inputs: dict[str, np.ndarray] = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([scales.noise_scale, scales.length_scale / speed, scales.noise_w], np.float32),
        }
        if chosen.settings.num_speakers > 1:
            inputs["sid"] = np.array([chosen.speaker], np.int64)
        audio = self._get_session(chosen).run(None, inputs)[0].reshape(-1)
        loudest = float(np.abs(audio).max(initial=0.0))
        if loudest < 1e-6:
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        # Voices differ much in loudness; Piper's own programs bring each sentence to the same level, too.
        level = np.float32(0.9 / loudest)
        return _resample(audio.astype(np.float32) * level, chosen.settings.audio.sample_rate, self.sample_rate)

    def _get_session(self, voice: PiperVoice) -> Any:
        with self._lock:
            if voice.graph not in self._sessions:
                self._sessions[voice.graph] = self._open_session(voice.graph)
            return self._sessions[voice.graph]


def _list_voices(source: Path) -> Iterator[tuple[str, PiperVoice]]:
    """Yield the names of voices with their files: that of the file, and for one with several speakers also theirs."""
    graphs = [source] if source.suffix == ".onnx" else sorted(source.glob("*.onnx"))
    for graph in graphs:
        path = graph.with_name(f"{graph.name}.json")
        if not path.is_file():
            continue
        try:
            settings = PiperSettings.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ModelLoadError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
        if settings.phoneme_type not in ("espeak", "text"):
            continue  # pinyin: phonemes of a separate Chinese library
        if missing := [symbol for symbol in (BEGIN, PAD, END) if symbol not in settings.phoneme_id_map]:
            raise ModelLoadError(f"{path} is damaged: its phoneme_id_map lacks {' '.join(missing)}.")
        voice = PiperVoice(graph, settings, _find_language(graph.stem, settings))
        yield graph.stem, voice
        for speaker, number in settings.speaker_id_map.items() if settings.num_speakers > 1 else ():
            yield f"{graph.stem}/{speaker}", replace(voice, speaker=number)


def _find_language(name: str, settings: PiperSettings) -> str:
    """Return a voice's language, as in `de-DE`, by its settings or its name, else by the language that eSpeak reads for it."""
    named = LANGUAGE_CODE.match(settings.language.code) or LANGUAGE_CODE.match(name)
    if named:
        return f"{named[1]}-{named[2]}"
    language, _, region = settings.espeak.voice.partition("-")
    return f"{language}-{region.upper()}" if len(region) == 2 else language


def _list_phonemes(text: str, settings: PiperSettings) -> str:
    """Return a sentence's phonemes, one for each code point."""
    if settings.phoneme_type == "espeak":
        text = phonemize(text, settings.espeak.voice)
    return unicodedata.normalize("NFD", text)


def _build_ids(phonemes: str, known: dict[str, list[int]]) -> list[int]:
    """Return the graph's input for phonemes; empty if it knows none of them."""
    spoken = [known.get(phoneme) or known.get(phoneme.lower()) for phoneme in phonemes]
    if not any(spoken and phoneme.isalnum() for phoneme, spoken in zip(phonemes, spoken, strict=True)):
        return []
    ids = [*known[BEGIN], *known[PAD]]
    for numbers in spoken:
        ids += [*numbers, *known[PAD]] if numbers else []
    return [*ids, *known[END]]


def _resample(audio: Audio, rate: int, wanted: int) -> Audio:
    """Bring a sentence to another, higher rate: its spectrum stays, and there is nothing above it."""
    if rate == wanted:
        return audio
    count = round(len(audio) * wanted / rate)
    return cast(Audio, (np.fft.irfft(np.fft.rfft(audio), count) * (count / len(audio))).astype(np.float32))
