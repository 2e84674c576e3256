"""TingWu's messages."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.api.tingwu import messages
from eardrum.api.tingwu.messages import Mode, Wishes
from eardrum.errors import InvalidRequestError, TooLargeError
from eardrum.live import Settings
from eardrum.types import Capabilities


@pytest.mark.parametrize(
    ("said", "wishes"),
    [
        ({}, Wishes()),
        ({"is_speaking": True, "mode": "2pass", "chunk_interval": 10}, Wishes()),
        ({"mode": "offline", "hotwords": "Dashwood  Norland\nBarton"}, Wishes(Mode.OFFLINE, ("Dashwood", "Norland", "Barton"))),
        ({"hotwords": ["two words"]}, Wishes(hotwords=("two words",))),
        ({"hotwords": ""}, Wishes()),
        ({"hotwords": None, "mode": None}, Wishes()),
        ({"is_speaking": False}, Wishes(speaking=False)),
    ],
)
def test_what_a_client_says_of_itself(said: dict[str, Any], wishes: Wishes) -> None:
    assert Wishes().changed(said) == wishes


def test_what_is_not_said_again_stays() -> None:
    before = Wishes(Mode.ONLINE, ("a",), speaking=True)
    assert before.changed({"is_speaking": False}) == Wishes(Mode.ONLINE, ("a",), speaking=False)


@pytest.mark.parametrize("said", [{"mode": "3pass"}, {"mode": [1]}, {"hotwords": 5}, {"hotwords": [5]}])
def test_what_cannot_be_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Wishes().changed(said)
    assert refused.value.param in said


@pytest.mark.parametrize("message", ["", "{", "[]", "5"])
def test_text_is_a_json_object(message: str) -> None:
    with pytest.raises(InvalidRequestError):
        messages.parsed(message)


def test_messages_have_a_largest_size() -> None:
    messages.check_size(b"x" * messages.LARGEST)
    with pytest.raises(TooLargeError):
        messages.check_size(b"x" * (messages.LARGEST + 1))


def test_hotwords_are_a_prompt_for_a_model_without_an_ear_for_them() -> None:
    wishes = Wishes(hotwords=("a", "b"))
    assert wishes.settings(Settings(), Capabilities(prompt=True)).request.prompt == "a b"
    able = wishes.settings(Settings(), Capabilities(hotwords=True, prompt=True)).request
    assert (able.prompt, able.hotwords) == ("", ("a", "b"))
    assert Wishes().settings(Settings(), Capabilities()) == Settings()


def test_only_who_wants_text_early_is_decoded_for_early() -> None:
    assert [Wishes(mode).settings(Settings(), Capabilities()).partials for mode in Mode] == [True, True, False]


def test_every_mode_has_its_word_for_both_kinds_of_text() -> None:
    told = [messages.text(mode, " x ", final=final) for mode in Mode for final in (False, True)]
    assert [(message["mode"], message["is_final"]) for message in told] == [
        ("2pass-online", False),
        ("2pass-offline", True),
        ("online", False),
        ("online", True),
        ("offline", False),
        ("offline", True),
    ]
    assert {message["text"] for message in told} == {"x"}
