"""How the page arrives: below a path, without JavaScript, by the keyboard alone, and as a part of the package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from eardrum.api.page import PAGE_FOLDER
from tests.conftest import ServerUnderTest
from tests.page.pages import TIMEOUT_MS, PageUnderTest, open_page
from tests.page.prefix_proxy import run_prefix_proxy
from tests.recordings import ROOT, encode, load_speech

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

MAX_FIRST_PAINT_MS = 3000
"""On a busy machine; on a quiet one it is a tenth."""


def test_the_page_works_below_a_path(browser: Browser, page_server: ServerUnderTest) -> None:
    with run_prefix_proxy(page_server.address) as address, open_page(browser, address) as page:
        tab = page.open()
        page.drop({"speech.wav": encode(load_speech()[: 4 * 16_000], "wav")})
        tab.get_by_role("link", name="Read along").click(timeout=TIMEOUT_MS)
        expect(tab.locator(".cue").first).to_contain_text("Dashwood")
        page.open("live")
        tab.get_by_role("button", name="Start").click()
        tab.wait_for_function("() => document.querySelector('.live-text')?.textContent.includes('Dashwood')", timeout=TIMEOUT_MS)
        tab.get_by_role("button", name="Stop").click()
        expect(tab.get_by_role("button", name="Go on")).to_be_visible(timeout=TIMEOUT_MS)
        page.open("server/models")
        expect(tab.get_by_role("region", name="Models").locator("tbody tr", has_text="moonshine-tiny-en")).to_contain_text(
            "ready"
        )


@pytest.mark.context(java_script_enabled=False)
def test_without_javascript_a_sentence_says_what_is_needed(page: PageUnderTest) -> None:
    page.tab.goto(page.address)
    assert "This page needs JavaScript" in page.tab.locator("body").inner_text()


def test_the_first_paint_is_early(page: PageUnderTest) -> None:
    tab = page.open()
    painted = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < MAX_FIRST_PAINT_MS


def test_the_main_path_needs_no_mouse(page: PageUnderTest) -> None:
    """From the file's transcript to its correction: tabulator, enter, arrows, letters."""
    tab = page.open()
    tab.locator("input[type=file]").set_input_files(
        {"name": "speech.wav", "mimeType": "audio/wav", "buffer": encode(load_speech(), "wav")}
    )
    expect(tab.get_by_role("link", name="Read along")).to_be_visible(timeout=TIMEOUT_MS)

    def press_until(key: str, selector: str) -> None:
        for _ in range(60):
            if tab.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                return
            tab.keyboard.press(key)
        raise AssertionError(f"{key} never reaches {selector}")

    press_until("Tab", "a[href^='#/read/']")
    tab.keyboard.press("Enter")
    expect(tab.locator(".cue").first).to_be_visible()
    press_until("Tab", ".cue .time")
    tab.keyboard.press("Enter")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    second = tab.locator(".cue").nth(1)
    expect(second).to_have_class("cue selected")
    assert tab.evaluate("() => document.querySelector('video').currentTime") > 1
    tab.keyboard.press("e")
    tab.keyboard.press("Control+a")
    tab.keyboard.type("By hand.")
    tab.keyboard.press("Enter")
    expect(second.locator(".text")).to_have_text("By hand.")
    tab.keyboard.press("Control+z")
    expect(second.locator(".text")).not_to_have_text("By hand.")


def test_a_wheel_has_the_whole_page(tmp_path: Path) -> None:
    """It is built without Node.js."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in PAGE_FOLDER.iterdir():
            assert archive.read(f"eardrum/page/{path.name}") == path.read_bytes()
