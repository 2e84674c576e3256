"""Writes the tiny Whisper as a ggml file of whisper.cpp."""

from __future__ import annotations

from pathlib import Path

from tests.models import faster_whisper


def build(directory: Path) -> Path:
    """The folder `directory` with `ggml-hearing.bin`, in float16."""
    from bench.peers.ggml import write_ggml

    folder = faster_whisper.build(directory / "ctranslate2", quantization="float32")
    write_ggml(folder, directory / "ggml-hearing.bin")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return directory
