"""Whispers to measure: written when needed, of true size, without weights from anywhere.

Those of random weights recite the same tokens whatever they hear, and cost what a Whisper of their size costs; a hundred
tokens are half a minute of speech. The tiny one that hears is for figures about texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.recordings import Samples, encode_mp3
from bench.runners import LoadOrder
from tests.models import faster_whisper, tiny_whisper

PLAIN: dict[str, Any] = {"device": "cpu", "temperatures": [0.0]}
"""Options under which nothing is left to chance, for a comparison with `bench.stock`."""

NAME = "whisper"
"""What the model is called in a server of `settings`."""


@contextmanager
def build_reciting(size: str, *, tokens: int = 100, quantization: str = "int8", **options: Any) -> Iterator[LoadOrder]:
    """A Whisper of random weights in a temporary folder, and how to load it.

    All of them encode 30 s: their text would always be in doubt after less, and be decoded twice.
    """
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        folder = faster_whisper.build_random(Path(temp) / "model", size, quantization, tokens)
        yield LoadOrder("faster_whisper", folder, PLAIN | {"compute_type": quantization, "shorten_context": False} | options)


@contextmanager
def build_hearing(quantization: str = "int8", **options: Any) -> Iterator[LoadOrder]:
    """The Whisper that hears, in a temporary folder, and how to load it."""
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        folder = faster_whisper.build(Path(temp) / "model", quantization)
        yield LoadOrder("faster_whisper", folder, PLAIN | {"compute_type": quantization} | options)


def build_settings(model: LoadOrder, **entry: Any) -> dict[str, Any]:
    """A server's settings with this one model, under `NAME`."""
    return {"models": {NAME: {"engine": model.engine, "source": str(model.source), "options": model.options} | entry}}


def load_utterances(language: str, seconds: float, *, first: int = 0) -> bytes:
    """What the hearing model understands, again and again for about `seconds`, with pauses of a second, as MP3."""
    clips = [clip for clip in tiny_whisper.load_clips() if clip.language == language]
    parts: list[Samples] = []
    pause = np.zeros(16_000, np.float32)
    number = first
    while not parts or sum(map(len, parts)) < seconds * 16_000:
        parts += [clips[number % len(clips)].samples, pause]
        number += 1
    return encode_mp3(np.concatenate(parts[:-1]))
