"""Transcripts on the page: queues, storage, edits, comparisons, long texts, videos and exports."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
import zipfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pysrt
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.conftest import run_server
from tests.page.pages import PageUnderTest, open_page
from tests.recordings import SPEECH_TEXT, encode, load_speech

pytestmark = pytest.mark.browser

MAX_FRAME_MS = 50
"""CPU time of each frame while a long transcript is scrolled. The time on the clock depends on other programs."""

STORE_LONG_TRANSCRIPT = """
async () => {
  const words = "the quick brown fox jumps over a lazy dog while nobody looks".split(" ");
  const cues = Array.from({ length: 3000 }, (_, index) => {
    const start = index * 3.6;
    const text = Array.from({ length: 10 }, (_, place) => words[(index * 7 + place * 3) % words.length]).join(" ") + ".";
    return { id: index + 1, start, end: start + 3.5, text };
  });
  const info = { id: "long", name: "lecture.mp3", size: 1, created: Date.now(), model: "m", language: "en", task: "transcribe",
    duration: 10800, excerpt: "", warnings: [] };
  const database = await new Promise((resolve) => {
    const opening = indexedDB.open("eardrum", 1);
    opening.onsuccess = () => resolve(opening.result);
  });
  const transaction = database.transaction(["infos", "transcripts"], "readwrite");
  transaction.objectStore("infos").put(info);
  transaction.objectStore("transcripts").put({ ...info, cues });
  await new Promise((resolve) => (transaction.oncomplete = resolve));
  database.close();
}
"""
STORE_THREE_TRANSCRIPTS = """
async () => {
  const database = await new Promise((resolve) => {
    indexedDB.open("eardrum", 1).onsuccess = ({ target }) => resolve(target.result);
  });
  const transaction = database.transaction(["infos", "transcripts"], "readwrite");
  for (const id of ["one", "two", "three"]) {
    const info = { id, name: "same.mp3", size: 1, created: Date.now(), model: `${id}/${"x".repeat(200)}`, language: "en",
      task: "transcribe", duration: 4, excerpt: "", warnings: [] };
    transaction.objectStore("infos").put(info);
    transaction.objectStore("transcripts").put({ ...info, cues: [{ id: 1, start: 0, end: 4, text: `text ${id}` }] });
  }
  await new Promise((resolve) => (transaction.oncomplete = resolve));
  database.close();
}
"""
DELAY_TRANSCRIPT = """
(id) => {
  const get = IDBObjectStore.prototype.get;
  IDBObjectStore.prototype.get = function (key) {
    const request = get.call(this, key);
    if (key === id) {
      Object.defineProperty(request, "onsuccess", {
        set: (handle) => request.addEventListener("success", () => setTimeout(handle, 800)),
      });
    }
    return request;
  };
}
"""
"""Let a transcript arrive late."""
HOLD_STORAGE = """
() => new Promise((resolve) => {
  window.isHeld = true;
  indexedDB.open("eardrum", 1).onsuccess = ({ target: { result: database } }) => {
    const store = database.transaction(["infos", "transcripts"], "readwrite").objectStore("infos");
    const wait = () => { store.get("none").onsuccess = () => (window.isHeld ? wait() : database.close()); };
    wait();
    resolve();
  };
})
"""
"""Let writing wait for another transaction, until `window.isHeld` is false."""
SCROLL = """
() => new Promise((resolve) => requestAnimationFrame(() => {
  window.scrollBy(0, 400);
  requestAnimationFrame(resolve);
}))
"""
IS_STORED = """
(text) => new Promise((resolve) => {
  indexedDB.open("eardrum", 1).onsuccess = ({ target: { result: database } }) => {
    database.transaction("transcripts").objectStore("transcripts").getAll().onsuccess = ({ target }) => {
      resolve(target.result.some(({ cues }) => cues.some((cue) => cue.text.includes(text))));
      database.close();
    };
  };
})
"""


@pytest.fixture(scope="module")
def recording() -> bytes:
    return encode(load_speech(), "wav")


@pytest.fixture
def transcript(page: PageUnderTest, recording: bytes) -> Page:
    """A page with a transcript that is open."""
    tab = page.open()
    page.drop({"a & b <i>.wav": recording})
    tab.get_by_role("link", name="Read along").click()
    expect(tab.locator(".cue").first).to_be_visible()
    return tab


def export(tab: Page, name: str) -> Path:
    """Export the open transcript."""
    menu = tab.locator(".toolbar .menu")
    if menu.get_attribute("open") is None:
        menu.locator("summary").click()
    with tab.expect_download() as saved:
        menu.get_by_role("button", name=name, exact=True).click()
    menu.locator("summary").click()
    return Path(saved.value.path())


def test_broken_files_end_alone_and_all_texts_come_in_one_file(page: PageUnderTest, recording: bytes) -> None:
    page.allowed.append("400")
    tab = page.open()
    page.drop({"one.wav": recording, "<script>alert(1)</script>.mp3": b"nonsense", "empty.wav": b"", "zwei 二.wav": recording})
    expect(tab.get_by_role("status").filter(has_text="2 of 4 done. 2 failed.")).to_be_visible()
    expect(tab.locator(".queue-item.failed .error")).to_have_count(2)
    expect(tab.locator(".queue-item", has_text="<script>alert(1)</script>.mp3")).to_contain_text("cannot be decoded")
    expect(tab.locator(".queue-item.done .preview").first).to_contain_text(SPEECH_TEXT[-100:])
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save all as TXT").click()
    with zipfile.ZipFile(str(saved.value.path())) as archive:
        assert sorted(archive.namelist()) == ["one.txt", "zwei 二.txt"]
        assert " ".join(archive.read("one.txt").decode().split()) == SPEECH_TEXT
    tab.set_viewport_size({"width": 360, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_recordings_wait_for_a_server_that_is_away(browser: Browser, recording: bytes) -> None:
    with ExitStack() as last:
        with run_server() as server:
            page = last.enter_context(open_page(browser, server.address))
            page.allowed.append("ERR_")
            tab = page.open()
            expect(tab.get_by_role("combobox", name="Model", exact=True)).to_contain_text("moonshine")
        page.drop({"one.wav": recording, "two.wav": recording, "three.wav": recording})
        expect(tab.locator(".queue-item.offline")).to_have_count(2)
        last.enter_context(run_server("--port", str(server.host[1])))
        expect(tab.get_by_role("link", name="Read along")).to_have_count(3)


def test_edits_are_stored_and_undone(transcript: Page) -> None:
    tab = transcript
    texts = tab.locator(".cue .text")
    before = texts.all_inner_texts()
    texts.first.dblclick()
    tab.keyboard.press("Home")
    for _ in range(len("And Mr. ")):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Control+Enter")
    expect(texts).to_have_count(len(before) + 1)
    assert texts.first.inner_text() == "And Mr."
    tab.locator(".cue .time").first.click()
    tab.get_by_role("button", name="Join with next").click()
    expect(texts).to_have_count(len(before))
    assert texts.first.inner_text() == before[0]
    tab.get_by_label("Search", exact=True).fill("he ")
    tab.get_by_label("Replace with").fill("SHE ")
    tab.get_by_role("button", name="Replace all").click()
    expect(texts.nth(1)).to_contain_text("SHE")
    tab.get_by_label("Search", exact=True).fill("")
    while not tab.evaluate(IS_STORED, "SHE"):
        tab.wait_for_timeout(50)
    tab.reload()
    expect(texts.nth(1)).to_contain_text("SHE")
    expect(tab.locator(".player-bar")).to_contain_text("does not keep recordings")


def test_a_transcript_is_deleted_after_a_question(transcript: Page) -> None:
    tab = transcript
    tab.get_by_role("link", name="History").click()
    remove = tab.get_by_role("button", name="Delete: a & b <i>.wav")
    tab.once("dialog", lambda dialog: dialog.dismiss())
    remove.click()
    expect(remove).to_be_visible()
    tab.once("dialog", lambda dialog: dialog.accept())
    remove.click()
    expect(remove).to_have_count(0)
    tab.reload()
    expect(tab.locator("main")).to_contain_text("No transcripts.")


def test_without_storage_the_page_warns_before_a_transcript_is_lost(page: PageUnderTest, recording: bytes) -> None:
    tab = page.tab
    tab.add_init_script("IDBFactory.prototype.open = () => { throw new Error('It is forbidden.'); }")
    page.open()
    page.drop({"one.wav": recording})
    tab.get_by_role("link", name="Read along").click()
    expect(tab.locator("main .error")).to_contain_text("It is forbidden.")
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    tab.on("dialog", answer)
    tab.reload()
    assert asked == ["beforeunload"]


def test_transcripts_are_stored_again_after_the_browser_closed_its_storage(page: PageUnderTest, recording: bytes) -> None:
    tab = page.open("history")
    expect(tab.get_by_text("No transcripts.")).to_be_visible()
    session = tab.context.new_cdp_session(tab)
    session.send("Storage.clearDataForOrigin", {"origin": page.address, "storageTypes": "indexeddb"})
    page.open()
    page.drop({"one.wav": recording})
    tab.get_by_role("link", name="Read along").click()
    expect(tab.locator(".cue").first).to_be_visible()
    expect(tab.get_by_text("This browser does not keep transcripts")).to_have_count(0)
    tab.reload()
    expect(tab.locator(".cue").first).to_be_visible()


def test_an_edit_that_is_undone_while_it_is_stored_is_stored_undone(transcript: Page) -> None:
    tab = transcript
    before = tab.locator(".cue .text").all_inner_texts()
    tab.evaluate(HOLD_STORAGE)
    tab.get_by_label("Search", exact=True).fill("Mr. ")
    tab.get_by_label("Replace with").fill("Sir ")
    tab.get_by_role("button", name="Replace all").click()
    expect(tab.locator(".cue .text").first).to_contain_text("Sir")
    tab.wait_for_timeout(1000)  # the edit waits for the storage now
    tab.get_by_role("button", name="Undo").click()
    expect(tab.locator(".cue .text").first).to_have_text(before[0])
    tab.evaluate("() => { window.isHeld = false; }")
    while not tab.evaluate(IS_STORED, before[0]):
        tab.wait_for_timeout(50)
    tab.wait_for_timeout(1000)
    assert not tab.evaluate(IS_STORED, "Sir")


def test_the_transcript_that_was_chosen_last_stands_beside_the_first(page: PageUnderTest) -> None:
    tab = page.open("history")
    tab.evaluate(STORE_THREE_TRANSCRIPTS)
    tab.evaluate(DELAY_TRANSCRIPT, "two")
    page.open("read/one")
    choice = tab.get_by_label("Compare with another transcript")
    choice.select_option("two")
    choice.select_option("three")
    expect(tab.locator(".cue .beside")).to_have_text("text three")
    tab.set_viewport_size({"width": 360, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.wait_for_timeout(1500)
    expect(tab.locator(".cue .beside")).to_have_text("text three")


def test_every_view_takes_files_with_the_options_of_the_model(page: PageUnderTest, recording: bytes) -> None:
    """A view that has not loaded the models sends no hotwords to a model without them, which would refuse the recording."""
    tab = page.tab
    tab.add_init_script("""localStorage.setItem("eardrum.hotwords", '"Dashwood"')""")
    page.open("history")
    page.drop({"one.wav": recording})
    expect(tab.get_by_role("link", name="Read along")).to_be_visible()


def test_every_format_holds_the_text(transcript: Page) -> None:
    tab = transcript
    assert " ".join(export(tab, "TXT").read_text().split()) == SPEECH_TEXT
    assert export(tab, "VTT").read_text().startswith("WEBVTT\n\n00:00:00.")
    assert [row.split("\t")[2] for row in export(tab, "TSV").read_text().splitlines()[1:]] == tab.locator(
        ".cue .text"
    ).all_inner_texts()
    found: dict[str, Any] = json.loads(export(tab, "JSON").read_text())
    assert (found["text"], found["language"], found["model"]) == (SPEECH_TEXT, "en", "moonshine-tiny-en")
    with zipfile.ZipFile(export(tab, "DOCX")) as document:
        assert document.testzip() is None
        root = ET.fromstring(document.read("word/document.xml"))
    written = "".join(element.text or "" for element in root.iter() if element.tag.endswith("}t"))
    assert "a & b <i>.wav" in written
    assert SPEECH_TEXT[-60:] in written
    tab.locator(".toolbar .menu summary").click()
    tab.get_by_label("Characters per line").fill("42")
    tab.get_by_label("Characters per line").press("Tab")
    tab.locator(".toolbar .menu summary").click()
    cues = pysrt.open(str(export(tab, "SRT")))
    assert all(len(line) <= 42 for cue in cues for line in cue.text.split("\n"))
    assert all(cue.text.count("\n") <= 1 for cue in cues)
    assert " ".join(" ".join(cue.text.split()) for cue in cues) == SPEECH_TEXT


def test_a_second_transcript_stands_beside_the_first(transcript: Page) -> None:
    tab = transcript
    texts = tab.locator(".cue .text")
    texts.first.dblclick()
    tab.locator("textarea.editor").fill("And Mr. Jim Dashwood had then leisure to consider")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Transcribe again").click()
    expect(tab.get_by_role("link", name="Read along")).to_have_count(2)
    tab.get_by_role("link", name="Read along").first.click()
    tab.get_by_label("Compare with another transcript").select_option(index=1)
    expect(tab.locator(".beside mark").first).to_have_text("John")
    expect(tab.locator(".beside").last).to_have_text(texts.last.inner_text())


def test_a_video_is_shown_with_its_subtitles(page: PageUnderTest, tmp_path: Path) -> None:
    film = tmp_path / "film.webm"
    write_film(film)
    tab = page.open()
    tab.locator("input[type=file]").set_input_files(film)
    tab.get_by_role("link", name="Read along").click()
    video = tab.locator("video")
    expect(video).to_be_visible()
    tab.keyboard.press("Space")
    tab.wait_for_function("() => document.querySelector('video').textTracks[0]?.activeCues.length > 0")
    tab.keyboard.press("Space")
    tab.wait_for_function("() => document.querySelector('video').paused")
    shown = video.evaluate("(video) => video.textTracks[0].activeCues[0].text")
    assert shown in tab.locator(".cue .text").all_inner_texts()


def write_film(path: Path) -> None:
    import av  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    with av.open(str(path), "w") as film:
        picture, sound = film.add_stream("libvpx", rate=5), film.add_stream("libopus", rate=48_000)
        picture.width, picture.height, picture.pix_fmt = 320, 180, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((180, 320, 3), number * 8, np.uint8), format="rgb24")
            frame.pts = number
            film.mux(picture.encode(frame))
        film.mux(picture.encode())
        speech = av.AudioFrame.from_ndarray(load_speech()[None, : 16_000 * 6], format="flt", layout="mono")
        speech.sample_rate = 16_000
        for part in av.AudioResampler("s16", "mono", 48_000).resample(speech):
            film.mux(sound.encode(part))
        film.mux(sound.encode())


def test_30000_words_scroll_smoothly(page: PageUnderTest) -> None:
    tab = page.open("history")
    tab.evaluate(STORE_LONG_TRANSCRIPT)
    tab.goto(f"{page.address}/#/read/long")
    expect(tab.locator("#cue-3000")).to_be_attached()
    tab.evaluate("() => new Promise(requestIdleCallback)")
    read_work = page.measure_work()
    work = [read_work()]
    for _ in range(120):
        tab.evaluate(SCROLL)
        work.append(read_work())
    assert tab.evaluate("scrollY") > 40_000
    assert max(after - before for before, after in pairwise(work)) * 1000 < MAX_FRAME_MS
    tab.get_by_label("Search", exact=True).fill("fox")
    expect(tab.get_by_role("search")).to_contain_text("1 / ")
