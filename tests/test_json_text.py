"""JSON of clients: what is parsed, and what would cost too much to parse."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

import eardrum
from eardrum.errors import EardrumError, InvalidRequestError, TooLargeError
from eardrum.json_text import DEEPEST, MOST, parsed, parsed_of_server

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


def test_servers_may_send_more_and_are_never_the_clients_fault() -> None:
    words = b"[" + b'{"word":"a","start":1},' * (MOST["names"] // 2 + 1) + b"{}]"
    assert len(parsed_of_server(words)) == MOST["names"] // 2 + 2
    with pytest.raises(TooLargeError):
        parsed(words)
    for written in (b"[" * 500 + b"]" * 500, b"[" * 100_000, b"[" + b"1," * (10 * MOST["values"] + 1) + b"1]"):
        with pytest.raises(ValueError, match=r".+") as caught:
            parsed_of_server(written)
        assert not isinstance(caught.value, EardrumError)


def test_every_other_place_that_reads_json_of_strangers_goes_by_it() -> None:
    """Only what this package's own processes and files say is parsed without bounds."""
    own = {
        *("client.py", "json_text.py", "config/environment.py", "commands/examine.py", "commands/listen.py"),
        *("gateway/upstreams/upstream.py", "gateway/pull.py", "gateway/processes/process.py"),
        *("gateway/processes/register.py", "gateway/processes/timings.py", "wall.py"),
    }
    package = Path(eardrum.__file__).parent
    for path in package.rglob("*.py"):
        place = path.relative_to(package).as_posix()
        if place not in own and not place.startswith(("runner/", "engines/")):
            assert "json.loads(" not in path.read_text(), place
