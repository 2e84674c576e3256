"""The gateway's side of a runner's socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from eardrum.gateway.upstreams.runner import MAX_LINE_BYTES, RunnerUpstream
from eardrum.live import FinalTranscript, LiveCommand, SessionEnded, SessionSettings, encode_event
from eardrum.runner.live.session import MAX_UTTERANCE_S
from eardrum.transcription import Segment, Token, Word

TOKENS_A_SECOND = 448 / 30
"""No model writes more: Whisper's limit for a window."""


def create_longest_final() -> FinalTranscript:
    """The longest utterance, in a script whose letters take six bytes each in JSON, with all that can be asked for."""
    segments = []
    for start in range(0, round(MAX_UTTERANCE_S) + 30, 30):
        times = [(start + at / TOKENS_A_SECOND, start + (at + 1) / TOKENS_A_SECOND) for at in range(448)]
        words = [Word("слово", begin, end, 0.123456789) for begin, end in times]
        tokens = [Token(" слово", -0.123456789)] * 448
        text = " ".join(word.word for word in words)
        segments.append(Segment(start, start + 30.0, text, words=words, token_logprobs=tokens, tokens=[50_000] * 448))
    return FinalTranscript(1, 0.0, MAX_UTTERANCE_S + 30.0, " ".join(segment.text for segment in segments), tuple(segments), "ru")


async def send_audio() -> AsyncIterator[bytes | LiveCommand]:
    yield bytes(3200)


async def test_the_text_of_the_longest_utterance_arrives(tmp_path: Path) -> None:
    final = create_longest_final()
    line = encode_event(final)
    assert 4 << 20 < len(line) < MAX_LINE_BYTES

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await request.read()
        await response.write(line)
        await response.write(encode_event(SessionEnded(1.0)))
        return response

    app = web.Application()
    app.router.add_post("/live", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    socket = str(tmp_path / "socket")
    await web.UnixSite(runner, socket).start()
    upstream = RunnerUpstream(socket)
    try:
        async with asyncio.timeout(30):
            found, ended = [event async for event in upstream.stream_live(SessionSettings(), send_audio())]
    finally:
        await upstream.close()
        await runner.cleanup()
    assert isinstance(ended, SessionEnded)
    assert found == final
