"""The windows and the server cost no accuracy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import jiwer
import numpy as np
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from eardrum.engines.base import Window
from eardrum.engines.moonshine import Moonshine
from eardrum.transcription import TranscriptionRequest
from tests.conftest import ServerUnderTest
from tests.recordings import RATE, Samples, encode, load_announcements

pytestmark = pytest.mark.slow

normal = EnglishTextNormalizer()


def compute_error_rate(references: list[str], texts: list[str]) -> float:
    return jiwer.wer([normal(r) for r in references], [normal(t) for t in texts])


@pytest.fixture(scope="module")
def server_texts(server: ServerUnderTest) -> list[str]:
    """Each recording on its own, through the server."""
    return [server.post_audio(encode(samples, "wav")).json()["text"] for _, samples, _ in load_announcements()]


def test_no_worse_than_the_engine_called_directly(server_texts: list[str]) -> None:
    spec = find_spec("moonshine_voice")
    assert spec
    assert spec.submodule_search_locations
    engine = Moonshine.load(Path(spec.submodule_search_locations[0]) / "assets" / "tiny-en", Moonshine.Options())
    direct = []
    for _, samples, _ in load_announcements():
        (hearing,) = engine.transcribe([Window(samples, 0.0, 1.0, (0.0, 1.0), TranscriptionRequest())])
        direct.append(" ".join(s.text for s in hearing.segments))
    references = [text for _, _, text in load_announcements()]
    assert compute_error_rate(references, direct) < 0.06
    # Two words of leeway: cutting at other samples changes a few roundings inside the model.
    words = sum(len(normal(r).split()) for r in references)
    assert compute_error_rate(references, server_texts) <= compute_error_rate(references, direct) + 2 / words


def test_very_quiet_recordings_lose_few_words(server: ServerUnderTest, server_texts: list[str]) -> None:
    """Seventy decibels below full scale: without a gain every fourth word is lost."""
    quiet = [samples * np.float32(10 ** (-70 / 20) / samples.std()) for _, samples, _ in load_announcements()]
    heard = [server.post_audio(encode(samples, "wav")).json()["text"] for samples in quiet]
    references = [text for _, _, text in load_announcements()]
    assert compute_error_rate(references, heard) < compute_error_rate(references, server_texts) + 0.06


@pytest.mark.endurance
@pytest.mark.timeout(900)
def test_forty_minutes_are_no_worse_than_the_pieces(server: ServerUnderTest, server_texts: list[str]) -> None:
    """Each round has the recordings in another order, so that it is not one lucky neighbourhood that counts.

    Three words in a thousand of leeway: in another order, or in other batches, there are as many more or fewer.
    """
    dice = np.random.default_rng(1)
    pause = np.zeros(8_000, np.float32)
    said: list[str] = []
    pieces: list[Samples] = []
    while sum(map(len, pieces)) < 40 * 60 * RATE:
        for number in dice.permutation(len(load_announcements())):
            _, samples, text = load_announcements()[number]
            said.append(text)
            pieces += [samples, pause]
    heard = server.post_audio(encode(np.concatenate(pieces), "flac"), within_s=800).json()["text"]
    whole, alone = (
        compute_error_rate([" ".join(said)], [heard]),
        compute_error_rate([text for _, _, text in load_announcements()], server_texts),
    )
    assert whole <= alone + 0.003, f"{whole:.2%} of the words are wrong in one file, {alone:.2%} in single ones"
