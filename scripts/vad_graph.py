"""Writes vad.onnx and vad_memory.onnx in src/eardrum/runner, or with --check fails when they are not what this script writes.

They are Silero VAD v6 (MIT, Copyright (c) 2020-present Silero Team) with the weights it was published with and, one after the
other, the same results, to a few millionths. Only the order of the arithmetic differs. The published graph
convolves each frame of 32 ms by itself: matrix products of five rows and fewer, which leave a CPU mostly idle. Here
every convolution is a product over all frames of a block at once:

- The short-time Fourier transform is one radix-2 step and two products: the sum of a window's halves holds the even
  bins, their difference the odd ones, at half the multiplications. Its first position, which the published graph computes and
  drops, is left out.
- Each position of a convolution is one product of its neighbours, side by side, with the stacked taps. Taps that would
  fall on the padding are left out.
- The LSTM and what follows are as published, in a graph of their own: what a frame sounds like depends on no other frame,
  so the memory can be begun anew in the middle of a block without computing the rest of it twice.

The published graph is read from the installed faster-whisper.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TARGET = Path(__file__).parent.parent / "src" / "eardrum" / "runner"
PUBLISHED_SHA256 = "4cbf549b8326f60f80f2536d9eefeb450a9abe83365a098031c89719f1be17d2"
INPUT, HOP, BINS, POSITIONS = 576, 128, 129, 4
FEATURES = 128
"""Numbers that the convolutions make of a frame, and numbers in each half of the memory."""

LICENSE = """MIT License

Copyright (c) 2020-present Silero Team

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation \
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, \
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software \
is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES \
OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE \
LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR \
IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main() -> None:
    weights = load_published_weights()
    for name, model in (("vad.onnx", build_encoder(weights)), ("vad_memory.onnx", build_memory(weights))):
        target = TARGET / name
        if "--check" not in sys.argv:
            target.write_bytes(model)
        elif not target.exists() or target.read_bytes() != model:
            sys.exit(f"Out of date: {name}. Run `python scripts/vad_graph.py`.")


def load_published_weights() -> dict[str, np.ndarray]:
    # The package is located, not imported: importing it would load CTranslate2 for one file.
    spec = find_spec("faster_whisper")
    if spec is None or spec.origin is None:
        sys.exit("faster-whisper is not installed.")
    data = (Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx").read_bytes()
    if sha256(data).hexdigest() != PUBLISHED_SHA256:
        sys.exit("The installed faster-whisper carries another VAD than the one this graph was derived from.")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}


def build_encoder(weights: dict[str, np.ndarray]) -> bytes:
    """Frames of samples, [n, 576], to what they sound like, [n, 128]."""
    graph = GraphBuilder()
    frames = build_transform(graph, weights["encoder.feature_extractor.forward_basis_buffer"][:, 0])
    graph.add_reshape(encode(graph, frames, weights), -1, FEATURES, outputs=("features",))
    return graph.build_model("silero_vad_v6", {"input": ("n", INPUT)}, {"features": ("n", FEATURES)})


def build_memory(weights: dict[str, np.ndarray]) -> bytes:
    """What frames sound like to the probability of each, with the state carried in and out."""
    graph = GraphBuilder()
    decode(graph, "features", weights)
    state = (1, 1, FEATURES)
    return graph.build_model(
        "silero_vad_v6_memory",
        {"features": ("n", FEATURES), "h": state, "c": state},
        {"speech_probs": ("n",), "hn": state, "cn": state},
    )


Shape = tuple[int | str, ...]


class GraphBuilder:
    """Nodes and constants as they are added; a tensor is its name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add_constant(self, values: object, kind: type = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values, kind), name))
        return name

    def add_node(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: object) -> str:
        outputs = outputs or (f"{kind}_{len(self._nodes)}",)
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def add_slice(self, tensor: str, start: int, end: int, axis: int) -> str:
        return self.add_node("Slice", tensor, *(self.add_constant([number], np.int64) for number in (start, end, axis)))

    def add_reshape(self, tensor: str, *shape: int, outputs: tuple[str, ...] = ()) -> str:
        return self.add_node("Reshape", tensor, self.add_constant(shape, np.int64), outputs=outputs)

    def build_model(self, name: str, inputs: dict[str, Shape], outputs: dict[str, Shape], license: str = LICENSE) -> bytes:
        def tensors(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

        graph = helper.make_graph(self._nodes, name, tensors(inputs), tensors(outputs), initializer=self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, doc_string=license)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


def build_transform(graph: GraphBuilder, basis: np.ndarray) -> str:
    """Magnitudes per frame, [n, 4 * 129]: of each position the even bins, then the odd ones."""
    window = basis[0].astype(np.float64)  # bin 0 is the sum of the windowed samples
    even, odd = build_fourier(np.arange(0, BINS, 2)), build_fourier(np.arange(1, BINS, 2))
    for bins, (cosine, sine), sign in ((slice(0, BINS, 2), even, 1), (slice(1, BINS, 2), odd, -1)):
        for rows, half in ((basis[:BINS], cosine), (basis[BINS:], sine)):
            np.testing.assert_allclose(rows[bins].T, window[:, None] * np.concatenate([half, sign * half]), atol=1e-6)

    padded = graph.add_node("Pad", "input", graph.add_constant([0, 0, 0, 64], np.int64), mode="reflect")
    hops = graph.add_reshape(padded, -1, POSITIONS + 1, HOP)
    first = graph.add_node("Mul", graph.add_slice(hops, 0, POSITIONS, 1), graph.add_constant(window[:HOP]))
    second = graph.add_node("Mul", graph.add_slice(hops, 1, POSITIONS + 1, 1), graph.add_constant(window[HOP:]))
    powers = [
        build_power(graph, graph.add_reshape(graph.add_node(kind, first, second), -1, HOP), *half)
        for kind, half in (("Add", even), ("Sub", odd))
    ]
    return graph.add_reshape(graph.add_node("Sqrt", graph.add_node("Concat", *powers, axis=1)), -1, POSITIONS * BINS)


def build_fourier(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part for the first half of a window of 256 samples, [128, bins]."""
    angle = -2 * np.pi * np.outer(np.arange(HOP), bins) / (2 * HOP)
    # Mathematical libraries differ in the last bit; rounded, the file does not depend on the machine.
    return np.round(np.cos(angle), 12) + 0.0, np.round(np.sin(angle), 12) + 0.0


def build_power(graph: GraphBuilder, samples: str, cosine: np.ndarray, sine: np.ndarray) -> str:
    parts = [graph.add_node("Gemm", samples, graph.add_constant(half)) for half in (cosine, sine)]
    return graph.add_node("Add", *(graph.add_node("Mul", part, part) for part in parts))


def encode(graph: GraphBuilder, flat: str, weights: dict[str, np.ndarray]) -> str:
    """The four convolutions, [n, 4 * 129] to [n, 128]."""
    positions, order = POSITIONS, np.r_[0:BINS:2, 1:BINS:2]
    for layer, stride in enumerate((1, 2, 2, 1)):
        weight = weights[f"encoder.conv_layers.{layer}.weight"]
        if layer == 0:
            weight = weight[:, order]
        outputs = convolve(graph, flat, positions, stride, weight, weights[f"encoder.conv_layers.{layer}.bias"])
        positions = len(outputs)
        flat = outputs[0] if positions == 1 else graph.add_node("Concat", *outputs, axis=1)
    return flat


def convolve(graph: GraphBuilder, flat: str, positions: int, stride: int, weight: np.ndarray, bias: np.ndarray) -> list[str]:
    """Kernel 3, padding 1, ReLU: [n, positions * channels] to one [n, out] per position of the result."""
    channels = weight.shape[1]
    reach = [(max(at - 1, 0), min(at + 2, positions)) for at in range(0, positions, stride)]
    taps = [(start - at + 1, end - at + 1) for (start, end), at in zip(reach, range(0, positions, stride), strict=True)]
    low, high = min(first for first, _ in taps), max(last for _, last in taps)
    stacked = graph.add_constant(np.concatenate([weight[:, :, tap].T for tap in range(low, high)]))
    shift = graph.add_constant(bias)
    outputs = []
    for (start, end), (first, last) in zip(reach, taps, strict=True):
        inputs = flat if (start, end) == (0, positions) else graph.add_slice(flat, start * channels, end * channels, 1)
        # A slice of a constant is folded when the graph is loaded; in the file each tap is stored once.
        kernel = (
            stacked
            if (first, last) == (low, high)
            else graph.add_slice(stacked, (first - low) * channels, (last - low) * channels, 0)
        )
        outputs.append(graph.add_node("Relu", graph.add_node("Gemm", inputs, kernel, shift)))
    return outputs


def decode(graph: GraphBuilder, encoded: str, weights: dict[str, np.ndarray]) -> None:
    """The LSTM over the block's frames with its state carried in and out, then one probability per frame."""
    gates = [graph.add_constant(weights[f"onnx::LSTM_{number}"]) for number in (209, 210, 211)]
    sequence = graph.add_reshape(encoded, -1, 1, 128)
    heard = graph.add_node("LSTM", sequence, *gates, "", "h", "c", outputs=("heard", "hn", "cn"), hidden_size=128)
    active = graph.add_node("Relu", graph.add_reshape(heard, -1, 128))
    weight, bias = weights["decoder.conv1d.weight"].reshape(128, 1), weights["decoder.conv1d.bias"]
    score = graph.add_node("Gemm", active, graph.add_constant(weight), graph.add_constant(bias))
    graph.add_reshape(graph.add_node("Sigmoid", score), -1, outputs=("speech_probs",))


if __name__ == "__main__":
    main()
