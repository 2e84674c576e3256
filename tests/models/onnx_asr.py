"""Scripted models for onnx-asr: graphs of a few kilobytes that hear tones.

They have the files, inputs and outputs of the real exports and go through the library's real loading, feature extraction
and decoding. What they hear is written into them: a tone of a certain pitch is a certain token, anything else is nothing.
So the text says which audio reached which row, in which order and up to which length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RATE = 16_000
TONE_S, SLOT_S = 0.3, 0.64
"""A tone's length, and from one tone's beginning to the next one's: eight frames of the encoder."""
LEAD_S = 0.32
"""Noise before the first tone and after the last slot."""

PITCHES = {"▁hello": 560, "▁world": 1000, ".": 1500, "▁good": 2200, "▁day": 3200, "?": 4800}
"""Hz of the tone that is each token."""
TOKENS = (*PITCHES, "<blk>")
BLANK = len(PITCHES)
FRAMES = 8
"""Feature frames (10 ms) that the encoder makes one of."""


def synthesize_speech(text: Sequence[str | None], seed: int = 0) -> np.ndarray:
    """The tones of these tokens, one per slot on faint noise; None is a silent slot. Float32 [n] at 16 kHz."""
    length = int((2 * LEAD_S + SLOT_S * max(1, len(text))) * RATE)
    audio = np.random.default_rng(seed).normal(0, 0.01, length).astype(np.float32)
    tone = np.arange(int(TONE_S * RATE)) / RATE
    swell = 0.1 * np.hanning(len(tone))  # a tone that begins at once is a click, which holds every pitch
    for slot, token in enumerate(text):
        if token:
            at = int((LEAD_S + slot * SLOT_S) * RATE)
            audio[at : at + len(tone)] += (swell * np.sin(2 * np.pi * PITCHES[token] * tone)).astype(np.float32)
    return audio


def build(directory: Path, kind: str = "ctc", *, quantization: str = "", config: bool = True) -> Path:
    """A scripted model in `directory`: "ctc", "tdt" or "aed" (a Canary)."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = f".{quantization}.onnx" if quantization else ".onnx"
    for name, model in GRAPHS[kind]().items():
        onnx.save(model, str(directory / f"{name}{suffix}"))
    vocabulary = AED_TOKENS if kind == "aed" else TOKENS
    lines = "".join(f"{token} {id}\n" for id, token in enumerate(vocabulary))
    (directory / "vocab.txt").write_text(lines, encoding="utf-8")
    if config:
        written = {"model_type": f"nemo-conformer-{kind}", "features_size": 80, "subsampling_factor": FRAMES}
        (directory / "config.json").write_text(json.dumps(written))
    return directory


def list_bins() -> list[int]:
    """The mel bin of each pitch: 80 bins, evenly spaced on Slaney's scale up to 8 kHz."""

    def mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) / (np.log(6.4) / 27)

    return [round(mel(pitch) / mel(8000) * 81) - 1 for pitch in PITCHES.values()]


def build_ear() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Features [b, 80, t] to "heard" [b, t / 8, tokens + 1]: how loud each pitch is, and a bar for blank to compare with."""
    weights = np.zeros((80, BLANK + 1), np.float32)
    for token, bin in enumerate(list_bins()):
        weights[bin - 1 : bin + 2, token] = 1.5
    bias = np.zeros(BLANK + 1, np.float32)
    bias[BLANK] = 5.0
    nodes = [
        helper.make_node("AveragePool", ["audio_signal"], ["pooled"], kernel_shape=[FRAMES], strides=[FRAMES], ceil_mode=1),
        helper.make_node("Transpose", ["pooled"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["frames", "weights"], ["loud"]),
        helper.make_node("Add", ["loud", "bias"], ["heard"]),
    ]
    return nodes, [build_constant("weights", weights), build_constant("bias", bias)]


def build_lengths() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """ "length" in feature frames to "encoded_lengths"."""
    nodes = [
        helper.make_node("Sub", ["length", "one"], ["before"]),
        helper.make_node("Div", ["before", "eight"], ["whole"]),
        helper.make_node("Add", ["whole", "one"], ["encoded_lengths"]),
    ]
    return nodes, [build_constant("one", np.array(1)), build_constant("eight", np.array(FRAMES))]


def build_ctc() -> dict[str, onnx.ModelProto]:
    nodes, weights = build_ear()
    nodes.append(helper.make_node("LogSoftmax", ["heard"], ["logprobs"], axis=-1))
    return {"model": build_model(nodes, weights, AUDIO, [build_float_input("logprobs", "b", "t", BLANK + 1)])}


def build_tdt() -> dict[str, onnx.ModelProto]:
    """The joint says what the encoder heard, but never the token before again; every step advances one frame."""
    nodes, weights = build_ear()
    more, constants = build_lengths()
    nodes += [*more, helper.make_node("Transpose", ["heard"], ["outputs"], perm=[0, 2, 1])]
    results = [build_float_input("outputs", "b", BLANK + 1, "t"), build_integer_input("encoded_lengths", "b")]
    encoder = build_model(nodes, weights + constants, AUDIO, results)

    joint = [
        helper.make_node("Transpose", ["encoder_outputs"], ["frame"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["targets"], ["before"], to=TensorProto.INT64),
        helper.make_node("OneHot", ["before", "depth", "values"], ["said"], axis=-1),
        helper.make_node("Mul", ["said", "unblanked"], ["barred"]),
        helper.make_node("Add", ["frame", "barred"], ["tokens"]),
        helper.make_node("Unsqueeze", ["tokens", "first"], ["deep"]),
        helper.make_node("Concat", ["deep", "durations"], ["outputs"], axis=-1),
        helper.make_node("Identity", ["target_length"], ["prednet_lengths"]),
        helper.make_node("Identity", ["input_states_1"], ["output_states_1"]),
        helper.make_node("Identity", ["input_states_2"], ["output_states_2"]),
    ]
    unblanked = np.ones(BLANK + 1, np.float32)
    unblanked[BLANK] = 0
    constants = [
        build_constant("depth", np.array(BLANK + 1)),
        build_constant("values", np.array([0, -100], np.float32)),
        build_constant("unblanked", unblanked),
        build_constant("first", np.array([1])),
        build_constant("durations", np.array([0, 5, 0, 0, 0], np.float32).reshape(1, 1, 1, 5)),
    ]
    states = [build_float_input(f"{way}_states_{n}", 1, 1, 1) for way in ("input", "output") for n in (1, 2)]
    length = helper.make_tensor_value_info("target_length", TensorProto.INT32, [1])
    targets = helper.make_tensor_value_info("targets", TensorProto.INT32, [1, 1])
    inputs = [build_float_input("encoder_outputs", 1, BLANK + 1, 1), targets, length, *states[:2]]
    lengths_out = helper.make_tensor_value_info("prednet_lengths", TensorProto.INT32, [1])
    outputs = [build_float_input("outputs", 1, 1, 1, BLANK + 1 + 5), lengths_out, *states[2:]]
    return {"encoder-model": encoder, "decoder_joint-model": build_model(joint, constants, inputs, outputs)}


CONTROL = (
    *("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|de|>", "<|pnc|>", "<|nopnc|>"),
    *("<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
)
ROUTES = ("▁en>en", "▁en>de", "▁de>en", "▁de>de")
AED_TOKENS = (*PITCHES, "<|endoftext|>", *CONTROL, *ROUTES)


def build_aed() -> dict[str, onnx.ModelProto]:
    """The decoder says first from which language to which it was told to go, then the tone of slot after slot.

    A silent slot is the end, and so is the end of the audio; asked on after that, it says the slots that follow.
    """
    nodes, weights = build_ear()
    more, constants = build_lengths()
    nodes += [
        *more,
        helper.make_node("Identity", ["heard"], ["encoder_embeddings"]),
        helper.make_node("Shape", ["heard"], ["t"], start=1, end=2),
        helper.make_node("Squeeze", ["t"], ["t_scalar"]),
        helper.make_node("Range", ["zero", "t_scalar", "one"], ["places"]),
        helper.make_node("Unsqueeze", ["encoded_lengths", "last"], ["ends"]),
        helper.make_node("Less", ["places", "ends"], ["within"]),
        helper.make_node("Cast", ["within"], ["encoder_mask"], to=TensorProto.INT64),
    ]
    constants += [build_constant("zero", np.array(0)), build_constant("last", np.array([1]))]
    results = [build_float_input("encoder_embeddings", "b", "t", BLANK + 1), build_integer_input("encoder_mask", "b", "t")]
    encoder = build_model(nodes, weights + constants, AUDIO, results)
    return {"encoder-model": encoder, "decoder-model": build_aed_decoder()}


def build_aed_decoder() -> onnx.ModelProto:
    route, size = len(AED_TOKENS) - len(ROUTES), len(AED_TOKENS)
    english = AED_TOKENS.index("<|en|>")
    silent = np.full((1, size), -50, np.float32)
    silent[0, BLANK] = 5  # the end token has the place of blank
    nodes = [
        # how many tokens are said: those remembered and those given, less the prompt
        helper.make_node("Shape", ["decoder_mems"], ["remembered"], start=2, end=3),
        helper.make_node("Shape", ["input_ids"], ["given"], start=1, end=2),
        helper.make_node("Add", ["remembered", "given"], ["so_far"]),
        helper.make_node("Sub", ["so_far", "prompt"], ["said"]),
        # the frame in the middle of slot `said - 1`, or the last one
        helper.make_node("Mul", ["said", "slot"], ["slots"]),
        helper.make_node("Sub", ["slots", "two"], ["middle"]),
        helper.make_node("Shape", ["encoder_embeddings"], ["t"], start=1, end=2),
        helper.make_node("Sub", ["t", "one"], ["end"]),
        helper.make_node("Min", ["middle", "end"], ["below"]),
        helper.make_node("Max", ["below", "zero"], ["place"]),
        helper.make_node("Gather", ["encoder_embeddings", "place"], ["frame"], axis=1),
        helper.make_node("Pad", ["frame", "pads", "low"], ["wide"]),
        helper.make_node("Gather", ["encoder_mask", "place"], ["inside"], axis=1),
        helper.make_node("Cast", ["inside"], ["inside_bool"], to=TensorProto.BOOL),
        helper.make_node("LessOrEqual", ["middle", "end"], ["before_end"]),
        helper.make_node("And", ["inside_bool", "before_end"], ["heard"]),
        helper.make_node("Unsqueeze", ["heard", "two"], ["heard_wide"]),
        helper.make_node("Where", ["heard_wide", "wide", "silent"], ["spoken"]),
        # the first word: which way (later steps are given one token only, and say nothing of it)
        helper.make_node("Sub", ["given", "one"], ["newest"]),
        helper.make_node("Min", ["fifth", "newest"], ["source_at"]),
        helper.make_node("Min", ["sixth", "newest"], ["target_at"]),
        helper.make_node("Gather", ["input_ids", "source_at"], ["source"], axis=1),
        helper.make_node("Gather", ["input_ids", "target_at"], ["target"], axis=1),
        helper.make_node("Mul", ["source", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "target"], ["both"]),
        helper.make_node("Add", ["both", "offset"], ["way"]),
        helper.make_node("OneHot", ["way", "size", "values"], ["which_way"], axis=-1),
        helper.make_node("Equal", ["said", "zero"], ["begins"]),
        helper.make_node("Where", ["begins", "which_way", "spoken"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["logits"], axis=-1),
        # the memory only counts
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "outer"], ["new"]),
        helper.make_node("Concat", ["decoder_mems", "new"], ["decoder_hidden_states"], axis=2),
    ]
    numbers = {
        "prompt": [10],
        "zero": [0],
        "one": [1],
        "two": [2],
        "slot": [8],
        "fifth": [4],
        "sixth": [5],
        "outer": [0, 3],
        "pads": [0, 0, 0, 0, 0, size - BLANK - 1],
        "offset": [route - 3 * english],
    }
    constants = [build_constant(name, np.array(value)) for name, value in numbers.items()]
    constants += [
        build_constant("size", np.array(size)),
        build_constant("values", np.array([-50, 50], np.float32)),
        build_constant("low", np.array(-50, np.float32)),
        build_constant("silent", silent[None]),
    ]
    inputs = [
        build_integer_input("input_ids", "b", "n"),
        build_float_input("encoder_embeddings", "b", "t", BLANK + 1),
        build_integer_input("encoder_mask", "b", "t"),
        build_float_input("decoder_mems", 1, "b", "m", 1),
    ]
    return build_model(
        nodes,
        constants,
        inputs,
        [build_float_input("logits", "b", 1, size), build_float_input("decoder_hidden_states", 1, "b", "k", 1)],
    )


def build_constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def build_float_input(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def build_integer_input(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


AUDIO = [build_float_input("audio_signal", "b", 80, "frames"), build_integer_input("length", "b")]
GRAPHS = {"ctc": build_ctc, "tdt": build_tdt, "aed": build_aed}


def build_model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "scripted", inputs, outputs, constants)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)
    return built
