"""What clients are told of the models, and which one they get."""

from __future__ import annotations

from pathlib import Path

import pytest
from wyoming.info import Info

from eardrum import config
from eardrum.api.wyoming import utterance
from eardrum.api.wyoming.protocol import TranscribeRequest
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.service import Service
from eardrum.languages import LANGUAGE_NAMES

ENGLISH = "moonshine-tiny-en"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """English is the default; one model is for everything, one a command's, and others nobody is told of."""
    whisper = tmp_path / "whisper"
    whisper.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (whisper / name).write_text("{}")
    entries = {
        "all": {"source": str(whisper), "engine": "faster_whisper", "aliases": ["whisper"]},
        "absent": {"source": "small"},
        "secret": {"source": str(whisper), "engine": "faster_whisper", "unlisted": True},
        "llm": {"cmd": "server"},
        "foreign": {"cmd": "server", "capabilities": {"inputs": ["audio"], "outputs": ["text"]}},
    }
    store = tmp_path / "store"
    store.mkdir()
    return Service(config.Settings(model_dir=store, default_model=ENGLISH, models=entries))


def test_the_official_client_reads_the_answer_to_describe(service: Service) -> None:
    event = utterance.build_info(utterance.list_models(service), streaming=True)
    info = Info.from_event(event)
    (program,) = info.asr
    assert (program.name, program.installed, program.supports_transcript_streaming) == ("eardrum", True, True)
    assert [(model.name, model.installed, model.languages) for model in program.models] == [
        (ENGLISH, True, ["en"]),
        ("all", True, list(LANGUAGE_NAMES)),
        ("foreign", True, list(LANGUAGE_NAMES)),
    ]
    assert all(model.attribution.name and model.description for model in (program, *program.models))
    assert not any((info.tts, info.handle, info.intent, info.wake, info.mic, info.snd, info.satellite))
    assert event.data.keys() == {"asr", "tts", "handle", "intent", "wake", "mic", "snd"}


def test_who_names_a_model_gets_it(service: Service) -> None:
    assert utterance.choose_model(service, TranscribeRequest(name="whisper", language="en")).id == "all"
    assert utterance.choose_model(service, TranscribeRequest(name="all")).id == "all"
    with pytest.raises(ModelNotFoundError, match="There is no model 'nobody'"):
        utterance.choose_model(service, TranscribeRequest(name="nobody"))


@pytest.mark.parametrize("name", ["", "eardrum"])
def test_who_names_a_language_only_gets_a_model_that_knows_it(service: Service, name: str) -> None:
    assert utterance.choose_model(service, TranscribeRequest(name=name)).id == ENGLISH
    assert utterance.choose_model(service, TranscribeRequest(name=name, language="en")).id == ENGLISH
    assert utterance.choose_model(service, TranscribeRequest(name=name, language="de")).id == "all"


def test_if_nobody_knows_the_language_the_default_says_so(tmp_path: Path) -> None:
    service = Service(config.Settings(model_dir=tmp_path, default_model=ENGLISH))
    assert utterance.choose_model(service, TranscribeRequest(name="", language="de")).id == ENGLISH
