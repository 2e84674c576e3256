"""Models for tests: the tiny Whisper of `tests/data/hearing` in each engine's own format."""

from __future__ import annotations

import importlib
from pathlib import Path


def build(engine: str, directory: Path) -> Path:
    """Write the engine's test model into `directory`, which is made if need be; returns the model's source."""
    directory.mkdir(parents=True, exist_ok=True)
    return importlib.import_module(f"tests.models.{engine}").build(directory)
