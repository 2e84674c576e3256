"""Rewrites a Whisper of CTranslate2 as whisper.cpp's ggml file in float16: the same weights for both.

Layouts: CTranslate2's `model_spec.py` and whisper.cpp's `convert-pt-to-ggml.py`. CTranslate2 keeps query, key and value in one
matrix, one below the other; whisper.cpp wants them apart.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor  # type: ignore[import-untyped]

from bench.errors import BenchError

Tensor = np.ndarray[Any, np.dtype[Any]]

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""CTranslate2's numbers for them."""
MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1


def write_ggml(folder: Path, path: Path) -> None:
    """Write the model of `folder` into the file `path`.

    Raises:
        BenchError: the folder is of another kind, or of a number format that is not understood.
    """
    weights = read_weights(folder / "model.bin")
    embedding, positions = weights["decoder/embeddings/weight"], weights["encoder/position_encodings/encodings"]
    mels, width = weights["encoder/conv1/weight"].shape[1], positions.shape[1]
    heads = width // 64  # so in every Whisper but the smallest of the tests
    if "encoder/num_heads" in weights:
        heads = int(weights["encoder/num_heads"])
    audio, text = (sum(name.startswith(f"{part}/") and name.endswith(LAYER) for name in weights) for part in PARTS)
    sizes = (len(embedding), len(positions), width, heads, audio)
    sizes += (len(weights["decoder/position_encodings/encodings"]), width, heads, text, mels, FLOAT16)
    with path.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *sizes))
        filters = np.asarray(FeatureExtractor(feature_size=mels).mel_filters, np.float32)
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        tokens = read_tokens(folder)
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, tensor in rename_weights(weights):
            _write_tensor(file, name, tensor)


PARTS = ("encoder", "decoder")
LAYER = "/self_attention/layer_norm/gamma"
"""Every layer has one array with a name that ends so."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every array of a `model.bin`, those of integers multiplied by their scale.

    Raises:
        BenchError: it is none, or its numbers are of a kind that is not understood.
    """
    file = io.BytesIO(path.read_bytes())

    def number(form: str) -> int:
        (value,) = struct.unpack(f"<{form}", file.read(struct.calcsize(form)))
        return int(value)

    def name() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version, kind, _, count = number("I"), name(), number("I"), number("I")
    if version < 5 or kind != "WhisperSpec":
        raise BenchError(f"{path} is a {kind} of version {version}, and no Whisper of CTranslate2's version 5 or newer.")
    weights: dict[str, Tensor] = {}
    for _ in range(count):
        title = name()
        shape = [number("I") for _ in range(number("B"))]
        form, size = number("B"), number("I")
        if form not in TYPES:
            raise BenchError(f"{title} in {path} has numbers of kind {form}, which ggml's script here does not read.")
        weights[title] = np.frombuffer(file.read(size), TYPES[form]).reshape(shape)
    for _ in range(number("I")):  # arrays that are equal are written once
        other, title = name(), name()
        weights[other] = weights[title]
        if f"{title}_scale" in weights:
            weights[f"{other}_scale"] = weights[f"{title}_scale"]
    return {
        title: _scale(tensor, weights.get(f"{title}_scale")) for title, tensor in weights.items() if not title.endswith("_scale")
    }


def _scale(tensor: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return tensor
    return tensor / scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.ndim else tensor / scale


def read_tokens(folder: Path) -> list[bytes]:
    """The bytes of each token of text, in order."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    letters = _list_letters()
    ordered = sorted((number, word) for word, number in vocabulary.items() if not word.startswith("<|"))
    return [bytes(letters[letter] for letter in word) for _, word in ordered]


def _list_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the others follow behind 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def rename_weights(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The arrays by whisper.cpp's names, which are openai-whisper's."""
    yield "encoder.positional_embedding", weights["encoder/position_encodings/encodings"]
    yield "decoder.positional_embedding", weights["decoder/position_encodings/encodings"]
    yield "decoder.token_embedding.weight", weights["decoder/embeddings/weight"]
    for name, part in (("ln_post", "encoder"), ("ln", "decoder")):
        yield f"{part}.{name}.weight", weights[f"{part}/layer_norm/gamma"]
        yield f"{part}.{name}.bias", weights[f"{part}/layer_norm/beta"]
    for conv in ("conv1", "conv2"):
        yield f"encoder.{conv}.weight", weights[f"encoder/{conv}/weight"]
        yield f"encoder.{conv}.bias", weights[f"encoder/{conv}/bias"].reshape(-1, 1)
    for name in weights:
        part, _, rest = name.partition("/layer_")
        if part in PARTS and rest.endswith(LAYER):
            number = rest.split("/")[0]
            yield from _rename_layer(weights, f"{part}/layer_{number}", f"{part}.blocks.{number}", crossed=part == "decoder")


def _rename_layer(weights: dict[str, Tensor], old: str, new: str, *, crossed: bool) -> Iterator[tuple[str, Tensor]]:
    def linear(source: str, *targets: str) -> Iterator[tuple[str, Tensor]]:
        for kind in ("weight", "bias"):
            rows = np.split(weights[f"{old}/{source}/{kind}"], len(targets))
            # A key has no bias there, and zeros here.
            yield from (
                (f"{new}.{target}.{kind}", row) for target, row in zip(targets, rows, strict=True) if (target, kind) not in KEYS
            )

    def norm(source: str, target: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{new}.{target}.weight", weights[f"{old}/{source}/layer_norm/gamma"]
        yield f"{new}.{target}.bias", weights[f"{old}/{source}/layer_norm/beta"]

    yield from norm("self_attention", "attn_ln")
    yield from linear("self_attention/linear_0", "attn.query", "attn.key", "attn.value")
    yield from linear("self_attention/linear_1", "attn.out")
    if crossed:
        yield from norm("attention", "cross_attn_ln")
        yield from linear("attention/linear_0", "cross_attn.query")
        yield from linear("attention/linear_1", "cross_attn.key", "cross_attn.value")
        yield from linear("attention/linear_2", "cross_attn.out")
    yield from norm("ffn", "mlp_ln")
    yield from linear("ffn/linear_0", "mlp.0")
    yield from linear("ffn/linear_1", "mlp.2")


KEYS = {("attn.key", "bias"), ("cross_attn.key", "bias")}


def _write_tensor(file: Any, name: str, tensor: Tensor) -> None:
    """Matrices in float16; vectors, biases and the encoder's positions in float32, as whisper.cpp expects."""
    small = tensor.ndim < 2 or name.endswith((".bias", "positional_embedding"))
    data = np.ascontiguousarray(tensor, np.float32 if small else np.float16)
    title = name.encode()
    file.write(struct.pack("<3i", data.ndim, len(title), FLOAT32 if small else FLOAT16))
    file.write(struct.pack(f"<{data.ndim}i", *reversed(data.shape)) + title + data.tobytes())
