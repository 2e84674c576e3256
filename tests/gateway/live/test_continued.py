"""Text that was told stays, whatever a second hearing says."""

from __future__ import annotations

import pytest

from eardrum.gateway.live.continued import continued


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
        ("你好世", "您好世界", "你好世界"),
    ],
)
def test_the_text_goes_on_behind_what_was_told(told: str, text: str, whole: str) -> None:
    assert continued(told, text) == whole
    assert continued(told, text).startswith(told)
