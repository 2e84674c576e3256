"""Heads of GGUF files, whole and broken."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum import gguf
from tests.generated_cases import count_cases
from tests.gguf_files import QWEN, TOOLS_TEMPLATE, encode_entry, encode_text, write_gguf
from tests.gguf_files import encode_gguf as made


def read_header(tmp_path: Path, content: bytes) -> gguf.GgufHeader | None:
    gguf._read_cached.cache_clear()
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return gguf.read_header(path)


@pytest.mark.parametrize("piece", [64, 1000, gguf.CHUNK_BYTES])
@pytest.mark.parametrize("version", [2, 3])
def test_what_a_model_says_of_itself(tmp_path: Path, version: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "CHUNK_BYTES", piece)
    head = read_header(tmp_path, made(QWEN, version) + bytes(5000))
    assert head
    assert head.values == {key: value for key, value in QWEN.items() if not isinstance(value, tuple)}
    assert (head.architecture, head.context_length, head.chat_template) == ("qwen3", 40960, TOOLS_TEMPLATE)
    assert (head.quantization, head.is_embedding_model, head.is_reranker) == ("Q4_K_M", False, False)


def test_vectors_and_rankings() -> None:
    assert gguf.GgufHeader({"general.architecture": "nomic-bert"}).is_embedding_model
    assert gguf.GgufHeader({"general.architecture": "qwen3", "qwen3.pooling_type": 3}).is_embedding_model
    assert gguf.GgufHeader({"general.architecture": "qwen3", "qwen3.pooling_type": 4}).is_reranker
    assert not gguf.GgufHeader({"general.architecture": 3, "general.file_type": "x"}).quantization


def test_a_file_that_becomes_another_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    before = gguf.read_header(path)
    assert before is gguf.read_header(path)
    write_gguf(path, {"general.architecture": "llama"})
    after = gguf.read_header(path)
    assert after
    assert after.architecture == "llama"


def test_a_file_that_ends_anywhere_is_none(tmp_path: Path) -> None:
    content = made({"general.architecture": "qwen3", "a": ("x", "yz"), "b": (1, 2), "c": 1.5, "tokenizer.chat_template": "t"})
    assert read_header(tmp_path, content)
    for end in range(len(content)):
        assert read_header(tmp_path, content[:end]) is None, end


ODD = {
    "another kind of file": b"RIFF" + bytes(100),
    "the first version": made(QWEN, 1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "keys without number": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
    "a key without end": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
    "a text without end": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + encode_text("k") + struct.pack("<IQ", 8, (1 << 64) - 1),
    "an array without end": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + encode_text("k") + struct.pack("<IIQ", 9, 10, (1 << 64) - 1),
    "texts without end": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + encode_text("k")
    + struct.pack("<IIQ", 9, 8, 1 << 60)
    + bytes(10_000),
    "arrays of arrays": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + encode_text("k") + struct.pack("<IIQ", 9, 9, 1),
    "an unknown type": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + encode_text("k") + struct.pack("<IQ", 99, 1),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_damage_is_no_head(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 1 << 16)
    monkeypatch.setattr(gguf, "CHUNK_BYTES", 1 << 12)
    assert read_header(tmp_path, content) is None


def test_no_more_is_read_than_a_head_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 1 << 16)
    monkeypatch.setattr(gguf, "CHUNK_BYTES", 1 << 12)
    texts = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + encode_text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)
    path = tmp_path / "endless.gguf"
    with path.open("wb") as file:
        file.write(texts)
        file.truncate(1 << 40)  # empty texts, for ever
    assert gguf.read_header(path) is None


def test_numbers_that_json_does_not_have_are_left_out(tmp_path: Path) -> None:
    head = read_header(tmp_path, made({"a": float("nan"), "b": float("inf"), "c": 1.5}))
    assert head
    assert head.values == {"c": 1.5}


def test_what_is_no_file_is_no_head(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "pipe", Path("/dev/zero"), Path("a\0b"), Path("x" * 5000)):
        assert gguf.read_header(path) is None


@settings(max_examples=count_cases(200), deadline=None)
@given(data=st.data())
def test_no_byte_does_harm(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(made({"general.architecture": "q", "q.context_length": 5, "t": ("a", "b"), "n": (1,), "s": "x"}))
    for at in data.draw(st.lists(st.integers(4, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    head = read_header(tmp_path_factory.getbasetemp(), bytes(content))
    assert head is None or isinstance(head.context_length, int)


def test_the_maker_of_test_files_is_right() -> None:
    assert encode_entry("k", 7) == b"\1\0\0\0\0\0\0\0k\4\0\0\0\7\0\0\0"
