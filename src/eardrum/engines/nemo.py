"""NVIDIA NeMo: Parakeet and Canary from .nemo files, Canary-Qwen from its folder.

NeMo brings over a hundred packages at its own versions, so it runs in a separate interpreter. Where onnx-asr knows an
export of the model, that is the lighter way; this is the one for everything else, fine-tuned models among them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum import transcription
from eardrum.engines.base import Audio, Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.onnx import split_sentences_by_words
from eardrum.engines.shared.torch_tools import find_torch_device
from eardrum.errors import ModelLoadError, UnsupportedFeatureError
from eardrum.languages import find_language_in_name
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, SpeechTask, TranscriptionRequest, Word

SHORTEST = SAMPLE_RATE
"""Samples; NeMo fills shorter audio up on both sides, which would move the times."""

TOKENS_PER_SECOND, TOKENS_MORE = 12, 16
"""Cap of Canary-Qwen's answer: what speaks faster is a loop, not speech."""

CANARY_DEFAULT = "en"
FORMATS = ("auto", "float32", "float16", "bfloat16")


class Nemo(Engine):
    """One model of NeMo: CTC or transducer, Canary (encoder and decoder), or Canary-Qwen (encoder and language model)."""

    requires = ("nemo",)
    apart = "nemo_toolkit[asr,speechlm2]>=3.0,<4"
    title = "NVIDIA NeMo in a separate interpreter: any .nemo file (Parakeet, Canary), and Canary-Qwen"
    layouts = (("*.nemo",), ("config.json#audio_locator_tag", "*.safetensors"))
    names = {"canary-qwen-2.5b": "nvidia/canary-qwen-2.5b"}
    repositories = ("nvidia/parakeet-*", "nvidia/canary-*", "nvidia/stt_*")
    downloads = ("*.nemo", "config.json", "*.safetensors", "tokenizer*", "llm_backbone/*")
    variants = {
        "*parakeet-*": {"languages": ("en",)},
        "*parakeet-*-ja*": {"languages": ("ja",)},
        "*parakeet-*-vi*": {"languages": ("vi",)},
        "*parakeet-tdt-0.6b-v3*": {
            "languages": (
                "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
                "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
            ),
            "detects_language": True,
        },
        "*canary-*": {"translate": True, "languages": ("en", "de", "es", "fr")},
        "*canary-1b": {"words": False},
        "*canary-1b-v2*": {
            "languages": (
                "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
                "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
            ),
        },
        "*canary-qwen*": {"translate": False, "words": False, "languages": ("en",)},
    }  # fmt: skip
    rank = 60
    capabilities = Capabilities(words=True, max_window_s=20.0, max_batch=8)

    class Options(EngineOptions):
        """Options of a NeMo model."""

        language: str = Field(
            "",
            description="Spoken language (ISO 639 code); empty: from the folder's name. Canary does not detect it, "
            "and assumes English if neither this option nor the request names one.",
        )
        pnc: bool | None = Field(None, description="Canary only: with punctuation and capitals (its default), or without.")
        instruction: str = Field(
            "Transcribe the following:", description="Canary-Qwen only: the instruction to its language model."
        )

    def __init__(self, model: Any, options: Options, source: Path, device: str):
        self._model = model
        self._device = device
        self._format = options.compute_type
        self._instruction = options.instruction
        self._prompted = hasattr(model, "prompt_format")
        self._salm = hasattr(model, "audio_locator_tag")
        self._language = options.language or find_language_in_name(source.stem) or ""
        self._pnc = {} if options.pnc is None else {"pnc": "yes" if options.pnc else "no"}
        can = type(self).capabilities
        if self._salm:
            can = replace(can, words=False)
        elif self._prompted:
            can = replace(can, words=self._has_times, translate=True)
        self.capabilities = replace(can, languages=(self._language,)) if self._language else can

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Where PyTorch can compute."""
        import torch

        return find_torch_device(options, torch)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the .nemo file `source`, or the only one in the directory `source`, or the Canary-Qwen in it."""
        options = cast(Nemo.Options, options)
        if options.compute_type not in FORMATS:
            raise ModelLoadError(f"NeMo has no compute_type {options.compute_type!r}, only {', '.join(FORMATS)}.")
        file = _find_weights(source)
        # What is not on this machine is not fetched while a model loads; the hub's library reads this on import.
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch

        device = find_torch_device(options, torch).name
        try:
            model = _restore_model(file, device) if file.suffix == ".nemo" else _load_salm(file, device, options.compute_type)
        except ImportError:
            raise
        except Exception as error:  # tarfile, OmegaConf, PyTorch and the hub's library each have their own
            raise ModelLoadError(f"NeMo cannot load {file}: {error}") from error
        if options.pnc is not None and not hasattr(model, "prompt_format"):
            raise ModelLoadError(f"{file} is no Canary; the option pnc is for Canary only: leave it out.")
        engine = cls(model, options, source, device)
        engine.device = device
        engine.compute_type = (
            str(next(model.parameters()).dtype).removeprefix("torch.") if engine._format == "auto" else engine._format
        )
        return engine

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch; all of one `batch_key`."""
        import torch

        audios = [torch.from_numpy(_pad_audio(window.audio)) for window in windows]
        formats = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        dtype = formats.get(self._format)
        with torch.inference_mode(), torch.autocast(self._device, dtype, enabled=dtype is not None and not self._salm):
            if self._salm:
                return [
                    self._build_result(window, text) for window, text in zip(windows, self._generate_answers(audios), strict=True)
                ]
            results = self._transcribe_canary(windows[0], audios) if self._prompted else self._transcribe_plain(audios)
        return [self._build_result(window, result.text, result) for window, result in zip(windows, results, strict=True)]

    def batch_key(self, window: Window) -> Hashable:
        """Canary's language, task and times are one per call of the library."""
        return tuple(self._build_prompt_slots(window).items()) if self._prompted else None

    def refusal(self, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
        """Refuse as every engine does, and translations by Canary without a source language or with word times."""
        if refusal := super().refusal(request):
            return refusal
        if self._prompted and request.task is SpeechTask.TRANSLATE and request.words:
            return UnsupportedFeatureError(
                "This model gives no word times of translations: leave them out.", param="timestamp_granularities"
            )
        return None if self._language else transcription.check_source_language(self.capabilities, request)

    @property
    def _has_times(self) -> bool:
        """Whether a Canary gives word times, by an aligner in its file or by its own tokens."""
        return self._model.timestamps_asr_model is not None or "timestamp" in self._model.prompt.get_slots("user")

    def _transcribe_plain(self, audios: list[Any]) -> list[Any]:
        return cast(
            list[Any],
            self._model.transcribe(
                audios, batch_size=len(audios), return_hypotheses=True, timestamps=True, num_workers=0, verbose=False
            ),
        )

    def _transcribe_canary(self, window: Window, audios: list[Any]) -> list[Any]:
        from nemo.collections.asr.models.aed_multitask_models import MultiTaskTranscriptionConfig

        slots = self._build_prompt_slots(window)
        times = slots.get("timestamp") == "yes"
        if self._model.timestamps_asr_model is not None:
            slots["timestamp"] = "no"  # the aligner gives the times
        config = MultiTaskTranscriptionConfig(
            batch_size=len(audios),
            return_hypotheses=True,
            num_workers=0,
            verbose=False,
            prompt=slots,
            timestamps=times,
            enable_chunking=False,
        )
        return cast(list[Any], self._model.transcribe(audios, override_config=config, timestamps=times))

    def _build_prompt_slots(self, window: Window) -> dict[str, str]:
        """The slots of Canary's prompt; prompt formats differ between model generations."""
        request, known = window.request, self._model.prompt.get_slots("user")
        translate = request.task is SpeechTask.TRANSLATE
        language = request.language or self._language or CANARY_DEFAULT
        slots = {"source_lang": language, "target_lang": "en" if translate else language, **self._pnc}
        if "task" in known:
            slots["task"] = "translate" if translate else "transcribe"
        if self._has_times:
            slots["timestamp"] = "yes" if request.words else "no"
        return slots

    def _generate_answers(self, audios: list[Any]) -> list[str]:
        """The response of Canary-Qwen's language model to each recording."""
        import torch
        from transformers import GenerationConfig

        model = self._model
        lengths = torch.tensor([len(audio) for audio in audios])
        answers = model.generate(
            prompts=[[{"role": "user", "content": f"{self._instruction} {model.audio_locator_tag}"}] for _ in audios],
            audios=torch.nn.utils.rnn.pad_sequence(audios, batch_first=True).to(self._device),
            audio_lens=lengths.to(self._device),
            generation_config=GenerationConfig(
                bos_token_id=model.text_bos_id,
                eos_token_id=model.text_eos_id,
                pad_token_id=model.text_pad_id,
                max_new_tokens=int(lengths.max()) * TOKENS_PER_SECOND // SAMPLE_RATE + TOKENS_MORE,
            ),
        )
        over = {model.text_eos_id, model.text_pad_id}
        ids = ([id for id in answer if id not in over] for answer in answers.tolist())
        return [model.tokenizer.ids_to_text(each) for each in ids]

    def _build_result(self, window: Window, text: str, result: Any = None) -> EngineResult:
        language = window.request.language or self._language or (CANARY_DEFAULT if self._prompted else "")
        words = _build_words(result, window.seconds)
        if words:
            segments = [_build_segment(words[part], window.request.words) for part in split_sentences_by_words(words)]
        else:
            plain = " ".join(text.split())
            segments = [Segment(*window.speech_span, plain)] if plain else []
        return EngineResult(segments, language)


def _find_weights(source: Path) -> Path:
    """The .nemo file meant by `source`, or the folder of a Canary-Qwen."""
    if not source.exists():
        raise ModelLoadError(f"There is nothing at {source}: source must be a .nemo file, or a folder with one.")
    if source.is_file():
        return source
    files = sorted(source.glob("*.nemo"))
    if len(files) > 1:
        raise ModelLoadError(f"{source} holds {', '.join(file.name for file in files)}: name one of them as source.")
    if not files and not (source / "config.json").is_file():
        raise ModelLoadError(f"{source} holds no .nemo file, and no config.json of a Canary-Qwen.")
    return files[0] if files else source


def _restore_model(file: Path, device: str) -> Any:
    """Load the model of a .nemo file, set up to give times and confidence of words."""
    import torch
    from nemo.collections.asr.models import ASRModel
    from omegaconf import open_dict

    model = ASRModel.restore_from(str(file), map_location=torch.device(device)).eval()
    if hasattr(model, "prompt_format"):
        return model
    decoding = model.cfg.decoding
    with open_dict(decoding):
        decoding.compute_timestamps = True
        decoding.confidence_cfg = {
            "preserve_frame_confidence": True,
            "preserve_token_confidence": True,
            "method_cfg": {"name": "max_prob"},
        }
    model.change_decoding_strategy(decoding, verbose=False)
    return model


def _load_salm(folder: Path, device: str, compute_type: str) -> Any:
    import torch
    from nemo.collections.speechlm2.models import SALM

    config = json.loads((folder / "config.json").read_bytes())
    try:
        model = SALM.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        llm = config.get("pretrained_llm", "its language model")
        hint = f"If {llm} is not in the Hugging Face cache, its tokenizer and config must come there: `hf download {llm}`."
        raise ModelLoadError(f"{error} {hint}") from error
    dtype = "bfloat16" if compute_type == "auto" and device == "cuda" else compute_type.replace("auto", "float32")
    return model.eval().to(getattr(torch, dtype)).to(device)


def _pad_audio(audio: Audio) -> Audio:
    return audio if len(audio) >= SHORTEST else np.pad(audio, (0, SHORTEST - len(audio)))


def _build_words(result: Any, seconds: float) -> list[Word]:
    times = getattr(result, "timestamp", None)
    if not isinstance(times, dict):
        return []
    spoken, tokens = times.get("word") or [], times.get("char") or []
    # NeMo's own word confidence raises an error where its two ways to split words differ (unknown pieces, characters).
    sure = [min(max(float(confidence), 1e-9), 1.0) for confidence in result.token_confidence or ()]
    average = sum(sure) / len(sure) if sure else 1.0

    def probability(word: dict[str, Any]) -> float:
        span = range(word["start_offset"], max(word["end_offset"], word["start_offset"] + 1))
        own = [p for token, p in zip(tokens, sure, strict=False) if token["start_offset"] in span]
        return sum(own) / len(own) if own and len(tokens) == len(sure) else average

    return [
        Word(text, min(float(word["start"]), seconds), min(float(word["end"]), seconds), probability(word))
        for word in spoken
        if (text := " ".join(word["word"].split()))
    ]


def _build_segment(words: Sequence[Word], asked: bool) -> Segment:
    return Segment(
        start=words[0].start,
        end=words[-1].end,
        text=" ".join(word.word for word in words),
        avg_logprob=sum(math.log(word.probability) for word in words) / len(words),
        words=list(words) if asked else [],
    )
