"""The web page in real Chromium, whose microphone is a recording."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SHARED_TITLE = "Loudspeaker"
"""The title of the tab that the browser shares when a page asks for the sound of one."""

FOREIGN_NAME = "nas"
"""A name of this machine that browsers trust no more than that of another machine in the network."""

TIMEOUT_MS = 90_000
"""For everything that a test waits for, by `expect` too: on a slow machine that other programs use, even a click takes long."""

DROP = """
async (files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of Object.entries(files)) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""

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


@dataclass
class PageUnderTest:
    """A tab with the page. Errors and warnings on the console are faults, and so are requests to other servers."""

    tab: Page
    address: str
    allowed: list[str] = field(default_factory=list)
    """Parts of messages that the test itself causes: browsers report a refused request themselves."""
    messages: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [message for message in self.messages if not any(part in message for part in self.allowed)]

    def __post_init__(self) -> None:
        self.tab.on("console", self._note_message)
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.on("request", self._note_request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.messages.append(f"{message.text} {message.location}")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.address, self.address.replace("http", "ws"), "blob:", "data:")):
            self.messages.append(f"asked {request.url}")

    def open(self, view: str = "transcribe") -> Page:
        """Open a view, and wait until it is drawn. One that the navigation does not list leaves no link marked."""
        self.tab.goto(f"{self.address}/#/{view}")
        link = f"header:has(nav a[href='#/{view.partition('/')[0]}'][aria-current])"
        expect(self.tab.locator("header:not(:has(nav a[aria-current]))" if view.startswith("read/") else link)).to_be_attached()
        expect(self.tab.locator("h1")).to_be_attached()
        return self.tab

    def measure_work(self) -> Callable[[], float]:
        """Return a function that reads the seconds of CPU time that the page's main thread has worked. Unlike the time on the
        clock, it depends little on other programs."""
        session = self.tab.context.new_cdp_session(self.tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def read() -> float:
            metrics: list[dict[str, Any]] = session.send("Performance.getMetrics")["metrics"]
            return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

        return read

    def drop(self, files: Mapping[str, bytes]) -> None:
        self.tab.evaluate(DROP, {name: base64.b64encode(content).decode() for name, content in files.items()})


def click_word(tab: Page, row: int, word: str, *, double: bool = False) -> None:
    """Click the first place in a row of the open transcript that has a text."""
    tab.locator(".cue .text").nth(row).scroll_into_view_if_needed()
    x, y = tab.evaluate(WORD_PLACE, [row, word])
    if double:
        tab.mouse.dblclick(x, y)
    else:
        tab.mouse.click(x, y)


@contextmanager
def run_browser(microphone: Path) -> Iterator[Browser]:
    """Chromium, whose microphone is a file."""
    assert CHROMIUM, "Chromium is missing: apt-get install chromium"
    expect.set_options(timeout=TIMEOUT_MS)
    # Without a folder for it, the sound library leaves one of its own behind.
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            env={**os.environ, "XDG_RUNTIME_DIR": folder},
            ignore_default_args=["--mute-audio"],  # a tab without sound has none to share
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}%noloop",
                f"--auto-select-tab-capture-source-by-title={SHARED_TITLE}",
                f"--host-resolver-rules=MAP {FOREIGN_NAME} 127.0.0.1",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def open_page(browser: Browser, address: str, **options: Any) -> Iterator[PageUnderTest]:
    """A page at an address; in the end its console must have been silent."""
    context = browser.new_context(**({"locale": "en-GB", "permissions": ["microphone"]} | options))
    context.set_default_timeout(TIMEOUT_MS)
    opened = PageUnderTest(context.new_page(), address)
    try:
        yield opened
    finally:
        context.close()
    assert not opened.faults, opened.faults
