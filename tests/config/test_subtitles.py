"""Defaults for the shape of subtitles."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from eardrum.subtitles import BROADCAST_RULES, NO_RULES
from tests.config.conftest import Reader, Refuser


def test_a_word_is_the_preset(read_config: Reader) -> None:
    assert read_config("subtitles: broadcast").settings.subtitles.shape == BROADCAST_RULES
    assert read_config("", "subtitles=broadcast").settings.subtitles.shape == BROADCAST_RULES
    assert read_config("", EARDRUM_SUBTITLES="broadcast").settings.subtitles.shape == BROADCAST_RULES
    assert read_config("").settings.subtitles.shape == NO_RULES


def test_rules_beside_the_preset_win(read_config: Reader) -> None:
    text = """
        subtitles:
          preset: broadcast
          max_line_width: 37
          max_duration: 0
    """
    assert read_config(text).settings.subtitles.shape == replace(BROADCAST_RULES, max_line_width=37, max_duration=0)
    assert read_config("", EARDRUM_SUBTITLES__MAX_LINE_COUNT="2").settings.subtitles.shape == replace(NO_RULES, max_line_count=2)


def test_names_of_whisper_asr_webservice(read_config: Reader) -> None:
    environment = {"SUBTITLE_MAX_LINE_WIDTH": "40", "SUBTITLE_MAX_LINE_COUNT": "2", "SUBTITLE_HIGHLIGHT_WORDS": "false"}
    assert read_config("", **environment).settings.subtitles.shape == replace(NO_RULES, max_line_width=40, max_line_count=2)
    both = read_config("", SUBTITLE_MAX_LINE_WIDTH="40", EARDRUM_SUBTITLES__MAX_LINE_WIDTH="30")
    assert both.settings.subtitles.max_line_width == 30


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("subtitles: netflix", "broadcast"),
        ("subtitles: {max_line_width: wide}", "max_line_width"),
        ("subtitles: {min_duration: 3, max_duration: 2}", "min_duration"),
    ],
)
def test_a_shape_that_cannot_be(get_refusal: Refuser, text: str, about: str) -> None:
    assert about in get_refusal(text)
