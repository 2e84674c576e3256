"""Live captions: the words of a recording that the browser takes for its microphone."""

from __future__ import annotations

import base64
import re
from difflib import SequenceMatcher
from itertools import pairwise

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from tests.conftest import ServerUnderTest
from tests.page.pages import FOREIGN_NAME, SHARED_TITLE, PageUnderTest, open_page
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.browser

SECONDS = 15.5
"""The recording's length. The fake microphone is silent after it."""

STREAM = re.compile(r".*/v1/audio/transcriptions/stream.*")

KEEP_STREAM = """
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => (window.captured = await open(wanted));
"""

FILLS_THE_WINDOW = """
() => {
  const captions = document.querySelector("dialog[open]");
  return captions?.offsetWidth === innerWidth && captions.offsetHeight === innerHeight;
}
"""

WATCH = """
() => {
  window.seen = [];
  new MutationObserver(() => {
    const lines = [...document.querySelectorAll(".live-text p")];
    const last = lines.at(-1);
    if (!last) return;
    const tentative = last.querySelector(".tentative")?.textContent ?? "";
    window.seen.push({
      line: lines.length,
      stable: last.textContent.slice(0, last.textContent.length - tentative.length).trim(),
      top: last.offsetTop,
      height: last.offsetHeight,
    });
  }).observe(document.querySelector(".page"), { childList: true, subtree: true, characterData: true });
}
"""


def read_words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def check_words(text: str) -> None:
    """All that was said, but for a word or two: on a busy machine the fake microphone stutters."""
    heard, said = read_words(text), read_words(SPEECH_TEXT)
    assert abs(len(heard) - len(said)) <= 2, text
    assert SequenceMatcher(None, heard, said, autojunk=False).ratio() > 0.93, text


def start(tab: Page) -> None:
    tab.get_by_role("button", name="Start").click()
    expect(tab.get_by_role("status")).to_have_text("Listening")


def wait_for_words(tab: Page) -> None:
    """Until the last words of the recording stand there."""
    tab.wait_for_function("() => document.querySelector('.live-text')?.textContent.includes('himself')")


def stop(tab: Page) -> str:
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_role("button", name="Continue")).to_be_visible()
    return " ".join(tab.locator(".live-text p").all_inner_texts())


def test_speech_becomes_captions_and_a_transcript(page: PageUnderTest) -> None:
    tab = page.open("live")
    tab.evaluate(WATCH)
    start(tab)
    tab.wait_for_function("() => document.querySelector('.live-text .tentative, .live-text p')")

    tab.get_by_role("button", name="Full screen").click()
    captions = tab.get_by_role("dialog", name="Full screen")
    expect(captions.locator("p").first).to_be_visible()
    tab.wait_for_function(FILLS_THE_WINDOW)
    captions.get_by_role("button", name="Close").click()
    expect(captions).to_have_count(0)

    wait_for_words(tab)
    check_words(stop(tab))

    seen = tab.evaluate("window.seen")
    assert any(one["stable"] for one in seen)
    for before, after in pairwise(seen):
        if before["line"] == after["line"]:
            assert after["stable"].startswith(before["stable"]), "text that stood was taken back"
            assert after["top"] == before["top"], "a line jumped"

    tab.get_by_role("button", name="Save as transcript").click()
    expect(tab.locator(".cue").first).to_be_visible()
    check_words(" ".join(tab.locator(".cue .text").all_inner_texts()))
    tab.wait_for_function(f"() => document.querySelector('video').duration > {SECONDS}")
    tab.goto(f"{page.address}/#/history")
    expect(tab.get_by_role("link", name=re.compile("Recording of"))).to_be_visible()


def test_what_is_said_while_the_server_is_away_is_not_lost(page: PageUnderTest) -> None:
    sockets: list[WebSocketRoute] = []

    def relay(client: WebSocketRoute) -> None:
        """To the server; the first connection breaks in the middle of a sentence."""
        sockets.append(client)
        server = client.connect_to_server()
        frames = 0

        def send(message: str | bytes) -> None:
            nonlocal frames
            frames += 1
            server.send(message)
            if len(sockets) == 1 and frames == 40:
                client.close(code=1012, reason="The server stops.")
                server.close(code=1000)

        client.on_message(send)

    tab = page.tab
    tab.route_web_socket(STREAM, relay)
    page.open("live")
    start(tab)
    wait_for_words(tab)
    text = stop(tab)
    assert len(sockets) == 2
    check_words(text)


def test_the_last_words_come_although_the_connection_breaks_after_the_stop(page: PageUnderTest) -> None:
    sockets: list[WebSocketRoute] = []

    def relay(client: WebSocketRoute) -> None:
        """To the server; the first connection breaks when it should end."""
        sockets.append(client)
        server = client.connect_to_server()

        def send(message: str | bytes) -> None:
            if len(sockets) == 1 and isinstance(message, str):
                client.close(code=1012, reason="The server stops.")
                server.close(code=1000)
            else:
                server.send(message)

        client.on_message(send)

    tab = page.tab
    tab.route_web_socket(STREAM, relay)
    page.open("live")
    start(tab)
    tab.wait_for_function("() => document.querySelector('.live-text p')?.textContent.includes('Dashwood')")
    assert "Dashwood" in stop(tab)
    assert len(sockets) == 2


def test_a_connection_that_fails_without_a_reason_is_explained(page: PageUnderTest) -> None:
    tab = page.tab
    tab.route_web_socket(STREAM, lambda client: client.close(code=1011))
    page.open("live")
    tab.get_by_role("button", name="Start").click()
    expect(tab.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(tab.get_by_role("button", name="Start")).to_be_enabled()


def test_the_sound_of_a_tab_becomes_captions(page: PageUnderTest) -> None:
    loudspeaker = page.tab.context.new_page()
    recording = base64.b64encode(encode_speech("wav")).decode()
    loudspeaker.set_content(f"<title>{SHARED_TITLE}</title><audio src='data:audio/wav;base64,{recording}'></audio>")
    tab = page.open("live")
    tab.bring_to_front()
    tab.get_by_role("combobox", name="Source").select_option("tab")
    start(tab)
    loudspeaker.evaluate("document.querySelector('audio').play()")
    tab.wait_for_function("() => document.querySelector('.live-text p')?.textContent.includes('Dashwood')")
    assert "Dashwood" in stop(tab)


@pytest.mark.context(permissions=[])
def test_a_refused_microphone_is_explained(page: PageUnderTest) -> None:
    tab = page.open("live")
    tab.get_by_role("button", name="Start").click()
    expect(tab.get_by_role("alert")).to_contain_text("was not allowed")
    expect(tab.get_by_role("button", name="Start")).to_be_enabled()


def test_an_unplugged_microphone_ends_the_recording_and_keeps_the_text(page: PageUnderTest) -> None:
    tab = page.tab
    tab.add_init_script(KEEP_STREAM)
    page.open("live")
    start(tab)
    tab.wait_for_function("() => document.querySelector('.live-text p')?.textContent.includes('Dashwood')")
    tab.evaluate("window.captured.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(tab.get_by_role("alert")).to_contain_text("unplugged")
    expect(tab.get_by_role("button", name="Continue")).to_be_visible()
    assert "Dashwood" in tab.locator(".live-text").inner_text()


def test_over_plain_http_the_page_says_why_there_is_no_microphone(browser: Browser, page_server: ServerUnderTest) -> None:
    address = page_server.address.replace("127.0.0.1", FOREIGN_NAME)
    with open_page(browser, address, permissions=[]) as page:
        tab = page.open("live")
        expect(tab.locator("main")).to_contain_text(f"This page was opened at {address}")
        expect(tab.locator("code").first).to_contain_text("ssh -L")
        expect(tab.get_by_role("button", name="Start")).to_have_count(0)


@pytest.mark.context(permissions=[])
def test_the_microphone_used_last_is_shown_before_browsers_tell_names(page: PageUnderTest) -> None:
    page.tab.add_init_script("localStorage.setItem('eardrum.live.device', '\"an-id\"')")
    tab = page.open("live")
    expect(tab.get_by_role("combobox", name="Source", exact=True)).to_have_value("an-id")
