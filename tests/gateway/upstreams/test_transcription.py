"""Transcription by servers that are not ours: what they are asked, what is made of what they say, what is learned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web

from eardrum.errors import (
    BusyError,
    EardrumError,
    InvalidRequestError,
    RunnerCrashedError,
    UnsupportedFeatureError,
    UpstreamDiedError,
    UpstreamError,
)
from eardrum.gateway.upstreams.external import ExternalUpstream
from eardrum.gateway.upstreams.transcription_request import RequestStrategy
from eardrum.transcription import Segment, SpeechTask, TextDelta, TranscriptionEvent, TranscriptionRequest, TranscriptionSummary
from tests import upstreams
from tests.recordings import create_tone, encode
from tests.upstreams import Answer, FakeUpstream, UpstreamCall, fake_upstream


class ReplayableAudio:
    """Audio in pieces, as often as it is wanted."""

    def __init__(self, *pieces: bytes):
        self.pieces = pieces
        self.read_to_end = 0

    async def read(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        self.read_to_end += 1


WAV = encode(create_tone(7.6), "wav")
PIECES = ReplayableAudio(WAV[:1000], WAV[1000:100_000], WAV[100_000:])


async def collect_events(
    upstream: ExternalUpstream, audio: ReplayableAudio = PIECES, **request: object
) -> list[TranscriptionEvent]:
    return [event async for event in upstream.transcribe(TranscriptionRequest(**request), audio)]


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that happens on another thread's loop."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- there is no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def open_external(url: str, key: str = "", **options: str) -> AsyncIterator[ExternalUpstream]:
    """The way to a server."""
    upstream = ExternalUpstream(url, model="asr", key=key, strategy=RequestStrategy.from_options(options))
    try:
        yield upstream
    finally:
        await upstream.close()


def transcribe_in_turn(
    url: str, *requests: dict, audio: ReplayableAudio = PIECES, **options: str
) -> list[list[TranscriptionEvent]]:
    """The events of requests one after another."""

    async def main() -> list[list[TranscriptionEvent]]:
        async with open_external(url, **options) as upstream:
            return [await collect_events(upstream, audio, **request) for request in requests]

    return asyncio.run(main())


def transcribe_with(
    answer: Answer, *requests: dict, audio: ReplayableAudio = PIECES, **options: str
) -> tuple[list[list[TranscriptionEvent]], list[UpstreamCall]]:
    """The events of requests one after another, and what reached the server."""
    with fake_upstream(answer) as fake:
        return transcribe_in_turn(fake.url, *requests, audio=audio, **options), fake.calls


def get_failure(answer: Answer, **request: object) -> EardrumError:
    with pytest.raises(EardrumError) as caught:
        transcribe_with(answer, request)
    return caught.value


def list_texts(events: list[TranscriptionEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Segment)]


def get_summary(events: list[TranscriptionEvent]) -> TranscriptionSummary:
    last = events[-1]
    assert isinstance(last, TranscriptionSummary)
    return last


def test_what_is_asked_goes_into_the_form_and_the_file_is_what_it_is() -> None:
    extra = (("beam_size", "7"), ("vad_params[a]", "x"), ("hotwords", "Elinor"), ("language", "xx"))
    wanted = {"language": "de", "prompt": "At Norland.", "temperature": 0.2, "hotwords": ("Elinor",), "extra": extra}
    _, (call,) = transcribe_with(upstreams.fake_whisper_server, wanted)
    assert call.path == "/v1/audio/transcriptions"
    assert call.fields == {
        "model": ["asr"],
        "response_format": ["verbose_json"],
        "language": ["de"],
        "prompt": ["At Norland."],
        "temperature": ["0.2"],
        "beam_size": ["7"],
        "vad_params[a]": ["x"],
        "hotwords": ["Elinor"],
    }
    assert (call.file, call.file_name) == (WAV, "audio.wav")


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "webm", "m4a", "mp4"])
def test_files_are_named_by_their_content(form: str) -> None:
    audio = encode(create_tone(0.5), form)
    _, (call,) = transcribe_with(upstreams.fake_saying({"text": "Hi."}), {}, audio=ReplayableAudio(audio))
    assert call.file == audio
    assert call.file_name.rpartition(".")[2] == {"m4a": "mp4"}.get(form, form)


def test_a_small_file_is_announced_and_a_large_one_sent_as_it_comes() -> None:
    for audio, announced in ((ReplayableAudio(b"RIFF"), True), (PIECES, False)):
        _, (call,) = transcribe_with(upstreams.fake_saying({"text": "Hi."}), {}, audio=audio)
        assert ("content-length" in call.headers) is announced


def test_a_whisper_servers_answer() -> None:
    ((segment, last),), _ = transcribe_with(upstreams.fake_whisper_server, {"words": True})
    assert isinstance(segment, Segment)
    assert (segment.text, segment.start, segment.end) == ("And Mr. Dashwood.", 0.0, 7.6), "times end with the audio"
    assert [word.word for word in segment.words] == ["And", "Mr.", "Dashwood."]
    assert last == TranscriptionSummary("de", 7.6)


@pytest.mark.parametrize(
    ("answer", "spans", "seconds", "language"),
    [
        ({"text": " And Mr.\n Dash\n"}, [("And Mr. Dash", 0, 7.6)], 7.6, ""),
        ({"text": "Hi.", "usage": {"type": "duration", "seconds": 8}}, [("Hi.", 0, 7.6)], 7.6, ""),
        ({"type": "transcript.text.done", "text": "Hi.", "usage": {"type": "tokens"}}, [("Hi.", 0, 7.6)], 7.6, ""),
        ({"text": "Hi.", "duration": "7.5", "language": "English"}, [("Hi.", 0, 7.5)], 7.5, "en"),
        ({"text": "language German<asr_text>Ja."}, [("Ja.", 0, 7.6)], 7.6, "de"),
        ({"text": "", "segments": []}, [], 7.6, ""),
        ({"text": None}, [], 7.6, ""),
        ({"text": "x", "segments": [{"start": 1, "end": 99, "text": " a\n b"}]}, [("a b", 1, 7.6)], 7.6, ""),
    ],
)
def test_odd_answers(answer: dict, spans: list, seconds: float, language: str) -> None:
    ((*segments, last),), _ = transcribe_with(upstreams.fake_saying(answer), {})
    assert [(s.text, s.start, s.end) for s in segments if isinstance(s, Segment)] == [
        (text, start, pytest.approx(end)) for text, start, end in spans
    ]
    assert isinstance(last, TranscriptionSummary)
    assert (last.duration, last.language) == (pytest.approx(seconds), language)


def test_verbose_json_is_asked_for_until_it_is_refused() -> None:
    answers, calls = transcribe_with(upstreams.fake_json_only, {}, {})
    assert [list_texts(events) for events in answers] == [["Guten Tag."]] * 2
    assert [call.get_value("response_format") for call in calls] == ["verbose_json", "json", "json"]
    assert all(call.file == WAV for call in calls), "the whole recording each time"
    error = get_failure(upstreams.fake_json_only, words=True)
    assert (type(error), error.param) == (UnsupportedFeatureError, "timestamp_granularities")


@pytest.mark.parametrize("status", [400, 415, 422, 500, 501, 502])
def test_a_refusal_without_a_reason_costs_neither_the_text_nor_the_times_of_later_requests(status: int) -> None:
    refusals = [lambda: upstreams.build_error(status, "Something went wrong.")]
    answers, calls = transcribe_with(upstreams.fake_after(refusals, upstreams.fake_whisper_server), {}, {})
    assert [list_texts(events) for events in answers] == [["And Mr. Dashwood."], ["And Mr. Dashwood."]]
    assert [call.get_value("response_format") for call in calls] == ["verbose_json", "json", "verbose_json"]
    assert {call.path for call in calls} == {"/v1/audio/transcriptions"}
    with pytest.raises(EardrumError, match="Something went wrong"):
        transcribe_with(upstreams.fake_saying({"error": "Something went wrong."}, status), {})


@pytest.mark.parametrize("status", [401, 403, 408, 413, 429, 503, 504])
def test_a_refusal_for_another_reason_is_told_at_once(status: int) -> None:
    with fake_upstream(upstreams.fake_saying({"error": "no"}, status)) as fake:
        with pytest.raises(EardrumError):
            transcribe_in_turn(fake.url, {})
        assert len(fake.calls) == 1


def test_a_server_that_always_fails_on_verbose_json_is_soon_asked_for_json_at_once() -> None:
    answers, calls = transcribe_with(upstreams.fake_failing_on_verbose_json, *[{}] * 5)
    assert [list_texts(events) for events in answers] == [["Guten Tag."]] * 5
    assert [call.get_value("response_format") for call in calls] == ["verbose_json", "json"] * 3 + ["json"] * 2
    error = get_failure(upstreams.fake_failing_on_verbose_json, words=True)
    assert "answered 500" in error.message, "json has no word times"


def test_no_more_is_asked_than_is_needed() -> None:
    wanted = ({"times": False}, {"times": True}, {"times": False, "words": True}, {"times": False, "partial": True})
    _, calls = transcribe_with(upstreams.fake_whisper_server, *wanted)
    assert [call.get_value("response_format") for call in calls] == ["json", "verbose_json", "verbose_json", "json"]


@pytest.mark.parametrize(
    ("status", "said", "asked_again"), [(400, "timestamp_granularities: word is not supported", 0), (500, "", 1)]
)
def test_words_are_asked_for_where_they_are_welcome_and_times_survive_their_refusal(
    status: int, said: str, asked_again: int
) -> None:
    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        if "timestamp_granularities[]" in call.fields:
            return web.Response(status=status, text=said)
        return await upstreams.fake_whisper_server(call, request)

    (first, second), calls = transcribe_with(answer, {"words_if_any": True}, {"words_if_any": True})
    plain, _ = transcribe_with(upstreams.fake_whisper_server, {})
    assert first == second == plain[0]
    granularities = [call.fields.get("timestamp_granularities[]") for call in calls]
    assert granularities == [["word", "segment"], None, *[["word", "segment"]] * asked_again, None]
    assert all(call.fields["response_format"] == ["verbose_json"] for call in calls)
    _, (given,) = transcribe_with(upstreams.fake_whisper_server, {"words_if_any": True})
    assert given.fields["timestamp_granularities[]"] == ["word", "segment"]


def test_a_server_with_verbose_json_alone_is_asked_for_that() -> None:
    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        if call.get_value("response_format") != "verbose_json":
            return upstreams.build_error(400, "response_format must be verbose_json")
        return web.json_response({"text": "Ja."})

    answers, calls = transcribe_with(answer, {"times": False})
    assert (list_texts(answers[0]), len(calls)) == (["Ja."], 2)


@pytest.mark.parametrize(
    "verbose", [{"text": "", "segments": []}, {"text": "", "segments": [{"text": " "}]}, {"status": "done"}, [1, 2], "", None]
)
def test_a_text_that_only_json_has_is_found(verbose: object) -> None:
    (events,), calls = transcribe_with(upstreams.fake_with(verbose, {"text": "Only here."}), {})
    assert (list_texts(events), len(calls)) == (["Only here."], 2)


def test_silence_is_looked_at_twice_only_until_verbose_json_has_had_a_text() -> None:
    nothing = {"text": "", "segments": [], "duration": 3}
    with fake_upstream(upstreams.fake_with(nothing, {"text": ""})) as fake:

        async def main() -> None:
            async with open_external(fake.url) as upstream:
                for _ in range(5):
                    assert await collect_events(upstream) == [TranscriptionSummary("", 3)]
                fake.answer = upstreams.fake_whisper_server
                assert list_texts(await collect_events(upstream))
                fake.answer = upstreams.fake_with(nothing, {"text": ""})
                assert await collect_events(upstream) == [TranscriptionSummary("", 3)]

        asyncio.run(main())
        formats = [call.get_value("response_format") for call in fake.calls]
        assert formats == ["verbose_json", "json"] * 5 + ["verbose_json"] * 2, "silence teaches nothing"


def test_a_text_that_is_no_json() -> None:
    async def answer(_: UpstreamCall, __: web.Request) -> web.Response:
        return web.Response(text=" Guten Tag.\n")

    ((segment, last),), calls = transcribe_with(answer, {})
    assert isinstance(segment, Segment)
    assert (segment.text, segment.end, len(calls)) == ("Guten Tag.", pytest.approx(7.6), 1)
    assert get_summary([last]).duration == pytest.approx(7.6)


def fake_routes(**routes: Answer) -> Answer:
    """A server with these routes; `_` stands for a slash. What it says elsewhere is what whisper-server says there."""

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        found = routes.get(call.path.strip("/").replace("/", "_"))
        return await found(call, request) if found else web.Response(status=404, text=f"File Not Found ({call.path})")

    return answer


def test_whisper_servers_own_path_is_found_and_kept() -> None:
    answers, calls = transcribe_with(fake_routes(inference=upstreams.fake_whisper_server), {}, {})
    assert [list_texts(events) for events in answers] == [["And Mr. Dashwood."]] * 2
    assert [call.path for call in calls] == ["/v1/audio/transcriptions", "/inference", "/inference"]


def test_a_path_that_the_config_names_is_the_only_one() -> None:
    _, calls = transcribe_with(fake_routes(api_asr=upstreams.fake_whisper_server), {}, transcriptions="/api/asr")
    assert [call.path for call in calls] == ["/api/asr"]
    with pytest.raises(UpstreamError, match=r"answered 404 on /api/asr: File Not Found .*`transcriptions` in its options"):
        transcribe_with(fake_routes(), {}, transcriptions="/api/asr")
    with pytest.raises(UpstreamError, match="answered 404 on /v1/audio/transcriptions"):
        transcribe_with(fake_routes(), {})


def test_a_model_that_the_server_does_not_have_is_not_looked_for_elsewhere() -> None:
    said = upstreams.fake_saying({"error": {"message": "The model `asr` does not exist.", "code": 404}}, 404)
    with fake_upstream(said) as fake, pytest.raises(UpstreamError, match="The model `asr` does not exist"):
        transcribe_in_turn(fake.url, {})
    assert len(fake.calls) == 1


def test_translations_go_to_their_route_or_into_a_field() -> None:
    wanted = {"task": SpeechTask.TRANSLATE, "language": "de"}
    whisper = upstreams.fake_whisper_server
    _, calls = transcribe_with(fake_routes(v1_audio_translations=whisper), wanted)
    assert "translate" not in calls[0].fields
    _, calls = transcribe_with(fake_routes(inference=whisper), wanted, wanted)
    assert [call.path.rpartition("/")[2] for call in calls] == ["translations", "transcriptions", "inference", "inference"]
    assert calls[-1].get_value("translate") == "true"
    _, calls = transcribe_with(fake_routes(inference=whisper), wanted, transcriptions="/inference", translations="")
    assert [(call.path, call.get_value("translate")) for call in calls] == [("/inference", "true")]


def test_a_server_that_does_not_say_that_it_translated_is_not_believed() -> None:
    transcribes = fake_routes(v1_audio_transcriptions=upstreams.fake_saying({"text": "Ja.", "task": "transcribe"}))
    with pytest.raises(UnsupportedFeatureError, match="no route for translations"):
        transcribe_with(transcribes, {"task": SpeechTask.TRANSLATE})
    silent = fake_routes(v1_audio_transcriptions=upstreams.fake_saying({"text": "Yes."}))
    transcribe_with(silent, {"task": SpeechTask.TRANSLATE}, translations="")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (upstreams.fake_error_with_status_200, InvalidRequestError, "refuses this: Invalid or unsupported audio file."),
        (upstreams.fake_fastapi_refusal, InvalidRequestError, "refuses this: body.model: Field required."),
        (upstreams.fake_saying({"error": "Payload too large"}, 413), InvalidRequestError, "refuses this: Payload too large."),
        (upstreams.fake_saying({"error": {"message": "slow down"}}, 429), BusyError, r"is busy \(429\): slow down."),
        (upstreams.fake_saying({"error": "no"}, 401), UpstreamError, "answered 401: no. It requires another key"),
        (upstreams.fake_saying({"error": "kaputt"}, 500), UpstreamError, "answered 500: kaputt."),
        (upstreams.fake_saying({"error": "kaputt"}), UpstreamError, "answered 500: kaputt."),
        (upstreams.fake_html, UpstreamError, "text/html.* that is no transcript in JSON: a page titled 'My router'"),
        (upstreams.fake_html_error, UpstreamError, "answered 502: a page titled '502 Bad Gateway'"),
        (upstreams.fake_dying, UpstreamDiedError, "broke off in the middle of its answer"),
    ],
)  # fmt: skip
def test_errors_name_the_server_and_what_it_said(answer: Answer, kind: type[EardrumError], said: str) -> None:
    with pytest.raises(kind, match=rf"127\.0\.0\.1:\d+ .*{said}") as caught:
        transcribe_with(answer, {})
    assert caught.value.status == {InvalidRequestError: 400, BusyError: 503}.get(kind, 502)


def test_a_key_that_a_server_quotes_stays_here() -> None:
    with fake_upstream(upstreams.fake_openai) as fake:
        with pytest.raises(UpstreamError, match=r"401: Incorrect API key provided: Bearer \*\*\*\."):
            transcribe_in_turn(fake.url, {}, key="sk-wrong")
        assert fake.calls[0].headers["authorization"] == "Bearer sk-wrong"


def test_a_server_that_is_not_there_may_be_started_again() -> None:
    with fake_upstream(upstreams.fake_html) as fake:
        pass
    with pytest.raises(RunnerCrashedError):
        transcribe_in_turn(fake.url, {})


def fake_stream(*events: object, plain: bool = False) -> Answer:
    """A server that streams these events, each in two writes; a string is sent as it is. Verbose streams are refused."""

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        if call.get_value("stream") != "true":
            return web.json_response({"text": "Not streamed.", "segments": [{"start": 1, "end": 2, "text": "Not streamed."}]})
        if call.get_value("response_format") == "verbose_json" and not plain:
            return upstreams.build_error(400, "verbose_json format doesn't support streaming case")
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            data = (event if isinstance(event, str) else f"data: {json.dumps(event)}\r\n\r\n").encode()
            await response.write(data[:9])
            await asyncio.sleep(0.01)
            await response.write(data[9:])
        return response

    return answer


def build_chunk(text: str) -> dict:
    return {"object": "transcription.chunk", "choices": [{"delta": {"content": text}, "finish_reason": None}]}


def build_delta(text: str) -> dict:
    return {"type": "transcript.text.delta", "delta": text}


DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "deltas", "segments", "language"),
    [
        ([build_chunk(" Guten"), build_chunk(" Tag."), DONE], ["Guten", " Tag."], ["Guten Tag."], ""),
        ([build_chunk("lang"), build_chunk("uage German<asr"), build_chunk("_text>Guten"), build_chunk(" Tag."), DONE],
         ["Guten", " Tag."], ["Guten Tag."], "de"),
        ([build_chunk("lang"), build_chunk("uid"), DONE], ["languid"], ["languid"], ""),
        ([build_chunk("la"), DONE], ["la"], ["la"], ""),
        ([build_delta("I"), build_delta(" see"), {"type": "transcript.text.done", "text": "I see"}],
         ["I", " see"], ["I see"], ""),
        ([": hello\n\n", "event: transcript.text.delta\n", build_delta("A."), build_delta(" B."), {
            "type": "transcript.text.done", "text": "A. B.",
            "segments": [{"id": 0, "start": 0.5, "end": 1, "text": "A."}, {"id": 1, "start": 2, "end": 3, "text": "B."}]}],
         ["A.", " B."], ["A.", "B."], ""),
        ([{"type": "transcript.text.done", "text": "All at once."}], ["All at once."], ["All at once."], ""),
        ([build_delta("Kept."), {"type": "transcript.text.done", "text": ""}], ["Kept."], ["Kept."], ""),
        ([DONE], [], [], ""),
        ([build_delta("One"), {"type": "transcript.text.done", "text": "One fish."}], ["One", " fish."], ["One fish."], ""),
        ([{"text": "One.", "language": "en"}, {"text": "Two."}], ["One.", " Two."], ["One. Two."], "en"),
        ([{"task": "transcribe", "text": "One.", "duration": 7.6, "segments": [{"start": 0.5, "end": 1, "text": " One."}]},
          {"task": "transcribe", "text": "Two.", "duration": 7.6, "segments": [{"start": 2, "end": 3, "text": " Two."}]}],
         ["One.", " Two."], ["One.", "Two."], ""),
        ([build_delta("A. B."), {"type": "transcript.text.segment", "start": "0.5s", "end": "1s", "text": "A."},
          {"type": "transcript.text.segment", "start": "2s", "end": "3s", "text": "B."},
          {"type": "transcript.text.done", "text": "A. B."}], ["A. B."], ["A.", "B."], ""),
        ([build_delta("A. B. C."), {"type": "transcript.text.done", "text": "A. B. C.", "segments": [
            {"start": 0, "end": 1_000_000_000, "text": "A."}, {"start": 1_000_000_000, "end": 2_000_000_000, "text": "B."}]}],
         ["A. B. C."], ["A.", "B. C."], ""),
        ([{"object": "transcription.chunk", "choices": [{"delta": None}, {}]}, {"delta": "Ja."}, DONE], ["Ja."], ["Ja."], ""),
        (['data: {"delta":\ndata: "Ja."}\n\n', DONE], ["Ja."], ["Ja."], ""),
        (['data: {"delta": "One"}\ndata: {"delta": " two"}\n', DONE], ["One", " two"], ["One two"], ""),
    ],
)  # fmt: skip
def test_streams(events: list, deltas: list[str], segments: list[str], language: str) -> None:
    (answer,), calls = transcribe_with(fake_stream(*events), {"partial": True})
    assert [event.text for event in answer if isinstance(event, TextDelta)] == deltas
    assert list_texts(answer) == segments
    assert get_summary(answer).language == language
    assert [call.get_value("response_format") for call in calls] == ["verbose_json", "json"]


def test_text_is_passed_on_as_it_comes() -> None:
    """The server says the second word only after the first one has arrived."""
    arrived = asyncio.Event()

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(build_delta('One'))}\n\n".encode())
        await wait_until(arrived.is_set)
        await response.write(f"data: {json.dumps(build_delta(' two'))}\n\n{DONE}".encode())
        return response

    async def main(fake: FakeUpstream) -> list[str]:
        said = []
        async with open_external(fake.url) as upstream:
            async for event in upstream.transcribe(TranscriptionRequest(partial=True), PIECES):
                if isinstance(event, TextDelta):
                    said.append(event.text)
                    arrived.set()
        return said

    with fake_upstream(answer) as fake:
        assert asyncio.run(asyncio.wait_for(main(fake), 60)) == ["One", " two"]


def test_what_is_learned_of_streams_does_not_cost_the_times_of_others() -> None:
    answers, calls = transcribe_with(fake_stream(build_chunk("a"), DONE), {"partial": True}, {}, {"partial": True})
    assert [call.get_value("response_format") for call in calls] == ["verbose_json", "json", "verbose_json", "json"]
    assert [segment.start for segment in answers[1] if isinstance(segment, Segment)] == [1]


def test_a_server_that_refuses_to_stream_is_asked_for_all_of_it() -> None:
    async def answer(call: UpstreamCall, _: web.Request) -> web.StreamResponse:
        if "stream" in call.fields:
            return upstreams.build_error(400, "Unknown field: stream")
        return web.json_response({"text": "Whole."})

    answers, calls = transcribe_with(answer, {"partial": True}, {"partial": True})
    assert [list_texts(events) for events in answers] == [["Whole."]] * 2
    assert ["stream" in call.fields for call in calls] == [True, False, False]


@pytest.mark.parametrize("times", [True, False])
def test_a_server_that_fails_on_streams_is_asked_for_all_of_it(times: bool) -> None:
    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        if "stream" in call.fields:
            return web.Response(status=500, text="Internal Server Error")
        return web.json_response({"text": "Whole."})

    answers, calls = transcribe_with(answer, *[{"partial": True, "times": times}] * 4)
    assert [list_texts(events) for events in answers] == [["Whole."]] * 4
    assert ["stream" in call.fields for call in calls] == [True, False] * 3 + [False]
    assert {call.get_value("response_format") for call in calls} == {"verbose_json" if times else "json"}


@pytest.mark.parametrize(
    ("events", "kind", "said"),
    [
        ([build_chunk("Then")], UpstreamDiedError, "ended its stream before the transcript was complete"),
        (
            [build_chunk("Then"), {"error": {"message": "out of memory", "code": 500}}],
            UpstreamError,
            "answered 500: out of memory",
        ),
        ([build_chunk("Then"), "data: {nonsense\n\n"], UpstreamError, "sends a stream without a valid transcript"),
        ([build_chunk("Then"), {"type": "transcript.text.done", "text": 7}], UpstreamError, "sends a stream without a valid"),
    ],
)
def test_streams_that_go_wrong(events: list, kind: type, said: str) -> None:
    error = get_failure(fake_stream(*events), partial=True)
    assert (type(error), error.status) == (kind, 502)
    assert said in error.message


def test_closing_the_iterator_hangs_up() -> None:
    async def main(fake: FakeUpstream) -> None:
        async with open_external(fake.url) as upstream:
            async with aclosing(upstream.transcribe(TranscriptionRequest(), PIECES)) as events:
                waiting = asyncio.ensure_future(anext(events))
                await wait_until(lambda: fake.in_flight)
                waiting.cancel()
                await asyncio.wait([waiting])
            await wait_until(lambda: not fake.in_flight)

    with fake_upstream(upstreams.fake_hanging) as fake:
        asyncio.run(asyncio.wait_for(main(fake), 60))
        assert fake.given_up == 1


def test_the_audio_goes_out_while_it_comes_in() -> None:
    """The server has the beginning of a recording whose end is not here yet."""
    began = asyncio.Event()

    class Slow:
        async def read(self) -> AsyncIterator[bytes]:
            yield WAV[:100_000]
            await began.wait()
            yield WAV[100_000:]

    async def answer(request: web.Request) -> web.Response:
        size = 0
        async for data, _ in request.content.iter_chunks():
            size += len(data)
            if size > 90_000:
                began.set()
        return web.json_response({"text": str(size > len(WAV))})

    async def main() -> list[str]:
        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with open_external(f"http://127.0.0.1:{runner.addresses[0][1]}") as upstream:
                return list_texts([event async for event in upstream.transcribe(TranscriptionRequest(), Slow())])
        finally:
            await runner.cleanup()

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["True"]


def test_what_the_audio_raises_is_raised() -> None:
    class Broken:
        async def read(self) -> AsyncIterator[bytes]:
            yield WAV[:100_000]
            raise InvalidRequestError("The form ended early.")

    with fake_upstream(upstreams.fake_whisper_server) as fake, pytest.raises(InvalidRequestError, match="ended early"):
        transcribe_in_turn(fake.url, {}, audio=Broken())


def answer_bytes(headers: dict[str, str], *, streams: bool = False) -> Answer:
    async def answer(call: UpstreamCall, request: web.Request) -> web.Response:
        if streams:
            done = 'data: {"type": "transcript.text.done", "text": "hello"}\n\n'
            return web.Response(text=done, content_type="text/event-stream", headers=headers)
        return web.json_response({"text": "hello"}, headers=headers)

    return answer


@pytest.mark.parametrize("streams", [False, True])
def test_an_audio_track_goes_to_the_server_and_another_eardrum_says_which_it_heard(streams: bool) -> None:
    headers = {"x-eardrum-audio-track": "2", "x-eardrum-audio-tracks": "3"}
    (events,), (call,) = transcribe_with(answer_bytes(headers, streams=streams), {"audio_track": 2, "partial": streams})
    assert call.get_value("audio_track") == "2"
    assert isinstance(summary := events[-1], TranscriptionSummary)
    assert (summary.audio_track, summary.audio_tracks) == (2, 3)


@pytest.mark.parametrize("headers", [{}, {"x-eardrum-audio-track": "1"}, {"x-eardrum-audio-track": "two"}])
@pytest.mark.parametrize("streams", [False, True])
def test_a_server_that_does_not_say_that_it_heard_this_audio_track_is_not_believed(
    headers: dict[str, str], streams: bool
) -> None:
    error = get_failure(answer_bytes(headers, streams=streams), audio_track=2, partial=streams)
    assert isinstance(error, UnsupportedFeatureError)
    assert "cannot choose an audio track" in error.message
    assert error.param == "audio_track"
