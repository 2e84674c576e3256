"""The main path: a recording is dropped, read along, edited and taken away."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pysrt
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ServerUnderTest
from tests.page.pages import TIMEOUT_MS, PageUnderTest
from tests.recordings import SPEECH_TEXT, encode, load_speech

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

WORD_PLACE = """
([row, wanted]) => {
  const text = document.querySelectorAll(".cue .text")[row].firstChild;
  const at = text.data.indexOf(wanted);
  const range = document.createRange();
  range.setStart(text, at);
  range.setEnd(text, at + wanted.length);
  const { x, y, width, height } = range.getBoundingClientRect();
  return [x + width / 2, y + height / 2];
}
"""
PLAYER_TIME = "() => document.querySelector('video').currentTime"


@pytest.fixture(scope="module")
def recording() -> bytes:
    return encode(load_speech(), "wav")


@pytest.fixture(scope="module")
def segments(page_server: ServerUnderTest, recording: bytes) -> list[dict[str, Any]]:
    """What the server itself says about the recording."""
    found: list[dict[str, Any]] = page_server.post_audio(recording, response_format="verbose_json").json()["segments"]
    return found


def click_word(tab: Page, row: int, word: str, *, double: bool = False) -> None:
    tab.locator(".cue .text").nth(row).scroll_into_view_if_needed()
    x, y = tab.evaluate(WORD_PLACE, [row, word])
    if double:
        tab.mouse.dblclick(x, y)
    else:
        tab.mouse.click(x, y)


def transcribe(page: PageUnderTest, recording: bytes, name: str = "speech.wav") -> Page:
    """Drop a recording and open its transcript."""
    tab = page.open()
    page.drop({name: recording})
    tab.get_by_role("link", name="Read along").click(timeout=TIMEOUT_MS)
    expect(tab.locator(".cue").first).to_be_visible()
    return tab


def test_from_the_drop_to_the_subtitles(page: PageUnderTest, recording: bytes, segments: list[dict[str, Any]]) -> None:
    tab = page.open()
    page.drop({"speech.wav": recording})
    row = tab.locator(".queue-item")
    expect(row.get_by_label("Upload")).to_be_attached()
    expect(row.get_by_label("Transcription")).to_be_attached()
    row.get_by_role("link", name="Read along").click(timeout=TIMEOUT_MS)

    texts = tab.locator(".cue .text")
    expect(texts).to_have_count(len(segments))
    assert " ".join(texts.all_inner_texts()) == SPEECH_TEXT

    last = len(segments) - 1
    first_word = segments[last]["text"].split()[0]
    click_word(tab, last, first_word)
    tab.wait_for_function(f"() => Math.abs(({PLAYER_TIME})() - {segments[last]['start']}) < 0.2")
    expect(tab.locator(".cue").nth(last)).to_have_attribute("data-active", "")
    times = [tab.evaluate(PLAYER_TIME)]
    for word in segments[last]["text"].split()[1:4]:
        click_word(tab, last, word)
        tab.wait_for_function(f"() => ({PLAYER_TIME})() > {times[-1]}")
        times.append(tab.evaluate(PLAYER_TIME))
    assert all(earlier < later < segments[last]["end"] for earlier, later in pairwise(times))

    click_word(tab, 0, "John", double=True)
    editor = tab.locator("textarea.editor")
    editor.fill("Corrected: <script> & words.")
    editor.press("Enter")
    expect(texts.first).to_have_text("Corrected: <script> & words.")

    tab.locator(".toolbar").get_by_text("Export").click()
    with tab.expect_download() as saved:
        tab.locator(".toolbar").get_by_role("button", name="SRT").click()
    assert saved.value.suggested_filename == "speech.srt"
    cues = pysrt.open(str(saved.value.path()))
    assert cues[0].text.replace("\n", " ") == "Corrected: <script> & words."
    assert [cue.text.replace("\n", " ") for cue in cues[1:]] == [segment["text"].strip() for segment in segments[1:]]
    for cue, segment in zip(cues, segments, strict=True):
        assert cue.start.ordinal / 1000 == pytest.approx(segment["start"], abs=0.01)
        assert cue.end.ordinal / 1000 == pytest.approx(segment["end"], abs=0.01)

    tab.get_by_role("button", name="Undo").click()
    expect(texts.first).to_have_text(segments[0]["text"].strip())
