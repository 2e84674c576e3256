"""The folder of a Whisper in CTranslate2's format: what is in it, read and checked before the library sees it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eardrum.engines.whisper.rules import Special
from eardrum.errors import ModelLoadError

WEIGHTS, CONFIG, TOKENIZER, VOCABULARY = "model.bin", "config.json", "tokenizer.json", "vocabulary"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder whose small files were read."""

    path: Path
    config: dict[str, Any]
    tokenizer: Any
    special: Special
    files: dict[str, bytes] | None
    """What the library is to read in place of the folder, where that must be put right; None if it need not be."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `config.json`, the vocabulary and the tokenizer.

        Raises:
            ModelLoadError: a file is missing, damaged or of another model; the message says what to do.
        """
        config, vocabulary = _read_config(path), _read_vocabulary(path)
        tokenizer, special = _read_tokenizer(path, vocabulary)
        files = None
        if not config.get("lang_ids"):  # converters left them out for a while; without them no language is detected
            config["lang_ids"] = list(special.languages.values())
            files = {file.name: file.read_bytes() for file in (path / WEIGHTS, *path.glob(f"{VOCABULARY}.*"))}
            files[CONFIG] = json.dumps(config).encode()
        return cls(path, config, tokenizer, special, files)


def _needed(source: Path, name: str, advice: str) -> Path:
    if not source.is_dir():
        raise ModelLoadError(f"{source} is not a folder: a faster-whisper model is one with {WEIGHTS}, {CONFIG} and {TOKENIZER}.")
    path = source / name
    if not path.is_file():
        raise ModelLoadError(f"{source} is not a faster-whisper model: {name} is missing. {advice}")
    if not os.access(path, os.R_OK):
        raise ModelLoadError(f"{path} cannot be read: give the user that runs the server the right to.")
    return path


def _read_json(path: Path, kind: type) -> Any:
    try:
        if isinstance(data := json.loads(path.read_bytes()), kind):
            return data
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error
    raise ModelLoadError(f"{path} is not of a CTranslate2 model. Fetch the model again.")


def _read_config(source: Path) -> dict[str, Any]:
    _needed(source, WEIGHTS, "Fetch the model again.")
    config: dict[str, Any] = _read_json(_needed(source, CONFIG, "Fetch the model again."), dict)
    return config


def _read_vocabulary(source: Path) -> list[str]:
    text = source / f"{VOCABULARY}.txt"  # what older converters wrote
    if text.is_file():
        return text.read_text(encoding="utf-8").split("\n")
    vocabulary: list[str] = _read_json(_needed(source, f"{VOCABULARY}.json", "Fetch the model again."), list)
    return vocabulary


def _read_tokenizer(source: Path, vocabulary: list[str]) -> tuple[Any, Special]:
    from tokenizers import Tokenizer

    path = _needed(source, TOKENIZER, f"Copy it there from the model that was converted (converters: --copy_files {TOKENIZER}).")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a plain Exception
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error
    try:
        special = Special.of(tokenizer.token_to_id)
    except LookupError as error:
        raise ModelLoadError(f"{path} is not Whisper's: it has no token {error}. Fetch the model again.") from error
    if vocabulary[special.start : special.start + 1] != ["<|startoftranscript|>"]:
        raise ModelLoadError(f"{path} and {source / VOCABULARY}.* are of different models. Fetch the model again.")
    return tokenizer, special
