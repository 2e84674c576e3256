"""JSON of clients: what is parsed, and what would cost too much to parse."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

import eardrum
from eardrum.bounded_json import MAX_COUNTS, MAX_DEPTH, parse_json, parse_upstream_json
from eardrum.errors import EardrumError, InvalidRequestError, TooLargeError

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
        assert parse_json(written.encode()) == value
        assert parse_json(written) == value


@pytest.mark.parametrize(("deep", "fine"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (900, False), (100_000, False)])
def test_depth(deep: int, *, fine: bool) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        written = opening * (deep - 1) + b"{}" + closing * (deep - 1)
        if fine:
            parse_json(written)
        else:
            with pytest.raises(InvalidRequestError, match="nested more than"):
                parse_json(written)


@pytest.mark.parametrize(
    ("what", "written"),
    [
        ("brackets", b"[" + b"[]," * (MAX_COUNTS["brackets"] + 1) + b"1]"),
        ("names", b"{" + b",".join(b'"%d":1' % number for number in range(MAX_COUNTS["names"] + 1)) + b"}"),
        ("values", b"[" + b"1," * (MAX_COUNTS["values"] + 1) + b"1]"),
    ],
)
def test_number_of_things(what: str, written: bytes) -> None:
    with pytest.raises(TooLargeError, match=what):
        parse_json(written)


def test_json_inside_a_string_is_text() -> None:
    inside = json.dumps({f"name {number}": number for number in range(MAX_COUNTS["names"] + 1)})
    value = {"content": inside}
    assert parse_json(json.dumps(value)) == value


def test_what_is_no_json() -> None:
    for written in (b"", b"{", b"[1,", b"\xff", b'{"a": "' + b"a" * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(written)


def test_servers_may_send_more_and_are_never_the_clients_fault() -> None:
    words = b"[" + b'{"word":"a","start":1},' * (MAX_COUNTS["names"] // 2 + 1) + b"{}]"
    assert len(parse_upstream_json(words)) == MAX_COUNTS["names"] // 2 + 2
    with pytest.raises(TooLargeError):
        parse_json(words)
    for written in (b"[" * 500 + b"]" * 500, b"[" * 100_000, b"[" + b"1," * (10 * MAX_COUNTS["values"] + 1) + b"1]"):
        with pytest.raises(ValueError, match=r".+") as caught:
            parse_upstream_json(written)
        assert not isinstance(caught.value, EardrumError)


def test_every_other_place_that_reads_json_of_strangers_goes_by_it() -> None:
    """Only what this package's own processes and files say is parsed without bounds."""
    own = {
        *("client.py", "bounded_json.py", "config/environment.py", "cli/check.py", "cli/listen.py"),
        *("gateway/upstreams/runner.py", "gateway/models/download.py", "gateway/processes/runner_process.py"),
        *("gateway/processes/orphans.py", "gateway/processes/launcher.py", "gateway/processes/fleet.py", "live.py"),
        *("jobs/store.py", "jobs/tables.py", "cli/batch.py", "cli/cluster.py"),
    }
    package = Path(eardrum.__file__).parent
    for path in package.rglob("*.py"):
        place = path.relative_to(package).as_posix()
        if place not in own and not place.startswith(("runner/", "engines/", "fleet/")):
            assert "json.loads(" not in path.read_text(), place
