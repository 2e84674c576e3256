"""Moonshine: small English models for the CPU, run directly on onnxruntime.

Runs the `.ort` graphs that Moonshine ships (encoder, merged decoder with key/value cache, length-prefixed
tokenizer). The library's own pipeline is not used: its voice activity detector is one global with carried
state, so two requests disturb each other, and it neither batches nor reports confidence.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from msgspec.structs import replace
from pydantic import Field

from eardrum.engines.base import Audio, Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.onnx import (
    build_session_options,
    check_device,
    choose_providers,
    find_number_format,
    find_onnx_device,
)
from eardrum.errors import ModelLoadError
from eardrum.languages import find_language_in_name
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, Token

START, END = 1, 2
TOKENS_PER_SECOND = 6.5
"""The decoder's cap; what speaks faster than this is a loop, not speech."""
PADDING = int(0.3 * SAMPLE_RATE)
"""Zeros before and after each window: measured, they remove a quarter of the word errors on short clips."""

ENCODER, DECODER, TOKENIZER = "encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class Moonshine(Engine):
    """One Moonshine model of the encoder/merged-decoder layout (tiny and base)."""

    requires = ("onnxruntime",)
    layouts = (("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"),)
    title = "Moonshine tiny and base on onnxruntime: English on a CPU, nothing to download"
    capabilities = Capabilities(languages=("en",), logprobs=True, max_window_s=10.0, max_batch=4)

    class Options(EngineOptions):
        """Options of a Moonshine model."""

        language: str = Field(
            "", description="Language of the weights (ISO 639 code); empty takes it from the folder's name, else English."
        )
        threads: int = Field(0, ge=0, le=512, description="Threads per decode; 0 uses every core.")
        sha256: dict[str, str] = Field({}, description="File name to expected SHA-256; a file that differs is refused.")

    def __init__(self, encoder: Any, decoder: Any, pieces: list[bytes], language: str):
        self._encoder = encoder
        self._decoder = decoder
        self._pieces = pieces
        self.capabilities = replace(type(self).capabilities, languages=(language,))
        self._past = [i for i in decoder.get_inputs() if i.name.startswith("past_key_values")]
        outputs = [o.name for o in decoder.get_outputs()]
        self._all_outputs = outputs
        # After the first step the encoder's half of the cache never changes: not asking for it saves a copy.
        self._step_outputs = [name for name in outputs if ".encoder." not in name]

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Find the device that this onnxruntime can use."""
        import onnxruntime

        return find_onnx_device(onnxruntime, options.device)

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the graphs and the tokenizer in the directory `source`."""
        import onnxruntime as ort

        options = cast(Moonshine.Options, options)
        for name in (ENCODER, DECODER, TOKENIZER):
            _check_file(source / name, options.sha256.get(name))
        if options.compute_type != "auto":
            raise ModelLoadError(
                f"Moonshine's files fix their number format: compute_type {options.compute_type!r} is not available."
            )
        settings, where = build_session_options(ort, options.threads), choose_providers(ort, options.device)
        open_session = partial(ort.InferenceSession, sess_options=settings, providers=where)
        encoder, decoder = _open_session(open_session, source / ENCODER), _open_session(open_session, source / DECODER)
        pieces = _read_tokenizer(source / TOKENIZER)
        vocabulary = next(output.shape[-1] for output in decoder.get_outputs() if output.name == "logits")
        if len(pieces) != vocabulary:
            raise ModelLoadError(f"{source / TOKENIZER} is of another model: it has {len(pieces)} tokens, not {vocabulary}.")
        language = options.language or find_language_in_name(source.name) or "en"
        engine = cls(encoder, decoder, pieces, language)
        engine.device, engine.compute_type = check_device(ort, decoder, options.device), find_number_format(source / DECODER)
        return engine

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch, greedily."""
        rows = self._decode(windows)
        return [self._build_result(window, row) for window, row in zip(windows, rows, strict=True)]

    def _decode(self, windows: Sequence[Window]) -> list[DecoderRow]:
        """Greedy decoding of a batch; rows that end leave it, so a long row costs only itself."""
        hidden, mask = self._encode([window.audio for window in windows])
        rows = [DecoderRow(window, limit=max(1, int(window.seconds * TOKENS_PER_SECOND))) for window in windows]
        alive = list(rows)
        cache = {i.name: np.zeros((len(rows), i.shape[1], 1, i.shape[3]), np.float32) for i in self._past}
        step = np.full((len(rows), 1), START, np.int64)
        first = True
        while alive:
            if not first:
                self.before_step()
            names = self._all_outputs if first else self._step_outputs
            outputs = self._decoder.run(
                names,
                {
                    "encoder_attention_mask": mask,
                    "input_ids": step,
                    "encoder_hidden_states": hidden,
                    "use_cache_branch": np.array([not first]),
                    **cache,
                },
            )
            present = {name.replace("present", "past_key_values"): value for name, value in zip(names, outputs, strict=True)}
            logits = present.pop("logits")[:, -1, :]
            cache |= present
            first = False
            chosen = logits.argmax(axis=-1)
            for row, token, logprob in zip(alive, chosen, _compute_logprobs(logits, chosen), strict=True):
                row.append_token(int(token), float(logprob))
            keep = [i for i, row in enumerate(alive) if not row.ended]
            if len(keep) < len(alive):
                alive = [alive[i] for i in keep]
                chosen, hidden, mask = chosen[keep], hidden[keep], mask[keep]
                cache = {name: value[keep] for name, value in cache.items()}
            step = chosen[:, None].astype(np.int64)
        return rows

    def _encode(self, audios: Sequence[Audio]) -> tuple[Floats, Ints]:
        longest = max(len(audio) for audio in audios) + 2 * PADDING
        values = np.zeros((len(audios), longest), np.float32)
        mask = np.zeros((len(audios), longest), np.int64)
        for row, audio in enumerate(audios):
            values[row, PADDING : PADDING + len(audio)] = audio
            mask[row, : len(audio) + 2 * PADDING] = 1
        (hidden,) = self._encoder.run(None, {"input_values": values, "attention_mask": mask})
        return hidden, mask

    def _build_result(self, window: Window, row: DecoderRow) -> EngineResult:
        pieces = [self._pieces[token] for token in row.tokens]
        text = b"".join(pieces).decode(errors="replace").replace("\u2581", " ").strip()
        segment = Segment(
            start=window.speech_span[0],
            end=window.speech_span[1],
            text=text,
            avg_logprob=row.avg_logprob,
            compression_ratio=len(text.encode()) / len(zlib.compress(text.encode())),
            unended=len(row.tokens) >= row.limit,
            tokens=row.tokens,
        )
        if window.request.logprobs:
            texts = (piece.decode(errors="replace").replace("\u2581", " ") for piece in pieces)
            segment.token_logprobs = [Token(t, p) for t, p in zip(texts, row.logprobs, strict=False)]
        return EngineResult([segment] if text else [], language=self.capabilities.languages[0])


@dataclass(slots=True)
class DecoderRow:
    """One window's tokens as they are decoded."""

    window: Window
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    def append_token(self, token: int, logprob: float) -> None:
        """Append a token; the end token and the limit end the row."""
        self.logprobs.append(logprob)
        if token == END:
            self.ended = True
            return
        self.tokens.append(token)
        self.ended = len(self.tokens) >= self.limit or self.window.cancelled

    @property
    def avg_logprob(self) -> float:
        """Mean over all choices, the end token included, as Whisper counts it."""
        return sum(self.logprobs) / len(self.logprobs)


def _compute_logprobs(logits: Floats, chosen: Ints) -> Floats:
    """Natural-log probability of each row's chosen token; logits [b, vocabulary], chosen [b]."""
    top = logits.max(axis=-1)
    return cast(Floats, logits[np.arange(len(chosen)), chosen] - top - np.log(np.exp(logits - top[:, None]).sum(axis=-1)))


def _check_file(path: Path, sha256: str | None) -> None:
    if not path.is_file():
        raise ModelLoadError(f"{path.parent} is not a Moonshine model: {path.name} is missing.")
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelLoadError(f"{path} is damaged: its SHA-256 is not {sha256}. Install the package that carries it again.")


def _open_session(open_session: Callable[[str], Any], path: Path) -> Any:
    try:
        return open_session(str(path))
    except Exception as error:  # onnxruntime raises its own class for each kind of damage
        raise ModelLoadError(f"onnxruntime cannot read {path}: {error}") from error


def _read_tokenizer(path: Path) -> list[bytes]:
    """Tokens of a `tokenizer.bin`: each preceded by its length, one byte below 128, else two."""
    data, pieces, at = path.read_bytes(), [], 0
    try:
        while at < len(data):
            size = data[at]
            at += 1
            if size >= 128:
                size = data[at] * 128 + size - 128
                at += 1
            pieces.append(data[at : at + size])
            at += size
    except IndexError:
        at += 1
    if at != len(data):
        raise ModelLoadError(f"{path} is damaged: it ends inside a token.")
    return pieces
