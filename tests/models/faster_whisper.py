"""Writes Whispers in CTranslate2's format with numpy alone: the one that hears, and others with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import WhisperSpec

from tests.models import tiny_whisper
from tests.models.tiny_whisper import END_OF_TEXT, LANGUAGE_IDS, NO_TIMESTAMPS, TIMES, TRANSCRIBE, WhisperDims

Arrays = dict[str, np.ndarray]

SIZES = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12)}
"""Width, heads and layers of Whisper's sizes."""
ENGLISH = 51864
"""Tokens of the models that know English only."""


def build(directory: Path, quantization: str = "int8") -> Path:
    """The model that hears, in `directory`."""
    return write_folder(directory, *tiny_whisper.load_weights(), quantization=quantization)


def build_english(directory: Path) -> Path:
    """The model that hears as one that knows English only: CTranslate2 tells these by their vocabulary. It hears badly."""
    dims, arrays = tiny_whisper.load_weights()
    embedding = "decoder.token_embedding.weight"
    arrays[embedding] = np.delete(arrays[embedding], END_OF_TEXT - 1, axis=0)
    return write_folder(directory, replace(dims, n_vocab=dims.n_vocab - 1), arrays, quantization="int8")


def build_random(directory: Path, size: str, quantization: str = "int8", tokens: int = 100) -> Path:
    """A Whisper of this size that costs what the real one costs and hears nothing, in `directory`.

    Whatever the audio, it says the same English words, `tokens` of them counting the two times, and is sure of them: no
    window is decoded twice. That holds without prompts, which would move its text.
    """
    width, heads, layers = SIZES[size]
    dims = WhisperDims(80, 1500, width, heads, layers, 51865, 448, width, heads, layers)
    return write_folder(directory, dims, _build_reciting(dims, tokens), quantization=quantization)


def write_folder(directory: Path, dims: WhisperDims, arrays: Arrays, *, quantization: str) -> Path:
    """A CTranslate2 folder of these arrays."""
    spec = WhisperSpec(dims.n_audio_layer, dims.n_audio_head, dims.n_text_layer, dims.n_text_head)
    _fill_encoder(spec.encoder, arrays, dims)
    _fill_decoder(spec.decoder, arrays, dims)
    tokenizer = tiny_whisper.build_tokenizer(english=dims.n_vocab == ENGLISH)
    tokens = tokenizer.get_vocab()
    spec.register_vocabulary(sorted(tokens, key=tokens.__getitem__))
    spec.config.suppress_ids = [tokens[word] for word in _build_words(tiny_whisper.SUPPRESS)]
    spec.config.suppress_ids_begin = [tokens[word] for word in _build_words(tiny_whisper.SUPPRESS_AT_BEGIN)]
    spec.config.alignment_heads = dims.alignment_heads
    spec.config.lang_ids = [tokens[word] for word in _build_words(tiny_whisper.LANGUAGE_IDS.values())]
    spec.validate()
    spec.optimize(quantization=quantization)
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    features = {"feature_size": dims.n_mels, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
    (directory / "preprocessor_config.json").write_text(json.dumps(features))
    return directory


def _build_words(numbers: Iterable[int]) -> list[str]:
    return [tiny_whisper.build_tokenizer().id_to_token(number) for number in numbers]


def _fill_encoder(spec: Any, arrays: Arrays, dims: WhisperDims) -> None:
    for number in (1, 2):
        _fill(getattr(spec, f"conv{number}"), arrays, f"encoder.conv{number}")
    spec.position_encodings.encodings = _to_float32(arrays["encoder.positional_embedding"])
    _fill_norm(spec.layer_norm, arrays, "encoder.ln_post")
    for number in range(dims.n_audio_layer):
        _fill_layer(spec.layer[number], arrays, f"encoder.blocks.{number}")


def _fill_decoder(spec: Any, arrays: Arrays, dims: WhisperDims) -> None:
    spec.embeddings.weight = spec.projection.weight = _to_float32(arrays["decoder.token_embedding.weight"])
    spec.position_encodings.encodings = _to_float32(arrays["decoder.positional_embedding"])
    _fill_norm(spec.layer_norm, arrays, "decoder.ln")
    for number in range(dims.n_text_layer):
        layer, name = spec.layer[number], f"decoder.blocks.{number}"
        _fill_layer(layer, arrays, name)
        _fill_norm(layer.attention.layer_norm, arrays, f"{name}.cross_attn_ln")
        query, memory, out = layer.attention.linear
        _fuse(query, arrays, f"{name}.cross_attn", ["query"])
        _fuse(memory, arrays, f"{name}.cross_attn", ["key", "value"])
        _fill(out, arrays, f"{name}.cross_attn.out")


def _fill_layer(layer: Any, arrays: Arrays, name: str) -> None:
    """What encoder and decoder layers share: self-attention and the two linear layers after it."""
    _fill_norm(layer.self_attention.layer_norm, arrays, f"{name}.attn_ln")
    fused, out = layer.self_attention.linear
    _fuse(fused, arrays, f"{name}.attn", ["query", "key", "value"])
    _fill(out, arrays, f"{name}.attn.out")
    _fill_norm(layer.ffn.layer_norm, arrays, f"{name}.mlp_ln")
    _fill(layer.ffn.linear_0, arrays, f"{name}.mlp.0")
    _fill(layer.ffn.linear_1, arrays, f"{name}.mlp.2")


def _fill(spec: Any, arrays: Arrays, name: str) -> None:
    spec.weight = _to_float32(arrays[f"{name}.weight"])
    spec.bias = _to_float32(arrays[f"{name}.bias"])


def _fill_norm(spec: Any, arrays: Arrays, name: str) -> None:
    spec.gamma = _to_float32(arrays[f"{name}.weight"])
    spec.beta = _to_float32(arrays[f"{name}.bias"])


def _fuse(spec: Any, arrays: Arrays, name: str, parts: list[str]) -> None:
    """Projections one below the other; the keys of a Whisper have no bias."""
    weights = [_to_float32(arrays[f"{name}.{part}.weight"]) for part in parts]
    zeros = np.zeros(len(weights[0]), np.float32)
    spec.weight = np.concatenate(weights)
    spec.bias = np.concatenate([_to_float32(arrays.get(f"{name}.{part}.bias", zeros)) for part in parts])


def _to_float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _build_reciting(dims: WhisperDims, tokens: int) -> Arrays:
    """Random arrays, but the decoder's positions drown out everything else, and each points at the token to say there."""
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in _list_shapes(dims)}
    for name, array in arrays.items():
        if "ln" in name.split(".")[-2] and name.endswith("weight"):
            array[:] = 1.0
    known = tiny_whisper.build_tokenizer().get_vocab()
    words = sorted(number for word, number in known.items() if word[:1] == "\u0120" and word[1:].isascii() and word[1:].isalpha())
    said = rng.choice(words, tokens - 2, replace=False)
    text = [LANGUAGE_IDS["en"], TRANSCRIBE, NO_TIMESTAMPS + 1, *said, NO_TIMESTAMPS + TIMES, END_OF_TEXT]
    towards = rng.normal(0, 1, (len(text), dims.n_text_state)).astype(np.float32)
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    arrays["decoder.positional_embedding"][: len(text)] = 500 * towards
    arrays["decoder.token_embedding.weight"][text] = 2 * towards
    return arrays


def _list_shapes(dims: WhisperDims) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Whisper's arrays, by openai-whisper's names."""
    wide = dims.n_audio_state
    yield "encoder.conv1.weight", (wide, dims.n_mels, 3)
    yield "encoder.conv2.weight", (wide, wide, 3)
    yield from ((f"encoder.conv{number}.bias", (wide,)) for number in (1, 2))
    yield "encoder.positional_embedding", (dims.n_audio_ctx, wide)
    yield "decoder.positional_embedding", (dims.n_text_ctx, wide)
    yield "decoder.token_embedding.weight", (dims.n_vocab, wide)
    yield from _list_norm_shapes("encoder.ln_post", wide)
    yield from _list_norm_shapes("decoder.ln", wide)
    for number in range(dims.n_audio_layer):
        yield from _list_layer_shapes(f"encoder.blocks.{number}", wide)
    for number in range(dims.n_text_layer):
        yield from _list_layer_shapes(f"decoder.blocks.{number}", wide)
        yield from _list_attention_shapes(f"decoder.blocks.{number}.cross_attn", wide)


def _list_layer_shapes(name: str, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _list_attention_shapes(f"{name}.attn", wide)
    yield from _list_norm_shapes(f"{name}.mlp_ln", wide)
    yield from ((f"{name}.mlp.0.weight", (4 * wide, wide)), (f"{name}.mlp.0.bias", (4 * wide,)))
    yield from ((f"{name}.mlp.2.weight", (wide, 4 * wide)), (f"{name}.mlp.2.bias", (wide,)))


def _list_attention_shapes(name: str, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}.weight", (wide, wide)) for part in ("query", "key", "value", "out"))
    yield from ((f"{name}.{part}.bias", (wide,)) for part in ("query", "value", "out"))
    yield from _list_norm_shapes(f"{name}_ln", wide)


def _list_norm_shapes(name: str, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (wide,)) for part in ("weight", "bias"))
