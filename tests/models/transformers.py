"""Writes the tiny Whisper as a directory of Hugging Face's."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import tiny_whisper
from tests.models.tiny_whisper import END_OF_TEXT, NO_TIMESTAMPS, START, TRANSCRIBE, TRANSLATE, WhisperDims

Arrays = dict[str, np.ndarray]

RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\.blocks\.", ".layers."),
    (r"cross_attn_ln", "encoder_attn_layer_norm"),
    (r"cross_attn", "encoder_attn"),
    (r"attn_ln", "self_attn_layer_norm"),
    (r"(?<=\d)\.attn\b", ".self_attn"),
    (r"mlp_ln", "final_layer_norm"),
    (r"mlp\.0", "fc1"),
    (r"mlp\.2", "fc2"),
    (r"\.query", ".q_proj"),
    (r"\.key", ".k_proj"),
    (r"\.value", ".v_proj"),
    (r"attn\.out", "attn.out_proj"),
    (r"positional_embedding", "embed_positions.weight"),
    (r"token_embedding", "embed_tokens"),
    (r"ln_post|decoder\.ln\b", lambda found: found[0].replace("ln_post", "layer_norm").replace(".ln", ".layer_norm")),
]
"""openai-whisper's names to those of transformers, one rule after another."""


def build(directory: Path, shards: int = 1) -> Path:
    """The model that hears, in `directory`; its arrays in one file or spread over `shards`."""
    dims, arrays = tiny_whisper.load_weights()
    write_arrays(directory, {f"model.{to_transformers_name(name)}": array for name, array in arrays.items()}, shards)
    write_json(directory / "config.json", build_config(dims))
    write_json(directory / "generation_config.json", build_generation_config(dims))
    write_json(directory / "preprocessor_config.json", FEATURES | {"feature_size": dims.n_mels})
    write_json(directory / "tokenizer_config.json", TOKENIZER)
    tiny_whisper.write_tokenizer(directory / "tokenizer.json")
    return directory


def to_transformers_name(name: str) -> str:
    """An array's name in transformers."""
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def write_arrays(directory: Path, arrays: Arrays, shards: int = 1) -> None:
    """Files of safetensors: the length of a JSON header, the header, the arrays. More than one come with an index."""
    if shards == 1:
        write_file(directory / "model.safetensors", arrays)
        return
    names, index = sorted(arrays), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: arrays[name] for name in names[number::shards]}
        write_file(directory / file, part)
        index |= dict.fromkeys(part, file)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def write_file(path: Path, arrays: Arrays) -> None:
    """One file of float16 arrays."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F16", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def build_config(dims: WhisperDims) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": dims.n_audio_state,
        "num_mel_bins": dims.n_mels,
        "vocab_size": dims.n_vocab,
        "max_source_positions": dims.n_audio_ctx,
        "max_target_positions": dims.n_text_ctx,
        "encoder_layers": dims.n_audio_layer,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_layers": dims.n_text_layer,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "torch_dtype": "float16",
        **TOKENS,
    }


def build_generation_config(dims: WhisperDims) -> dict[str, Any]:
    """generation_config.json."""
    return {
        "is_multilingual": True,
        "lang_to_id": {f"<|{language}|>": id for language, id in tiny_whisper.LANGUAGE_IDS.items()},
        "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "max_initial_timestamp_index": 50,
        "prev_sot_token_id": tiny_whisper.START_OF_PREVIOUS,
        "suppress_tokens": tiny_whisper.SUPPRESS,
        "begin_suppress_tokens": tiny_whisper.SUPPRESS_AT_BEGIN,
        "alignment_heads": dims.alignment_heads,
        "max_length": dims.n_text_ctx,
        **TOKENS,
    }


TOKENS = {
    "decoder_start_token_id": START,
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
}

FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "sampling_rate": 16_000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
    "padding_value": 0.0,
    "return_attention_mask": False,
}

TOKENIZER = {
    "tokenizer_class": "WhisperTokenizer",
    "processor_class": "WhisperProcessor",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "model_max_length": 1024,
}
