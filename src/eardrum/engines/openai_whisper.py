"""OpenAI's own Whisper package, on PyTorch: the reference for the other Whispers.

Its `transcribe` takes one file at a time and cannot be cancelled. Here windows of any requests form a batch for its `decode`;
the rest is the decoder that all Whispers share. Weights come from OpenAI's checkpoints (`.pt`) or from directories of Hugging
Face's, whose array names map one to one.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Self, cast

from msgspec import Struct, field
from pydantic import Field

from eardrum.engines.base import Audio, Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.torch_tools import (
    FRAME_S,
    choose_compute_type,
    find_token_starts,
    find_torch_device,
    pad_features,
    use_threads,
)
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
from eardrum.engines.shared.whisper_rules import DecodedText, Features, SpecialTokens
from eardrum.errors import ModelLoadError
from eardrum.transcription import Capabilities, SpeechTask


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
        best_of: BestOf = 5
        temperatures: Temperatures = TEMPERATURES
        compression_ratio_threshold: CompressionRatioThreshold = 2.4
        log_prob_threshold: LogProbThreshold = -1.0
        no_speech_threshold: NoSpeechThreshold = 0.6
        condition_on_previous_text: ConditionOnPreviousText = False
        prompt: DefaultPrompt = ""

    def __init__(self, model: OpenAIWhisperModel, options: OpenAIWhisper.Options):
        self._decoder = WhisperDecoder.from_options(model, options)
        self.sequential = options.condition_on_previous_text
        self.capabilities = refine_capabilities(type(self).capabilities, model)

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that PyTorch can use."""
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
        return self._decoder.batch_key(window)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows together."""
        return self._decoder.transcribe(windows)


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
    elif known := whisper._ALIGNMENT_HEADS.get(
        source.stem
    ):  # a checkpoint does not list its alignment heads, but its name identifies them
        model.set_alignment_heads(known)
    return model


class OpenAIWhisperModel:
    """A loaded model with its tokenizer. The package hooks into the model while it decodes: one thread at a time."""

    def __init__(self, whisper: Any, torch: Any, model: Any, *, half: bool, beam_size: int, best_of: int):
        self._whisper = whisper
        self._torch = torch
        self._model = model
        self._half = half
        self._beam_size = beam_size
        self._best_of = best_of
        self.multilingual: bool = model.is_multilingual
        self._tokenizer = self._choose_tokenizer("en")
        self.special = SpecialTokens.of(self._tokenizer.special_tokens.get)

    def extract_features(self, audio: Audio) -> Features:
        """Log-mel of at most 30 s of audio, filled up with silence: shape [bands, 3000]."""
        samples = self._whisper.pad_or_trim(self._torch.from_numpy(audio))
        bands = self._model.dims.n_mels
        features: Features = self._whisper.log_mel_spectrogram(samples, bands, device=self._model.device).cpu().numpy()
        return features

    def encode(self, features: Sequence[Features]) -> Any:
        """Encode rows of features [bands, frames]; a tensor [b, frames, width]."""
        batch = self._torch.from_numpy(pad_features(features)).to(self._model.device)
        return self._model.encoder(batch.half() if self._half else batch)

    def detect_languages(self, encoded: Any, rows: Sequence[int]) -> list[dict[str, float]]:
        """The probability of each language, for each of these rows."""
        _, found = self._whisper.detect_language(self._model, encoded[rows], self._tokenizer)
        return list(found)

    def decode(self, encoded: Any, rows: Sequence[int], prompts: list[list[int]], temperature: float) -> list[DecodedText]:
        """Decode these rows. The package takes one prompt per call, so rows with equal ones go together."""
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            alike[tuple(prompt)].append(number)
        found: dict[int, DecodedText] = {}
        for prompt_, numbers in alike.items():
            options = self._build_options(prompt_, temperature)
            results = self._whisper.decode(self._model, encoded[[rows[number] for number in numbers]], options)
            for number, result in zip(numbers, results, strict=True):
                found[number] = DecodedText(
                    result.tokens, result.avg_logprob, result.no_speech_prob, result.compression_ratio, temperature
                )
        return [found[number] for number in range(len(prompts))]

    def _build_options(self, prompt: tuple[int, ...], temperature: float) -> Any:
        """The package's words for a prompt of tokens."""
        at = prompt.index(self.special.start)
        language, task = "en", SpeechTask.TRANSCRIBE
        if self.multilingual:
            language = next(code for code, token in self.special.languages.items() if token == prompt[at + 1])
            task = SpeechTask.TRANSLATE if prompt[at + 2] == self.special.translate else task
        return self._whisper.DecodingOptions(
            task=task.value,
            language=language,
            prompt=list(prompt[1:at]) or None,
            temperature=temperature,
            beam_size=None if temperature or self._beam_size == 1 else self._beam_size,
            best_of=self._best_of if temperature and self._best_of > 1 else None,
            fp16=self._half,
        )

    def align(
        self, encoded: Any, rows: Sequence[int], beginning: list[int], texts: list[list[int]], seconds: Sequence[float]
    ) -> list[tuple[list[float], list[float]]]:
        """When each text token begins, and the end, in seconds; and each token's probability given those before it."""
        return [self._align(encoded[[row]], beginning, text, s) for row, text, s in zip(rows, texts, seconds, strict=True)]

    def _align(self, encoded: Any, beginning: list[int], text: list[int], seconds: float) -> tuple[list[float], list[float]]:
        attention: list[Any] = [None] * self._model.dims.n_text_layer
        hooks = [
            block.cross_attn.register_forward_hook(lambda _, __, output, layer=layer: attention.__setitem__(layer, output[-1][0]))
            for layer, block in enumerate(self._model.decoder.blocks)
        ]
        prompt = [*beginning, self.special.times - 1]
        ids = self._torch.tensor([[*prompt, *text, self.special.end]], device=self._model.device)
        try:
            with self._whisper.model.disable_sdpa():
                scores = self._model.logits(ids, encoded)[0].softmax(-1)
        finally:
            for hook in hooks:
                hook.remove()
        heads = self._model.alignment_heads.indices().T.tolist()
        frames = max(1, round(seconds / FRAME_S))
        weights = self._torch.stack([attention[layer][head] for layer, head in heads])[:, :, :frames].float().softmax(-1)
        starts = find_token_starts(weights.cpu().numpy(), len(beginning))
        probabilities = [float(row[token]) for row, token in zip(scores[len(beginning) :], text, strict=False)]
        return starts, probabilities

    def encode_text(self, text: str) -> list[int]:
        """The text as tokens; one that spells special ones out means their letters."""
        return list(self._tokenizer.encode(text, disallowed_special=()))

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The tokens' text, without times and special tokens."""
        return str(self._tokenizer.decode(self.special.strip_special(tokens)))

    def split_pieces(self, tokens: list[int], language: str) -> list[tuple[str, int]]:
        """Text tokens as words and punctuation marks, each with its number of tokens."""
        words, parts = self._choose_tokenizer(language).split_to_word_tokens(tokens)
        return [(word, len(part)) for word, part in zip(words, parts, strict=True)]

    def _choose_tokenizer(self, language: str) -> Any:
        return self._whisper.tokenizer.get_tokenizer(
            self.multilingual, num_languages=self._model.num_languages, language=language, task="transcribe"
        )


CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"

DIMS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
"""OpenAI's names of a Whisper's sizes, and those in config.json."""

NAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
"""Hugging Face's names of arrays to OpenAI's, one rule after another."""


class WhisperCheckpoint(Struct, frozen=True):
    """Sizes and arrays by OpenAI's names; the heads that follow the speech as (layer, head), if the files name them."""

    dims: dict[str, int]
    state: dict[str, Any]
    heads: list[tuple[int, int]] = field(default_factory=list)


def read_checkpoint(source: Path, torch: Any) -> WhisperCheckpoint:
    """The model in a `.pt` file, in a directory with one, or in a directory of Hugging Face's.

    Raises:
        ModelLoadError: it is none of these, or a file is missing or damaged; the message names it.
    """
    if source.is_file():
        return _read_pt(source, torch)
    if (source / CONFIG).is_file():
        return _read_hugging_face(source)
    files = sorted(source.glob("*.pt"))
    if len(files) == 1:
        return _read_pt(files[0], torch)
    if files:
        raise ModelLoadError(f"{source} holds {len(files)} checkpoints: name one as the source, such as {files[0]}.")
    raise ModelLoadError(f"{source} is no Whisper of OpenAI's or Hugging Face's: there is neither a .pt file nor {CONFIG}.")


def _read_pt(path: Path, torch: Any) -> WhisperCheckpoint:
    try:
        # Only numbers and arrays: a pickle from elsewhere could run anything.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own class for each kind of damage
        raise ModelLoadError(f"PyTorch cannot read {path}: {str(error).splitlines()[0]}") from error
    try:
        return WhisperCheckpoint({name: int(content["dims"][name]) for name in DIMS}, dict(content["model_state_dict"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path} is not a Whisper of OpenAI's: it has no {error}.") from error


def _read_hugging_face(source: Path) -> WhisperCheckpoint:
    config = _read_json(source / CONFIG)
    if config.get("model_type") != "whisper":
        raise ModelLoadError(f"{source / CONFIG} is of the model_type {config.get('model_type')!r}, not a whisper.")
    try:
        dims = {ours: int(config[theirs]) for ours, theirs in DIMS.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{source / CONFIG} does not give the size {error} of a Whisper.") from error
    state: dict[str, Any] = {}
    for path in _list_weight_files(source):
        state |= {to_openai_name(name): array for name, array in _read_safetensors(path).items() if name != "proj_out.weight"}
    generation = _read_json(source / GENERATION) if (source / GENERATION).is_file() else {}
    return WhisperCheckpoint(dims, state, [(int(layer), int(head)) for layer, head in generation.get("alignment_heads") or ()])


def to_openai_name(name: str) -> str:
    """OpenAI's name of an array of Hugging Face's."""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _list_weight_files(source: Path) -> list[Path]:
    if (source / INDEX).is_file():
        files = sorted({source / name for name in _read_json(source / INDEX).get("weight_map", {}).values()})
    else:
        files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(f"{source} has no weights: *.safetensors is missing.")
    for path in files:
        if not path.is_file():
            raise ModelLoadError(f"{path} is missing, which {INDEX} lists.")
    return files


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    load: Callable[[Path], dict[str, Any]] = load_file
    try:
        return load(path)
    except Exception as error:  # the library raises its own class
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} is not the description of a model.")
    return found
