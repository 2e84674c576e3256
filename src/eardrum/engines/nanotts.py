"""NanoTTS: SVOX Pico's voices for English, German, Spanish, French and Italian, which its package ships.

They sound like phones of 2009 and are clearly understood, in a few MB.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import numpy as np

from eardrum.engines.base import Audio, Device, EngineOptions, VoiceEngine
from eardrum.errors import DeviceError, ModelLoadError, UnspeakableTextError
from eardrum.transcription import Capabilities

RATE = 16_000

MARKUP = str.maketrans("<>&", "   ")
"""Pico reads these as tags."""


class NanoTts(VoiceEngine):
    """The six voices of the package `py-nanotts`."""

    requires = ("py_nanotts",)
    extra = "nanotts"
    layouts = (("en-US_ta.bin", "en-US_lh0_sg.bin"),)
    title = "NanoTTS (SVOX Pico): English, German, Spanish, French and Italian voices, tiny and plain"
    capabilities = Capabilities(
        speak=True,
        languages=("en", "de", "es", "fr", "it"),
        voices=(
            ("en-US", "en-US"),
            ("en-GB", "en-GB"),
            ("de-DE", "de-DE"),
            ("es-ES", "es-ES"),
            ("fr-FR", "fr-FR"),
            ("it-IT", "it-IT"),
        ),
    )

    def __init__(self, library: Any):
        self._library = library
        self._lock = Lock()

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """The library has no other device than the CPU."""
        if options.device == "cuda":
            raise DeviceError("nanotts runs on the CPU only: set `device: cpu` for this model.")
        return Device("cpu")

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the library. It reads its own files, so `source` must be their folder."""
        import py_nanotts

        own = Path(py_nanotts.__file__).parent / "lang"
        if not source.is_dir() or source.resolve() != own.resolve():
            raise ModelLoadError(f"nanotts reads the voices in {own} only, not in {source}.")
        if options.compute_type != "auto":
            raise ModelLoadError(f"nanotts has no number formats: compute_type {options.compute_type!r} is not available.")
        engine = cls(py_nanotts.NanoTTS())
        engine.device, engine.sample_rate = "cpu", RATE
        engine.speak("1", "en-US", 1.0)
        return engine

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence."""
        with self._lock:
            pcm = self._library.speak(text.translate(MARKUP), voice=voice, speed=speed)
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0
        if not samples.any():
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        return cast(Audio, samples)
