"""Transcripts, events and errors in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.responses import Response

from eardrum.api.openai import responses
from eardrum.api.openai.params import TranscriptionParams, parse_params
from eardrum.api.openai.speech import SpeechBody, SpeechForm
from eardrum.errors import BusyError, ClientStalledError, EardrumError, InvalidRequestError, ModelCoolingError, TooLargeError
from eardrum.speech import SpeechBegun, SpeechSummary
from eardrum.transcription import DroppedText, Segment, SpeechTask, Token, Transcript, TranscriptionSummary, Word

SEGMENTS = [
    Segment(
        0.25,
        3.3204,
        " The beach.",
        avg_logprob=-0.2,
        no_speech_prob=0.01,
        compression_ratio=1.2,
        tokens=[5, 7],
        token_logprobs=[Token(" The", -0.1), Token(" bèach.", -0.3)],
        words=[Word("The", 0.25, 1.00049, 0.9), Word("beach.", 1.0, 3.3, 0.8)],
    ),
    Segment(4.0, 5.0, "It was.", token_logprobs=[Token("It was.", -0.5)]),
]
TRANSCRIPT = Transcript(SEGMENTS, TranscriptionSummary("en", 8.47))
SILENCE = Transcript([], TranscriptionSummary("en", 2.0))


def create_params(
    response_format: str = "json", *, task: SpeechTask = SpeechTask.TRANSCRIBE, **fields: str
) -> TranscriptionParams:
    form = {name.replace("__", "[]"): [value] for name, value in fields.items()}
    return parse_params({"response_format": [response_format]} | form, task)


def parse_body(response: Response) -> Any:
    assert response.headers["content-type"] == "application/json"
    return json.loads(bytes(response.body))


def parse_event(data: bytes) -> dict[str, Any]:
    """An event as a client reads it: by its `event` line and by its `data` line."""
    name, payload, *rest = data.decode().split("\n")
    assert rest == ["", ""]
    read: dict[str, Any] = json.loads(payload.removeprefix("data: "))
    assert name == f"event: {read.get('type', 'error')}"
    return read


def test_json() -> None:
    assert parse_body(responses.build_response(TRANSCRIPT, create_params())) == {
        "text": "The beach. It was.",
        "usage": {"type": "duration", "seconds": 9},
    }


def test_silence_is_an_empty_text_and_no_error() -> None:
    assert parse_body(responses.build_response(SILENCE, create_params()))["text"] == ""
    assert parse_body(responses.build_response(SILENCE, create_params("verbose_json")))["segments"] == []
    assert parse_event(responses.encode_done(SILENCE, create_params()))["text"] == ""


def test_log_probabilities() -> None:
    found = parse_body(responses.build_response(TRANSCRIPT, create_params(include__="logprobs")))["logprobs"]
    assert [item["token"] for item in found] == [" The", " bèach.", "It was."]
    assert all(set(item) == {"token", "logprob", "bytes"} for item in found)
    assert bytes(found[1]["bytes"]).decode() == " bèach."
    assert "logprobs" not in parse_body(responses.build_response(TRANSCRIPT, create_params()))


def test_nobody_waits_while_cues_get_a_shape() -> None:
    long = Transcript([Segment(0.0, 600.0, "It was. " * 1500)], TranscriptionSummary("en", 600.0))

    async def turns_of_others() -> int:
        shaping = asyncio.create_task(responses.build_response_in_thread(long, create_params("srt", subtitles="broadcast")))
        turns = 0
        while not shaping.done():
            await asyncio.sleep(0)
            turns += 1
        assert bytes((await shaping).body).count(b"It was.") == 1500
        return turns

    assert asyncio.run(turns_of_others()) > 5


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
def test_plain_formats_are_plain_text(kind: str) -> None:
    response = responses.build_response(TRANSCRIPT, create_params(kind))
    assert response.headers["content-type"].startswith("text/plain")
    written = bytes(response.body).decode()
    assert written.endswith("\n")
    assert "It was." in written
    assert not written.startswith('"')
    assert ("-->" in written) == (kind != "text")


def test_verbose_json_has_every_field_that_is_required() -> None:
    found = parse_body(responses.build_response(TRANSCRIPT, create_params("verbose_json")))
    assert {key: found[key] for key in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 8.47,
        "text": "The beach. It was.",
    }
    assert found["usage"] == {"type": "duration", "seconds": 9}
    assert "words" not in found
    assert found["segments"][0] == {
        "id": 0,
        "seek": 25,
        "start": 0.25,
        "end": 3.32,
        "text": " The beach.",
        "tokens": [5, 7],
        "temperature": 0.0,
        "avg_logprob": -0.2,
        "compression_ratio": 1.2,
        "no_speech_prob": 0.01,
    }
    assert [segment["id"] for segment in found["segments"]] == [0, 1]
    assert all(len(segment) == 10 for segment in found["segments"])


def test_verbose_json_with_words() -> None:
    only = parse_body(responses.build_response(TRANSCRIPT, create_params("verbose_json", timestamp_granularities__="word")))
    assert only["words"] == [{"word": "The", "start": 0.25, "end": 1.0}, {"word": "beach.", "start": 1.0, "end": 3.3}]
    assert "segments" not in only
    both = parse_body(
        responses.build_response(TRANSCRIPT, create_params("verbose_json", timestamp_granularities__="word,segment"))
    )
    assert both["words"]
    assert both["segments"]


def test_a_translation_says_so() -> None:
    assert (
        parse_body(responses.build_response(TRANSCRIPT, create_params("verbose_json", task=SpeechTask.TRANSLATE)))["task"]
        == "translate"
    )


def test_what_was_thrown_away_is_told() -> None:
    summary = replace(TRANSCRIPT.summary, dropped=[DroppedText(6.0, 7.0, "♪", "only music notes")])
    found = parse_body(responses.build_response(Transcript(SEGMENTS, summary), create_params("verbose_json")))
    assert found["dropped"] == [{"start": 6.0, "end": 7.0, "text": "♪", "reason": "only music notes"}]
    assert "dropped" not in parse_body(responses.build_response(TRANSCRIPT, create_params("verbose_json")))


def test_what_could_not_be_decoded_is_told() -> None:
    heard = Transcript(SEGMENTS, replace(TRANSCRIPT.summary, warnings=["The file breaks off at 3.0 s."]))
    assert parse_body(responses.build_response(heard, create_params("verbose_json")))["warnings"] == [
        "The file breaks off at 3.0 s."
    ]
    assert parse_event(responses.encode_done(heard, create_params()))["warnings"] == ["The file breaks off at 3.0 s."]
    assert "warnings" not in parse_body(responses.build_response(heard, create_params()))
    assert "warnings" not in parse_body(responses.build_response(TRANSCRIPT, create_params("verbose_json")))
    assert "warnings" not in parse_event(responses.encode_done(TRANSCRIPT, create_params()))


def test_deltas_joined_are_the_text_of_done() -> None:
    segments = [*SEGMENTS, Segment(6, 7, "  Was it?  "), Segment(7, 8, "Yes.")]
    before = ["", *(segment.text for segment in segments)]
    deltas = [
        parse_event(responses.encode_delta(s, create_params(), before=said)) for said, s in zip(before, segments, strict=False)
    ]
    done = parse_event(responses.encode_done(Transcript(segments, TRANSCRIPT.summary), create_params()))
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == "The beach. It was. Was it? Yes."
    assert [(delta["start"], delta["end"]) for delta in deltas] == [(s.start, round(s.end, 3)) for s in segments]
    assert all(set(delta) == {"type", "delta", "start", "end"} for delta in deltas)
    assert done["segments"][0] == {"id": 0, "start": 0.25, "end": 3.32, "text": "The beach."}
    assert [segment["id"] for segment in done["segments"]] == [0, 1, 2, 3]
    assert "usage" not in done, "a duration here would violate the schema"


def test_the_last_event_of_a_stream_has_words_if_they_were_asked_for() -> None:
    wished = create_params("verbose_json", timestamp_granularities__="word", stream="true")
    heard = Transcript(SEGMENTS, replace(TRANSCRIPT.summary, model="m"))
    done = parse_event(responses.encode_done(heard, wished))
    assert done["segments"][0]["words"] == [
        {"word": "The", "start": 0.25, "end": 1.0},
        {"word": "beach.", "start": 1.0, "end": 3.3},
    ]
    assert (done["language"], done["duration"], done["model"]) == ("en", 8.47, "m")
    plain = parse_event(responses.encode_done(Transcript(SEGMENTS), create_params()))
    assert set(plain) == {"type", "text", "segments"}, "what is not known is left out"
    assert "words" not in plain["segments"][0]


def test_log_probabilities_in_a_stream() -> None:
    wished = create_params(include__="logprobs", stream="true")
    deltas = [parse_event(responses.encode_delta(s, wished, before="")) for s in SEGMENTS]
    assert [item for delta in deltas for item in delta["logprobs"]] == parse_event(responses.encode_done(TRANSCRIPT, wished))[
        "logprobs"
    ]


def test_text_with_line_breaks_stays_one_event() -> None:
    assert parse_event(responses.encode_delta(Segment(0, 1, "a\nb"), create_params(), before=""))["delta"] == "a\nb"


@pytest.mark.parametrize(
    ("error", "status", "type", "code"),
    [
        (InvalidRequestError("No.", param="language"), 400, "invalid_request_error", "invalid_value"),
        (TooLargeError("No."), 413, "invalid_request_error", "request_too_large"),
        (ClientStalledError("No."), 408, "timeout_error", "request_timeout"),
        (BusyError("No.", retry_after=5), 503, "server_error", "busy"),
        (EardrumError("No."), 500, "server_error", "server_error"),
    ],
)
def test_an_error_has_all_four_keys(error: EardrumError, status: int, type: str, code: str) -> None:
    response = responses.build_error_response(error)
    assert response.status_code == status
    expected = {"error": {"message": "No.", "type": type, "param": error.param, "code": code}}
    assert parse_body(response) == expected
    assert parse_event(responses.encode_error(error)) == expected


def test_retrying_clients_are_told_when_or_not_to() -> None:
    busy = responses.build_error_response(BusyError("Full.", retry_after=4.2)).headers
    assert busy["retry-after"] == "5"
    assert "x-should-retry" not in busy
    assert responses.build_error_response(ModelCoolingError("Soon.", retry_after=0.3)).headers["retry-after"] == "1"
    lasting = responses.build_error_response(EardrumError("Broken.")).headers
    assert lasting["x-should-retry"] == "false"
    assert "retry-after" not in lasting
    refused = responses.build_error_response(InvalidRequestError("Wrong.")).headers
    assert "x-should-retry" not in refused


@pytest.mark.parametrize(("size", "lengths"), [(2, [b"2"]), (None, [])])
async def test_audio_has_the_length_that_the_last_process_told(size: int | None, lengths: list[bytes]) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    body = SpeechBody(SpeechForm(input="Hello.", response_format="wav"), send, [(b"x-eardrum-ignored", b"style")])
    await body.add_event(SpeechBegun(4, 24_000))  # of a process that died before the first audio
    await body.add_event(SpeechBegun(size, 24_000))
    await body.add_event(b"ab")
    await body.add_event(SpeechSummary(6, 1, 0.1))
    headers = sent[0]["headers"]
    assert [value for name, value in headers if name == b"content-length"] == lengths
    assert (b"x-eardrum-ignored", b"style") in headers
