"""Kokoro: natural voices of a model with 82 million parameters, as ONNX graphs.

Two layouts are known: a repository of the hub with a graph in several number formats and a file for each voice, and the two files
of kokoro-onnx's releases. English is turned into phonemes by the library of the embedded voice, which was made from Kokoro's and
has its alphabet; other languages need the program espeak-ng.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum.engines.base import Audio, Device, EngineOptions, VoiceEngine
from eardrum.engines.shared.espeak import phonemize
from eardrum.engines.shared.onnx import build_session_options, check_device, choose_providers, find_onnx_device
from eardrum.errors import ModelLoadError, UnspeakableTextError
from eardrum.speech import list_languages
from eardrum.transcription import Capabilities

RATE = 24_000
MAX_TOKENS = 510
"""Phonemes that the graph takes at once; a style has a row for each number of them."""
STYLE_SIZE = 256
EDGE = 0
"""The token before the first phoneme and after the last one."""

LANGUAGES = {"a": "en-US", "b": "en-GB", "e": "es", "f": "fr-FR", "h": "hi", "i": "it", "p": "pt-BR"}
"""Languages by the first letter of a voice's name. Japanese (j) and Chinese (z) need additional libraries."""
ESPEAK_VOICES = {"es": "es", "fr-FR": "fr-fr", "hi": "hi", "it": "it", "pt-BR": "pt-br"}

VOICE_NAME = re.compile(r"[a-z][fm]_\w+", re.ASCII)

ESPEAK_SOUNDS = (
    *(("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("o^ʊ", "O"), ("ə^ʊ", "Q"), ("ɔ^ɪ", "Y")),
    *(("d^ʒ", "ʤ"), ("d^z", "ʣ"), ("t^ʃ", "ʧ"), ("t^s", "ʦ"), ("t^ɕ", "ʨ"), ("d^ʑ", "ʥ"), ("s^s", "S")),
    *(("^", ""), ("g", "ɡ"), ("ɬ", "l"), ("\u0329", "")),
)
"""Sounds that eSpeak writes with two letters, or others, and Kokoro's alphabet with one."""

FORMATS = (("float16", "fp16"), ("int8", "int8"), ("int8", "quantized"), ("int8", "q8"), ("int4", "q4"))
"""Number formats, and the parts of a graph's name that tell them. `uint8` has `int8` in it."""
PREFERRED = ("float32", "float16", "int8", "int4")


class Kokoro(VoiceEngine):
    """One graph of Kokoro with its voices."""

    requires = ("onnxruntime", "hibari")
    layouts = (
        ("onnx/model*.onnx", "voices/[a-z][fm]_*.bin"),
        ("*.onnx", "voices/[a-z][fm]_*.bin"),
        ("kokoro*.onnx", "voices*.bin"),
    )
    names = {
        "kokoro": "onnx-community/Kokoro-82M-v1.0-ONNX",
        "kokoro-82m": "onnx-community/Kokoro-82M-v1.0-ONNX",
        "hexgrad/Kokoro-82M": "onnx-community/Kokoro-82M-v1.0-ONNX",
    }
    repositories = ("onnx-community/kokoro-82m-*",)
    downloads = ("config.json", "onnx/model.onnx", "voices/*.bin")
    voice_files = "voices/*.bin"
    voice_languages = {
        "a[fm]_*": "en-US",
        "b[fm]_*": "en-GB",
        "e[fm]_*": "es",
        "f[fm]_*": "fr-FR",
        "h[fm]_*": "hi",
        "i[fm]_*": "it",
        "p[fm]_*": "pt-BR",
    }
    title = (
        "Kokoro 82M: natural voices for English, and with the program espeak-ng for Spanish, French, Hindi, Italian, Portuguese"
    )
    capabilities = Capabilities(
        speak=True,
        languages=("en", "es", "fr", "hi", "it", "pt"),
        voices=(
            ("af_heart", "en-US"),
            ("af_alloy", "en-US"),
            ("af_aoede", "en-US"),
            ("af_bella", "en-US"),
            ("af_jessica", "en-US"),
            ("af_kore", "en-US"),
            ("af_nicole", "en-US"),
            ("af_nova", "en-US"),
            ("af_river", "en-US"),
            ("af_sarah", "en-US"),
            ("af_sky", "en-US"),
            ("am_adam", "en-US"),
            ("am_echo", "en-US"),
            ("am_eric", "en-US"),
            ("am_fenrir", "en-US"),
            ("am_liam", "en-US"),
            ("am_michael", "en-US"),
            ("am_onyx", "en-US"),
            ("am_puck", "en-US"),
            ("am_santa", "en-US"),
            ("bf_alice", "en-GB"),
            ("bf_emma", "en-GB"),
            ("bf_isabella", "en-GB"),
            ("bf_lily", "en-GB"),
            ("bm_daniel", "en-GB"),
            ("bm_fable", "en-GB"),
            ("bm_george", "en-GB"),
            ("bm_lewis", "en-GB"),
            ("ef_dora", "es"),
            ("em_alex", "es"),
            ("em_santa", "es"),
            ("ff_siwis", "fr-FR"),
            ("hf_alpha", "hi"),
            ("hf_beta", "hi"),
            ("hm_omega", "hi"),
            ("hm_psi", "hi"),
            ("if_sara", "it"),
            ("im_nicola", "it"),
            ("pf_dora", "pt-BR"),
            ("pm_alex", "pt-BR"),
            ("pm_santa", "pt-BR"),
        ),
    )

    class Options(EngineOptions):
        """Options of a Kokoro model."""

        threads: int = Field(0, ge=0, le=512, description="Threads per sentence; 0 uses every core.")

    def __init__(
        self, session: Any, styles: dict[str, np.ndarray], vocabulary: dict[str, int], read: dict[str, Callable[[str], str]]
    ):
        self._session = session
        self._styles = styles
        self._vocabulary = vocabulary
        self._read = read
        """Turns text into phonemes, for each language."""
        self._tokens, self._style, self._speed = (entry.name for entry in session.get_inputs())
        voices = tuple((name, LANGUAGES[name[0]]) for name in styles)
        self.capabilities = replace(type(self).capabilities, voices=voices, languages=list_languages(voices))
        self.sample_rate = RATE

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that this onnxruntime can use."""
        import onnxruntime

        return find_onnx_device(onnxruntime, options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the graph in the wanted number format and all voices in the directory `source`."""
        import hibari
        import onnxruntime as ort
        from hibari.g2p import G2P

        options = cast(Kokoro.Options, options)
        number_format, graph = _choose_graph(source, options.compute_type)
        styles = dict(_read_styles(source))
        if not styles:
            raise ModelLoadError(f"{source} holds no voice of Kokoro that is known here, such as voices/af_heart.bin.")
        settings, where = build_session_options(ort, options.threads), choose_providers(ort, options.device)
        try:
            session = ort.InferenceSession(str(graph), sess_options=settings, providers=where)
        except Exception as error:  # onnxruntime raises its own class for each kind of damage
            raise ModelLoadError(f"onnxruntime cannot read {graph}: {error}") from error
        _check_inputs(session, graph)
        vocabulary = json.loads((Path(hibari.__file__).parent / "assets" / "vocab.json").read_bytes())
        languages = {LANGUAGES[name[0]] for name in styles}
        read: dict[str, Callable[[str], str]] = {
            language: G2P(british=language == "en-GB") for language in languages if language.startswith("en")
        }
        read |= {language: partial(_read_with_espeak, voice=voice) for language, voice in ESPEAK_VOICES.items()}
        engine = cls(session, styles, vocabulary, read)
        engine.device, engine.compute_type = check_device(ort, session, options.device), number_format
        return engine

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence."""
        phonemes = self._read[LANGUAGES[voice[0]]](text)
        tokens = [self._vocabulary[phoneme] for phoneme in phonemes if phoneme in self._vocabulary]
        if not any(phoneme.isalpha() and phoneme in self._vocabulary for phoneme in phonemes):
            raise UnspeakableTextError(f"The voice {voice} cannot pronounce {text[:80]!r}.")
        parts = [self._synthesize(part, voice, speed) for part in _split_tokens(tokens, self._vocabulary[" "])]
        return cast(Audio, np.concatenate(parts))

    def _synthesize(self, tokens: list[int], voice: str, speed: float) -> np.ndarray:
        styles = self._styles[voice]
        inputs = {
            self._tokens: np.array([[EDGE, *tokens, EDGE]], np.int64),
            self._style: styles[min(len(tokens), len(styles)) - 1].reshape(1, STYLE_SIZE),
            self._speed: np.array([speed], np.float32),
        }
        return cast(np.ndarray, self._session.run(None, inputs)[0].reshape(-1).astype(np.float32, copy=False))


def _choose_graph(source: Path, wanted: str) -> tuple[str, Path]:
    """Choose the graph with the wanted number format, or the most precise one."""
    graphs: dict[str, Path] = {}
    for path in [*sorted(source.glob("onnx/*.onnx")), *sorted(source.glob("*.onnx"))]:
        graphs.setdefault(next((format for format, part in FORMATS if part in path.stem.lower()), "float32"), path)
    if not graphs:
        raise ModelLoadError(f"{source} holds no graph of Kokoro, such as onnx/model.onnx.")
    found = next((format for format in PREFERRED if format in graphs), "") if wanted == "auto" else wanted
    if found not in graphs:
        raise ModelLoadError(f"compute_type {wanted!r} is not available: {source} has graphs in {', '.join(graphs)}.")
    return found, graphs[found]


def _read_styles(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the voices of known languages with their styles, float32 [number of phonemes, 256]: the engine's default first."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(source.glob("voices/*.bin")):
        if _is_known_voice(path.stem):
            found[path.stem] = np.fromfile(path, "<f4")
    for path in sorted(source.glob("voices*.bin")):
        try:
            with np.load(path, allow_pickle=False) as archive:
                found |= {name: archive[name] for name in archive.files if _is_known_voice(name)}
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{path} is damaged: {error}.") from error
    first = [name for name, _ in Kokoro.capabilities.voices if name in found]
    for name in [*first, *sorted(found.keys() - set(first))]:
        style = found[name]
        if not style.size or style.size % STYLE_SIZE or not np.isfinite(style).all():
            raise ModelLoadError(f"The voice {name} in {source} is damaged: it is no table with {STYLE_SIZE} columns.")
        yield name, style.astype(np.float32, copy=False).reshape(-1, STYLE_SIZE)


def _is_known_voice(name: str) -> bool:
    return VOICE_NAME.fullmatch(name) is not None and name[0] in LANGUAGES


def _check_inputs(session: Any, graph: Path) -> None:
    """Check that a graph takes tokens, a style and a speed, as Kokoro's exports do."""
    found = [(entry.name, entry.type) for entry in session.get_inputs()]
    if [kind for _, kind in found] != ["tensor(int64)", "tensor(float)", "tensor(float)"]:
        listed = ", ".join(f"{name} {kind}" for name, kind in found)
        raise ModelLoadError(f"{graph} is no export of Kokoro that is known here: its inputs are {listed}.")


def _read_with_espeak(text: str, voice: str) -> str:
    phonemes = phonemize(text, voice, tie="^")
    for sound, letter in ESPEAK_SOUNDS:
        phonemes = phonemes.replace(sound, letter)
    return phonemes


def _split_tokens(tokens: list[int], space: int) -> Iterator[list[int]]:
    """Split a long sentence between words."""
    while len(tokens) > MAX_TOKENS:
        at = next((at for at in range(MAX_TOKENS, 0, -1) if tokens[at] == space), MAX_TOKENS)
        yield tokens[:at]
        tokens = tokens[at:]
    yield tokens
