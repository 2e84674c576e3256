"""Halves of characters in JSON, however they are written."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.api.request_body import check_surrogates
from eardrum.errors import InvalidRequestError

PIECES = ("\\ud83d", "\\uDE00", "\\uD800", "\\udfff", "\\\\", "a", "\\u0041", "\\n", "ud83d", "ä", '\\"')


def is_refused(written: str | bytes, found: object) -> bool:
    try:
        check_surrogates(written, found)
    except InvalidRequestError:
        return True
    return False


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_what_cannot_be_utf_8_is_refused(text: str) -> None:
    half = any(0xD800 <= ord(letter) <= 0xDFFF for letter in json.loads(f'"{text}"'))
    for written in (f'{{"a": [1, {{"b": "{text}"}}]}}', f'{{"{text}": null}}'):
        assert is_refused(written, json.loads(written)) == is_refused(written.encode(), json.loads(written)) == half


def test_one_character_beside_a_long_recording_costs_nothing() -> None:
    written = json.dumps({"audio": base64.b64encode(os.urandom(15 << 20)).decode(), "text": "\U0001f600"}).encode()
    found = json.loads(written)
    assert b"\\ud83d" in written
    tracemalloc.start()
    try:
        check_surrogates(written, found)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "nothing is written out again"
    finally:
        tracemalloc.stop()
    found["text"] += "\ud83d"
    with pytest.raises(InvalidRequestError, match="half a character"):
        check_surrogates(written, found)
