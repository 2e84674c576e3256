"""The order in which an engine speaks the sentences of requests."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Self

import numpy as np

from eardrum.engines.base import Audio, EngineOptions, VoiceEngine
from eardrum.runner.fair_queue import ServiceClass
from eardrum.runner.synthesizer import SpeechSynthesizer


class BlockedEngine(VoiceEngine):
    """Notes its sentences. The first one lasts until `released` is set."""

    def __init__(self) -> None:
        self.begun, self.released = Event(), Event()
        self.spoken: list[str] = []

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def speak(self, text: str, voice: str, speed: float) -> Audio:
        self.begun.set()
        if text == "panic":
            raise KeyboardInterrupt(text)
        assert self.released.wait(30)
        self.spoken.append(text)
        return np.zeros(1, np.float32)


def test_sentences_of_jobs_come_after_all_others() -> None:
    engine = BlockedEngine()
    synthesizer = SpeechSynthesizer(engine)
    try:
        submitted = [synthesizer.submit(0, "running", "v", 1.0, ServiceClass.CLIP)]
        assert engine.begun.wait(30)
        ranks = {"job": ServiceClass.BULK, "first": ServiceClass.CLIP}
        submitted += [synthesizer.submit(id, name, "v", 1.0, rank) for id, (name, rank) in enumerate(ranks.items(), 1)]
        engine.released.set()
        for future in submitted:
            future.result(30)
        assert engine.spoken == ["running", "first", "job"]
    finally:
        synthesizer.close()


def test_a_sentence_that_fails_with_no_exception_of_pythons_own_does_not_end_the_thread() -> None:
    engine = BlockedEngine()
    engine.released.set()
    synthesizer = SpeechSynthesizer(engine)
    try:
        assert "KeyboardInterrupt: panic" in str(synthesizer.submit(0, "panic", "v", 1.0, ServiceClass.CLIP).exception(10))
        synthesizer.submit(1, "next", "v", 1.0, ServiceClass.CLIP).result(10)
        assert engine.spoken == ["next"]
    finally:
        synthesizer.close()
