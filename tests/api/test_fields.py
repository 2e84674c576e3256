"""Fields mean the same in every protocol, and errors about them are short sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eardrum.api.fields import FormValues, Hotwords, ListOf, RequestModel, Temperature, Text
from eardrum.api.live_ws.session_config import LiveConfig
from eardrum.api.openai.params import parse_params
from eardrum.api.realtime.session_config import RealtimeConfig, RealtimeTurnDetection
from eardrum.api.tingwu.realtime import TingWuConfig
from eardrum.api.wyoming.protocol import SampleFormat, TranscribeRequest
from eardrum.errors import InvalidRequestError
from eardrum.transcription import SpeechTask, TranscriptionRequest

Reader = Callable[[str, Any], TranscriptionRequest]


def read_form(name: str, value: Any) -> TranscriptionRequest:
    return parse_params({name: [value if isinstance(value, str) else json.dumps(value)]}, SpeechTask.TRANSCRIBE).request


def read_live(name: str, value: Any) -> TranscriptionRequest:
    return LiveConfig().update({name: value}).settings.request


def read_realtime(name: str, value: Any) -> TranscriptionRequest:
    session = {"audio": {"input": {"transcription": {name: value}}}}
    return RealtimeConfig().update(session, beta=False).build_request()


def read_wyoming(name: str, value: Any) -> TranscriptionRequest:
    return TranscribeRequest.parse({name: value}).request


LANGUAGES = pytest.mark.parametrize("read", [read_form, read_live, read_realtime, read_wyoming])


@LANGUAGES
def test_a_language_has_the_same_spellings_everywhere(read: Reader) -> None:
    assert {read("language", spelled).language for spelled in ("de", "de-AT", "DEU", "German", " german ")} == {"de"}
    assert {read("language", empty).language for empty in ("", " ", "auto", "null")} == {None}
    with pytest.raises(InvalidRequestError, match="Unknown language 'klingon'") as refused:
        read("language", "klingon")
    assert refused.value.param == "language"


@pytest.mark.parametrize("read", [read_form, read_live, read_realtime])
def test_prompts_are_cut_and_empty_ones_unset(read: Reader) -> None:
    assert read("prompt", " x " + "y" * 10_000).prompt == ("x " + "y" * 3998)
    assert read("prompt", " ").prompt == ""


@pytest.mark.parametrize("read", [read_form, read_live])
@pytest.mark.parametrize("empty", ["", " ", "null"])
def test_an_empty_value_is_unset(read: Reader, empty: str) -> None:
    assert read("temperature", empty).temperature == 0
    assert read("hotwords", empty if empty != "null" else "").hotwords == ()


@pytest.mark.parametrize("read", [read_form, read_live])
def test_hotwords_are_a_list_or_text(read: Reader) -> None:
    assert read("hotwords", "Dashwood Norland").hotwords == ("Dashwood", "Norland")
    assert read("hotwords", "Dashwood, Norland Park,").hotwords == ("Dashwood", "Norland Park")
    assert read("hotwords", '["Dashwood", "Norland Park"]').hotwords == ("Dashwood", "Norland Park")
    assert TingWuConfig().update({"hotwords": ["Norland Park"]}).hotwords == ("Norland Park",)


@pytest.mark.parametrize("value", ["true", "True", " 1", "yes", "on"])
def test_a_flag_that_is_set(value: str) -> None:
    assert parse_params({"stream": [value]}, SpeechTask.TRANSCRIBE).stream
    assert LiveConfig().update({"words": value}).words
    assert TingWuConfig(is_speaking=False).update({"is_speaking": value}).is_speaking


@pytest.mark.parametrize("value", ["false", "FALSE", "0", "no", "off"])
def test_a_flag_that_is_not_set(value: str) -> None:
    assert not parse_params({"stream": [value]}, SpeechTask.TRANSCRIBE).stream
    assert not LiveConfig(partials=True).update({"partials": value}).partials
    assert not TingWuConfig().update({"is_speaking": value}).is_speaking


@pytest.mark.parametrize("empty", ["", " ", "null"])
def test_an_empty_flag_takes_its_default(empty: str) -> None:
    """Forms of web pages, curl's `-F stream=` and serialised nulls send these for fields that nobody filled in."""
    assert not parse_params({"stream": [empty]}, SpeechTask.TRANSCRIBE).stream
    assert not LiveConfig(words=True).update({"words": empty}).words
    assert LiveConfig(partials=False).update({"partials": empty}).partials
    assert TingWuConfig(is_speaking=False).update({"is_speaking": empty}).is_speaking


def test_null_is_unset_and_a_missing_field_stays() -> None:
    before = LiveConfig().update({"silence_duration_ms": 300, "prompt": "p", "channels": 2})
    after = before.update({"silence_duration_ms": None, "prompt": None})
    assert (after.silence_duration_ms, after.prompt, after.channels) == (500, "", 2)


HUGE = 10**400
HALF = "\ud800"


@pytest.mark.parametrize("value", [HUGE, -HUGE, "9" * 400, float("nan"), "inf", HALF, [], {}, True, ["a"] * 100_000, "x" * 10**6])
def test_a_wrong_number_is_named_within_bounds(value: Any) -> None:
    for refuse in (
        lambda: LiveConfig().update({"temperature": value}),
        lambda: SampleFormat.parse({"rate": value}),
        lambda: RealtimeTurnDetection.parse({"threshold": value}, "session.turn_detection"),
    ):
        with pytest.raises(InvalidRequestError, match=r"must be a (whole )?number from \d+ to \d+, not ") as refused:
            refuse()
        assert len(refused.value.message) < 250
        refused.value.message.encode()


class Outer(RequestModel):
    """A model with fields of all kinds."""

    name: Text = ""
    items: ListOf[str] = ()
    words: Hotwords = ()
    heat: Temperature = 0.0
    inner: tuple[dict[str, Any], ...] = ()


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"name": 5}, "name", "name must be a string, not 5."),
        ({"items": [*["a"] * 100_000, *range(100_000)]}, "items", "items[100000] must be a string, not 0."),
        ({"items": {"a": "b"}}, "items", "items must be a list of strings, as JSON or separated by commas, not {'a': 'b'}."),
        ({"items": "[" * 100_000}, "items", "items must be a list of strings, as JSON"),
        ({"words": '["a"'}, "words", "words must be a list of strings, as JSON or separated by commas or spaces, not '[\"a\"'."),
        ({"heat": 2}, "heat", "heat must be a number from 0 to 1, not 2."),
        ({"inner": "x"}, "inner", "inner must be a list, not 'x'."),
        ({"inner": [{}, 1]}, "inner", "inner[1] must be an object, not 1."),
        ([], None, "The body must be an object, not []."),
        ("x" * 10_000, None, "The body must be an object, not 'xxx"),
    ],
)
def test_an_error_names_the_field_and_what_it_takes(given: Any, param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Outer.parse(given)
    assert refused.value.param == param
    assert refused.value.message.startswith(message)
    assert len(refused.value.message) < 250


def test_errors_below_a_path_name_all_of_it() -> None:
    with pytest.raises(InvalidRequestError, match=r"^session\.heat must be a number from 0 to 1, not 'x'\.$") as refused:
        Outer.parse({"heat": "x"}, "session")
    assert refused.value.param == "session.heat"


def test_a_repeated_field_of_a_form_is_a_list_or_its_last_value() -> None:
    found = Outer.parse(
        {"name": FormValues(("a", "b")), "items": FormValues(("a,b", '["c"]')), "words": FormValues(("d e", "f"))}
    )
    assert (found.name, found.items, found.words) == ("b", ("a", "b", "c"), ("d", "e", "f"))
