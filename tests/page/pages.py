"""The web page in real Chromium, whose microphone is a recording."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FOREIGN_NAME = "nas"
"""A name of this machine that browsers do not trust, as that of another machine in the network."""

TIMEOUT_MS = 60_000
"""For what a model has to do."""

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


@dataclass
class PageUnderTest:
    """A tab with the page. What it says on the console, and whom else it asks, is a fault."""

    tab: Page
    address: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tab.on("console", self._note_message)
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", self._note_request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.text} {message.location}")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.address, self.address.replace("http", "ws"), "blob:", "data:")):
            self.faults.append(f"asked {request.url}")

    def open(self, view: str = "transcribe") -> Page:
        self.tab.goto(f"{self.address}/#/{view}")
        expect(self.tab.locator("h1")).to_be_attached()
        return self.tab

    def drop(self, files: Mapping[str, bytes]) -> None:
        self.tab.evaluate(DROP, {name: base64.b64encode(content).decode() for name, content in files.items()})


@contextmanager
def run_browser(microphone: Path) -> Iterator[Browser]:
    """Chromium, whose microphone is a file."""
    assert CHROMIUM, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}%noloop",
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
    context.set_default_timeout(20_000)
    opened = PageUnderTest(context.new_page(), address)
    try:
        yield opened
    finally:
        context.close()
    assert not opened.faults, opened.faults
