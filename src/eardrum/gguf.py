"""Reads the header of a GGUF file: a language model's metadata. The weights are not read."""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20
"""Largest header that is read. The largest vocabularies take half of that."""
CHUNK_BYTES = 1 << 20
MAX_KEYS = 4096
"""More than any model has."""
MAX_KEY_BYTES = 1 << 16

NUMBER_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING_TYPE, ARRAY_TYPE = 8, 9
LENGTH_FORMAT = struct.Struct("<Q")

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""llama.cpp's numbers of quantisations."""

RANK_POOLING = 4
"""llama.cpp's pooling type of rerankers."""

GgufValue = str | int | float | bool


class GgufHeader(Struct, frozen=True):
    """Keys and values, arrays such as the vocabulary excepted."""

    values: Mapping[str, GgufValue]

    @property
    def architecture(self) -> str:
        """Such as `qwen3`; it begins the keys of what belongs to it."""
        value = self.values.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def context_length(self) -> int:
        """Tokens of context it was trained with; 0 if it does not say."""
        return self._get_integer(f"{self.architecture}.context_length")

    @property
    def chat_template(self) -> str:
        """How messages become text; empty if it is no model for chats."""
        value = self.values.get(CHAT_TEMPLATE_KEY, "")
        return value if isinstance(value, str) else ""

    @property
    def quantization(self) -> str:
        """Such as `Q4_K_M`; empty if unknown."""
        return FILE_TYPES.get(self._get_integer("general.file_type", -1), "")

    @property
    def is_embedding_model(self) -> bool:
        """Whether it turns texts into vectors."""
        return "bert" in self.architecture or self._get_integer(self._pooling_key, -1) >= 0

    @property
    def is_reranker(self) -> bool:
        """Whether it is a reranker."""
        return self._get_integer(self._pooling_key, -1) == RANK_POOLING

    @property
    def _pooling_key(self) -> str:
        return f"{self.architecture}.pooling_type"

    def _get_integer(self, key: str, default: int = 0) -> int:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default


def read_header(path: Path) -> GgufHeader | None:
    """The header of a file; None if it is not GGUF, is damaged, or cannot be read. Cached until the file changes."""
    try:
        status = path.stat()
        return _read_cached(str(path), status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=256)
def _read_cached(path: str, _: int, __: int) -> GgufHeader | None:
    try:
        with Path(path).open("rb") as file:
            return GgufHeader(_HeaderReader(file).read_values())
    except (OSError, OverflowError, ValueError):
        return None


class _HeaderReader:
    """Goes through a file from its beginning, piece by piece.

    Every `ValueError` it raises means that the file is not what it should be.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._data = b""
        self._at = 0
        self._left = MAX_HEADER_BYTES

    def read_values(self) -> dict[str, GgufValue]:
        """Every key whose value is not an array."""
        if self._read_bytes(4) != MAGIC or self._read_number("<I") not in VERSIONS:
            raise ValueError("not of GGUF, or of an unknown version")
        self._read_number("<Q")  # tensors
        if (keys := self._read_number("<Q")) > MAX_KEYS:
            raise ValueError("too many keys")
        found: dict[str, GgufValue] = {}
        for _ in range(int(keys)):
            key = self._read_text(MAX_KEY_BYTES)
            kind = int(self._read_number("<I"))
            if kind == ARRAY_TYPE:
                self._skip_array()
            elif kind == STRING_TYPE:
                found[key] = self._read_text(MAX_HEADER_BYTES)
            elif isinstance(number := self._read_number(NUMBER_FORMATS.get(kind, "")), int) or math.isfinite(number):
                found[key] = number
        return found

    def _read_number(self, format: str) -> int | float:
        if not format:
            raise ValueError("an unknown type")
        (number,) = struct.unpack(format, self._read_bytes(struct.calcsize(format)))
        return number  # type: ignore[no-any-return]

    def _read_text(self, longest: int) -> str:
        if (length := int(self._read_number("<Q"))) > longest:
            raise ValueError("too long a text")
        return self._read_bytes(length).decode(errors="replace")

    def _skip_array(self) -> None:
        kind, count = int(self._read_number("<I")), int(self._read_number("<Q"))
        if kind == STRING_TYPE:
            self._skip_texts(count)
        elif kind in NUMBER_FORMATS:
            self._skip(count * struct.calcsize(NUMBER_FORMATS[kind]))
        else:
            raise ValueError("an array of an unknown type")

    def _skip_texts(self, count: int) -> None:
        """Vocabularies have hundreds of thousands: this loop is most of the work."""
        unpack = LENGTH_FORMAT.unpack_from
        while count:
            data, at, end = self._data, self._at, len(self._data) - 8
            needed = 8
            while count and at <= end:
                needed = 8 + unpack(data, at)[0]
                if at + needed > end + 8:
                    break
                at += needed
                count -= 1
                needed = 8
            self._at = at
            if count:
                self._fill_buffer(needed)

    def _skip(self, size: int) -> None:
        here = min(size, len(self._data) - self._at)
        self._at += here
        if size > here:
            self._file.seek(size - here, 1)

    def _read_bytes(self, size: int) -> bytes:
        if len(self._data) - self._at < size:
            self._fill_buffer(size)
        self._at += size
        return self._data[self._at - size : self._at]

    def _fill_buffer(self, needed: int) -> None:
        """Fill the buffer with at least `needed` bytes."""
        kept = self._data[self._at :]
        wanted = max(CHUNK_BYTES, needed - len(kept))
        if wanted > self._left:
            raise ValueError("larger than any head")
        piece = self._file.read(wanted)
        self._left -= len(piece)
        self._data, self._at = kept + piece, 0
        if len(self._data) < needed:
            raise ValueError("the file ends too soon")
