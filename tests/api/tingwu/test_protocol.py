"""TingWu's messages."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.api.tingwu import realtime as tingwu
from eardrum.api.tingwu.realtime import TextMode, TingWuConfig
from eardrum.errors import InvalidRequestError, TooLargeError
from eardrum.live import SessionSettings
from eardrum.transcription import MAX_HOTWORDS, Capabilities


@pytest.mark.parametrize(
    ("said", "wishes"),
    [
        ({}, TingWuConfig()),
        ({"is_speaking": True, "mode": "2pass", "chunk_interval": 10}, TingWuConfig()),
        (
            {"mode": "offline", "hotwords": "Dashwood  Norland\nBarton"},
            TingWuConfig(mode=TextMode.OFFLINE, hotwords=("Dashwood", "Norland", "Barton")),
        ),
        ({"hotwords": ["two words"]}, TingWuConfig(hotwords=("two words",))),
        ({"hotwords": ""}, TingWuConfig()),
        ({"hotwords": None, "mode": None}, TingWuConfig()),
        ({"is_speaking": False}, TingWuConfig(is_speaking=False)),
    ],
)
def test_what_a_client_says_of_itself(said: dict[str, Any], wishes: TingWuConfig) -> None:
    assert TingWuConfig().update(said) == wishes


def test_what_is_not_said_again_stays() -> None:
    before = TingWuConfig(mode=TextMode.ONLINE, hotwords=("a",), is_speaking=True)
    assert before.update({"is_speaking": False}) == TingWuConfig(mode=TextMode.ONLINE, hotwords=("a",), is_speaking=False)


def test_an_utterance_ends_once_and_not_with_every_later_message() -> None:
    ended = TingWuConfig().update({"is_speaking": False})
    assert ended.update({"hotwords": "a"}).is_speaking
    assert not ended.update({"is_speaking": False}).is_speaking


def test_too_many_words_are_refused_as_any_wrong_value_is() -> None:
    with pytest.raises(InvalidRequestError, match=f"{MAX_HOTWORDS} words"):
        TingWuConfig().update({"hotwords": "word " * (MAX_HOTWORDS + 1)})


@pytest.mark.parametrize("said", [{"mode": "3pass"}, {"mode": [1]}, {"hotwords": 5}, {"hotwords": [5]}])
def test_what_cannot_be_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        TingWuConfig().update(said)
    assert refused.value.param in said


@pytest.mark.parametrize("message", ["", "{", "[]", "5"])
def test_text_is_a_json_object(message: str) -> None:
    with pytest.raises(InvalidRequestError):
        tingwu.parse_message(message)


def test_messages_have_a_largest_size() -> None:
    tingwu.check_message_size(b"x" * tingwu.MAX_MESSAGE_BYTES)
    with pytest.raises(TooLargeError):
        tingwu.check_message_size(b"x" * (tingwu.MAX_MESSAGE_BYTES + 1))


def test_hotwords_are_a_prompt_for_a_model_without_an_ear_for_them() -> None:
    wishes = TingWuConfig(hotwords=("a", "b"))
    assert wishes.build_settings(SessionSettings(), Capabilities(prompt=True)).request.prompt == "a b"
    able = wishes.build_settings(SessionSettings(), Capabilities(hotwords=True, prompt=True)).request
    assert (able.prompt, able.hotwords) == ("", ("a", "b"))
    assert TingWuConfig().build_settings(SessionSettings(), Capabilities()) == SessionSettings()


def test_only_who_wants_text_early_is_decoded_for_early() -> None:
    assert [TingWuConfig(mode=mode).build_settings(SessionSettings(), Capabilities()).partials for mode in TextMode] == [
        True,
        True,
        False,
    ]


def test_every_mode_has_its_word_for_both_kinds_of_text() -> None:
    told = [tingwu.build_text(mode, " x ", final=final) for mode in TextMode for final in (False, True)]
    assert [(message["mode"], message["is_final"]) for message in told] == [
        ("2pass-online", False),
        ("2pass-offline", True),
        ("online", False),
        ("online", True),
        ("offline", False),
        ("offline", True),
    ]
    assert {message["text"] for message in told} == {"x"}
