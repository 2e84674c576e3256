"""Models on the page: one is downloaded with its progress, and used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.conftest import run_server
from tests.fake_hub import FakeRepository, fake_hub
from tests.page.pages import PageUnderTest, open_page
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


def test_an_old_list_of_models_does_not_replace_a_newer_one(page: PageUnderTest) -> None:
    held: list[Route] = []

    def hold_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.tab.route("**/v1/models", hold_first)
    tab = page.open("live")
    page.open("transcribe")
    model = tab.get_by_role("combobox", name="Model", exact=True)
    expect(model).to_contain_text("moonshine-tiny-en")
    with tab.expect_response("**/v1/models"):
        held[0].fulfill(json={"data": []})
    tab.wait_for_timeout(1000)
    expect(model.locator("option")).to_have_count(2)


def test_a_download_goes_on_in_other_views_and_a_voice_is_not_chosen_to_transcribe(page: PageUnderTest) -> None:
    held: list[Route] = []
    page.tab.route("**/api/pull/*", lambda route: held.append(route))  # noqa: PLW0108 -- Playwright inspects the function
    tab = page.open()
    tab.get_by_text("More settings").click()
    tab.get_by_label("Download another model").fill("kokoro")
    tab.get_by_role("button", name="Download").click()
    expect(tab.locator(".get-model progress")).to_be_visible()
    page.open("history")
    page.open()
    tab.get_by_text("More settings").click()
    expect(tab.locator(".get-model").get_by_role("button", name="Cancel")).to_be_visible()
    held[0].fulfill(body='{"status": "success", "model": "kokoro"}\n')
    expect(tab.locator(".get-model").get_by_role("button", name="Download")).to_be_visible()
    expect(tab.get_by_role("combobox", name="Model", exact=True)).to_have_value("")


def test_a_model_that_was_chosen_is_shown_before_the_list_is_there(page: PageUnderTest) -> None:
    name = "someone/ش 100%25 <b> " + "x" * 200
    page.tab.add_init_script(f"localStorage.setItem('eardrum.model', {json.dumps(json.dumps(name))})")
    page.tab.route("**/v1/models", lambda _: None)
    page.tab.set_viewport_size({"width": 360, "height": 800})
    tab = page.open()
    expect(tab.get_by_role("combobox", name="Model", exact=True)).to_have_value(name)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
