"""hibari: small English voices for the CPU, of which the package `hibari-tts` ships one.

A voice is a graph that turns phonemes into spectra; the library turns text into phonemes before it and spectra into samples after
it. The library would download a voice that it does not find: it always gets the path of a file here.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum.engines.base import Audio, Device, EngineOptions, VoiceEngine
from eardrum.errors import DeviceError, ModelLoadError, UnspeakableTextError
from eardrum.transcription import Capabilities

VOICE_FILES = {
    "heart": ("hibari.onnx", "en-US", "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8"),
    "emma": ("voices/bf_emma.int8.onnx", "en-GB", "f709f0488ee63b583a22189a955aaf4257b9806dd330be3490661e53af0a89c1"),
    "fenrir": ("voices/am_fenrir_v2.int8.onnx", "en-US", "f59fbd87908c91f827bc21b1b89443757b9a8580db9eee20aa948deb731321f4"),
    "fable": ("voices/bm_fable.int8.onnx", "en-GB", "c28529302f2d27cd12f62625c24425888c4e3c2675583100ec530259136b8bc6"),
    "kore": ("voices/af_kore.int8.onnx", "en-US", "346885752673e45d42f9864c9e2432094bc4b6385df060d4b83273da764d2fa9"),
}
"""Voices with their files, languages and SHA-256, as the library's registry lists them in version 0.2.1."""

SEED = 0
"""Of the noise in the voice: the same text always gives the same audio."""


class Hibari(VoiceEngine):
    """The voices of hibari in one folder."""

    requires = ("hibari", "onnxruntime")
    layouts = (
        ("hibari.onnx",),
        ("voices/bf_emma.int8.onnx",),
        ("voices/am_fenrir_v2.int8.onnx",),
        ("voices/bm_fable.int8.onnx",),
        ("voices/af_kore.int8.onnx",),
    )
    names = {"hibari": "maureesewilliams/hibari"}
    repositories = ("maureesewilliams/hibari",)
    downloads = ("hibari.onnx", "voices/*.onnx")
    title = "hibari: English voices for the CPU, one of them without a download"
    capabilities = Capabilities(speak=True, languages=("en",), voices=(("heart", "en-US"),))

    class Options(EngineOptions):
        """Options of hibari's voices."""

        threads: int = Field(1, ge=0, le=512, description="Threads per sentence; 0 uses every core. One is fast enough.")

    def __init__(self, voices: Mapping[str, Any]):
        self._voices = voices
        found = tuple((voice, VOICE_FILES[voice][1]) for voice in voices)
        self.capabilities = replace(type(self).capabilities, voices=found)

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """The library runs its graphs on the CPU."""
        if options.device == "cuda":
            raise DeviceError("hibari runs on the CPU only: set `device: cpu` for this model.")
        return Device("cpu")

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the voices whose files are in the directory `source`."""
        import hibari
        from hibari.g2p import G2P

        options = cast(Hibari.Options, options)
        if options.compute_type != "auto":
            raise ModelLoadError(
                f"hibari's files fix their number format: compute_type {options.compute_type!r} is not available."
            )
        paths = {voice: path for voice in VOICE_FILES if (path := _find_file(source, voice))}
        if not paths:
            files = ", ".join(Path(file).name for file, _, _ in VOICE_FILES.values())
            raise ModelLoadError(f"{source} holds no voice of hibari: its files are {files}.")
        readers: dict[bool, Any] = {}
        voices = {}
        for voice, path in paths.items():
            _check_file(path, VOICE_FILES[voice][2])
            british = VOICE_FILES[voice][1] == "en-GB"
            if british not in readers:
                readers[british] = G2P(british=british)
            try:
                voices[voice] = hibari.Hibari(voice=voice, model=str(path), threads=options.threads, g2p=readers[british])
            except Exception as error:  # onnxruntime raises its own class for each kind of damage
                raise ModelLoadError(f"onnxruntime cannot read {path}: {error}") from error
        engine = cls(voices)
        engine.device, engine.compute_type, engine.sample_rate = "cpu", "int8", hibari.SAMPLE_RATE
        engine.speak("Ready.", next(iter(voices)), 1.0)  # reads the rest of the library's tables
        return engine

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence."""
        parts = list(self._voices[voice].stream(_write_plain_digits(text), speed=speed, seed=SEED))
        audio = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if not audio.size:
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        return cast(Audio, audio.astype(np.float32, copy=False))


def _write_plain_digits(text: str) -> str:
    """Replace raised and circled digits: before a letter, the library fails to read them as a number."""
    return "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isdecimal() else c for c in text)


def _find_file(source: Path, voice: str) -> Path | None:
    """Find a voice's file in a folder, or next to others in its subfolder `voices`; `source` may also be the file."""
    name = VOICE_FILES[voice][0]
    candidates = (source, source / name, source / Path(name).name)
    return next((path for path in candidates if path.name == Path(name).name and path.is_file()), None)


def _check_file(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelLoadError(f"{path} is damaged, or of another version: its SHA-256 is not {sha256}.")
