"""A model like Parakeet to measure: as many weights in as many layers as the one of 0.6 billion, in 8 bits, all of them random.

Its text is not made of them: it hears the tones of `tests/models/onnx_asr.py`, and the layers' result is multiplied by zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.models import onnx_asr

LAYERS, WIDTH, FEATURES = 24, 1024, 80

BLOCKS = (4, 1, 1, 1, 1, 1, 2, 1, 4, 1)
"""Columns of a layer's matrices, in widths: feed-forward, attention, convolution, feed-forward. What attention does between
frames is left out: in windows of half a minute it is little beside the rest."""


@contextmanager
def build_parakeet() -> Iterator[Path]:
    """The model in a temporary folder, in the layout of the exports that onnx-asr reads; 0.6 GB."""
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        folder = onnx_asr.build(Path(temp) / "parakeet", "tdt")
        encoder = onnx.load(str(folder / "encoder-model.onnx"))
        add_layers(encoder.graph)
        onnx.save(encoder, str(folder / "encoder-model.onnx"))
        yield folder


def add_layers(graph: onnx.GraphProto, layers: int = LAYERS, width: int = WIDTH) -> None:
    """Put the layers between the features and what the graph hears, which stays as it is."""
    dice = np.random.default_rng(3)
    loud = next(node for node in graph.node if node.output[0] == "loud")
    loud.output[0] = "loud_alone"
    added: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.float32(0), "nothing")]
    newest = "frames"
    widths = [FEATURES, width, *[block * width for _ in range(layers) for block in BLOCKS]]
    for number, (rows, columns) in enumerate(zip(widths, [*widths[1:], onnx_asr.BLANK + 1], strict=True)):
        name = f"big{number}"
        constants += [
            numpy_helper.from_array(dice.integers(-127, 128, (rows, columns), np.int8), f"{name}_weights"),
            numpy_helper.from_array(np.float32(1 / (73 * np.sqrt(rows))), f"{name}_step"),  # keeps the size of what goes through
        ]
        added += [
            helper.make_node("DynamicQuantizeLinear", [newest], [f"{name}_q", f"{name}_scale", f"{name}_zero"]),
            helper.make_node("MatMulInteger", [f"{name}_q", f"{name}_weights", f"{name}_zero"], [f"{name}_sum"]),
            helper.make_node("Cast", [f"{name}_sum"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_scale", f"{name}_step"], [f"{name}_factor"]),
            helper.make_node("Mul", [f"{name}_float", f"{name}_factor"], [f"{name}_scaled"]),
            helper.make_node("Relu", [f"{name}_scaled"], [f"{name}_out"]),
        ]
        newest = f"{name}_out"
    added += [
        helper.make_node("Mul", [newest, "nothing"], ["unheard"]),
        helper.make_node("Add", ["loud_alone", "unheard"], ["loud"]),
    ]
    at = list(graph.node).index(loud) + 1
    nodes = [*graph.node[:at], *added, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
