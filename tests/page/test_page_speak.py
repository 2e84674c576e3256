"""Text in, speech out: on the page, with the embedded voice."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.pages import PageUnderTest
from tests.recordings import RATE, decode_file

pytestmark = pytest.mark.browser


IS_PLAYED_WHILE_IT_ARRIVES = """
() => document.querySelector("button[type=submit]").disabled && document.querySelector("audio")?.currentTime > 0.2
"""


@pytest.mark.parametrize("format", ["mp3", "flac"])
def test_a_text_is_spoken_and_saved(page: PageUnderTest, format: str) -> None:
    """Chromium plays MP3 while it arrives, and FLAC when it is there."""
    tab = page.open("speak")
    tab.get_by_label("Text", exact=True).fill("The kettle is on. Would you like some tea?")
    tab.get_by_label("File format").select_option(format)
    tab.get_by_role("button", name="Speak", exact=True).click()
    player = tab.get_by_label("Speech", exact=True)
    expect(player).to_be_visible()
    tab.wait_for_function("() => document.querySelector('audio').currentTime > 0.2")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == f"speech.{format}"
    seconds = len(decode_file(Path(saved.value.path()))) / RATE
    assert seconds == pytest.approx(player.evaluate("(audio) => audio.duration"), abs=0.1)
    assert 1 < seconds < 10


def test_speech_is_heard_while_the_rest_is_made(page: PageUnderTest) -> None:
    tab = page.open("speak")
    tab.get_by_label("Text", exact=True).fill("The kettle is on. Would you like some tea? " * 400)
    tab.get_by_role("button", name="Speak", exact=True).click()
    tab.wait_for_function(IS_PLAYED_WHILE_IT_ARRIVES)
    expect(tab.get_by_role("button", name="Download")).to_have_count(0)
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.get_by_label("Speech", exact=True)).to_have_count(0)
    expect(tab.get_by_role("button", name="Speak", exact=True)).to_be_enabled()


def test_a_text_that_the_voice_cannot_read_is_refused_in_a_sentence(page: PageUnderTest) -> None:
    page.allowed.append("400")
    tab = page.open("speak")
    tab.get_by_label("Text", exact=True).fill("你好")
    tab.get_by_role("button", name="Speak", exact=True).click()
    expect(tab.get_by_role("alert")).to_contain_text("cannot read")
