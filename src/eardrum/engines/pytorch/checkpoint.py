"""Whisper's weights for OpenAI's own package: its checkpoints, and directories of Hugging Face's, whose names map one to one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eardrum.errors import ModelLoadError

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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Sizes and arrays by OpenAI's names; the heads that follow the speech as (layer, head), if the files name them."""

    dims: dict[str, int]
    state: dict[str, Any]
    heads: list[tuple[int, int]] = field(default_factory=list)


def read(source: Path, torch: Any) -> Checkpoint:
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


def _read_pt(path: Path, torch: Any) -> Checkpoint:
    try:
        # Only numbers and arrays: a pickle from elsewhere could run anything.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a class of its own for each kind of damage
        raise ModelLoadError(f"PyTorch cannot read {path}: {str(error).splitlines()[0]}") from error
    try:
        return Checkpoint({name: int(content["dims"][name]) for name in DIMS}, dict(content["model_state_dict"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path} is not a Whisper of OpenAI's: it has no {error}.") from error


def _read_hugging_face(source: Path) -> Checkpoint:
    config = _read_json(source / CONFIG)
    if config.get("model_type") != "whisper":
        raise ModelLoadError(f"{source / CONFIG} is of the model_type {config.get('model_type')!r}, not a whisper.")
    try:
        dims = {ours: int(config[theirs]) for ours, theirs in DIMS.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{source / CONFIG} does not give the size {error} of a Whisper.") from error
    state: dict[str, Any] = {}
    for path in _weight_files(source):
        state |= {openai_name(name): array for name, array in _read_safetensors(path).items() if name != "proj_out.weight"}
    generation = _read_json(source / GENERATION) if (source / GENERATION).is_file() else {}
    return Checkpoint(dims, state, [(int(layer), int(head)) for layer, head in generation.get("alignment_heads") or ()])


def openai_name(name: str) -> str:
    """OpenAI's name of an array of Hugging Face's."""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _weight_files(source: Path) -> list[Path]:
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
    except Exception as error:  # the library raises a class of its own
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} is not the description of a model.")
    return found
