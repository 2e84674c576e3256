"""Hugging Face transformers: one adapter for the speech models the library runs natively.

The processor and `generate` are used, not the library's pipeline, which on the same Whisper gave other text than its
parts. `shared/transformers_families.py` holds what differs between families of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Self, cast

from msgspec.structs import replace
from pydantic import Field

from eardrum.engines import registry
from eardrum.engines.base import Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.torch_tools import choose_compute_type, disable_compiler_cache, find_torch_device, use_threads
from eardrum.engines.shared.transformers_base import FamilyOptions, GeneratingFamily, ModelFamily, Seq2SeqFamily
from eardrum.engines.shared.transformers_families import FAMILIES
from eardrum.errors import ModelLoadError
from eardrum.languages import find_language_in_name
from eardrum.transcription import Capabilities

COMPUTE_TYPES = ("float32", "float16", "bfloat16")
CONFIG = "config.json"


class Transformers(Engine):
    """One speech model of a family in transformers."""

    requires = ("transformers", "torch")
    extra = "transformers"
    title = "Parakeet, Canary, Qwen3-ASR, Moonshine, Whisper and more on PyTorch"
    layouts = (("config.json", "*.safetensors"),)
    model_types = (
        "canary",
        "cohere_asr",
        "glmasr",
        "moonshine",
        "moonshine_streaming",
        "parakeet_ctc",
        "parakeet_rnnt",
        "parakeet_tdt",
        "qwen3_asr",
        "whisper",
    )
    repositories = (
        "nvidia/parakeet-*",
        "nvidia/canary-1b-v2*",
        "usefulsensors/moonshine-*",
        "qwen/qwen3-asr-*",
        "coherelabs/cohere-transcribe-*",
        "zai-org/glm-asr-*",
        "openai/whisper-*",
    )
    downloads = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
    rank = 40
    capabilities = Capabilities(max_window_s=30.0, max_batch=8)

    # fmt: off
    variants = {
        "*parakeet*": {"languages": ("en",), "words": True},
        "*parakeet-ctc*": {"words": False},
        "*parakeet-tdt-0.6b-v3*": {"languages": (
            "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
            "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
        )},
        "*canary-1b-v2*": {"translate": True, "logprobs": True, "temperature": True, "languages": (
            "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
            "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
        )},
        "*cohere-transcribe*": {"logprobs": True, "temperature": True, "languages": (
            "ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh",
        )},
        "*qwen3-asr*": {
            "detects_language": True, "prompt": True, "hotwords": True, "logprobs": True, "temperature": True,
            "languages": (
                "ar", "yue", "zh", "cs", "da", "nl", "en", "tl", "fi", "fr", "de", "el", "hi", "hu", "id", "it",
                "ja", "ko", "mk", "ms", "fa", "pl", "pt", "ro", "ru", "es", "sv", "th", "tr", "vi",
            ),
        },
        "*glm-asr*": {"logprobs": True, "temperature": True},
        "*moonshine*": {"languages": ("en",), "logprobs": True, "temperature": True},
        "*moonshine*-ar": {"languages": ("ar",)},
        "*moonshine*-es": {"languages": ("es",)},
        "*moonshine*-ja": {"languages": ("ja",)},
        "*moonshine*-ko": {"languages": ("ko",)},
        "*moonshine*-uk": {"languages": ("uk",)},
        "*moonshine*-vi": {"languages": ("vi",)},
        "*moonshine*-zh": {"languages": ("zh",)},
        "*whisper*": {
            "detects_language": True, "translate": True, "words": True, "logprobs": True, "prompt": True,
            "hotwords": True, "temperature": True, "fixed_window": True,
        },
        "*whisper*turbo*": {"translate": False},
        "*whisper*.en": {"languages": ("en",), "detects_language": False, "translate": False},
    }
    # fmt: on

    class Options(EngineOptions):
        """Options of a model that transformers runs."""

        beam_size: int = Field(1, ge=1, le=16, description="Hypotheses followed at once; 1 decodes greedily.")
        language: str = Field(
            "",
            description="Language of requests that name none, if the model cannot detect it; empty: from the model's name.",
        )
        threads: int = Field(0, ge=0, le=512, description="Threads of PyTorch on the CPU; 0 uses every core.")

    def __init__(self, family: ModelFamily, capabilities: Capabilities):
        self._family = family
        self.capabilities = capabilities

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Where PyTorch can compute."""
        import torch

        return find_torch_device(options, torch)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the weights, the processor and the tokenizer in the directory `source`."""
        family = FAMILIES[_read_model_type(source)]
        if not any(source.glob("*.safetensors")):
            raise ModelLoadError(f"{source} has no weights: *.safetensors is missing.")

        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the whole model is on disk: no request to the hub
        import torch
        import transformers

        options = cast(Transformers.Options, options)
        where = find_torch_device(options, torch).name
        numbers = choose_compute_type(options, COMPUTE_TYPES, "auto" if where == "cuda" else "float32")
        use_threads(options.threads, torch)
        transformers.utils.logging.disable_progress_bar()
        processor, model, info = _load_pretrained(transformers, family.loads, source, numbers)
        if missing := sorted(info["missing_keys"]):
            raise ModelLoadError(f"{source} lacks {len(missing)} of the model's arrays, {missing[0]} for one.")
        # No gradients, in whichever thread it runs.
        model = model.to(where).eval().requires_grad_(False)
        if model.can_generate():
            model.generation_config.max_length = None  # every call sets its own limit
        named = registry.find_card("transformers").find_capabilities(f"{family.known_as} {source.name}")
        only = named.languages[0] if len(named.languages) == 1 else ""
        language = options.language or find_language_in_name(source.name) or only
        loaded = family(model, processor, FamilyOptions(options.beam_size, language))
        engine = cls(loaded, _build_capabilities(loaded, named))
        engine.device, engine.compute_type = where, str(model.dtype).removeprefix("torch.")
        return engine

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        return self._family.transcribe(windows)

    def batch_key(self, window: Window) -> Hashable:
        """The batch key of the model's family."""
        return self._family.batch_key(window)


def _load_pretrained(library: Any, loads: str, source: Path, numbers: str) -> tuple[Any, Any, dict[str, Any]]:
    """The processor, the model, and what the library found odd about its weights."""
    try:
        with disable_compiler_cache():
            processor = library.AutoProcessor.from_pretrained(str(source), local_files_only=True)
            model, info = getattr(library, loads).from_pretrained(
                str(source), local_files_only=True, use_safetensors=True, dtype=numbers, output_loading_info=True
            )
    except ImportError:
        raise
    except Exception as error:  # the library raises whatever its many parts raise
        raise ModelLoadError(f"transformers cannot load the model in {source}: {error}") from error
    return processor, model, info


def _read_model_type(source: Path) -> str:
    """The model type in config.json.

    Raises:
        ModelLoadError: there is none, it cannot be read, or no family here is of that type.
    """
    path = source / CONFIG
    try:
        kind = json.loads(path.read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} cannot be read as the description of a model: {error}") from error
    if kind not in FAMILIES:
        raise ModelLoadError(f"{path} is of the model_type {kind!r}; this engine runs {', '.join(FAMILIES)}.")
    return str(kind)


def _build_capabilities(family: ModelFamily, named: Capabilities) -> Capabilities:
    """Build the loaded model's capabilities: its family's, with the languages of its name and weights."""
    found = replace(Transformers.capabilities, languages=named.languages, **family.abilities)
    if isinstance(family, Seq2SeqFamily):
        found = replace(found, languages=(family.options.language,))
    if family.options.beam_size > 1 and isinstance(family, GeneratingFamily):
        found = replace(found, logprobs=False)  # the library keeps no probabilities of a beam's tokens
    return family.refine_capabilities(found)
