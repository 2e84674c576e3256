"""Whatever a client says, in whatever order: an answer, or an error and the end; never a failure of the server's own."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from eardrum.api.wyoming.protocol import FrameDecoder, WyomingEvent, encode_event
from tests.api.wyoming.scripted_sessions import SessionScript, create_settings, run_server
from tests.generated_cases import count_cases

ANYTHING: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.text(), max_size=2)
)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["", "eardrum", "whisper-1", "nobody"]) | ANYTHING,
        "language": st.sampled_from(["en", "de", "xx", ""]) | ANYTHING,
        "context": st.dictionaries(st.sampled_from(["prompt", "initial_prompt"]), ANYTHING) | ANYTHING,
        "transcript_names": ANYTHING,
        "text": ANYTHING,
    },
)
AUDIO = st.fixed_dictionaries(
    {},
    optional={
        "rate": st.sampled_from([8_000, 16_000, 44_100]) | ANYTHING,
        "width": st.integers(1, 4) | ANYTHING,
        "channels": st.integers(1, 2) | ANYTHING,
    },
)
PLAIN = st.just({"rate": 16_000, "width": 2, "channels": 1})
PAYLOAD = st.binary(max_size=50)
EVENT = st.one_of(
    st.builds(WyomingEvent, st.sampled_from(["transcribe", "describe", "ping", "info", "transcript", "", "x"]), DATA, PAYLOAD),
    st.builds(WyomingEvent, st.sampled_from(["audio-start", "audio-chunk", "audio-stop"]), PLAIN | AUDIO, PAYLOAD),
    st.builds(WyomingEvent, st.sampled_from(["audio-chunk", "audio-stop"]), PLAIN, PAYLOAD),
)
SAID = st.lists(EVENT.map(encode_event) | st.binary(max_size=20), max_size=12).map(b"".join)


@trials(max_examples=count_cases(75), suppress_health_check=list(HealthCheck), deadline=None)
@given(SAID, st.integers(1, 64))
def test_whatever_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: bytes, step: int) -> None:
    caplog.set_level(logging.ERROR)
    answered = asyncio.run(exchange_events(monkeypatch, said, step))
    kinds = [event.type for event in answered]
    assert set(kinds) <= {"info", "pong", "transcript-start", "transcript-chunk", "transcript", "transcript-stop", "error"}
    assert "error" not in kinds[:-1], "an error is the last word"
    assert all(event.data["code"] != "server_error" for event in answered if event.type == "error")
    assert not caplog.records


async def exchange_events(monkeypatch: pytest.MonkeyPatch, said: bytes, step: int) -> list[WyomingEvent]:
    """What the server says to a client that says this in pieces, and nothing more."""
    async with run_server(monkeypatch, SessionScript(), create_settings(stall_timeout=0.1)) as (_, connect):
        client = await connect()
        reading = asyncio.create_task(client.reader.read(-1))
        try:
            for at in range(0, len(said), step):
                await client.send_raw(said[at : at + step])
            client.writer.write_eof()
        except OSError:
            pass  # it has heard enough
        async with asyncio.timeout(60):
            return list(FrameDecoder().feed(await reading))
