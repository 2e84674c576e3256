"""The main path: a recording is dropped, read along, edited and taken away."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pysrt
import pytest
from playwright.sync_api import Page, Route, expect

from tests.conftest import ServerUnderTest
from tests.page.pages import PLAYER_TIME, PageUnderTest, click_word
from tests.recordings import SPEECH_TEXT, encode, load_speech

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def recording() -> bytes:
    return encode(load_speech(), "wav")


@pytest.fixture(scope="module")
def segments(page_server: ServerUnderTest, recording: bytes) -> list[dict[str, Any]]:
    """The segments that the API itself returns for the recording."""
    found: list[dict[str, Any]] = page_server.post_audio(recording, response_format="verbose_json").json()["segments"]
    return found


def transcribe(page: PageUnderTest, recording: bytes, name: str = "speech.wav") -> Page:
    """Drop a recording and open its transcript."""
    tab = page.open()
    page.drop({name: recording})
    tab.get_by_role("link", name="Read along").click()
    expect(tab.locator(".cue").first).to_be_visible()
    return tab


def test_from_the_drop_to_the_subtitles(page: PageUnderTest, recording: bytes, segments: list[dict[str, Any]]) -> None:
    held: list[Route] = []
    tab = page.open()
    tab.route("**/v1/audio/transcriptions", lambda route: held.append(route))  # noqa: PLW0108 (Playwright marks its handlers)
    page.drop({"speech.wav": recording})
    row = tab.locator(".queue-item")
    expect(row.get_by_label("Upload")).to_be_attached()
    expect(row.get_by_label("Transcription")).to_be_attached()
    while not held:
        tab.wait_for_timeout(20)
    held[0].continue_()
    row.get_by_role("link", name="Read along").click()

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
