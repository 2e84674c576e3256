"""OpenAI's own Whisper package, on PyTorch: the reference that others are measured against.

Its own `transcribe` takes one file at a time and cannot be cancelled. Here windows of any requests form a batch for its
`decode`, and what surrounds that is shared with the other Whispers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import Field

from eardrum.engines.base import Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.openai_whisper_model import OpenAIWhisperModel, WhisperCheckpoint, read_checkpoint
from eardrum.engines.shared.torch_tools import choose_compute_type, find_torch_device, use_threads
from eardrum.engines.shared.whisper_decoder import WhisperDecoder, refine_capabilities
from eardrum.engines.shared.whisper_rules import DecodingThresholds
from eardrum.errors import ModelLoadError
from eardrum.transcription import Capabilities


class OpenAIWhisper(Engine):
    """One Whisper, from a checkpoint of OpenAI's or a directory of Hugging Face's."""

    requires = ("whisper", "torch")
    extra = "openai-whisper"
    title = "Whisper tiny to large-v3 and turbo, with OpenAI's own package on PyTorch"
    layouts = (("*.pt",), ("config.json", "*.safetensors"))
    model_types = ("whisper",)
    names = {
        "tiny": "openai/whisper-tiny",
        "tiny.en": "openai/whisper-tiny.en",
        "base": "openai/whisper-base",
        "base.en": "openai/whisper-base.en",
        "small": "openai/whisper-small",
        "small.en": "openai/whisper-small.en",
        "medium": "openai/whisper-medium",
        "medium.en": "openai/whisper-medium.en",
        "large": "openai/whisper-large-v3",
        "large-v1": "openai/whisper-large",
        "large-v2": "openai/whisper-large-v2",
        "large-v3": "openai/whisper-large-v3",
        "large-v3-turbo": "openai/whisper-large-v3-turbo",
        "turbo": "openai/whisper-large-v3-turbo",
    }
    repositories = ("openai/whisper-*",)
    downloads = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
    rank = 30
    variants = {
        "*.en": {"languages": ("en",), "translate": False, "detects_language": False},
        "*turbo*": {"translate": False},
    }
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
        max_batch=8,
    )

    class Options(EngineOptions):
        """Options of a Whisper that runs in OpenAI's package."""

        compute_type: str = Field("auto", description="Number format: `auto` is float16 on a GPU and float32 on a CPU.")
        threads: int = Field(0, ge=0, le=512, description="Threads of PyTorch on the CPU; 0 uses every core.")
        beam_size: int = Field(1, ge=1, le=50, description="Hypotheses followed at temperature 0; 1 is greedy, and faster.")
        best_of: int = Field(5, ge=1, le=50, description="Samples drawn above temperature 0, of which the likeliest is taken.")
        temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
            (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            min_length=1,
            description="Tried one after another while the text is doubtful; a request's temperature is the first of them.",
        )
        compression_ratio_threshold: float | None = Field(
            2.4, description="Text that packs better than this repeats itself and is doubtful; null switches the check off."
        )
        log_prob_threshold: float | None = Field(
            -1.0, description="Text with a lower mean log probability is doubtful; null switches the check off."
        )
        no_speech_threshold: float | None = Field(
            0.6, description="Doubtful text above this probability of silence is dropped; null switches the check off."
        )
        condition_on_previous_text: bool = Field(
            False,
            description="Tell the model what was said before. More even style and spelling, but errors carry on, and the "
            "windows of a request are decoded one after another.",
        )
        prompt: str = Field("", description="Prompt for requests that bring none: names, spelling, style.")

    def __init__(self, model: OpenAIWhisperModel, options: OpenAIWhisper.Options):
        self._rounds = WhisperDecoder(
            model,
            thresholds=DecodingThresholds(
                options.compression_ratio_threshold, options.log_prob_threshold, options.no_speech_threshold
            ),
            temperatures=options.temperatures,
            prompt=options.prompt,
            remembers=options.condition_on_previous_text,
        )
        self.sequential = options.condition_on_previous_text
        self.capabilities = refine_capabilities(type(self).capabilities, model)

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Where PyTorch can compute."""
        import torch

        return find_torch_device(options, torch)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the `.pt` file, the directory with one, or the Hugging Face directory `source`."""
        import torch
        import whisper

        options = cast(OpenAIWhisper.Options, options)
        where = find_torch_device(options, torch).name
        numbers = {"cuda": "float16", "cpu": "float32"}[where]
        half = choose_compute_type(options, (numbers,), numbers) == "float16"
        use_threads(options.threads, torch)
        checkpoint = read_checkpoint(source, torch)
        # No gradients, in whichever thread it runs.
        model = _build_model(checkpoint, source, whisper, torch).to(where).eval().requires_grad_(False)
        opened = OpenAIWhisperModel(whisper, torch, model, half=half, beam_size=options.beam_size, best_of=options.best_of)
        engine = cls(opened, options)
        engine.device, engine.compute_type = where, numbers
        return engine

    def batch_key(self, window: Window) -> Hashable:
        """Windows with equal keys may share a batch."""
        return self._rounds.batch_key(window)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows together."""
        return self._rounds.transcribe(windows)


def _build_model(checkpoint: WhisperCheckpoint, source: Path, whisper: Any, torch: Any) -> Any:
    """The package's model with these weights."""
    try:
        model = whisper.model.Whisper(whisper.model.ModelDimensions(**checkpoint.dims))
        model.load_state_dict(checkpoint.state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelLoadError(f"The arrays in {source} are not those of a Whisper of its size: {error}") from error
    if checkpoint.heads:
        heads = torch.zeros(checkpoint.dims["n_text_layer"], checkpoint.dims["n_text_head"], dtype=torch.bool)
        for layer, head in checkpoint.heads:
            heads[layer, head] = True
        model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    elif known := whisper._ALIGNMENT_HEADS.get(source.stem):  # a checkpoint does not say its heads, but its name does
        model.set_alignment_heads(known)
    return model
