"""Reads the header of whisper.cpp's model files, and checks that they are complete: whisper.cpp itself accepts truncated files.

The layout is that of whisper.cpp's `convert-pt-to-ggml.py`: sizes, mel filters, tokens, then arrays, each behind its shape.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from eardrum.errors import ModelLoadError

MAGIC, GGUF_MAGIC = b"lmgg", b"GGUF"

TYPES = {
    0: ("float32", 4, 1),
    1: ("float16", 2, 1),
    2: ("q4_0", 18, 32),
    3: ("q4_1", 20, 32),
    6: ("q5_0", 22, 32),
    7: ("q5_1", 24, 32),
    8: ("q8_0", 34, 32),
    10: ("q2_k", 84, 256),
    11: ("q3_k", 110, 256),
    12: ("q4_k", 144, 256),
    13: ("q5_k", 176, 256),
    14: ("q6_k", 210, 256),
}
"""ggml's number formats: name, and the bytes of so many numbers."""

FORMATS = {0: 0, 1: 1, 2: 2, 3: 3, 7: 8, 8: 6, 9: 7, 10: 10, 11: 11, 12: 12, 13: 13, 14: 14}
"""A file's number for its format to the array's."""

MULTILINGUAL_TOKENS = 51865
"""Tokens of the models for many languages; those for English alone have fewer."""


class GgmlHeader(Struct, frozen=True):
    """Sizes of a Whisper, in the order of the file."""

    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int
    ftype: int

    @property
    def multilingual(self) -> bool:
        """Whether the model knows more languages than English."""
        return self.n_vocab >= MULTILINGUAL_TOKENS

    @property
    def compute_type(self) -> str:
        """Name of the number format; empty if unknown."""
        return TYPES[FORMATS[self.ftype % 1000]][0] if self.ftype % 1000 in FORMATS else ""  # thousands count versions


def find_ggml_file(source: Path) -> Path:
    """Return the model file: `source` itself, or the one in this folder.

    Raises:
        ModelLoadError: there is none, or there are several.
    """
    if source.is_file():
        return source
    files = [path for path in sorted(source.glob("*.bin")) if path.is_file() and _read_magic(path) == MAGIC]
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelLoadError(f"{source} holds {len(files)} ggml models: name one as the source, such as {files[0]}.")
    raise ModelLoadError(f"{source} holds no ggml model of whisper.cpp: there is no .bin file that begins as one.")


def read_ggml_header(path: Path) -> GgmlHeader:
    """Read the sizes, and check that every array of the file is complete.

    Raises:
        ModelLoadError: the file is of another kind, truncated or unreadable; the message names it.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic == GGUF_MAGIC:
                raise ModelLoadError(f"{path} is a GGUF file, and whisper.cpp reads its own ggml-*.bin files only.")
            if magic != MAGIC:
                raise ModelLoadError(f"{path} is not a ggml model of whisper.cpp: it begins otherwise.")
            header = GgmlHeader(*_read_ints(file, 11))
            _check_arrays(file, path.stat().st_size)
            return header
    except (struct.error, EOFError) as error:
        raise ModelLoadError(f"{path} is damaged: it ends before its last array. Fetch it again.") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error


def _read_magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _check_arrays(file: BinaryIO, size: int) -> None:
    """Walk over filters, tokens and arrays. Formats that are not known are left to whisper.cpp.

    Raises:
        EOFError, struct.error: the file ends too early.
    """
    rows, columns = _read_ints(file, 2)
    _skip(file, 4 * rows * columns, size)
    (tokens,) = _read_ints(file, 1)
    for _ in range(tokens):
        (length,) = _read_ints(file, 1)
        _skip(file, length, size)
    while file.tell() < size:
        dimensions, length, kind = _read_ints(file, 3)
        shape = _read_ints(file, dimensions)
        _skip(file, length, size)
        if kind not in TYPES:
            return
        _, block_bytes, block = TYPES[kind]
        _skip(file, prod(shape) // block * block_bytes, size)


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if count < 0 or file.tell() + count > size:
        raise EOFError
    file.seek(count, 1)


def _read_ints(file: BinaryIO, count: int) -> tuple[int, ...]:
    if not 0 <= count <= 11:
        raise EOFError
    return struct.unpack(f"<{count}i", file.read(4 * count))
