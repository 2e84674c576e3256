"""Text in, speech out: on the page, with the embedded voice."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.pages import TIMEOUT_MS, PageUnderTest
from tests.recordings import RATE, decode_file

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def test_a_text_is_spoken_and_saved(page: PageUnderTest) -> None:
    tab = page.open("speak")
    tab.get_by_label("Text", exact=True).fill("The kettle is on. Would you like some tea?")
    tab.get_by_label("File format").select_option("flac")
    tab.get_by_role("button", name="Speak", exact=True).click()
    player = tab.get_by_label("Speech", exact=True)
    expect(player).to_be_visible(timeout=TIMEOUT_MS)
    tab.wait_for_function("() => document.querySelector('audio').currentTime > 0.2")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == "speech.flac"
    seconds = len(decode_file(Path(saved.value.path()))) / RATE
    assert seconds == pytest.approx(player.evaluate("(audio) => audio.duration"), abs=0.1)
    assert 1 < seconds < 10


def test_a_text_that_the_voice_cannot_read_is_refused_in_a_sentence(page: PageUnderTest) -> None:
    tab = page.open("speak")
    tab.get_by_label("Text", exact=True).fill("你好")
    tab.get_by_role("button", name="Speak", exact=True).click()
    expect(tab.get_by_role("alert")).to_contain_text("cannot read", timeout=TIMEOUT_MS)
    page.faults = [fault for fault in page.faults if "400" not in fault]  # browsers report a refusal themselves
