"""The page with files, keys, models and servers that are not as they should be."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Route, expect

from tests.conftest import run_server, wait_for
from tests.page.pages import PageUnderTest, open_page
from tests.recordings import RATE, SPEECH_TEXT, encode, encode_announcements, load_speech

pytestmark = pytest.mark.browser

SLOW_UPLOAD = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 50_000}
FULL_SPEED = SLOW_UPLOAD | {"uploadThroughput": -1}


def test_100_files_with_names_in_every_script_form_one_queue(page: PageUnderTest) -> None:
    page.allowed.append("400")
    tab = page.open()
    good = "تسجيل 録音 запись 🎤.wav"
    page.drop({good: encode(load_speech()[: 4 * RATE], "wav")} | {f"{number} <b>.mp3": b"nothing" for number in range(99)})
    expect(tab.get_by_role("status").filter(has_text="1 of 100 done. 99 failed.")).to_be_visible()
    expect(tab.locator(".queue-item.done")).to_contain_text(good)
    tab.get_by_role("button", name="Remove finished").click()
    expect(tab.locator(".queue-item")).to_have_count(0)


def test_a_large_file_without_sound_is_refused_in_a_sentence(page: PageUnderTest, tmp_path: Path) -> None:
    page.allowed.append("400")
    file = tmp_path / "huge.mp4"
    with file.open("wb") as opened:
        opened.truncate(300 << 20)
    tab = page.open()
    tab.locator("input[type=file]").set_input_files(file)
    expect(tab.locator(".queue-item.failed .error")).to_contain_text("cannot be decoded")


def test_a_server_that_ends_in_the_middle_of_an_upload_gets_it_again(browser: Browser) -> None:
    with ExitStack() as last:
        with run_server() as server:
            page = last.enter_context(open_page(browser, server.address))
            page.allowed += ["ERR_", "503"]  # a server that shuts down takes no more
            tab = page.open()
            network = tab.context.new_cdp_session(tab)
            network.send("Network.enable")
            network.send("Network.emulateNetworkConditions", SLOW_UPLOAD)
            page.drop({"speech.wav": encode(load_speech(), "wav")})
            tab.wait_for_function("() => document.querySelector('.queue-item progress')?.value > 0")
        expect(tab.locator(".queue-item.offline")).to_have_count(1)
        network.send("Network.emulateNetworkConditions", FULL_SPEED)
        last.enter_context(run_server("--port", str(server.host[1])))
        tab.get_by_role("link", name="Read along").click()
        expect(tab.locator(".cue").first).to_be_visible()
        assert " ".join(tab.locator(".cue .text").all_inner_texts()) == SPEECH_TEXT


def test_a_server_that_ends_while_it_decodes_gets_the_recording_again(browser: Browser) -> None:
    with ExitStack() as last:
        with run_server("--set", "shutdown_timeout=0") as server:
            page = last.enter_context(open_page(browser, server.address))
            page.allowed += ["ERR_", "503"]
            tab = page.open()
            page.drop({"announcements.flac": encode_announcements(300)})
            expect(tab.locator(".queue-item .preview")).to_be_visible()
        expect(tab.locator(".queue-item.offline")).to_have_count(1)
        last.enter_context(run_server("--port", str(server.host[1])))
        expect(tab.get_by_role("link", name="Read along")).to_be_visible()


def test_a_proxy_whose_server_is_away_is_asked_again(page: PageUnderTest) -> None:
    page.allowed += ["502", "504"]
    answers = [502, 504]

    def forward(route: Route) -> None:
        if answers:
            route.fulfill(status=answers.pop(0), content_type="text/html", body="<html><h1>Bad Gateway</h1></html>")
        else:
            route.continue_()

    tab = page.open()
    tab.route("**/v1/audio/transcriptions", forward)
    page.drop({"speech.wav": encode(load_speech()[: 4 * RATE], "wav")})
    expect(tab.locator(".queue-item.offline .error")).to_have_text("HTTP 502")
    expect(tab.get_by_role("link", name="Read along")).to_be_visible()
    assert not answers


def test_the_server_says_when_a_recording_is_sent_again(page: PageUnderTest) -> None:
    page.allowed.append("429")
    tab = page.open()
    tab.route(
        "**/v1/audio/transcriptions", lambda route: route.fulfill(status=429, headers={"retry-after": "300"}, body="Enough.")
    )
    with tab.expect_response("**/v1/audio/transcriptions"):
        page.drop({"speech.wav": encode(load_speech()[: 4 * RATE], "wav")})
    expect(tab.locator(".queue-item.offline .error")).to_have_text("Enough.")
    tab.unroute("**/v1/audio/transcriptions")
    tab.wait_for_timeout(4000)
    expect(tab.locator(".queue-item.offline")).to_be_visible()
    tab.get_by_role("button", name="Cancel: speech.wav").click()
    expect(tab.locator(".queue-item.cancelled")).to_be_visible(timeout=1000)


def test_a_page_in_place_of_an_answer_is_named(page: PageUnderTest) -> None:
    """A proxy whose login has ended sends its own page, with status 200."""
    tab = page.open()
    for path in ("models", "audio/transcriptions"):
        tab.route(f"**/v1/{path}", lambda route: route.fulfill(content_type="text/html", body="<!doctype html><h1>Log in</h1>"))
    page.open("history")
    page.open()
    expect(tab.get_by_role("alert").first).to_contain_text("The answer is not Eardrum's.")
    page.drop({"speech.wav": encode(load_speech()[: 4 * RATE], "wav")})
    expect(tab.locator(".queue-item.failed .error")).to_contain_text("The answer is not Eardrum's.")


def test_rights_are_asked_for_until_the_server_answers(page: PageUnderTest) -> None:
    page.allowed.append("502")
    refused: list[Route] = []

    def forward(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=502, content_type="text/html", body="<html></html>")

    page.tab.route("**/api/keys/current", forward)
    tab = page.open()
    expect(tab.get_by_role("link", name="Server")).to_be_visible()
    assert refused


@pytest.mark.parametrize(("view", "path"), [("logs", "logs/stream/*"), ("activity", "api/events"), ("models", "api/ps")])
def test_a_question_for_a_key_that_was_cancelled_is_not_asked_again(page: PageUnderTest, view: str, path: str) -> None:
    """The key was withdrawn while the view, which asks by itself again and again, is open."""
    page.allowed.append("401")
    refusal = {"error": {"message": "The API key has expired.", "code": "invalid_api_key"}}
    page.tab.route(f"**/{path}", lambda route: route.fulfill(status=401, json=refusal))
    tab = page.open(f"server/{view}")
    dialog = tab.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    expect(tab.get_by_role("alert").filter(has_text="The API key has expired.")).to_be_visible()
    tab.wait_for_timeout(6000)
    expect(dialog).to_have_count(0)


def test_a_model_that_is_unloaded_while_it_is_used_ends_its_work_first(browser: Browser) -> None:
    with run_server() as server, open_page(browser, server.address) as page:
        tab = page.open()
        page.drop({"announcements.flac": encode_announcements(120)})
        expect(tab.locator(".queue-item .preview")).to_be_visible()
        page.open("server/models")
        tab.get_by_role("button", name="Unload: moonshine-tiny-en").click()
        page.open()
        expect(tab.get_by_role("link", name="Read along")).to_be_visible()
        wait_for(lambda: not server.list_runners(), 60)


def test_an_expired_key_is_asked_for_again(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "eardrum.yaml"
    file.write_text("api_keys: [{key: old}, {key: new}]\n")
    with run_server("--config", str(file)) as server, open_page(browser, server.address) as page:
        page.allowed.append("401")
        tab = page.open()
        dialog = tab.get_by_role("dialog")
        dialog.get_by_label("API key").fill("old")
        dialog.get_by_role("button", name="Use key").click()
        expect(tab.get_by_role("combobox", name="Model", exact=True)).to_contain_text("moonshine")
        file.write_text("api_keys: [{key: old, expires: 2020-01-31}, {key: new}]\n")
        requests.post(f"{server.address}/api/reload", headers={"x-api-key": "new"}, timeout=60).raise_for_status()
        page.drop({"speech.wav": encode(load_speech()[: 4 * RATE], "wav")})
        expect(dialog).to_contain_text("expired on 2020-01-31")
        dialog.get_by_label("API key").fill("new")
        dialog.get_by_role("button", name="Use key").click()
        expect(tab.get_by_role("link", name="Read along")).to_be_visible()


def test_the_view_of_models_says_why_its_list_is_empty(page: PageUnderTest) -> None:
    page.allowed.append("500")
    failure = {"error": {"message": "The server failed on this request.", "code": "server_error"}}
    page.tab.route("**/v1/models", lambda route: route.fulfill(status=500, json=failure))
    tab = page.open("server/models")
    expect(tab.get_by_role("alert").filter(has_text="The server failed on this request.")).to_be_visible()
