"""What a client says and what it is told, without a socket and without a session."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from eardrum.api.realtime.protocol import MAX_EVENT_CHARS, CloseConnection, OpenSession, ProtocolStep, RealtimeProtocol
from eardrum.api.realtime.session_config import RealtimeConfig
from eardrum.api.websocket import CloseCode
from eardrum.errors import EmptyCommitError, ModelNotFoundError, RunnerCrashedError, UnsupportedFeatureError
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    EndpointingSettings,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.transcription import Segment, Token, TranscriptionRequest

TRANSCRIPTION = "conversation.item.input_audio_transcription"


BY_HAND = ("gpt-live-transcribe", "gpt-realtime-whisper", "gpt-realtime-whisper-2026-05-07", "gpt-live-transcribe:latest")
"""Models whose clients listen for pauses themselves."""


def admit_request(name: str, request: TranscriptionRequest) -> tuple[str, TranscriptionRequest]:
    """A catalog with two models, of which one has two names; both know English only."""
    ids = {"": "one", "one": "one", "whisper-1": "one", "two": "two"} | dict.fromkeys(BY_HAND, "one")
    if name not in ids:
        raise ModelNotFoundError(f"There is no model {name}.")
    if request.language not in (None, "en"):
        raise UnsupportedFeatureError(f"{name} does not know {request.language}.", param="language")
    return ids[name], request


def create_protocol(config: RealtimeConfig | None = None, **named: Any) -> RealtimeProtocol:
    return RealtimeProtocol("s", admit_request, config or RealtimeConfig(), **named)


def send_event(to: RealtimeProtocol, kind: str, **fields: object) -> list[ProtocolStep]:
    return list(to.receive_message(json.dumps({"type": kind, **fields})))


def update_session(to: RealtimeProtocol, **given: object) -> list[ProtocolStep]:
    return send_event(to, "session.update", session={"type": "transcription", "audio": {"input": given}})


def append_audio(to: RealtimeProtocol, audio: bytes = b"\0\0") -> list[ProtocolStep]:
    return send_event(to, "input_audio_buffer.append", audio=base64.b64encode(audio).decode())


def emit_events(to: RealtimeProtocol, *events: LiveEvent) -> list[dict[str, Any]]:
    return [wire for event in events for wire in to.receive_event(event)]


def list_types(wires: list[Any]) -> list[str]:
    return [wire["type"] for wire in wires]


def get_error(steps: list[ProtocolStep]) -> dict[str, Any]:
    (step,) = steps
    assert isinstance(step, dict), step
    assert step["type"] == "error", step
    error: dict[str, Any] = step["error"]
    return error


def get_open_session(steps: list[ProtocolStep]) -> OpenSession:
    (found,) = [step for step in steps if isinstance(step, OpenSession)]
    return found


def test_the_first_event_shows_the_session() -> None:
    (created,) = create_protocol().greet()
    assert isinstance(created, dict)
    assert (created["type"], created["event_id"]) == ("session.created", "event_s_1")
    assert created["session"] == {
        "type": "transcription",
        "object": "realtime.transcription_session",
        "id": "sess_s",
        "include": None,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": None, "language": None, "prompt": ""},
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                    "idle_timeout_ms": None,
                },
            }
        },
    }


def test_audio_begins_a_session_with_what_is_in_force() -> None:
    first, second = create_protocol(), create_protocol(RealtimeConfig(model="two"))
    begun, audio = append_audio(first, b"\1\2")
    assert isinstance(begun, OpenSession)
    assert (begun.model, audio) == ("one", b"\1\2")
    assert begun.settings.format == AudioFormat(AudioEncoding.PCM16, 24_000)
    assert begun.settings.endpointing == EndpointingSettings(0.5, 0.3, 0.5, None)
    assert append_audio(first, b"\3") == [b"\3"], "an odd number of bytes goes on with the next piece"
    assert get_open_session(append_audio(second)).model == "two"


def test_an_update_begins_it_before_and_later_ones_change_it() -> None:
    talk = create_protocol()
    updated, begun = update_session(
        talk, transcription={"model": "two", "language": "en-US", "prompt": "Hi", "keywords": ["a", "b"]}
    )
    assert isinstance(updated, dict)
    assert isinstance(begun, OpenSession)
    assert updated["type"] == "session.updated"
    assert updated["session"]["audio"]["input"]["transcription"] == {
        "model": "two",
        "language": "en-US",
        "prompt": "Hi",
        "keywords": ["a", "b"],
    }
    request = begun.settings.request
    assert (request.language, request.prompt, request.hotwords) == ("en", "Hi", ("a", "b"))
    _, changed = update_session(talk, turn_detection=None)
    assert isinstance(changed, ConfigureCommand)
    assert changed.settings.endpointing is None
    assert changed.settings.request == request, "what an update leaves out stays"
    assert append_audio(talk) == [b"\0\0"]


def test_only_the_fields_of_an_update_change() -> None:
    talk = create_protocol()
    update_session(talk, turn_detection={"type": "server_vad", "threshold": 0.9, "idle_timeout_ms": 6000})
    shown, _ = update_session(talk, turn_detection={"silence_duration_ms": 200})
    assert isinstance(shown, dict)
    assert shown["session"]["audio"]["input"]["turn_detection"] == {
        "type": "server_vad",
        "threshold": 0.9,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 200,
        "idle_timeout_ms": 6000,
    }
    shown, _ = update_session(talk, turn_detection=None)
    assert isinstance(shown, dict)
    assert shown["session"]["audio"]["input"]["turn_detection"] is None
    shown, configure = update_session(talk, transcription={"language": "en"})
    assert isinstance(shown, dict)
    assert isinstance(configure, ConfigureCommand)
    assert shown["session"]["audio"]["input"]["turn_detection"] is None
    assert configure.settings.request.language == "en"


@pytest.mark.parametrize("model", BY_HAND)
@pytest.mark.parametrize("beta", [False, True])
def test_clients_of_some_models_commit_themselves_unless_they_say_otherwise(model: str, beta: bool) -> None:
    (created,) = create_protocol(RealtimeConfig(model=model), beta=beta).greet()
    assert (created["session"] if beta else created["session"]["audio"]["input"])["turn_detection"] is None  # type: ignore[index, call-overload]
    assert get_open_session(append_audio(create_protocol(RealtimeConfig(model=model)))).settings.endpointing is None
    talk = create_protocol()
    shown, begun = update_session(talk, transcription={"model": model})
    assert shown["session"]["audio"]["input"]["turn_detection"] is None  # type: ignore[index, call-overload]
    assert isinstance(begun, OpenSession)
    assert begun.settings.endpointing is None
    _, changed = update_session(talk, turn_detection={"type": "server_vad", "silence_duration_ms": 700})
    assert isinstance(changed, ConfigureCommand)
    assert changed.settings.endpointing == EndpointingSettings(silence_s=0.7)
    _, changed = update_session(talk, transcription={"model": model, "language": "en"})
    assert isinstance(changed, ConfigureCommand)
    assert changed.settings.endpointing == EndpointingSettings(silence_s=0.7), "what the client has said stays"
    assert (
        get_open_session(update_session(create_protocol(), transcription={"model": "whisper-1"})).settings.endpointing
        == EndpointingSettings()
    )


def test_semantic_detection_is_patience() -> None:
    pauses = []
    for eagerness in ("low", "medium", "auto", "high"):
        shown, begun = update_session(create_protocol(), turn_detection={"type": "semantic_vad", "eagerness": eagerness})
        assert isinstance(shown, dict)
        assert isinstance(begun, OpenSession)
        assert shown["session"]["audio"]["input"]["turn_detection"] == {"type": "semantic_vad", "eagerness": eagerness}
        assert begun.settings.endpointing
        pauses.append(begun.settings.endpointing.silence_s)
    assert pauses == [1.6, 0.8, 0.8, 0.4]


@pytest.mark.parametrize(
    ("given", "format"),
    [
        ({"type": "audio/pcm", "rate": 16000}, AudioFormat(AudioEncoding.PCM16, 16_000)),
        ({"type": "audio/pcm"}, AudioFormat(AudioEncoding.PCM16, 24_000)),
        ({"rate": 48000}, AudioFormat(AudioEncoding.PCM16, 48_000)),
        ({"type": "audio/pcmu"}, AudioFormat(AudioEncoding.MULAW, 8_000)),
        ({"type": "audio/pcma", "rate": 8000}, AudioFormat(AudioEncoding.ALAW, 8_000)),
    ],
)
def test_formats(given: dict[str, Any], format: AudioFormat) -> None:
    assert get_open_session(update_session(create_protocol(), format=given)).settings.format == format


def test_pcm_has_the_servers_rate_where_the_client_says_none() -> None:
    config = RealtimeConfig(pcm_rate=16_000)
    talk = create_protocol(config)
    update_session(talk, format={"type": "audio/pcmu"})
    _, changed = update_session(talk, format={"type": "audio/pcm"})
    assert isinstance(changed, ConfigureCommand)
    assert changed.settings.format == AudioFormat(AudioEncoding.PCM16, 16_000)


BETA = {
    "input_audio_format": "g711_ulaw",
    "input_audio_transcription": {"model": "two", "prompt": "", "language": "en"},
    "turn_detection": {"type": "server_vad"},
    "input_audio_noise_reduction": {"type": "near_field"},
}


def test_the_betas_update_is_answered_in_its_shape_and_so_is_what_follows() -> None:
    talk = create_protocol()
    updated, begun = send_event(talk, "transcription_session.update", session=BETA)
    assert isinstance(updated, dict)
    assert isinstance(begun, OpenSession)
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "g711_ulaw"
    assert updated["session"]["input_audio_transcription"]["model"] == "two"
    assert updated["session"]["input_audio_noise_reduction"] is None, "it is not done, so it is not said to be"
    assert (begun.model, begun.settings.format) == ("two", AudioFormat(AudioEncoding.MULAW, 8_000))
    assert list_types(emit_events(talk, UtteranceCommitted(1, 0, 1))) == [
        "input_audio_buffer.committed",
        "conversation.item.created",
    ]


def test_the_beta_greets_with_its_own_event_where_it_is_to_transcribe() -> None:
    (created,) = create_protocol(beta=True).greet()
    (other,) = create_protocol(beta=True, certain=False).greet()
    assert isinstance(created, dict)
    assert isinstance(other, dict)
    assert (created["type"], other["type"]) == ("transcription_session.created", "session.created")
    assert created["session"]["input_audio_format"] == "pcm16"


def test_todays_shape_is_understood_on_a_beta_connection_and_the_other_way_round() -> None:
    today, before = create_protocol(beta=True), create_protocol()
    assert "audio" in update_session(today, turn_detection=None)[0]["session"]  # type: ignore[index, call-overload]
    shown = send_event(before, "session.update", session={"input_audio_format": "pcm16", "turn_detection": None})[0]
    assert isinstance(shown, dict)
    assert (shown["type"], shown["session"]["input_audio_format"]) == ("session.updated", "pcm16")


def test_an_utterance_from_beginning_to_end() -> None:
    talk = create_protocol()
    append_audio(talk)
    wires = emit_events(
        talk,
        SpeechStarted(1, 0.25),
        PartialTranscript(1, "", "he", 0.25, 0.9),
        PartialTranscript(1, "Hello", " wor", 0.25, 1.5),
        PartialTranscript(1, "Hello", " world", 0.25, 1.6),
        SpeechStopped(1, 2.0),
        UtteranceCommitted(1, 0.25, 2.0),
        FinalTranscript(1, 0.25, 2.0, "Hello world.", language="en"),
        SessionEnded(3.0),
    )
    item = wires[0]["item_id"]
    assert [wire["event_id"] for wire in wires] == [f"event_s_{number}" for number in range(1, len(wires) + 1)]
    assert [{key: value for key, value in wire.items() if key != "event_id"} for wire in wires] == [
        {"type": "input_audio_buffer.speech_started", "audio_start_ms": 250, "item_id": item},
        {"type": f"{TRANSCRIPTION}.delta", "item_id": item, "content_index": 0, "delta": "Hello"},
        {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": 2000, "item_id": item},
        {"type": "input_audio_buffer.committed", "previous_item_id": None, "item_id": item},
        {"type": "conversation.item.added", "previous_item_id": None, "item": wires[4]["item"]},
        {"type": "conversation.item.done", "previous_item_id": None, "item": wires[4]["item"]},
        {"type": f"{TRANSCRIPTION}.delta", "item_id": item, "content_index": 0, "delta": " world."},
        {
            "type": f"{TRANSCRIPTION}.completed",
            "item_id": item,
            "content_index": 0,
            "transcript": "Hello world.",
            "usage": {"type": "duration", "seconds": 1.75},
            "languages": [{"code": "en"}],
        },
    ]
    assert wires[4]["item"] == {
        "id": item,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


def test_items_follow_each_other_and_one_may_fail() -> None:
    talk = create_protocol()
    first = emit_events(talk, UtteranceCommitted(1, 0, 1))[0]
    failed = emit_events(talk, UtteranceFailed(1, RunnerCrashedError("It died.")))
    second = emit_events(talk, UtteranceCommitted(2, 1, 2))[0]
    assert (second["previous_item_id"], second["item_id"] != first["item_id"]) == (first["item_id"], True)
    (event,) = failed
    assert (event["type"], event["item_id"]) == (f"{TRANSCRIPTION}.failed", first["item_id"])
    assert event["error"] == {"type": "server_error", "code": "model_crashed", "message": "It died.", "param": None}


def test_an_utterance_that_is_cleared_leaves_its_item_to_nobody() -> None:
    talk = create_protocol()
    append_audio(talk)
    (started,) = emit_events(talk, SpeechStarted(1, 0.0))
    assert send_event(talk, "input_audio_buffer.clear") == [ClearCommand()]
    assert list_types(emit_events(talk, UtteranceCleared(1))) == ["input_audio_buffer.cleared"]
    assert emit_events(talk, SpeechStarted(1, 2.0))[0]["item_id"] != started["item_id"]


def test_a_long_silence_is_an_item_without_text() -> None:
    talk = create_protocol()
    emit_events(talk, UtteranceCommitted(1, 0.0, 2.0), FinalTranscript(1, 0.0, 2.0, "Yes."))
    wires = emit_events(talk, SpeechIdle(8.0))
    assert list_types(wires) == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        f"{TRANSCRIPTION}.completed",
    ]
    assert (wires[0]["audio_start_ms"], wires[0]["audio_end_ms"]) == (2000, 8000)
    assert (wires[4]["transcript"], wires[4]["usage"]["seconds"]) == ("", 6.0)
    assert {wire.get("item_id", wires[0]["item_id"]) for wire in wires} == {wires[0]["item_id"]}


def test_languages_and_probabilities_where_they_are_known_and_wanted() -> None:
    segment = Segment(0, 1, "Hé", token_logprobs=[Token("Hé", -0.1)])
    final = FinalTranscript(1, 0, 1, "Hé", (segment,), "en")
    talk = create_protocol()
    assert "logprobs" not in emit_events(talk, final)[-1]
    include = ["item.input_audio_transcription.logprobs"]
    session = {"type": "transcription", "include": include, "audio": {"input": {"transcription": {"language": "en"}}}}
    shown, begun = send_event(talk, "session.update", session=session)
    assert isinstance(shown, dict)
    assert isinstance(begun, OpenSession)
    assert shown["session"]["include"] == include
    assert begun.settings.request.logprobs
    completed = emit_events(talk, final)[-1]
    assert completed["logprobs"] == [{"token": "Hé", "logprob": -0.1, "bytes": [72, 195, 169]}]
    assert "languages" not in completed, "the client has said it; nothing was detected"
    for without in (None, []):
        send_event(talk, "session.update", session=session)
        send_event(talk, "session.update", session={"type": "transcription", "include": without})
        assert "logprobs" not in emit_events(talk, final)[-1]


def test_the_first_configuration_counts_from_the_first_utterance() -> None:
    """That of a client secret, say: its clients send no update."""
    include = ["item.input_audio_transcription.logprobs"]
    session = {"include": include, "audio": {"input": {"transcription": {"language": "en"}}}}
    talk = create_protocol(RealtimeConfig().update(session, beta=False))
    assert get_open_session(append_audio(talk)).settings.request.logprobs
    segment = Segment(0, 1, "Hé", token_logprobs=[Token("Hé", -0.1)])
    completed = emit_events(talk, FinalTranscript(1, 0, 1, "Hé", (segment,), "en"))[-1]
    assert [token["token"] for token in completed["logprobs"]] == ["Hé"]
    assert "languages" not in completed


def test_a_commit_needs_audio() -> None:
    talk = create_protocol()
    error = get_error(send_event(talk, "input_audio_buffer.commit", event_id="mine"))
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
    append_audio(talk)
    assert send_event(talk, "input_audio_buffer.commit") == [CommitCommand()]
    assert get_error(send_event(talk, "input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    append_audio(talk)
    send_event(talk, "input_audio_buffer.clear")
    assert get_error(send_event(talk, "input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"


def test_a_commit_that_the_session_refuses_is_told_with_its_id() -> None:
    """A pause has ended the utterance already, before the commit came or while it was on its way."""
    talk = create_protocol()
    refused = CommandRefused(EmptyCommitError("There is nothing to commit."))
    for events in (
        [refused],
        [UtteranceCommitted(1, 0, 1), refused],
        [UtteranceCommitted(2, 1, 2), FinalTranscript(2, 1, 2, ""), refused],
    ):
        append_audio(talk)
        send_event(talk, "input_audio_buffer.commit", event_id=f"mine {len(events)}")
        (error,) = [wire["error"] for wire in emit_events(talk, *events) if wire["type"] == "error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", f"mine {len(events)}")


def test_clearing_before_any_audio_is_answered() -> None:
    (cleared,) = send_event(create_protocol(), "input_audio_buffer.clear")
    assert isinstance(cleared, dict)
    assert cleared["type"] == "input_audio_buffer.cleared"


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ("nonsense", "invalid_value", "not valid JSON"),
        ("[" * 100_000, "invalid_value", "nested more than"),
        ("[]", "invalid_value", "JSON object"),
        ("{}", "invalid_value", "type"),
        ('{"type": 1}', "invalid_value", "type"),
        (b"\0\0", "invalid_value", "text frames"),
        ('{"type": "session.upgrade"}', "unknown_event", "'session.upgrade'"),
        ('{"type": "response.create"}', "unsupported_feature", "response.create"),
        ('{"type": "conversation.item.create", "item": {}}', "unsupported_feature", "only transcribes"),
        ('{"type": "input_audio_buffer.append"}', "invalid_value", "base64"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "invalid_value", "base64"),
        ('{"type": "input_audio_buffer.append", "audio": "A"}', "invalid_value", "base64"),
        ('{"type": "input_audio_buffer.append", "audio": "é==="}', "invalid_value", "base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AA AA"}', "invalid_value", "base64"),
        ('{"type": "session.update"}', "invalid_value", "session must be an object"),
        ('{"type": "session.update", "session": []}', "invalid_value", "session must be an object"),
        ("x" * (MAX_EVENT_CHARS + 1), "request_too_large", "15 MiB"),
    ],
)
def test_what_is_no_event_is_refused_and_nothing_else_happens(message: str | bytes, code: str, said: str) -> None:
    talk = create_protocol()
    error = get_error(list(talk.receive_message(message)))
    assert (error["code"], error["type"], error["event_id"]) == (code, "invalid_request_error", None)
    assert said in error["message"]
    assert len(error["message"]) < 300
    assert get_open_session(append_audio(talk)).model == "one"


def test_audio_of_the_largest_size_is_taken_and_more_is_not() -> None:
    talk = create_protocol()
    assert len(append_audio(talk, bytes(15 << 20))[-1]) == 15 << 20
    assert get_error(append_audio(talk, bytes((15 << 20) + 1)))["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"type": "realtime"}, "session.type"),
        ({"type": "transcription", "tools": [{}]}, "session.tools"),
        ({"instructions": "Be kind."}, "session.instructions"),
        ({"model": "gpt-realtime"}, "session.model"),
        ({"audio": {"output": {"voice": "alloy"}}}, "session.audio.output"),
        ({"audio": {"input": {"transcription": None}}}, "session.audio.input.transcription"),
        ({"audio": {"input": {"transcription": {"model": 1}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"input": {"transcription": {"model": "nobody"}}}}, "model"),
        ({"audio": {"input": {"transcription": {"language": "de"}}}}, "language"),
        ({"audio": {"input": {"transcription": {"language": "Klingon"}}}}, "language"),
        ({"audio": {"input": {"transcription": {"keywords": 5}}}}, "session.audio.input.transcription.keywords"),
        ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "session.audio.input.format.type"),
        ({"audio": {"input": {"format": "pcm16"}}}, "session.audio.input.format"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 0}}}}, "session.audio.input.format.rate"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": True}}}}, "session.audio.input.format.rate"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu", "rate": 16000}}}}, "session.audio.input.format.rate"),
        ({"audio": {"input": {"turn_detection": "server_vad"}}}, "session.audio.input.turn_detection"),
        ({"audio": {"input": {"turn_detection": {"type": "psychic"}}}}, "session.audio.input.turn_detection.type"),
        ({"audio": {"input": {"turn_detection": {"type": []}}}}, "session.audio.input.turn_detection.type"),
        ({"audio": {"input": {"turn_detection": {"threshold": 2}}}}, "session.audio.input.turn_detection.threshold"),
        ({"audio": {"input": {"turn_detection": {"threshold": "high"}}}}, "session.audio.input.turn_detection.threshold"),
        (
            {"audio": {"input": {"turn_detection": {"silence_duration_ms": -1}}}},
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        ({"audio": {"input": {"noise_reduction": {"type": "none"}}}}, "session.audio.input.noise_reduction.type"),
        ({"audio": {"input": []}}, "session.audio.input"),
        ({"include": ["everything"]}, "session.include"),
        ({"input_audio_format": "opus"}, "session.input_audio_format"),
        ({"input_audio_format": 5}, "session.input_audio_format"),
        ({"input_audio_transcription": None}, "session.input_audio_transcription"),
    ],
)
def test_an_update_with_a_mistake_changes_nothing(session: dict[str, Any], param: str) -> None:
    talk = create_protocol()
    good = {"audio": {"input": {"turn_detection": None}}, "type": "transcription"}
    error = get_error(send_event(talk, "session.update", session=session, event_id="e"))
    assert (error["param"], error["event_id"]) == (param, "e"), error
    shown = send_event(talk, "session.update", session=good)[0]
    assert isinstance(shown, dict)
    (created,) = create_protocol().greet()
    assert isinstance(created, dict)
    expected = created["session"]
    expected["audio"]["input"]["turn_detection"] = None
    assert shown["session"] == expected


def test_what_clients_send_without_meaning_it_is_no_mistake() -> None:
    session = {
        "type": "transcription",
        "tools": [],
        "instructions": "",
        "include": None,
        "audio": {
            "output": None,
            "input": {
                "format": None,
                "noise_reduction": None,
                "transcription": {"model": "", "language": "", "delay": "low", "new_field": 1},
                "turn_detection": {"type": "server_vad", "create_response": False, "interrupt_response": False},
            },
        },
    }
    assert get_open_session(send_event(create_protocol(), "session.update", session=session)).model == "one"


def test_format_and_model_stay_once_audio_has_come() -> None:
    talk = create_protocol()
    append_audio(talk)
    assert "format" in get_error(update_session(talk, format={"type": "audio/pcmu"}))["message"]
    assert "model" in get_error(update_session(talk, transcription={"model": "two"}))["message"]
    _, changed = update_session(talk, format={"type": "audio/pcm", "rate": 24000}, transcription={"model": "whisper-1"})
    assert isinstance(changed, ConfigureCommand), "the same by another name is no change"


def test_another_model_before_audio_is_another_session() -> None:
    talk = create_protocol()
    assert get_open_session(update_session(talk, transcription={"model": "one"})).model == "one"
    assert get_open_session(update_session(talk, transcription={"model": "two"})).model == "two"
    assert append_audio(talk) == [b"\0\0"]


def test_a_model_that_is_to_transcribe_and_does_not_exist_ends_the_connection() -> None:
    _, error, end = create_protocol(RealtimeConfig(model="nobody")).greet()
    assert isinstance(error, dict)
    assert error["error"]["code"] == "model_not_found"
    assert end == CloseConnection(CloseCode.REFUSED, "invalid_request_error.model_not_found")


def test_the_model_of_a_conversation_does_not_matter_until_audio_comes() -> None:
    """Clients name the one that would talk in the address, and the one that transcribes in the session."""
    talk = create_protocol(RealtimeConfig(model="gpt-realtime"), certain=False)
    assert len(list(talk.greet())) == 1
    assert get_open_session(update_session(talk, transcription={"model": "two"})).model == "two"
    alone = create_protocol(RealtimeConfig(model="gpt-realtime"), certain=False)
    error, end = append_audio(alone)
    assert isinstance(error, dict)
    assert (error["error"]["code"], end) == (
        "model_not_found",
        CloseConnection(CloseCode.REFUSED, "invalid_request_error.model_not_found"),
    )


def test_a_session_that_breaks_ends_the_connection_so_that_clients_come_again() -> None:
    error, end = create_protocol().fail(RunnerCrashedError("It died."))
    assert isinstance(error, dict)
    assert (error["error"]["type"], end) == ("server_error", CloseConnection(CloseCode.FAILED, "server_error.model_crashed"))


def admit_by_language(name: str, request: TranscriptionRequest) -> tuple[str, TranscriptionRequest]:
    """Who names no model gets one that knows the language."""
    id = name or ("german" if request.language == "de" else "english")
    if (request.language == "de") != (id == "german") and request.language:
        raise UnsupportedFeatureError(f"{id} does not know {request.language}.", param="language")
    return id, request


def test_a_language_that_comes_before_any_audio_chooses_the_model() -> None:
    talk = RealtimeProtocol("s", admit_by_language, RealtimeConfig())
    (_, opened) = update_session(talk, transcription={"language": "en"})
    assert isinstance(opened, OpenSession)
    assert opened.model == "english"
    (_, opened) = update_session(talk, transcription={"language": "de"})
    assert isinstance(opened, OpenSession)
    assert (opened.model, opened.settings.request.language) == ("german", "de")
    send_event(talk, "input_audio_buffer.append", audio=base64.b64encode(b"ab").decode())
    (refused,) = update_session(talk, transcription={"language": "en"})
    assert isinstance(refused, dict)
    assert "german does not know en" in refused["error"]["message"]
