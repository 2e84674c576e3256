"""Which of onnx-asr's kinds of model a directory holds, by its files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eardrum.errors import ModelLoadError

VERSIONED = ("config.json",)
"""GigaAM 3 hears other features than 2; onnx-asr learns from this file which, and would take 2 without it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One architecture as onnx-asr names it: its graphs (patterns without `.onnx`), its other files, what it can do."""

    name: str
    graphs: tuple[str, ...]
    others: tuple[str, ...]
    can: dict[str, Any] = field(default_factory=dict)
    """Capabilities in which it differs from the engine's."""

    def missing(self, directory: Path) -> list[str]:
        """Patterns of the files it lacks here, in any quantization."""
        graphs = [f"{graph}.onnx" for graph in self.graphs if not _quantizations(directory, graph)]
        return graphs + [name for name in self.others if not any(directory.glob(name))]

    def quantizations(self, directory: Path) -> list[str]:
        """Those in which all graphs are here; "" is the full precision, and comes first."""
        return sorted(set.intersection(*(_quantizations(directory, graph) for graph in self.graphs)))


_RU = {"languages": ("ru",)}
_WHISPER = {
    "words": False,
    "logprobs": False,
    "detects_language": True,
    "max_window_s": 30.0,
    "fixed_window": True,
}
_TOKENS = ("vocab.json", "added_tokens.json")


def _gigaam(name: str, version: str, prefix: str, *others: str) -> Kind:
    parts = ("_encoder", "_decoder", "_joint") if prefix.endswith("rnnt") else ("",)
    graphs = tuple(f"{version}_{prefix}{part}" for part in parts)
    return Kind(name, graphs, others or (f"{version}_vocab.txt",), {} if version.startswith("multi") else _RU)


KINDS = (
    Kind("nemo-conformer-tdt", ("encoder-model", "decoder_joint-model"), ("vocab.txt",)),
    Kind("nemo-conformer-rnnt", ("encoder-model", "decoder_joint-model"), ("vocab.txt",)),
    Kind(
        "nemo-conformer-aed",
        ("encoder-model", "decoder-model"),
        ("vocab.txt",),
        {"words": False, "logprobs": False, "translate": True},
    ),
    Kind("nemo-conformer-ctc", ("model",), ("vocab.txt",)),
    _gigaam("gigaam-v3-e2e-rnnt", "v3", "e2e_rnnt", "v3_e2e_rnnt_vocab.txt", *VERSIONED),
    _gigaam("gigaam-v3-e2e-ctc", "v3", "e2e_ctc", "v3_e2e_ctc_vocab.txt", *VERSIONED),
    _gigaam("gigaam-v3-rnnt", "v3", "rnnt", "v3_vocab.txt", *VERSIONED),
    _gigaam("gigaam-v3-ctc", "v3", "ctc", "v3_vocab.txt", *VERSIONED),
    _gigaam("gigaam-v2-rnnt", "v2", "rnnt"),
    _gigaam("gigaam-v2-ctc", "v2", "ctc"),
    _gigaam("gigaam-multilingual-ctc", "multilingual*", "ctc", "multilingual_vocab.txt", *VERSIONED),
    Kind("vosk", ("*/encoder", "*/decoder", "*/joiner"), ("*/tokens.txt",)),
    Kind("whisper", ("**/encoder_model", "**/decoder_model_merged"), _TOKENS, _WHISPER),
    Kind("whisper-ort", ("whisper-*_beamsearch",), _TOKENS, _WHISPER),
    Kind("t-one-ctc", ("model",), ("config.json",), _RU),
)
"""In order of preference where a directory holds several."""

TWINS = ("nemo-conformer-tdt", "nemo-conformer-rnnt")
"""Kinds of the same files, told apart only by the config."""


def kind_of(directory: Path, model_type: str = "") -> Kind:
    """The kind of model in `directory`: the one asked for, else the one its config.json names, else by its files.

    Raises:
        ModelLoadError: there is none or it is incomplete (the message names the files), or two kinds fit alike.
    """
    if not directory.is_dir():
        raise ModelLoadError(f"There is no directory {directory}: source must be a directory with the files of a model.")
    known = {kind.name: kind for kind in KINDS}
    if model_type:
        if model_type not in known:
            raise ModelLoadError(f"onnx-asr has no model_type {model_type!r}, only {', '.join(known)}.")
        if known[model_type].missing(directory):
            raise _incomplete(directory, [known[model_type]])
        return known[model_type]
    config = _config(directory)
    named = known.get(str(config.get("model_type")))
    fitting = [kind for kind in KINDS if not kind.missing(directory)]
    if "decoder_params" not in config:
        fitting = [kind for kind in fitting if kind.name != "t-one-ctc"]
    if named in fitting:
        return named
    if not fitting:
        raise _incomplete(directory, [named] if named else _likeliest(directory))
    if fitting[0].name in TWINS:
        raise ModelLoadError(
            f"The files in {directory} are those of {' and '.join(TWINS)} alike: say which in the model's option "
            "model_type, or add the config.json that belongs to them."
        )
    return fitting[0]


def chosen_quantization(kind: Kind, directory: Path, wanted: str) -> str:
    """The quantization to load, as onnx-asr spells it: "" is the full precision.

    Raises:
        ModelLoadError: it is not there; the message lists those that are.
    """
    have = kind.quantizations(directory)
    if not have:
        raise ModelLoadError(f"The graphs in {directory} are of different quantizations: no set is complete.")
    if wanted == "auto":
        return have[0]
    suffix = "" if wanted == "none" else wanted
    if suffix not in have:
        names = ", ".join(name or "none" for name in have)
        raise ModelLoadError(f"{directory} has no quantization {wanted!r}, only {names}: set the option quantization to one.")
    return suffix


def _incomplete(directory: Path, kinds: list[Kind]) -> ModelLoadError:
    lacks = "; ".join(f"{', '.join(kind.missing(directory))} is missing for a {kind.name}" for kind in kinds)
    return ModelLoadError(f"{directory} does not hold a whole model: {lacks}.")


def _likeliest(directory: Path) -> list[Kind]:
    """The kinds of which the least is missing, among those of which there is a graph."""
    begun = [kind for kind in KINDS if any(_quantizations(directory, graph) for graph in kind.graphs)] or list(KINDS)
    least = min(len(kind.missing(directory)) for kind in begun)
    return [kind for kind in begun if len(kind.missing(directory)) == least]


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelLoadError(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} is damaged: it is not a JSON object.")
    return config


def _quantizations(directory: Path, graph: str) -> set[str]:
    """What stands between a graph's name and `.onnx`: "" or, after a dot or underscore, "int8"."""
    stem = re.escape(graph.rpartition("/")[2]).replace(r"\*", ".*").replace(r"\?", ".")
    found = (re.fullmatch(rf"{stem}(?:[._](\w+))?\.(?:onnx|ort)", path.name) for path in directory.glob(f"{graph}*"))
    return {match[1] or "" for match in found if match}
