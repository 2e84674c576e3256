"""What clients want of a session: from the query and from messages, in every spelling, and refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.api.fields import list_ignored_hints
from eardrum.api.live_ws.session_config import LiveConfig
from eardrum.errors import InvalidRequestError
from eardrum.live import AudioEncoding, AudioFormat, EndpointingSettings
from eardrum.transcription import Capabilities, Priority, SpeechTask, TranscriptionRequest


def test_who_wants_nothing_gets_16_khz_mono_and_endpointing() -> None:
    config = LiveConfig().update({})
    assert config == LiveConfig()
    assert config.settings.format == AudioFormat(AudioEncoding.PCM16, 16_000, 1)
    assert config.settings.endpointing == EndpointingSettings()
    assert config.settings.partials
    assert config.settings.request.priority is Priority.LIVE


@pytest.mark.parametrize(
    "given",
    [
        {"model": "m", "language": "en-US", "prompt": "p", "hotwords": "a, b", "words": "true", "task": "translate"},
        {"model": "m", "language": "English", "prompt": "p", "hotwords": ["a", "b"], "words": True, "task": "translate"},
        {"model": "m", "language": "en", "prompt": "p", "keywords": '["a","b"]', "words": "1", "task": "translate"},
        {
            "model": "m",
            "language": "en",
            "prompt": "p",
            "hotwords": ["a", "b"],
            "timestamp_granularities": ["segment", "word"],
            "task": "translate",
        },
    ],
)
def test_a_query_and_a_message_mean_the_same(given: dict[str, Any]) -> None:
    config = LiveConfig().update(given)
    request = TranscriptionRequest(
        task=SpeechTask.TRANSLATE, language="en", prompt="p", hotwords=("a", "b"), words=True, priority=Priority.LIVE
    )
    assert (config.model, config.settings.request) == ("m", request)


@pytest.mark.parametrize(
    ("given", "format"),
    [
        ({"encoding": "pcm16"}, AudioFormat(AudioEncoding.PCM16, 16_000)),
        ({"encoding": "s16le", "sample_rate": "44100", "channels": "2"}, AudioFormat(AudioEncoding.PCM16, 44_100, 2)),
        ({"format": "f32le", "rate": 48_000}, AudioFormat(AudioEncoding.PCM32F, 48_000)),
        ({"encoding": "mulaw"}, AudioFormat(AudioEncoding.MULAW, 8_000)),
        ({"encoding": "g711_alaw", "sample_rate": 16_000}, AudioFormat(AudioEncoding.ALAW, 16_000)),
        ({"encoding": "webm"}, AudioFormat(AudioEncoding.CONTAINER)),
        ({"encoding": "audio/webm;codecs=opus"}, AudioFormat(AudioEncoding.CONTAINER)),
        ({"encoding": "audio/ogg"}, AudioFormat(AudioEncoding.CONTAINER)),
    ],
)
def test_audio_is_described_as_clients_describe_it(given: dict[str, Any], format: AudioFormat) -> None:
    assert LiveConfig().update(given).settings.format == format


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, 2),
        ({"channels": 2}, 4),
        ({"encoding": "f32le", "channels": 2}, 8),
        ({"encoding": "alaw"}, 1),
        ({"encoding": "webm", "channels": 2}, 1),
    ],
)
def test_a_frame_is_a_sample_of_every_channel(given: dict[str, Any], size: int) -> None:
    assert LiveConfig().update(given).frame_bytes == size


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ({"vad": False}, None),
        ({"vad": "false"}, None),
        ({"vad": None}, None),
        ({"vad": "true"}, EndpointingSettings()),
        ({"vad": {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 300}}, EndpointingSettings(0.6, 0.3, 0.3)),
        ({"vad": '{"prefix_padding_ms": 0}'}, EndpointingSettings(prefix_s=0.0)),
        ({"silence_duration_ms": "250", "idle_timeout_ms": "5000"}, EndpointingSettings(silence_s=0.25, idle_s=5.0)),
    ],
)
def test_pauses_are_settings_beside_vad_or_inside(given: dict[str, Any], turns: EndpointingSettings | None) -> None:
    assert LiveConfig().update(given).settings.endpointing == turns


def test_a_later_message_changes_what_it_names_and_nothing_else() -> None:
    before = LiveConfig().update({"model": "m", "language": "en", "silence_duration_ms": 300, "encoding": "mulaw"})
    after = before.update({"language": None, "threshold": 0.7})
    assert after.settings.request.language is None
    assert after.settings.endpointing == EndpointingSettings(threshold=0.7, silence_s=0.3)
    assert (after.model, after.settings.format) == (before.model, before.settings.format)


def test_pauses_said_after_they_were_turned_off_turn_them_on() -> None:
    off = LiveConfig().update({"vad": False})
    assert off.update({"language": "en"}).settings.endpointing is None
    assert off.update({"threshold": 0.4}).settings.endpointing == EndpointingSettings(threshold=0.4)


@pytest.mark.parametrize(
    ("given", "param", "word"),
    [
        ({"langauge": "en"}, "langauge", "language"),
        ({"model": 5}, "model", "string"),
        ({"language": "xx"}, "language", "ISO"),
        ({"task": "sing"}, "task", "translate"),
        ({"sample_rate": "fast"}, "sample_rate", "4000"),
        ({"sample_rate": 1e9}, "sample_rate", "192000"),
        ({"sample_rate": 16000.5}, "sample_rate", "whole"),
        ({"sample_rate": True}, "sample_rate", "number"),
        ({"sample_rate": "nan"}, "sample_rate", "number"),
        ({"channels": 0}, "channels", "1 to 64"),
        ({"encoding": "s24le"}, "encoding", "s16le"),
        ({"audio_track": 0}, "audio_track", "1 to 1000"),
        ({"audio_track": "first"}, "audio_track", "1 to 1000"),
        ({"partials": "maybe"}, "partials", "true or false"),
        ({"words": [1]}, "words", "true or false"),
        ({"hotwords": [1]}, "hotwords", "string"),
        ({"hotwords": 1}, "hotwords", "list"),
        ({"hotwords": "[1"}, "hotwords", "JSON"),
        ({"timestamp_granularities": ["letter"]}, "timestamp_granularities", "word"),
        ({"vad": {"silence": 1}}, "vad", "silence_duration_ms"),
        ({"vad": "perhaps"}, "vad", "true or false"),
        ({"threshold": 2}, "threshold", "0 to 1"),
        ({"silence_duration_ms": []}, "silence_duration_ms", "number"),
        ({"vad": {"silence_duration_ms": "long"}}, "vad.silence_duration_ms", "silence_duration_ms must be a number"),
        ({"vad": "{"}, "vad", "an object"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        LiveConfig().update(given)
    assert refused.value.param == param
    assert word in refused.value.message


def test_what_was_understood_is_shown_in_the_clients_words() -> None:
    config = LiveConfig().update({"silence_duration_ms": 300, "language": "en"})
    shown = config.describe(config.settings.request)
    assert shown == {
        "language": "en",
        "task": "transcribe",
        "words": False,
        "partials": True,
        "encoding": "s16le",
        "sample_rate": 16_000,
        "channels": 1,
        "vad": {"threshold": 0.5, "prefix_padding_ms": 300.0, "silence_duration_ms": 300.0, "idle_timeout_ms": None},
    }
    assert LiveConfig().update(shown | {"vad": False}).settings.endpointing is None
    assert "sample_rate" not in LiveConfig().update({"encoding": "webm"}).describe(config.settings.request)


def test_hints_that_a_model_cannot_take_are_named() -> None:
    request = TranscriptionRequest(prompt="p", hotwords=("h",), temperature=0.5)
    assert list_ignored_hints(request, Capabilities()) == ["prompt", "hotwords", "temperature"]
    assert list_ignored_hints(request, Capabilities(prompt=True, hotwords=True, temperature=True)) == []
    assert list_ignored_hints(TranscriptionRequest(), Capabilities()) == []


def test_an_audio_track_is_part_of_the_format() -> None:
    format = LiveConfig().update({"encoding": "container", "audio_track": "2"}).settings.format
    assert format.audio_track == 2
    assert type(format).from_json(format.to_json()) == format
