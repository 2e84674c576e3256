"""The form that is sent, and formats that are refused."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from eardrum.engines.base import EngineResult
from eardrum.errors import UnsupportedFeatureError, UpstreamError
from eardrum.transcription import SpeechTask
from tests import upstreams
from tests.engines.openai_requests import SPAN, create_window, get_failure, open_engine, transcribe_with
from tests.upstreams import KEY, UpstreamCall, fake_upstream


def test_what_is_asked_goes_into_the_form() -> None:
    hints = {"language": "de", "prompt": "At Norland.", "hotwords": ("Dashwood", "Elinor"), "temperature": 0.2}
    options = {"model": "whisper-1", "key": KEY, "headers": {"X-Team": "voices"}, "fields": {"seed": 7, "language": "auto"}}
    with transcribe_with(upstreams.fake_openai, create_window(words=True, **hints), **options) as (fake, _):
        (call,) = fake.calls
    assert call.path == "/v1/audio/transcriptions"
    assert (call.headers["authorization"], call.headers["x-team"]) == (f"Bearer {KEY}", "voices")
    assert call.fields == {
        "model": ["whisper-1"],
        "seed": ["7"],
        "language": ["de"],
        "prompt": ["At Norland. Dashwood, Elinor"],
        "temperature": ["0.2"],
        "response_format": ["verbose_json"],
        "timestamp_granularities[]": ["word", "segment"],
    }
    assert (call.file_name, call.file[:4]) == ("window.flac", b"fLaC")


def test_what_is_not_asked_is_not_sent() -> None:
    with transcribe_with(upstreams.fake_whisper_server, fields={"language": "auto"}, audio_format="wav") as (fake, _):
        (call,) = fake.calls
    assert call.fields == {"language": ["auto"], "response_format": ["verbose_json"]}
    assert call.file[:4] == b"RIFF"
    assert "authorization" not in call.headers


@pytest.mark.parametrize(("name", "values"), [("hotwords", ["Dashwood, Elinor"]), ("keywords[]", ["Dashwood", "Elinor"])])
def test_hotwords_in_a_field_of_their_own(name: str, values: list[str]) -> None:
    wanted = create_window(prompt="Hm.", hotwords=("Dashwood", "Elinor"))
    with transcribe_with(upstreams.fake_whisper_server, wanted, hotwords_field=name) as (fake, _):
        assert fake.calls[0].fields[name] == values
        assert fake.calls[0].get_value("prompt") == "Hm."


def test_translations_go_to_their_route_or_into_a_field() -> None:
    wanted = create_window(task=SpeechTask.TRANSLATE, language="de")
    with transcribe_with(upstreams.fake_whisper_server, wanted) as (fake, _):
        assert fake.calls[0].path == "/v1/audio/translations"
        assert not {"language", "translate"} & set(fake.calls[0].fields)
    with transcribe_with(upstreams.fake_whisper_server, wanted, path="/inference", translations_path="") as (fake, _):
        assert fake.calls[0].path == "/v1/inference"
        assert (fake.calls[0].get_value("language"), fake.calls[0].get_value("translate")) == ("de", "true")


def test_verbose_json_is_asked_for_until_it_is_refused() -> None:
    with fake_upstream(upstreams.fake_json_only) as fake, open_engine(fake.url) as loaded:
        for _ in range(2):
            (hearing,) = loaded.transcribe([create_window()])
            (segment,) = hearing.segments
            assert (segment.text, (segment.start, segment.end), hearing.language) == ("Guten Tag.", SPAN, "de")
        assert [call.get_value("response_format") for call in fake.calls] == ["verbose_json", "json", "json"]
        with pytest.raises(UnsupportedFeatureError, match=r"word times.*words: false"):
            loaded.transcribe([create_window(words=True)])


def test_word_times_of_an_upstream_that_refuses_them() -> None:
    error = get_failure(upstreams.fake_json_only, create_window(words=True))
    assert (type(error), error.param) == (UnsupportedFeatureError, "timestamp_granularities")
    assert "not compatible with model 'gpt-transcribe'" in error.message
    without = upstreams.fake_saying({"text": "Hello.", "segments": [{"start": 0, "end": 1, "text": "Hello.", "words": None}]})
    assert "gives no word times" in get_failure(without, create_window(words=True)).message
    with transcribe_with(upstreams.fake_saying({"text": "", "segments": []}), create_window(words=True)) as (_, (hearing,)):
        assert hearing.segments == []


@pytest.mark.parametrize("status", [400, 415, 422, 500, 501, 502])
def test_another_refusal_costs_neither_the_text_nor_the_times_of_later_windows(status: int) -> None:
    answers = [lambda: upstreams.build_error(status, "Something went wrong.")]
    with fake_upstream(upstreams.fake_after(answers, upstreams.fake_whisper_server)) as fake, open_engine(fake.url) as loaded:
        results = [loaded.transcribe([create_window()])[0] for _ in range(2)]
        assert [text for result in results for text in list_texts(result)] == ["And Mr. Dashwood."] * 2
        assert [call.get_value("response_format") for call in fake.calls] == ["verbose_json", "json", "verbose_json"]
    both = [lambda: upstreams.build_error(status, "Something went wrong.")] * 2
    assert "Something went wrong" in get_failure(upstreams.fake_after(both, upstreams.fake_whisper_server)).message


def list_texts(hearing: EngineResult) -> list[str]:
    return [" ".join(segment.text.split()) for segment in hearing.segments]


@pytest.mark.parametrize("status", [403, 404, 413, 429, 503])
def test_a_refusal_for_another_reason_is_told_at_once(status: int) -> None:
    with fake_upstream(upstreams.fake_saying({"error": "no"}, status)) as fake, open_engine(fake.url) as loaded:
        with pytest.raises(UpstreamError, match=str(status)):
            loaded.transcribe([create_window()])
        assert len(fake.calls) == 1


def test_an_upstream_that_always_fails_on_verbose_json_is_soon_asked_for_json_at_once() -> None:
    with fake_upstream(upstreams.fake_failing_on_verbose_json) as fake, open_engine(fake.url) as loaded:
        for _ in range(5):
            (hearing,) = loaded.transcribe([create_window()])
            assert list_texts(hearing) == ["Guten Tag."]
        asked_for = [call.get_value("response_format") for call in fake.calls]
        assert asked_for == ["verbose_json", "json"] * 3 + ["json"] * 2


def test_no_more_is_asked_than_is_needed() -> None:
    with fake_upstream(upstreams.fake_whisper_server) as fake, open_engine(fake.url) as loaded:
        for wanted in ({"times": False}, {"times": True}, {"times": False, "words": True}):
            loaded.transcribe([create_window(**wanted)])
        assert [call.get_value("response_format") for call in fake.calls] == ["json", "verbose_json", "verbose_json"]


@pytest.mark.parametrize("verbose", [{"text": "", "segments": []}, {"status": "done"}, {"text": "", "segments": [{"text": " "}]}])
def test_a_text_that_only_json_has_is_found(verbose: dict) -> None:
    with fake_upstream(upstreams.fake_with(verbose, {"text": "Only here."})) as fake, open_engine(fake.url) as loaded:
        (hearing,) = loaded.transcribe([create_window()])
        assert (list_texts(hearing), len(fake.calls)) == (["Only here."], 2)


def test_silence_is_looked_at_twice_only_until_verbose_json_has_had_a_text() -> None:
    nothing = upstreams.fake_saying({"text": "", "segments": []})
    with fake_upstream(nothing) as fake, open_engine(fake.url) as loaded:
        assert loaded.transcribe([create_window()])[0].segments == []
        assert len(fake.calls) == 2
        fake.answer = upstreams.fake_whisper_server
        loaded.transcribe([create_window()])
        fake.answer = nothing
        assert loaded.transcribe([create_window()])[0].segments == []
        assert [call.get_value("response_format") for call in fake.calls] == [
            "verbose_json",
            "json",
            "verbose_json",
            "verbose_json",
        ]


def test_a_missing_translations_route_is_named() -> None:
    error = get_failure(upstreams.fake_saying({"detail": "Not Found"}, status=404), create_window(task=SpeechTask.TRANSLATE))
    assert "the request went to /v1/audio/translations" in error.message


def test_windows_in_flight_together_all_survive_the_refusal_of_verbose_json() -> None:
    first_has_json = asyncio.Event()

    async def fake_staggered(call: UpstreamCall, request: web.Request) -> web.Response:
        """The first window's json is answered before the second window's verbose_json is refused."""
        if call.get_value("response_format") == "json":
            first_has_json.set()
        elif call.get_value("prompt") == "second":
            await first_has_json.wait()
            await asyncio.sleep(0.1)
        return await upstreams.fake_json_only(call, request)

    with fake_upstream(fake_staggered) as fake, open_engine(fake.url) as loaded:
        hearings = loaded.transcribe([create_window(prompt="first"), create_window(prompt="second")])
        assert [hearing.segments[0].text for hearing in hearings] == ["Guten Tag."] * 2
