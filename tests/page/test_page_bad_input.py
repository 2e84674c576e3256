"""The page with files, keys, models and servers that are not as they should be."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, expect

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
