"""Fixtures of the browser's tests. Playwright is imported only where it is used: other stages run without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ServerUnderTest, run_server
from tests.recordings import encode, load_speech

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.page.pages import PageUnderTest


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from tests.page.pages import run_browser

    microphone = tmp_path_factory.mktemp("microphone") / "speech.wav"
    microphone.write_bytes(encode(load_speech(), "wav", rate=48_000))
    with run_browser(microphone) as started:
        yield started


@pytest.fixture(scope="session")
def page_server() -> Iterator[ServerUnderTest]:
    """One server for all tests that leave it as they found it."""
    with run_server() as started:
        yield started


@pytest.fixture
def page(browser: Browser, page_server: ServerUnderTest, request: pytest.FixtureRequest) -> Iterator[PageUnderTest]:
    """A page in a browser without a past. A test's marker `context` sets options of Playwright's context."""
    from tests.page.pages import open_page

    marker = request.node.get_closest_marker("context")
    with open_page(browser, page_server.address, **(marker.kwargs if marker else {})) as opened:
        yield opened
