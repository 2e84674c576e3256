"""Speakers on the page: told apart by the server, renamed once, and named in exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.pages import PageUnderTest
from tests.test_server_speakers import encode_conversation

pytestmark = pytest.mark.browser


def test_speakers_are_told_apart_and_renamed_everywhere(page: PageUnderTest) -> None:
    tab = page.open()
    tab.get_by_text("More settings").click()
    tab.get_by_label("Label speakers").check()
    page.drop({"talk.flac": encode_conversation()})
    tab.get_by_role("link", name="Read along").click()
    shown = tab.locator(".cue .speaker")
    expect(shown.first).to_have_text("A")
    turns = shown.all_inner_texts()
    assert set(turns) == {"A", "B"}
    tab.get_by_label("Name of A").fill("Ann & Co")
    tab.get_by_label("Name of A").press("Enter")
    expect(shown.first).to_have_text("Ann & Co")
    assert [name.replace("Ann & Co", "A") for name in shown.all_inner_texts()] == turns
    tab.locator(".toolbar .menu summary").click()
    with tab.expect_download() as saved:
        tab.locator(".toolbar").get_by_role("button", name="VTT").click()
    subtitles = Path(saved.value.path()).read_text()
    assert "<v Ann &amp; Co>" in subtitles
    assert "<v B>" in subtitles
    assert "<v A>" not in subtitles
