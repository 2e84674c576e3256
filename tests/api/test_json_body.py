"""JSON of clients: what is parsed, and what would cost too much to parse."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from eardrum.api.json_body import DEEPEST, MOST, parsed
from eardrum.errors import InvalidRequestError, TooLargeError

IMAGE = base64.b64encode(os.urandom(1 << 20)).decode()


@pytest.mark.parametrize(
    "value",
    [
        {"image": IMAGE, "text": "\U0001f600"},
        {"messages": [{"url": f"data:image/png;base64,{IMAGE}"}, "\U0001f600", IMAGE]},
        [IMAGE, [IMAGE], {"a": {"b": IMAGE}}, "ä"],
        {IMAGE: "\U0001f600", "quoted": f'say "{IMAGE}"', "escaped": f"\\{IMAGE}"},
        {"nested": '{"a": "' + IMAGE + '", "b": "ä"}'},
    ],
)
def test_long_strings_beside_any_script_arrive_as_they_are(value: Any) -> None:
    for written in (json.dumps(value, ensure_ascii=False), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parsed(written.encode()) == value
        assert parsed(written) == value


@pytest.mark.parametrize(("deep", "fine"), [(DEEPEST, True), (DEEPEST + 1, False), (900, False), (100_000, False)])
def test_depth(deep: int, *, fine: bool) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        written = opening * (deep - 1) + b"{}" + closing * (deep - 1)
        if fine:
            parsed(written)
        else:
            with pytest.raises(InvalidRequestError, match="nested more than"):
                parsed(written)


@pytest.mark.parametrize(
    ("what", "written"),
    [
        ("brackets", b"[" + b"[]," * (MOST["brackets"] + 1) + b"1]"),
        ("names", b"{" + b",".join(b'"%d":1' % number for number in range(MOST["names"] + 1)) + b"}"),
        ("values", b"[" + b"1," * (MOST["values"] + 1) + b"1]"),
    ],
)
def test_number_of_things(what: str, written: bytes) -> None:
    with pytest.raises(TooLargeError, match=what):
        parsed(written)


def test_json_inside_a_string_is_text() -> None:
    inside = json.dumps({f"name {number}": number for number in range(MOST["names"] + 1)})
    value = {"content": inside}
    assert parsed(json.dumps(value)) == value


def test_what_is_no_json() -> None:
    for written in (b"", b"{", b"[1,", b"\xff", b'{"a": "' + b"a" * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            parsed(written)
