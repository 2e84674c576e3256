"""Words on the page with the times of a real Whisper: a click plays the word that was clicked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import run_server
from tests.models import build
from tests.page.pages import PLAYER_TIME, click_word, open_page
from tests.recordings import RATE, create_silence, encode
from tests.test_server_whisper_base import load_sentences

pytestmark = pytest.mark.browser

MAX_DISTANCE_S = 0.2


def test_a_click_on_a_word_plays_it(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first words of sentences, whose voice begins after a silence: there the recording itself tells the time."""
    weights = build("whisper_base", tmp_path_factory.mktemp("base"))
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(
        json.dumps({"models": {"base": {"source": str(weights), "engine": "faster_whisper", "compute_type": "int8"}}})
    )
    sentences = {" ".join(sentence.text.split()[:2]): sentence for sentence in load_sentences("en")}
    samples, begins = np.zeros(0, np.float32), {}
    for words in ("That agent", "Your call", "There is"):
        sentence = sentences[words]
        begins[words] = len(samples) / RATE + sentence.speech[0]
        samples = np.concatenate([samples, sentence.samples, create_silence(1.0)])
    with run_server("--config", str(config), "--set", "default_model=base") as server, open_page(browser, server.address) as page:
        tab = page.open()
        page.drop({"announcements.flac": encode(samples, "flac")})
        tab.get_by_role("link", name="Read along").click()
        expect(tab.locator(".cue").first).to_be_visible()
        rows = tab.locator(".cue .text").all_inner_texts()
        for words, begin in begins.items():
            row = next(number for number, text in enumerate(rows) if words in text)
            click_word(tab, row, words.split()[0])
            tab.wait_for_function(f"() => Math.abs(({PLAYER_TIME})() - {begin}) < {MAX_DISTANCE_S}")
