"""The runner's answers to texts: sentences in order, and no work for a client that is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from eardrum.engines.base import Audio, EngineOptions, VoiceEngine
from eardrum.runner.fair_queue import ServiceClass
from eardrum.runner.speech_app import SENTENCES_AHEAD, SpeechApp
from eardrum.runner.synthesizer import SpeechSynthesizer
from eardrum.transcription import Capabilities

SENTENCES = [f"This is the sentence with the number {number} of a text." for number in range(100)]


class ConstantVoice(VoiceEngine):
    """Speaks each sentence as 10 ms of one value, after 5 ms of work."""

    capabilities = Capabilities(speak=True, languages=("en",), voices=(("test", "en"),))

    def __init__(self) -> None:
        self.spoken: list[str] = []

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        return cls()

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        self.spoken.append(text)
        time.sleep(0.005)
        return np.full(240, len(self.spoken) / 1000, np.float32)


@asynccontextmanager
async def open_synthesizer() -> AsyncIterator[tuple[SpeechSynthesizer, ConstantVoice]]:
    engine = ConstantVoice()
    synthesizer = SpeechSynthesizer(engine)
    try:
        yield synthesizer, engine
    finally:
        synthesizer.close()


async def ask(synthesizer: SpeechSynthesizer, *pieces: str, leave_after: int | None = None) -> list[dict[str, Any]]:
    """Send a text; returns the messages of the answer. The client hangs up after so many messages, or at the end."""
    bodies = [
        {"type": "http.request", "body": piece.encode(), "more_body": at < len(pieces) - 1} for at, piece in enumerate(pieces)
    ]
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if bodies:
            return bodies.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            sent.append(json.loads(message["body"].partition(b"\n")[0]))
        if len(sent) == leave_after:
            gone.set()

    async with asyncio.timeout(20):
        await SpeechApp(synthesizer)({"type": "http", "path": "/speak", "method": "POST", "headers": []}, receive, send)
    return sent


@pytest.mark.parametrize("size", [7, 10_000])
async def test_sentences_are_spoken_in_order_and_counted(size: int) -> None:
    text = " ".join(SENTENCES)
    async with open_synthesizer() as (synthesizer, engine):
        begun, *_, last = await ask(synthesizer, *(text[at : at + size] for at in range(0, len(text), size)))
    assert engine.spoken == SENTENCES
    assert begun.keys() == {"begun"}
    assert last["summary"]["sentences"] == len(SENTENCES)
    assert last["summary"]["characters"] == sum(map(len, SENTENCES))
    assert last["summary"]["duration"] == pytest.approx(0.01 * len(SENTENCES))


async def test_a_client_that_hangs_up_ends_the_synthesis() -> None:
    async with open_synthesizer() as (synthesizer, engine):
        answer = await ask(synthesizer, " ".join(SENTENCES), leave_after=3)
        assert "summary" not in answer[-1]
        await asyncio.sleep(0.05)
        assert len(engine.spoken) <= SENTENCES_AHEAD + 3


async def test_a_text_without_words_is_an_error() -> None:
    async with open_synthesizer() as (synthesizer, _):
        (answer,) = await ask(synthesizer, "...", " 😀")
    assert answer["error"]["error"] == "EmptyTextError"


async def test_sentences_that_wait_at_the_end_are_cancelled() -> None:
    async with open_synthesizer() as (synthesizer, engine):
        futures = [synthesizer.submit(1, text, "test", 1.0, ServiceClass.FILE) for text in SENTENCES]
    assert all(future.done() for future in futures)
    assert sum(not future.cancelled() for future in futures) == len(engine.spoken) < len(SENTENCES)
