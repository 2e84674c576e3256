"""faster-whisper: Whisper on CTranslate2, for CPUs and NVIDIA GPUs.

Its own pipelines are not used: one decodes a file window by window, the other batches windows of one file only and
gives up fallback and times for it. Here the windows of any requests form a batch, each in its own language and task.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Self, cast

from msgspec.structs import replace
from pydantic import Field

from eardrum.engines.base import ClaimIdleTime, Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.ctranslate2_whisper import CTranslate2Whisper, SearchSettings, find_ctranslate2_device
from eardrum.engines.shared.whisper_decoder import (
    TEMPERATURES,
    BestOf,
    CompressionRatioThreshold,
    ConditionOnPreviousText,
    DefaultPrompt,
    LogProbThreshold,
    NoSpeechThreshold,
    Temperatures,
    WhisperDecoder,
    refine_capabilities,
)
from eardrum.errors import UnsupportedFeatureError
from eardrum.transcription import Capabilities, TranscriptionRequest


class FasterWhisper(Engine):
    """One Whisper model in CTranslate2's format."""

    requires = ("faster_whisper", "ctranslate2")
    title = "Whisper tiny to large-v3, turbo and distil, on CTranslate2 (faster-whisper): any language, CPU and NVIDIA GPU"
    layouts = (("model.bin", "config.json", "vocabulary.*"),)
    names = {
        "tiny": "Systran/faster-whisper-tiny",
        "whisper-tiny": "Systran/faster-whisper-tiny",
        "openai/whisper-tiny": "Systran/faster-whisper-tiny",
        "tiny.en": "Systran/faster-whisper-tiny.en",
        "whisper-tiny.en": "Systran/faster-whisper-tiny.en",
        "openai/whisper-tiny.en": "Systran/faster-whisper-tiny.en",
        "base": "Systran/faster-whisper-base",
        "whisper-base": "Systran/faster-whisper-base",
        "openai/whisper-base": "Systran/faster-whisper-base",
        "base.en": "Systran/faster-whisper-base.en",
        "whisper-base.en": "Systran/faster-whisper-base.en",
        "openai/whisper-base.en": "Systran/faster-whisper-base.en",
        "small": "Systran/faster-whisper-small",
        "whisper-small": "Systran/faster-whisper-small",
        "openai/whisper-small": "Systran/faster-whisper-small",
        "small.en": "Systran/faster-whisper-small.en",
        "whisper-small.en": "Systran/faster-whisper-small.en",
        "openai/whisper-small.en": "Systran/faster-whisper-small.en",
        "medium": "Systran/faster-whisper-medium",
        "whisper-medium": "Systran/faster-whisper-medium",
        "openai/whisper-medium": "Systran/faster-whisper-medium",
        "medium.en": "Systran/faster-whisper-medium.en",
        "whisper-medium.en": "Systran/faster-whisper-medium.en",
        "openai/whisper-medium.en": "Systran/faster-whisper-medium.en",
        "large-v1": "Systran/faster-whisper-large-v1",
        "whisper-large-v1": "Systran/faster-whisper-large-v1",
        "large-v2": "Systran/faster-whisper-large-v2",
        "whisper-large-v2": "Systran/faster-whisper-large-v2",
        "openai/whisper-large-v2": "Systran/faster-whisper-large-v2",
        "large-v3": "Systran/faster-whisper-large-v3",
        "whisper-large-v3": "Systran/faster-whisper-large-v3",
        "openai/whisper-large-v3": "Systran/faster-whisper-large-v3",
        "large": "Systran/faster-whisper-large-v3",
        "whisper-large": "Systran/faster-whisper-large-v3",
        "openai/whisper-large": "Systran/faster-whisper-large-v1",
        "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "whisper-large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "whisper-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "openai/whisper-large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "distil-small.en": "Systran/faster-distil-whisper-small.en",
        "distil-whisper-small.en": "Systran/faster-distil-whisper-small.en",
        "distil-whisper/distil-small.en": "Systran/faster-distil-whisper-small.en",
        "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
        "distil-whisper-medium.en": "Systran/faster-distil-whisper-medium.en",
        "distil-whisper/distil-medium.en": "Systran/faster-distil-whisper-medium.en",
        "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
        "distil-whisper-large-v2": "Systran/faster-distil-whisper-large-v2",
        "distil-whisper/distil-large-v2": "Systran/faster-distil-whisper-large-v2",
        "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
        "distil-whisper-large-v3": "Systran/faster-distil-whisper-large-v3",
        "distil-whisper/distil-large-v3": "Systran/faster-distil-whisper-large-v3",
        "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
        "distil-whisper-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
        "distil-whisper/distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    }
    repositories = ("systran/*", "*faster-whisper*", "*faster-distil-whisper*", "*whisper*-ct2*", "*whisper*ctranslate2*")
    downloads = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
    variants = {
        "*.en": {"languages": ("en",), "translate": False, "detects_language": False},
        "*turbo*": {"translate": False},
        "*distil*": {"languages": ("en",), "translate": False},
    }
    rank = 10
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
        max_batch=16,
    )

    class Options(EngineOptions):
        """Options of a faster-whisper model."""

        compute_type: str = Field(
            "auto",
            description="Number format to compute in: `auto` is int8 on a CPU and float16 on a GPU, `default` that of the "
            "file; else float32, float16, bfloat16, int8, int8_float32, int8_float16, int8_bfloat16, int16, as the device can.",
        )
        device_index: list[int] = Field([0], min_length=1, description="Numbers of the GPUs on which the model is loaded.")
        threads: int = Field(
            0,
            ge=0,
            le=512,
            description="Threads per worker on a CPU; 0 finds the best number, or is CTranslate2's with `workers`.",
        )
        workers: int = Field(
            0,
            ge=0,
            le=64,
            description="Batches decoded in parallel on each device, each with separate memory; 0 is as many as "
            "the threads leave cores for on a CPU, and 1 with `threads` or on a GPU.",
        )
        shorten_context: bool | None = Field(
            None,
            description="On a CPU, encode 5 s of silence behind audio of up to 15 s, and at least 15 s in all, instead of "
            "filling it up to 30 s; what is in doubt is decoded again with 30 s. A short recording takes half the CPU. "
            "By default for Whisper base alone, with which the texts were compared; narrow models repeat words then.",
        )
        flash_attention: bool = Field(False, description="Use FlashAttention 2, if CTranslate2 was built with it.")
        beam_size: int = Field(5, ge=1, le=50, description="Hypotheses followed at temperature 0; 1 is greedy, and faster.")
        best_of: BestOf = 5
        patience: float = Field(1.0, gt=0, le=10, description="Factor by which the beam search continues longer than usual.")
        length_penalty: float = Field(1.0, description="Exponent of the length by which hypotheses are scored.")
        repetition_penalty: float = Field(1.0, gt=0, description="Above 1 makes earlier tokens less likely.")
        no_repeat_ngram_size: int = Field(0, ge=0, description="Length of token sequences that are not repeated; 0: no limit.")
        temperatures: Temperatures = TEMPERATURES
        compression_ratio_threshold: CompressionRatioThreshold = 2.4
        log_prob_threshold: LogProbThreshold = -1.0
        no_speech_threshold: NoSpeechThreshold = 0.6
        condition_on_previous_text: ConditionOnPreviousText = False
        prompt: DefaultPrompt = ""
        suppress_tokens: tuple[Annotated[int, Field(ge=0, lt=50_000)], ...] = Field(
            (), description="Tokens that are never decoded, in addition to symbols that are not speech."
        )

    def __init__(self, model: CTranslate2Whisper, options: FasterWhisper.Options):
        self._decoder = WhisperDecoder.from_options(model, options)
        self.parallel, self.reserved_calls = model.workers, model.reserved_workers
        self.device, self.compute_type = model.device, model.compute_type
        self._model = model
        self.can_be_tuned = model.reload is not None
        self.batches_clips = not model.integer_on_cpu
        self.sequential = options.condition_on_previous_text
        self.capabilities = replace(
            refine_capabilities(type(self).capabilities, model),
            words=model.aligns,
            logprobs=model.aligns,
        )

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that CTranslate2 can use."""
        return find_ctranslate2_device(options.device, cast(FasterWhisper.Options, options).device_index)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the CTranslate2 folder `source`."""
        options = cast(FasterWhisper.Options, options)
        model = CTranslate2Whisper.open(
            source,
            SearchSettings(
                beam_size=options.beam_size,
                best_of=options.best_of,
                patience=options.patience,
                length_penalty=options.length_penalty,
                repetition_penalty=options.repetition_penalty,
                no_repeat_ngram_size=options.no_repeat_ngram_size,
                suppress_tokens=options.suppress_tokens,
            ),
            device=options.device,
            device_index=options.device_index,
            compute_type=options.compute_type,
            threads=options.threads,
            workers=options.workers,
            shorten_context=options.shorten_context,
            flash_attention=options.flash_attention,
        )
        return cls(model, options)

    def measure_batch_size(self) -> int:
        """Time the decoder with integers on a CPU, where a batch saves little and must not be judged by a busy machine."""
        return self._model.measure_batch_size(self.capabilities.max_batch) if self._model.integer_on_cpu else 0

    def tune(self, claim: ClaimIdleTime) -> None:
        """Find the number of threads with which a window is worth decoding."""
        self._model.tune_threads(claim)
        self.parallel = self._model.workers
        self.measured = {"threads": self._model.threads, "workers": self._model.workers}

    def batch_key(self, window: Window) -> Hashable:
        """Windows with equal keys may share a batch."""
        return self._decoder.batch_key(window)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows together."""
        return self._decoder.transcribe(windows)

    def refusal(self, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
        """Refuse as every engine does, and word times that this model cannot give."""
        refusal = super().refusal(request)
        if refusal and not self.capabilities.words and (request.words or request.logprobs):
            refusal.message += " Its config.json has no alignment_heads."
        return refusal
