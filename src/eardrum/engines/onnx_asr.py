"""Parakeet, Canary, GigaAM, Vosk, T-one and Whisper as ONNX graphs, decoded by the library onnx-asr without PyTorch.

The library takes a list of recordings and gives each one's tokens with times and log probabilities; words and segments
are made of them here. Its own spacing of the text is not used: it joins an opening mark to the word before it
("hola¿qué").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum import transcription
from eardrum.engines.base import Audio, Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.onnx import (
    OnnxModelKind,
    TokenWord,
    average_logprob,
    build_session_options,
    check_device,
    choose_providers,
    choose_quantization,
    find_onnx_device,
    join_tokens,
    recognize_kind,
    split_sentences_by_words,
)
from eardrum.errors import ModelLoadError, UnsupportedFeatureError
from eardrum.languages import LANGUAGE_NAMES, find_language_in_name
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, SpeechTask, TranscriptionRequest

SHORTEST = SAMPLE_RATE // 2
"""Samples; shorter windows are filled up with silence, because the feature extractors divide by their frames."""

TOKENS_PER_SECOND, PROMPT_TOKENS = 12, 10
"""Cap of Canary's decoder: what speaks faster is a loop, not speech."""

CANARY, CANARY_DEFAULT = "nemo-conformer-aed", "en"

MORE_THAN_TOKENS = {
    "nemo-conformer-ctc": range(1),
    "nemo-conformer-rnnt": range(1),
    "nemo-conformer-tdt": range(1, 10),  # durations
    "nemo-conformer-aed": range(8),  # rounded up to a multiple of 8
}
"""How many outputs a graph may have more than its vocabulary has tokens."""

FORMATS = {"fp16": "float16"}
"""Quantizations that are called otherwise elsewhere."""


class OnnxAsr(Engine):
    """One model of any kind that onnx-asr runs."""

    requires = ("onnx_asr",)
    extra = "onnx"
    title = "Parakeet, Canary, GigaAM, Vosk, T-one and Whisper exported to ONNX, without PyTorch"
    layouts = (
        ("encoder-model*.onnx", "decoder_joint-model*.onnx", "vocab.txt"),
        ("encoder-model*.onnx", "decoder-model*.onnx", "vocab.txt"),
        ("model*.onnx", "vocab.txt", "config.json"),
        ("v2_*.onnx", "v2_vocab.txt"),
        ("v3_*.onnx", "v3_*vocab.txt", "config.json"),
        ("multilingual*_ctc*.onnx", "multilingual_vocab.txt", "config.json"),
        ("*/encoder*.onnx", "*/decoder*.onnx", "*/joiner*.onnx", "*/tokens.txt"),
        ("**/encoder_model*.onnx", "**/decoder_model_merged*.onnx", "vocab.json", "added_tokens.json"),
        ("whisper-*_beamsearch*.onnx", "vocab.json", "added_tokens.json"),
        ("model*.onnx", "config.json#decoder_params"),
    )
    names = {
        "parakeet-tdt-0.6b-v3": "istupakov/parakeet-tdt-0.6b-v3-onnx",
        "parakeet-tdt-0.6b-v2": "istupakov/parakeet-tdt-0.6b-v2-onnx",
        "parakeet-ctc-0.6b": "istupakov/parakeet-ctc-0.6b-onnx",
        "parakeet-rnnt-0.6b": "istupakov/parakeet-rnnt-0.6b-onnx",
        "canary-1b-v2": "istupakov/canary-1b-v2-onnx",
        "nvidia/parakeet-tdt-0.6b-v3": "istupakov/parakeet-tdt-0.6b-v3-onnx",
        "nvidia/parakeet-tdt-0.6b-v2": "istupakov/parakeet-tdt-0.6b-v2-onnx",
        "nvidia/parakeet-ctc-0.6b": "istupakov/parakeet-ctc-0.6b-onnx",
        "nvidia/parakeet-rnnt-0.6b": "istupakov/parakeet-rnnt-0.6b-onnx",
        "nvidia/canary-1b-v2": "istupakov/canary-1b-v2-onnx",
        "nvidia/stt_ru_fastconformer_hybrid_large_pc": "istupakov/stt_ru_fastconformer_hybrid_large_pc_onnx",
        "gigaam-v2-rnnt": "istupakov/gigaam-v2-onnx",
        "gigaam-v3-e2e-rnnt": "istupakov/gigaam-v3-onnx",
        "gigaam-multilingual-ctc": "istupakov/gigaam-multilingual-ctc-onnx",
        "gigaam-multilingual-large-ctc": "istupakov/gigaam-multilingual-large-ctc-onnx",
        "vosk-model-ru": "alphacep/vosk-model-ru",
        "vosk-model-small-ru": "alphacep/vosk-model-small-ru",
        "t-one": "t-tech/T-one",
    }
    repositories = (
        "istupakov/parakeet-*-onnx",
        "istupakov/canary-*-onnx",
        "istupakov/gigaam-*-onnx",
        "istupakov/whisper-*-onnx",
        "istupakov/stt_*_onnx",
        "alphacep/vosk-model-ru",
        "alphacep/vosk-model-small-ru",
        "t-tech/t-one",
        "onnx-community/*whisper*",
    )
    downloads = (
        "config.json",
        "vocab.json",
        "added_tokens.json",
        "*vocab.txt",
        "*/tokens.txt",
        "model.onnx*",
        "model.int8.onnx*",
        "*-model.onnx*",
        "*-model.int8.onnx*",
        "v2_rnnt_*.onnx*",
        "v3_e2e_rnnt_*.onnx*",
        "multilingual*_ctc*.onnx*",
        "*/encoder.onnx*",
        "*/decoder.onnx*",
        "*/joiner.onnx*",
        "onnx/encoder_model.onnx*",
        "onnx/decoder_model_merged.onnx*",
        "whisper-*_beamsearch.onnx*",
    )
    variants = {
        "*parakeet-*": {"languages": ("en",)},
        "*parakeet-tdt-0.6b-v3*": {
            "languages": (
                "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
                "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
            ),
            "detects_language": True,
        },
        "*canary-*": {"words": False, "logprobs": False, "translate": True, "languages": ("en", "de", "es", "fr")},
        "*canary-1b-v2*": {
            "languages": (
                "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
                "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
            ),
        },
        "*gigaam-v[23]*": {"languages": ("ru",)},
        "*stt_ru_*": {"languages": ("ru",)},
        "*vosk-model-*ru*": {"languages": ("ru",)},
        "*t-one*": {"languages": ("ru",)},
        "*whisper*": {"words": False, "logprobs": False, "detects_language": True},
    }  # fmt: skip
    rank = 20
    capabilities = Capabilities(words=True, logprobs=True, max_window_s=20.0, max_batch=8)

    class Options(EngineOptions):
        """Options of a model of onnx-asr."""

        quantization: str = Field(
            "auto",
            description="Graphs of the directory to load: `none` (full precision), `int8` or another quantization; "
            "`auto` is full precision if the directory has it.",
        )
        model_type: str = Field(
            "",
            description="onnx-asr's name of the architecture (`nemo-conformer-tdt`, `nemo-conformer-ctc`, `gigaam-v3-ctc` ...); "
            "empty takes it from config.json or the files.",
        )
        language: str = Field(
            "",
            description="Spoken language (ISO 639 code); empty: from the folder's name or the kind of model. Canary does "
            "not detect it, and assumes English if neither this option nor the request names one.",
        )
        pnc: bool | None = Field(None, description="Canary only: with punctuation and capitals (its default), or without.")
        threads: int = Field(0, ge=0, le=512, description="Threads per decode; 0 uses every core.")

    def __init__(self, model: Any, kind: OnnxModelKind, options: Options, language: str):
        self._model = model.with_timestamps()
        self._kind = kind
        self._pnc = {} if options.pnc is None else {"pnc": options.pnc}
        self._language = language
        can = replace(type(self).capabilities, **kind.can)
        if kind.can.get("translate") or kind.can.get("detects_language"):
            can = replace(can, languages=_list_languages(model.asr))
        self.capabilities = replace(can, languages=(language,)) if language else can
        self._ending = EndedRowTracker(model.asr) if kind.name == CANARY else None

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that this onnxruntime can use."""
        import onnxruntime

        return find_onnx_device(onnxruntime, options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the graphs and the vocabulary in the directory `source`; never looks for them elsewhere."""
        import onnx_asr
        import onnxruntime

        options = cast(OnnxAsr.Options, options)
        if options.compute_type != "auto":
            raise ModelLoadError(
                f"compute_type {options.compute_type!r} is not available: ONNX graphs fix their number format. "
                "Set the option quantization to choose among those in the directory."
            )
        # The library takes a directory that is not there for one to download into.
        kind = recognize_kind(source, options.model_type)
        quantization = choose_quantization(kind, source, options.quantization)
        if options.pnc is not None and kind.name != CANARY:
            raise ModelLoadError(f"{source} is a {kind.name}; the option pnc is for Canary only: leave it out.")
        where = choose_providers(onnxruntime, options.device)
        settings = build_session_options(onnxruntime, options.threads)
        try:
            model = onnx_asr.load_model(
                kind.name, source, quantization=quantization or None, sess_options=settings, providers=where
            )
        except Exception as error:  # onnxruntime has a class for each kind of damage, the vocabulary's reader others
            raise ModelLoadError(f"onnx-asr cannot load {source} as a {kind.name}: {error}") from error
        _check_vocabulary(model.asr, kind, source)
        session = next(part for part in vars(model.asr).values() if hasattr(part, "get_providers"))
        device = check_device(onnxruntime, session, options.device)
        engine = cls(model, kind, options, options.language or find_language_in_name(source.name) or "")
        engine.device, engine.compute_type = device, FORMATS.get(quantization, quantization or "float32")
        engine._check_source(source)
        return engine

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch, greedily; all of one `batch_key`."""
        options = self._build_options(windows[0].request)
        if self._ending:
            self._ending.start_batch(windows)
        results = self._model.recognize([_pad_audio(window.audio) for window in windows], **options)
        language = options.get("language") or (self.capabilities.languages[0] if len(self.capabilities.languages) == 1 else "")
        return [
            EngineResult(self._build_segments(window, result), language or window.request.language or "")
            for window, result in zip(windows, results, strict=True)
        ]

    def batch_key(self, window: Window) -> tuple[tuple[str, Any], ...]:
        """Language and task are one per call of the library."""
        return tuple(self._build_options(window.request).items())

    def refusal(self, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
        """Refuse as every engine does, and translations by Canary without a source language."""
        return super().refusal(request) or (
            None if self._language else transcription.check_source_language(self.capabilities, request)
        )

    def _build_options(self, request: TranscriptionRequest) -> dict[str, Any]:
        """The library's arguments besides the audio."""
        if self._kind.name == CANARY:
            language = request.language or self._language or CANARY_DEFAULT
            target = "en" if request.task is SpeechTask.TRANSLATE else language
            return {"language": language, "target_language": target, **self._pnc}
        if self.capabilities.fixed_window and (language := request.language or self._language):
            return {"language": language}
        return {}

    def _build_segments(self, window: Window, result: Any) -> list[Segment]:
        if result.timestamps is None:
            text, (start, end) = " ".join(result.text.split()), window.speech_span
            return [Segment(start, end, text, avg_logprob=average_logprob(result.logprobs))] if text else []
        spoken = join_tokens(zip(result.tokens, result.timestamps, result.logprobs, strict=True), window.seconds)
        return [_build_segment(spoken[part], window.request) for part in split_sentences_by_words([each.word for each in spoken])]

    def _check_source(self, source: Path) -> None:
        """Decode half a second of silence: files that do not belong together show it here, not at the first request."""
        silence = Window(np.zeros(SHORTEST, np.float32), 0.0, 0.0, (0.0, 0.5), TranscriptionRequest())
        try:
            self.transcribe([silence])
        except Exception as error:  # an assertion of the library, or onnxruntime's word for a wrong input
            reason = str(error) or type(error).__name__
            raise ModelLoadError(f"The files in {source} are not those of one {self._kind.name} model: {reason}") from error


class EndedRowTracker:
    """Stops the rows of Canary's batch one by one.

    The library decodes all rows until every one gives the end token at the same step, and keeps tokens after a row's end. Here
    a row that has ended, is cancelled or is too long for its audio gives only the end token.
    """

    def __init__(self, asr: Any):
        self._decode = asr._decode
        self._end = asr._tokens["<|endoftext|>"]
        self._windows: Sequence[Window] = ()
        asr._decode = self._step

    def start_batch(self, windows: Sequence[Window]) -> None:
        """The windows of the next batch, in order."""
        self._windows = windows

    def _step(self, tokens: Any, *rest: Any) -> Any:
        """`tokens` is [batch, step], prompt included; returns the decoder's logits [batch, 1, vocabulary] and memory."""
        logits, memory = self._decode(tokens, *rest)
        length = tokens.shape[1] - PROMPT_TOKENS
        for row, window in enumerate(self._windows):
            if window.cancelled or length > 1 + window.seconds * TOKENS_PER_SECOND or self._end in tokens[row]:
                logits[row, -1] = -np.inf
                logits[row, -1, self._end] = 0.0
        return logits, memory


def _build_segment(spoken: Sequence[TokenWord], request: TranscriptionRequest) -> Segment:
    words = [each.word for each in spoken]
    tokens = [token for each in spoken for token in each.tokens]
    return Segment(
        start=words[0].start,
        end=words[-1].end,
        text=" ".join(word.word for word in words),
        avg_logprob=average_logprob([token.logprob for token in tokens]),
        words=words if request.words else [],
        token_logprobs=tokens if request.logprobs else [],
    )


def _pad_audio(audio: Audio) -> Audio:
    return audio if len(audio) >= SHORTEST else np.pad(audio, (0, SHORTEST - len(audio)))


def _list_languages(asr: Any) -> tuple[str, ...]:
    """Languages that the vocabulary has a token for (`<|de|>`), in Eardrum's codes."""
    return tuple(code for code in LANGUAGE_NAMES if f"<|{code}|>" in asr._tokens)


def _check_vocabulary(asr: Any, kind: OnnxModelKind, source: Path) -> None:
    """Refuse a vocabulary of another size than what the graph decides between, for NeMo's kinds, where that is known.

    The library keeps graphs and vocabulary to itself, hence the private names.
    """
    if kind.name not in MORE_THAN_TOKENS:
        return
    session = next(found for name in ("_model", "_decoder_joint", "_decoder") if (found := getattr(asr, name, None)))
    size, width = len(asr._vocab), session.get_outputs()[0].shape[-1]
    if isinstance(width, int) and width - size not in MORE_THAN_TOKENS[kind.name]:
        raise ModelLoadError(
            f"{source / 'vocab.txt'} is of another model: it has {size} tokens, and the graph decides between {width}."
        )
