"""whisper.cpp: Whisper in whisper.cpp's own ggml files.

The library pywhispercpp carries whisper.cpp. Its own class is not used: it keeps one set of parameters for all requests. Here
each window is one call of `whisper_full`, which finds times and tries higher temperatures itself.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum.engines import cuda
from eardrum.engines.base import Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.ggml_files import GgmlHeader, find_ggml_file, read_ggml_header
from eardrum.engines.shared.whisper_rules import (
    build_timed_words,
    compute_compression_ratio,
    find_favourite,
    is_settled,
    vote,
)
from eardrum.errors import ModelLoadError
from eardrum.languages import LANGUAGE_NAMES
from eardrum.transcription import Capabilities, Segment, SpeechTask, Token
from eardrum.units import count_usable_cores

LEAST_S = 0.1
"""Shorter audio is silence to whisper.cpp."""
LEAST_SPEECH_S = 0.3
"""Weight of the shortest speech in the vote on the language."""
LEAST_OWN_S = 0.5
"""Less speech than this is not enough to tell its language from that of the rest."""
ERROR_LEVEL = 4
"""ggml's log level of errors."""
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages without spaces between words: each character is a word there."""
HUNDREDTHS = 100
"""whisper.cpp's unit of time is a hundredth of a second."""


class Ggml(Engine):
    """One Whisper in a ggml file of whisper.cpp."""

    requires = ("_pywhispercpp",)
    extra = "ggml"
    title = "Whisper of any size in whisper.cpp's ggml files, quantised ones too: CPU, and the GPU that it was built for"
    layouts = (("*.bin@lmgg",),)
    names = {
        "ggml-distil-large-v3": "distil-whisper/distil-large-v3-ggml",
        "ggml-distil-large-v3.5": "distil-whisper/distil-large-v3.5-ggml",
        "ggml-tiny": "ggerganov/whisper.cpp/ggml-tiny.bin",
        "ggml-tiny.en": "ggerganov/whisper.cpp/ggml-tiny.en.bin",
        "ggml-tiny-q5_1": "ggerganov/whisper.cpp/ggml-tiny-q5_1.bin",
        "ggml-tiny.en-q5_1": "ggerganov/whisper.cpp/ggml-tiny.en-q5_1.bin",
        "ggml-tiny-q8_0": "ggerganov/whisper.cpp/ggml-tiny-q8_0.bin",
        "ggml-base": "ggerganov/whisper.cpp/ggml-base.bin",
        "ggml-base.en": "ggerganov/whisper.cpp/ggml-base.en.bin",
        "ggml-base-q5_1": "ggerganov/whisper.cpp/ggml-base-q5_1.bin",
        "ggml-base.en-q5_1": "ggerganov/whisper.cpp/ggml-base.en-q5_1.bin",
        "ggml-base-q8_0": "ggerganov/whisper.cpp/ggml-base-q8_0.bin",
        "ggml-small": "ggerganov/whisper.cpp/ggml-small.bin",
        "ggml-small.en": "ggerganov/whisper.cpp/ggml-small.en.bin",
        "ggml-small-q5_1": "ggerganov/whisper.cpp/ggml-small-q5_1.bin",
        "ggml-small.en-q5_1": "ggerganov/whisper.cpp/ggml-small.en-q5_1.bin",
        "ggml-small-q8_0": "ggerganov/whisper.cpp/ggml-small-q8_0.bin",
        "ggml-medium": "ggerganov/whisper.cpp/ggml-medium.bin",
        "ggml-medium.en": "ggerganov/whisper.cpp/ggml-medium.en.bin",
        "ggml-medium-q5_0": "ggerganov/whisper.cpp/ggml-medium-q5_0.bin",
        "ggml-medium.en-q5_0": "ggerganov/whisper.cpp/ggml-medium.en-q5_0.bin",
        "ggml-medium-q8_0": "ggerganov/whisper.cpp/ggml-medium-q8_0.bin",
        "ggml-large-v1": "ggerganov/whisper.cpp/ggml-large-v1.bin",
        "ggml-large-v2": "ggerganov/whisper.cpp/ggml-large-v2.bin",
        "ggml-large-v2-q5_0": "ggerganov/whisper.cpp/ggml-large-v2-q5_0.bin",
        "ggml-large-v2-q8_0": "ggerganov/whisper.cpp/ggml-large-v2-q8_0.bin",
        "ggml-large-v3": "ggerganov/whisper.cpp/ggml-large-v3.bin",
        "ggml-large-v3-q5_0": "ggerganov/whisper.cpp/ggml-large-v3-q5_0.bin",
        "ggml-large-v3-turbo": "ggerganov/whisper.cpp/ggml-large-v3-turbo.bin",
        "ggml-large-v3-turbo-q5_0": "ggerganov/whisper.cpp/ggml-large-v3-turbo-q5_0.bin",
        "ggml-large-v3-turbo-q8_0": "ggerganov/whisper.cpp/ggml-large-v3-turbo-q8_0.bin",
    }
    repositories = ("distil-whisper/*-ggml", "*/ggml-*.bin")
    downloads = ("ggml-*[!2].bin",)  # float32 is there too, as `ggml-….fp32.bin`
    variants = {
        "*.en.bin": {"languages": ("en",), "translate": False, "detects_language": False},
        "*.en-q*": {"languages": ("en",), "translate": False, "detects_language": False},
        "*turbo*": {"translate": False},
        "*distil*": {"languages": ("en",), "translate": False},
    }
    rank = 40
    capabilities = Capabilities(
        detects_language=True,
        translate=True,
        words=True,
        logprobs=True,
        prompt=True,
        hotwords=True,
        temperature=True,
        max_window_s=30.0,
        fixed_window=True,
        max_batch=1,
    )

    class Options(EngineOptions):
        """Options of a Whisper that whisper.cpp runs."""

        gpu_device: int = Field(0, ge=0, le=64, description="Number of the GPU.")
        flash_attention: bool = Field(False, description="Use flash attention: faster on a GPU, but word times are estimated.")
        threads: int = Field(0, ge=0, le=512, description="Threads on a CPU; 0 uses every core.")
        beam_size: int = Field(5, ge=1, le=8, description="Hypotheses followed at temperature 0; 1 is greedy, and faster.")
        best_of: int = Field(5, ge=1, le=8, description="Samples drawn above temperature 0, of which the likeliest is taken.")
        temperature_increment: float = Field(
            0.2, ge=0, le=1, description="Step to the next temperature while the text is doubtful; 0 never tries again."
        )
        entropy_threshold: float = Field(2.4, description="Text with a lower entropy is repetitive and doubtful.")
        log_prob_threshold: float = Field(-1.0, description="Text with a lower mean log probability is doubtful.")
        no_speech_threshold: float = Field(0.6, description="Doubtful text above this probability of silence is dropped.")
        prompt: str = Field("", description="Prompt for requests without one: names, spelling, style.")

    def __init__(self, library: Any, context: Any, header: GgmlHeader, options: Ggml.Options):
        self._library = library
        self._context = context
        self._options = options
        self._threads = options.threads or count_usable_cores()
        self._multilingual = header.multilingual
        self._end = library.whisper_token_eot(context)
        self._languages = {
            number: code
            for number in range(library.whisper_lang_max_id() + 1)
            if (code := library.whisper_lang_str(number)) in LANGUAGE_NAMES
        }
        if self._multilingual:
            self.capabilities = replace(type(self).capabilities, languages=tuple(self._languages.values()))
        else:
            self.capabilities = replace(type(self).capabilities, languages=("en",), translate=False, detects_language=False)
        self.compute_type = header.compute_type

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Refuse a GPU of NVIDIA's to a whisper.cpp that was built without."""
        library = _import_library()
        if options.device == "cuda" and "CUDA" not in library.whisper_print_system_info():
            remedy = "build pywhispercpp from its source with GGML_CUDA=1"
            raise cuda.build_device_error("whisper.cpp", "it is built without CUDA", remedy)
        return Device(options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the ggml file `source`, or the one in this folder."""
        options = cast(Ggml.Options, options)
        path = find_ggml_file(source)
        header = read_ggml_header(path)
        if options.compute_type not in ("auto", header.compute_type):
            kind = header.compute_type or "fixed"
            raise ModelLoadError(
                f"{path} fixes its number format ({kind}): compute_type {options.compute_type!r} is not available."
            )
        library = _import_library()
        log = WhisperLog()
        library.whisper_log_set(log.add_line)
        # Python has ended when the library would let go of the function.
        atexit.register(library.whisper_log_set, None)
        settings = _build_settings(library, header, path, options)
        context = library.whisper_init_from_file_with_params(str(path), settings)
        if log.errors:  # the context is not one then, and using it would end the process
            raise ModelLoadError(f"whisper.cpp cannot load {path}: {log.errors[0]}")
        engine = cls(library, context, header, options)
        engine.device = log.device
        return engine

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows one after another."""
        return [self._transcribe(window) for window in windows]

    def _transcribe(self, window: Window) -> EngineResult:
        if window.cancelled or window.seconds < LEAST_S:
            return EngineResult()
        audio = np.ascontiguousarray(window.audio, np.float32)
        voted = self._vote_on_language(window, audio)
        own = voted if window.request.multilingual and _count_speech_seconds(window) >= LEAST_OWN_S else {}
        language = window.request.language or find_favourite(own or window.context.votes or {"en": 1.0})
        failed = self._library.whisper_full(self._context, self._build_parameters(window, language), audio, len(audio))
        if window.cancelled:
            return EngineResult()
        if failed:
            raise RuntimeError(f"whisper.cpp could not decode a window: error {failed}")
        segments = self._build_segments(window, language)
        if not segments:
            vote(window.context.votes, voted, -1)
        return EngineResult(segments, language=language)

    def _vote_on_language(self, window: Window, audio: Any) -> dict[str, float]:
        """Find the language of the window, unless it is known; returns its votes, which the request's context has now."""
        request, context = window.request, window.context
        if request.language or not self._multilingual:
            return {}
        spoken = _count_speech_seconds(window)
        if not request.multilingual and is_settled(context.votes, context.unheard + spoken):
            context.unheard += spoken
            return {}
        probabilities = np.zeros(self._library.whisper_lang_max_id() + 1, np.float32)
        self._library.whisper_pcm_to_mel(self._context, audio, len(audio), self._threads)
        if self._library.whisper_lang_auto_detect(self._context, 0, self._threads, probabilities) < 0:
            return {}
        weight, context.unheard = spoken + context.unheard, 0.0
        voted = {code: float(probabilities[number]) * weight for number, code in self._languages.items()}
        vote(context.votes, voted)
        return voted

    def _build_parameters(self, window: Window, language: str) -> Any:
        request, options, library = window.request, self._options, self._library
        strategies = library.whisper_sampling_strategy
        beam = options.beam_size > 1
        parameters = library.whisper_full_default_params(
            strategies.WHISPER_SAMPLING_BEAM_SEARCH if beam else strategies.WHISPER_SAMPLING_GREEDY
        )
        parameters.print_progress = parameters.print_timestamps = False
        parameters.n_threads = self._threads
        parameters.language = language
        parameters.translate = request.task is SpeechTask.TRANSLATE
        parameters.token_timestamps = True
        parameters.suppress_nst = True
        parameters.initial_prompt = " ".join(
            text.strip() for text in (", ".join(request.hotwords), request.prompt or options.prompt) if text.strip()
        )
        parameters.carry_initial_prompt = True
        parameters.temperature = request.temperature
        parameters.temperature_inc = options.temperature_increment
        parameters.entropy_thold = options.entropy_threshold
        parameters.logprob_thold = options.log_prob_threshold
        parameters.no_speech_thold = options.no_speech_threshold
        parameters.greedy = {"best_of": options.best_of}
        if beam:
            parameters.beam_search = {"beam_size": options.beam_size, "patience": -1.0}
        library.assign_abort_callback(parameters, lambda: window.cancelled)
        return parameters

    def _build_segments(self, window: Window, language: str) -> list[Segment]:
        rows = [self._read_segment(number) for number in range(self._library.whisper_full_n_segments(self._context))]
        ratio = compute_compression_ratio("".join(row.text for row in rows).strip() or " ")
        spoken = "en" if window.request.task is SpeechTask.TRANSLATE else language
        segments: list[Segment] = []
        for row in rows:
            begin = max(segments[-1].end if segments else 0.0, min(row.start, window.seconds))
            segment = Segment(
                start=begin,
                end=min(max(row.end, begin), window.seconds),
                text=row.text.strip(),
                avg_logprob=row.avg_logprob,
                compression_ratio=ratio,
                temperature=window.request.temperature,
                tokens=row.tokens,
            )
            if not segment.text or segment.end <= segment.start:
                continue
            segments.append(segment)
            if window.request.words:
                times, probabilities = row.list_bounds(segment.start), [float(np.exp(p)) for p in row.logprobs]
                pieces = split_pieces(row.pieces, spaced=spoken not in UNSPACED)
                segment.words = build_timed_words(pieces, times, probabilities, (segment.start, segment.end))
            if window.request.logprobs:
                segment.token_logprobs = [
                    Token(piece.decode(errors="replace"), p) for piece, p in zip(row.pieces, row.logprobs, strict=True)
                ]
        return segments

    def _read_segment(self, number: int) -> WhisperCppSegment:
        library, context = self._library, self._context
        row = WhisperCppSegment(
            start=library.whisper_full_get_segment_t0(context, number) / HUNDREDTHS,
            end=library.whisper_full_get_segment_t1(context, number) / HUNDREDTHS,
            text=library.whisper_full_get_segment_text(context, number).decode(errors="replace"),
        )
        for place in range(library.whisper_full_n_tokens(context, number)):
            token = library.whisper_full_get_token_data(context, number, place)
            if token.id < self._end:
                row.tokens.append(token.id)
                row.pieces.append(library.whisper_token_to_bytes(context, token.id))
                row.logprobs.append(min(float(token.plog), 0.0))
                row.ends.append((token.t_dtw if token.t_dtw >= 0 else token.t1) / HUNDREDTHS)
        return row

    def close(self) -> None:
        """Free the model's memory."""
        self._library.whisper_free(self._context)


@dataclass(slots=True)
class WhisperCppSegment:
    """A segment as whisper.cpp has it: text tokens with their bytes, log probabilities and ends in seconds."""

    start: float
    end: float
    text: str
    tokens: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def avg_logprob(self) -> float:
        """Mean over the text tokens."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0

    def list_bounds(self, start: float) -> list[float]:
        """The second at which each token begins, and the end."""
        return [start, *self.ends]


@dataclass(slots=True)
class WhisperLog:
    """The log lines of whisper.cpp while it loads a model."""

    errors: list[str] = field(default_factory=list)
    device: str = "cpu"

    def add_line(self, level: int, text: str, *_: Any) -> None:
        """Take in a line; called by the library."""
        if level == ERROR_LEVEL:
            self.errors.append(text.strip())
        elif "using CUDA" in text:
            self.device = "cuda"
        elif "whisper_backend_init_gpu: using" in text and self.device == "cpu":
            self.device = ""  # of another maker


def _count_speech_seconds(window: Window) -> float:
    begin, end = window.speech_span
    return max(end - begin, LEAST_SPEECH_S)


def split_pieces(pieces: Sequence[bytes], *, spaced: bool) -> list[tuple[str, int]]:
    """Tokens as words and punctuation marks, each with its number of tokens; a character may take several tokens."""
    words: list[tuple[str, int]] = []
    waiting, count = b"", 0
    for piece in pieces:
        waiting, count = waiting + piece, count + 1
        try:
            text = waiting.decode()
        except UnicodeDecodeError:
            continue
        if words and spaced and text[:1].isalnum() and not text.startswith(" ") and words[-1][0][-1:] not in ".,!?":
            words[-1] = words[-1][0] + text, words[-1][1] + count
        else:
            words.append((text, count))
        waiting, count = b"", 0
    if count:
        words.append((waiting.decode(errors="replace"), count))
    return words


def _import_library() -> Any:
    """The library, whose threads sleep while they wait: spinning ones take the cores from others."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import _pywhispercpp

    return _pywhispercpp


def _build_settings(library: Any, header: GgmlHeader, path: Path, options: Ggml.Options) -> Any:
    settings = library.whisper_context_default_params()
    settings.use_gpu = options.device != "cpu"
    settings.gpu_device = options.gpu_device
    settings.flash_attn = options.flash_attention
    settings.dtw_token_timestamps = not options.flash_attention  # which keeps no attention to align with
    preset = find_alignment_preset(header, path.stem)
    settings.dtw_aheads_preset = getattr(library.whisper_alignment_heads_preset, f"WHISPER_AHEADS_{preset}")
    settings.dtw_n_top = 1  # layers, of a model whose heads are not known
    return settings


PRESETS = {(384, 4): "TINY", (512, 6): "BASE", (768, 12): "SMALL", (1024, 24): "MEDIUM", (1280, 32): "LARGE_V2"}
"""Width and layers of Whisper's sizes to whisper.cpp's names."""


def find_alignment_preset(header: GgmlHeader, name: str) -> str:
    """whisper.cpp's name of the heads that follow the speech, by a model's sizes, as a file does not list them."""
    size = PRESETS.get((header.n_audio_state, header.n_audio_layer), "")
    if size == "LARGE_V2" and header.n_mels == 128:
        size = "LARGE_V3_TURBO" if header.n_text_layer == 4 else "LARGE_V3"
    elif size == "LARGE_V2" and "large-v1" in name:
        size = "LARGE_V1"
    if not size or (header.n_text_layer != header.n_audio_layer and size != "LARGE_V3_TURBO"):
        return "N_TOP_MOST"
    return size if header.multilingual or size.startswith("LARGE") else f"{size}_EN"
