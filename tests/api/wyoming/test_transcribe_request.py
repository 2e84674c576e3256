"""What a `transcribe` event asks for."""

from __future__ import annotations

from typing import Any

import pytest
from wyoming.asr import Transcribe

from eardrum.api.wyoming.protocol import TranscribeRequest
from eardrum.errors import InvalidRequestError
from eardrum.transcription import Priority, TranscriptionRequest


def test_what_home_assistant_sends() -> None:
    ask = TranscribeRequest.parse(Transcribe(language="de-AT").event().data)
    assert ask == TranscribeRequest(language="de")
    assert ask.request == TranscriptionRequest(language="de", priority=Priority.LIVE)


def test_everything() -> None:
    event = Transcribe(
        name=" small ",
        language="German",
        context={"initial_prompt": "Wohnzimmer", "other": 1},
        vad_sensitivity="relaxed",
        transcript_names=["Küche", " "],
        transcript_terms=["dimmen"],
    ).event()
    ask = TranscribeRequest.parse(event.data)
    assert (ask.name, ask.language) == ("small", "de")
    assert (ask.request.prompt, ask.request.hotwords) == ("Wohnzimmer", ("Küche", "dimmen"))


@pytest.mark.parametrize("data", [{}, {"language": ""}, {"language": None, "context": None, "name": ""}, {"context": ["a"]}])
def test_nothing(data: dict[str, Any]) -> None:
    assert TranscribeRequest.parse(data).request == TranscriptionRequest(priority=Priority.LIVE)


@pytest.mark.parametrize(
    "data",
    [{"language": 1}, {"language": "tlh"}, {"name": ["a"]}, {"transcript_names": 5}, {"transcript_terms": [1]}],
)
def test_what_makes_no_sense_is_refused_by_name(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        TranscribeRequest.parse(data)
    assert refused.value.param in data
