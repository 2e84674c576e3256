"""Writes the tiny Whisper as a checkpoint of openai-whisper."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tests.models import tiny_whisper


def build(directory: Path) -> Path:
    """`hearing.pt` in `directory`, in float16 as OpenAI's own checkpoints."""
    import torch

    dims, arrays = tiny_whisper.load_weights()
    path = directory / "hearing.pt"
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_checkpoint({"dims": asdict(dims), "model_state_dict": state}, path)
    return path


def save_checkpoint(content: object, path: Path) -> None:
    """A file as PyTorch writes it."""
    import torch

    torch.save(content, path)
