"""Models on the page: one is downloaded with its progress, and used."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import run_server
from tests.fake_hub import FakeRepository, fake_hub
from tests.page.pages import open_page
from tests.recordings import encode_speech
from tests.weights import read_moonshine_files

pytestmark = pytest.mark.browser

NAME = "someone/moonshine"


def test_a_model_is_downloaded_and_transcribes(browser: Browser, tmp_path: Path) -> None:
    with (
        fake_hub(someone__moonshine=FakeRepository(read_moonshine_files(), pace=0.002)) as hub,
        run_server(HF_HUB_CACHE=str(tmp_path), **hub.environment) as server,
        open_page(browser, server.address) as page,
    ):
        tab = page.open()
        tab.get_by_text("More settings").click()
        tab.get_by_label("Download another model").fill(NAME)
        tab.get_by_role("button", name="Download").click()
        tab.wait_for_function("() => document.querySelector('.get-model progress')?.value > 0")
        expect(tab.get_by_role("combobox", name="Model", exact=True)).to_have_value(NAME)
        page.drop({"speech.wav": encode_speech("wav")})
        tab.get_by_role("link", name="Read along").click()
        expect(tab.get_by_role("main")).to_contain_text(NAME)


def test_a_name_that_the_hub_does_not_know_is_explained(browser: Browser, tmp_path: Path) -> None:
    with (
        fake_hub() as hub,
        run_server(HF_HUB_CACHE=str(tmp_path), **hub.environment) as server,
        open_page(browser, server.address) as page,
    ):
        page.allowed.append("404")
        tab = page.open()
        tab.get_by_text("More settings").click()
        tab.get_by_label("Download another model").fill("someone/nothing")
        tab.get_by_role("button", name="Download").click()
        expect(tab.get_by_role("alert")).to_contain_text("someone/nothing")
