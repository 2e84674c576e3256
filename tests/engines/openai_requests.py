"""Asks an upstream through the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from eardrum.engines.base import EngineResult, Window
from eardrum.engines.openai_api import OpenAIApi
from eardrum.errors import EardrumError
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest
from tests.recordings import load_speech
from tests.upstreams import KEY, Answer, FakeUpstream, fake_upstream

SPAN = (0.25, 2.5)


def create_window(seconds: float = 3.0, **request: object) -> Window:
    return Window(load_speech()[: int(seconds * SAMPLE_RATE)], 0.0, 1.0, SPAN, TranscriptionRequest(**request))


@contextmanager
def open_engine(address: str, /, **options: object) -> Iterator[OpenAIApi]:
    """The engine, closed afterwards; no thread of it may be left."""
    before = set(threading.enumerate())
    with closing(OpenAIApi.load(Path(), OpenAIApi.Options(**{"url": f"{address}/v1", "retries": 0} | options))) as loaded:
        yield loaded
    assert set(threading.enumerate()) <= before


@contextmanager
def transcribe_with(answer: Answer, *windows: Window, **options: object) -> Iterator[tuple[FakeUpstream, list[EngineResult]]]:
    with fake_upstream(answer) as fake, open_engine(fake.url, **options) as loaded:
        yield fake, loaded.transcribe(windows or [create_window()])


def get_failure(answer: Answer, *windows: Window, **options: object) -> EardrumError:
    with pytest.raises(EardrumError) as caught, transcribe_with(answer, *windows, **options):
        pass
    assert KEY not in caught.value.message
    assert "127.0.0.1" in caught.value.message
    return caught.value
