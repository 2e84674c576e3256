"""Every view: accessible in dark and light, in both languages, and only what the key may see."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.page.pages import PageUnderTest, open_page
from tests.processes import read_command
from tests.recordings import encode, load_speech

pytestmark = pytest.mark.browser

VIEWS = (
    "transcribe",
    "history",
    "live",
    "speak",
    *(f"server/{name}" for name in ("models", "activity", "logs", "config", "keys")),
)


@pytest.fixture(scope="module")
def transcript(browser: Browser, page_server: ServerUnderTest) -> Iterator[PageUnderTest]:
    """A page whose history holds a transcript, which is open."""
    with open_page(browser, page_server.address) as page:
        page.allowed.append("400")
        tab = page.open()
        page.drop({"speech.wav": encode(load_speech(), "wav"), "broken <script>.mp3": b"nothing"})
        expect(tab.locator(".queue-item.failed")).to_contain_text("broken <script>.mp3")
        tab.get_by_role("link", name="Read along").click()
        expect(tab.locator(".cue").first).to_be_visible()
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_an_accessibility_problem(transcript: PageUnderTest, scheme: str) -> None:
    tab = transcript.tab
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    read = tab.url.partition("#/")[2]
    for view in (read, *VIEWS):
        transcript.open(view)
        tab.wait_for_load_state("networkidle") if not view.startswith(("server/activity", "server/logs")) else None
        for width in (360, 1440):
            tab.set_viewport_size({"width": width, "height": 900})
            found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
            assert not found, (view, scheme, width, [(one["id"], one["nodes"][0]["html"]) for one in found])
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
    tab.goto(f"{transcript.address}/#/{read}")


@pytest.mark.context(locale="de-DE")
def test_the_page_speaks_german(page: PageUnderTest) -> None:
    tab = page.open("server/models")
    expect(tab.locator("html")).to_have_attribute("lang", "de")
    expect(tab.get_by_role("link", name="Transkribieren")).to_be_visible()
    expect(tab.get_by_role("button", name=re.compile("Laden|Entladen")).first).to_be_visible()


def test_the_keys_are_listed(page: PageUnderTest) -> None:
    tab = page.open()
    tab.keyboard.press("?")
    expect(tab.get_by_role("dialog")).to_contain_text("Play or pause")
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_have_count(0)


def test_models_are_loaded_and_unloaded(page: PageUnderTest, page_server: ServerUnderTest) -> None:
    requests.delete(f"{page_server.address}/api/ps/moonshine-tiny-en", timeout=60)
    wait_for(lambda: not is_loaded(page_server))
    tab = page.open("server/models")
    row = tab.locator("tbody tr", has_text="moonshine-tiny-en")
    expect(row).to_contain_text("stopped")
    row.get_by_role("button", name=re.compile("^Load")).click()
    expect(row.get_by_role("button", name=re.compile("^Unload"))).to_be_enabled()
    expect(row).to_contain_text("ready")
    assert is_loaded(page_server)
    row.get_by_role("button", name=re.compile("^Unload")).click()
    expect(row.get_by_role("button", name=re.compile("^Load"))).to_be_enabled()
    expect(row).to_contain_text("stopped")
    wait_for(lambda: not is_loaded(page_server))


def is_loaded(server: ServerUnderTest) -> bool:
    """Whether the model for speech runs; other tests' models may run too."""
    return any("moonshine" in read_command(runner) for runner in server.list_runners())


def test_requests_and_logs_appear_as_they_come(page: PageUnderTest, page_server: ServerUnderTest) -> None:
    page_server.post_audio(encode(load_speech()[:16_000], "wav"))
    tab = page.open("server/activity")
    row = tab.get_by_role("region", name="Finished").locator("tbody tr").first
    expect(row).to_contain_text("/v1/audio/transcriptions")
    expect(row).to_contain_text("200")
    row.get_by_text("Details").click()
    expect(row.locator("dd").first).to_be_visible()
    page_server.post_audio(b"")
    expect(row).to_contain_text("400")
    page.open("server/logs")
    log = tab.get_by_role("log")
    expect(log).to_contain_text("POST /v1/audio/transcriptions 200")
    page_server.post_audio(b"")
    expect(log).to_contain_text("POST /v1/audio/transcriptions 400")
    tab.get_by_label("Filter").fill("no such line")
    expect(log).to_have_text("")


def test_the_config_is_checked_and_read_again(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("config") / "eardrum.yaml"
    file.write_text("default_ttl: 10m\n")
    with run_server("--config", str(file)) as server, open_page(browser, server.address) as page:
        tab = page.open("server/config")
        expect(tab.get_by_role("main")).to_contain_text("Valid")
        file.write_text("default_ttl: soon\n")
        tab.get_by_role("button", name="Check the files").click()
        expect(tab.get_by_role("main")).to_contain_text("eardrum.yaml:1")
        file.write_text("default_ttl: 20m\n")
        tab.get_by_role("button", name="Reload the config").click()
        expect(tab.get_by_role("main")).to_contain_text("No model has changed.")


def test_a_key_is_asked_for_once_and_what_it_may_not_see_is_hidden(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("config") / "eardrum.yaml"
    file.write_text("api_keys: [{key: all}, {key: little, scopes: [transcribe, models]}, {key: reader, scopes: [models]}]\n")
    with run_server("--config", str(file)) as server, open_page(browser, server.address) as page:
        page.allowed.append("401")
        tab = page.open()
        dialog = tab.get_by_role("dialog")
        dialog.get_by_label("API key").fill("little")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog).to_have_count(0)
        page.open("server")
        expect(tab.get_by_role("region", name="Models")).to_be_visible()
        expect(tab.get_by_role("link", name="Logs")).to_have_count(0)
        expect(tab.get_by_role("button", name="Load")).to_have_count(0)
        tab.reload()
        expect(tab.get_by_role("region", name="Models")).to_be_visible()
        tab.get_by_role("button", name="Forget key").click()
        page.open("live")
        dialog.get_by_label("API key").fill("reader")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog).to_have_count(0)
        tab.get_by_role("button", name="Start").click()
        expect(tab.get_by_role("alert")).to_contain_text("a key with the right to transcribe")


def test_keys_do_nothing_behind_a_dialog(page: PageUnderTest) -> None:
    tab = page.open("live")
    tab.keyboard.press("?")
    expect(tab.get_by_role("dialog")).to_be_visible()
    tab.keyboard.press("f")
    tab.keyboard.press("r")
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_have_count(0)
    expect(tab.get_by_role("button", name="Start")).to_be_visible()


def test_the_lines_of_another_log_are_not_shown(page: PageUnderTest) -> None:
    """The log that is chosen does not answer."""
    tab = page.open("server/logs")
    expect(tab.locator(".log div").first).to_be_visible()
    tab.get_by_label("Pause").check()
    tab.route("**/logs/stream/upstream", lambda _: None)
    tab.get_by_role("combobox", name="Log", exact=True).select_option("upstream")
    expect(tab.locator(".log div")).to_have_count(0)
    expect(tab.get_by_label("Pause")).not_to_be_checked()
