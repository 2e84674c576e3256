"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.errors import UpstreamError
from eardrum.openai_replies import SseDecoder

SAMPLE = (
    b': ping\r\n\r\ndata: {"a": "b\xc3\xbc"}\r\n\r\nevent: x\ndata:{"b": 1}\nid: 7\n\n\n'
    b'data: two\ndata:  lines\n\ndata: old\r\rdata:\n\ndata: [DONE]\n\n'
)  # fmt: skip
FOUND = ['{"a": "bü"}', '{"b": 1}', "two\n lines", "old", "[DONE]"]


def parse_pieces(pieces: list[bytes]) -> list[str]:
    events = SseDecoder()
    return [data for piece in pieces for data in events.feed(piece)] + events.flush()


@pytest.mark.parametrize("cut", range(len(SAMPLE) + 1))
def test_a_cut_anywhere_changes_nothing(cut: int) -> None:
    assert parse_pieces([SAMPLE[:cut], SAMPLE[cut:]]) == FOUND


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size(size: int) -> None:
    assert parse_pieces([SAMPLE[start : start + size] for start in range(0, len(SAMPLE), size)]) == FOUND


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9)), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["data:", "data: "]),
    st.data(),
)
def test_any_events_cut_anywhere(sent: list[dict[str, str]], end: str, field: str, data: st.DataObject) -> None:
    stream = "".join(f":{end}{field}{json.dumps(event, ensure_ascii=False)}{end}{end}" for event in sent)
    stream = stream.encode(errors="replace").decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream.encode())), max_size=8)))
    pieces = [stream.encode()[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    assert [json.loads(found) for found in parse_pieces(pieces)] == [
        json.loads(json.dumps(event, ensure_ascii=False).encode(errors="replace")) for event in sent
    ]


def test_the_last_event_counts_without_a_blank_line() -> None:
    assert parse_pieces([b"data: a\n\ndata: b"]) == ["a", "b"]
    assert parse_pieces([b"data: a\r"]) == ["a"]


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 30, b"data: x" + b"y" * 20 + b"\n"])
def test_an_event_without_end_is_given_up(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.openai_replies.MAX_EVENT_BYTES", 100)
    with pytest.raises(UpstreamError, match="more than 100 bytes"):
        parse_pieces([endless] * 10)
