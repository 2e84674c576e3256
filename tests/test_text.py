"""Text that was told stays, whatever a second hearing says."""

from __future__ import annotations

import pytest

from eardrum.text import append_text, remove_known_text


@pytest.mark.parametrize(
    ("told", "text", "whole"),
    [
        ("", "And then.", "And then."),
        ("And then", "And then he left.", "And then he left."),
        ("And then", "and, then he left.", "And then he left."),
        ("And Mr. Dashwood", "And Mister Dashwood had leisure.", "And Mr. Dashwood had leisure."),
        ("And then he", "Then he left.", "And then he left."),
        ("one two three", "one three four", "one two three four"),
        ("one two three", "one two", "one two three"),
        ("one two ", "One two three", "one two three"),
        ("one", "", "one"),
        ("Hello", "Hello, world", "Hello world"),
        ("one two", "one twofold", "one two"),
        ("你好世", "您好世界", "你好世界"),
    ],
)
def test_the_text_goes_on_behind_what_was_told(told: str, text: str, whole: str) -> None:
    assert append_text(told, remove_known_text(told, text)) == whole
