"""Streamed responses: begun by their first piece, and framed."""

from __future__ import annotations

from eardrum.api.asgi import Message, StreamedResponse, build_stream_headers, encode_event


async def test_the_first_piece_begins_the_response() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    response = StreamedResponse(send, build_stream_headers("application/x-ndjson"))
    assert (sent, response.has_begun) == ([], False)
    await response.send(b"1\n")
    assert response.has_begun
    await response.send(b"2\n", last=True)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body", "http.response.body"]
    assert (b"x-accel-buffering", b"no") in sent[0]["headers"]
    assert [(message["body"], message["more_body"]) for message in sent[1:]] == [(b"1\n", True), (b"2\n", False)]


def test_events_are_framed_with_and_without_a_name() -> None:
    assert encode_event('{"a": "é"}') == 'data: {"a": "é"}\n\n'.encode()
    assert encode_event("{}", event="error") == b"event: error\ndata: {}\n\n"
