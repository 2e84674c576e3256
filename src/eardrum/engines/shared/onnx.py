"""Sets up onnxruntime, recognises ONNX models by their files, and turns their tokens into words and sentences.

Callers pass the library in, because only a loading model imports it. Words get times and probabilities from tokens whose start
is all that is known; sentences end at punctuation and in pauses.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from ctypes import CDLL, RTLD_GLOBAL
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from eardrum.engines import cuda
from eardrum.engines.base import Device
from eardrum.errors import ModelLoadError
from eardrum.transcription import Token, Word

LIBRARY = "onnxruntime"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
INTEGER_OPERATORS = (b"MatMulInteger", b"DynamicQuantizeLinear", b"QLinearMatMul", b"DynamicQuantizeMatMul")


def build_session_options(onnxruntime: Any, threads: int) -> Any:
    """Settings of a session that decodes with `threads` threads; 0 uses every core."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    # Spinning threads would burn a core between windows for a gain that decoding cannot see.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def find_onnx_device(onnxruntime: Any, device: str) -> Device:
    """Find the device that this build of onnxruntime offers, and load the CUDA libraries of pip for it.

    Only the first session shows whether it works. A build with CUDA on a machine without a GPU, as of an image, uses the CPU.

    Raises:
        DeviceError: `device` is cuda, but this onnxruntime has no CUDA.
    """
    if device == "cpu":
        return Device("cpu")
    has_cuda = CUDA in onnxruntime.get_available_providers()
    if has_cuda and device == "auto" and not cuda.is_gpu_present():
        return Device("cpu")
    if has_cuda:
        with redirect_stdout(sys.stderr):  # it prints which libraries it does not find
            onnxruntime.preload_dlls()
        return Device("cuda")
    error = cuda.build_device_error(LIBRARY, "it is built without CUDA", "install onnxruntime-gpu in its place")
    if device == "cuda":
        raise error
    return Device("cpu", error.message if cuda.is_gpu_present() else "")


def choose_providers(onnxruntime: Any, device: str) -> list[str]:
    """Choose the providers: a GPU if the options require one, or by default if this build of onnxruntime has CUDA.

    Raises:
        DeviceError: `device` is cuda, but this onnxruntime has no CUDA.
    """
    return [CUDA, CPU] if find_onnx_device(onnxruntime, device).name == "cuda" else [CPU]


def check_device(onnxruntime: Any, session: Any, requested: str) -> str:
    """The device on which a session computes.

    Raises:
        DeviceError: it is not the required one. If CUDA fails, onnxruntime silently uses the CPU.
    """
    found = "cuda" if CUDA in session.get_providers() else "cpu"
    if requested == "cuda" and found == "cpu":
        raise cuda.build_device_error(LIBRARY, _find_cuda_error(onnxruntime))
    return found


def _find_cuda_error(onnxruntime: Any) -> str:
    """Why CUDA does not work: what the system has against loading the library that brings it."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=RTLD_GLOBAL)
        CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return "it gives no reason"


def find_number_format(path: Path) -> str:
    """Find a graph's number format by its operators."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as graph:
        return "int8" if any(graph.find(operator) >= 0 for operator in INTEGER_OPERATORS) else "float32"


VERSIONED = ("config.json",)
"""GigaAM 3 uses other features than 2. This file tells onnx-asr the version; without it, onnx-asr assumes 2."""


class OnnxModelKind(Struct, frozen=True):
    """One architecture as onnx-asr names it: its graphs (patterns without `.onnx`), its other files, what it can do."""

    name: str
    graphs: tuple[str, ...]
    others: tuple[str, ...]
    can: dict[str, Any] = field(default_factory=dict)
    """Capabilities in which it differs from the engine's."""

    def find_missing(self, directory: Path) -> list[str]:
        """Patterns of the files it lacks here, in any quantization."""
        graphs = [f"{graph}.onnx" for graph in self.graphs if not _list_graph_quantizations(directory, graph)]
        return graphs + [name for name in self.others if not any(directory.glob(name))]

    def list_quantizations(self, directory: Path) -> list[str]:
        """Those in which all graphs are here; "" is the full precision, and comes first."""
        return sorted(set.intersection(*(_list_graph_quantizations(directory, graph) for graph in self.graphs)))


_RU = {"languages": ("ru",)}
_WHISPER = {
    "words": False,
    "logprobs": False,
    "detects_language": True,
    "max_window_s": 30.0,
    "fixed_window": True,
}
_TOKENS = ("vocab.json", "added_tokens.json")


def _build_gigaam_kind(name: str, version: str, prefix: str, *others: str) -> OnnxModelKind:
    parts = ("_encoder", "_decoder", "_joint") if prefix.endswith("rnnt") else ("",)
    graphs = tuple(f"{version}_{prefix}{part}" for part in parts)
    return OnnxModelKind(name, graphs, others or (f"{version}_vocab.txt",), {} if version.startswith("multi") else _RU)


KINDS = (
    OnnxModelKind("nemo-conformer-tdt", ("encoder-model", "decoder_joint-model"), ("vocab.txt",)),
    OnnxModelKind("nemo-conformer-rnnt", ("encoder-model", "decoder_joint-model"), ("vocab.txt",)),
    OnnxModelKind(
        "nemo-conformer-aed",
        ("encoder-model", "decoder-model"),
        ("vocab.txt",),
        {"words": False, "logprobs": False, "translate": True},
    ),
    OnnxModelKind("nemo-conformer-ctc", ("model",), ("vocab.txt",)),
    _build_gigaam_kind("gigaam-v3-e2e-rnnt", "v3", "e2e_rnnt", "v3_e2e_rnnt_vocab.txt", *VERSIONED),
    _build_gigaam_kind("gigaam-v3-e2e-ctc", "v3", "e2e_ctc", "v3_e2e_ctc_vocab.txt", *VERSIONED),
    _build_gigaam_kind("gigaam-v3-rnnt", "v3", "rnnt", "v3_vocab.txt", *VERSIONED),
    _build_gigaam_kind("gigaam-v3-ctc", "v3", "ctc", "v3_vocab.txt", *VERSIONED),
    _build_gigaam_kind("gigaam-v2-rnnt", "v2", "rnnt"),
    _build_gigaam_kind("gigaam-v2-ctc", "v2", "ctc"),
    _build_gigaam_kind("gigaam-multilingual-ctc", "multilingual*", "ctc", "multilingual_vocab.txt", *VERSIONED),
    OnnxModelKind("vosk", ("*/encoder", "*/decoder", "*/joiner"), ("*/tokens.txt",)),
    OnnxModelKind("whisper", ("**/encoder_model", "**/decoder_model_merged"), _TOKENS, _WHISPER),
    OnnxModelKind("whisper-ort", ("whisper-*_beamsearch",), _TOKENS, _WHISPER),
    OnnxModelKind("t-one-ctc", ("model",), ("config.json",), _RU),
)
"""In order of preference where a directory holds several."""

TWINS = ("nemo-conformer-tdt", "nemo-conformer-rnnt")
"""Kinds with the same files, which only the config distinguishes."""


def recognize_kind(directory: Path, model_type: str = "") -> OnnxModelKind:
    """The kind of model in `directory`: the one requested for, else the one its config.json names, else by its files.

    Raises:
        ModelLoadError: there is none or it is incomplete (the message names the files), or two kinds fit alike.
    """
    if not directory.is_dir():
        raise ModelLoadError(f"There is no directory {directory}: source must be a directory with the files of a model.")
    known = {kind.name: kind for kind in KINDS}
    if model_type:
        if model_type not in known:
            raise ModelLoadError(f"onnx-asr has no model_type {model_type!r}, only {', '.join(known)}.")
        if known[model_type].find_missing(directory):
            raise _build_incomplete_error(directory, [known[model_type]])
        return known[model_type]
    config = _read_config(directory)
    named = known.get(str(config.get("model_type")))
    fitting = [kind for kind in KINDS if not kind.find_missing(directory)]
    if "decoder_params" not in config:
        fitting = [kind for kind in fitting if kind.name != "t-one-ctc"]
    if named in fitting:
        return named
    if not fitting:
        raise _build_incomplete_error(directory, [named] if named else _find_likeliest_kinds(directory))
    if fitting[0].name in TWINS:
        raise ModelLoadError(
            f"The files in {directory} fit {' and '.join(TWINS)} alike: set the model's option "
            "model_type, or add the config.json that belongs to them."
        )
    return fitting[0]


def choose_quantization(kind: OnnxModelKind, directory: Path, requested: str) -> str:
    """The quantization to load, as onnx-asr spells it: "" is the full precision.

    Raises:
        ModelLoadError: it is not there; the message lists those that are.
    """
    have = kind.list_quantizations(directory)
    if not have:
        raise ModelLoadError(f"The graphs in {directory} are of different quantizations: no set is complete.")
    if requested == "auto":
        return have[0]
    suffix = "" if requested == "none" else requested
    if suffix not in have:
        names = ", ".join(name or "none" for name in have)
        raise ModelLoadError(f"{directory} has no quantization {requested!r}, only {names}: set the option quantization to one.")
    return suffix


def _build_incomplete_error(directory: Path, kinds: list[OnnxModelKind]) -> ModelLoadError:
    lacks = "; ".join(f"{', '.join(kind.find_missing(directory))} is missing for a {kind.name}" for kind in kinds)
    return ModelLoadError(f"{directory} does not hold a whole model: {lacks}.")


def _find_likeliest_kinds(directory: Path) -> list[OnnxModelKind]:
    """The kinds of which the least is missing, among those of which there is a graph."""
    candidates = [kind for kind in KINDS if any(_list_graph_quantizations(directory, graph) for graph in kind.graphs)] or list(
        KINDS
    )
    least = min(len(kind.find_missing(directory)) for kind in candidates)
    return [kind for kind in candidates if len(kind.find_missing(directory)) == least]


def _read_config(directory: Path) -> dict[str, Any]:
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


def _list_graph_quantizations(directory: Path, graph: str) -> set[str]:
    """The quantizations of a graph in its folder, by its file names: "" for `NAME.onnx`, "int8" for `NAME.int8.onnx` or
    `NAME_int8.onnx`."""
    stem = re.escape(graph.rpartition("/")[2]).replace(r"\*", ".*").replace(r"\?", ".")
    found = (re.fullmatch(rf"{stem}(?:[._](\w+))?\.(?:onnx|ort)", path.name) for path in directory.glob(f"{graph}*"))
    return {match[1] or "" for match in found if match}


TOKEN_S = 0.4
"""A token lasts no longer than this; what follows is a pause."""

CLOSING = frozenset(".,;:?!…%)]}»”\u2019")
"""Marks that belong to the word before them, also when the vocabulary puts a space in between."""

Piece = tuple[str, float, float]
"""A token's text, its beginning in seconds, its natural-log probability."""


class TokenWord(Struct, frozen=True):
    """A word with the tokens it is made of."""

    word: Word
    tokens: list[Token]


def join_tokens(pieces: Iterable[Piece], seconds: float) -> list[TokenWord]:
    """The words in a stretch of `seconds`, from its tokens in order; a token that begins with a space begins a word."""
    words: list[list[Piece]] = []
    apart = True
    for token, time, logprob in pieces:
        apart = apart or token.startswith(" ")
        if not words or (apart and not _is_closing_mark(token)):
            words.append([])
        words[-1].append((token, min(time, seconds), logprob))
        apart = apart and not token.strip()
    words = [word for word in words if any(token.strip() for token, _, _ in word)]
    until = [*(_find_start(word) for word in words[1:]), seconds]
    return [_build_word(word, end) for word, end in zip(words, until, strict=False)]


def average_logprob(logprobs: Sequence[float] | None) -> float:
    """The mean log probability; 0.0 without any, and for scores that are no log probabilities, as some exports have."""
    return sum(logprobs) / len(logprobs) if logprobs and max(logprobs) < 0.01 else 0.0


def _is_closing_mark(token: str) -> bool:
    return CLOSING.issuperset(token.strip())


def _find_start(pieces: Sequence[Piece]) -> float:
    return next(time for token, time, _ in pieces if token.strip())


def _build_word(pieces: Sequence[Piece], until: float) -> TokenWord:
    """A word that is over by `until`, when the next one begins."""
    start = _find_start(pieces)
    # A full stop may be emitted only after the pause it stands for.
    last = max((time for token, time, _ in pieces if not _is_closing_mark(token)), default=start)
    word = Word(
        word="".join(token.strip() for token, _, _ in pieces),
        start=start,
        end=max(start, min(last + TOKEN_S, until)),
        probability=math.exp(average_logprob([logprob for _, _, logprob in pieces])),
    )
    return TokenWord(word, [Token(token, logprob) for token, _, logprob in pieces])


PAUSE_S = 0.6
"""Silence between two words that ends a segment, also in mid-sentence."""

SENTENCE_END = re.compile(r".*[.?!…]+[\"'”\u2019»)\]]*", re.DOTALL)
ABBREVIATION = re.compile(r"[\"'“\u2018«(\[]*[^\W\d_]{1,3}\.|.*\w\.\w+\.", re.DOTALL)
"""Shapes a full stop has inside sentences: `Mr.`, `J.`, `p.m.`; such a word ends a sentence only before a pause."""


def split_sentences_by_words(words: Sequence[Word]) -> Iterator[slice]:
    """Slices of `words`, in order and together all of them, each a separate segment."""
    begin = 0
    for at, (word, following) in enumerate(pairwise(words), start=1):
        paused = following.start - word.end >= PAUSE_S
        if paused or (_ends_sentence(word.word) and not following.word[:1].islower()):
            yield slice(begin, at)
            begin = at
    if words:
        yield slice(begin, len(words))


def _ends_sentence(word: str) -> bool:
    return bool(SENTENCE_END.fullmatch(word)) and not ABBREVIATION.fullmatch(word)
