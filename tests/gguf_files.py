"""GGUF files, made as llama.cpp's converters make them: a head of keys and values, a vocabulary among them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"


def encode_text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def encode_entry(key: str, value: Any) -> bytes:
    """A key and its value; a tuple is an array."""
    if isinstance(value, tuple):
        of_texts = isinstance(value[0], str)
        items = b"".join(encode_text(item) if of_texts else struct.pack("<i", item) for item in value)
        return encode_text(key) + struct.pack("<IIQ", 9, 8 if of_texts else 5, len(value)) + items
    if isinstance(value, str):
        return encode_text(key) + struct.pack("<I", 8) + encode_text(value)
    if isinstance(value, bool):
        return encode_text(key) + struct.pack("<I?", 7, value)
    return encode_text(key) + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))


def encode_gguf(values: dict[str, Any], version: int = 3) -> bytes:
    """A file without weights."""
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(values)) + b"".join(encode_entry(*pair) for pair in values.items())


QWEN: dict[str, Any] = {
    "general.architecture": "qwen3",
    "general.size_label": "4B",
    "general.file_type": 15,
    "qwen3.context_length": 40960,
    "qwen3.embedding_length": 2560,
    "qwen3.rope.freq_base": 1e6,
    "tokenizer.ggml.tokens": tuple(f"token-{number}" for number in range(5000)),
    "tokenizer.ggml.token_type": tuple(range(5000)),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TOOLS_TEMPLATE,
}
"""A small language model with tools."""


def write_gguf(path: Path, values: dict[str, Any] = QWEN) -> Path:
    path.write_bytes(encode_gguf(values) + bytes(1000))
    return path
