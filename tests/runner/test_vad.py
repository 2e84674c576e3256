"""Speech probabilities of a stream against those of the whole recording at once."""

from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.vad import get_vad_model

from eardrum.runner.vad import FRAME, Vad
from tests.recordings import noise, silence, speech


@pytest.fixture(scope="module")
def vad() -> Vad:
    return Vad()


def whole_frames(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) // FRAME * FRAME]


def in_blocks(vad: Vad, samples: np.ndarray, sizes: list[int]) -> np.ndarray:
    stream, at, found = vad.stream(), 0, []
    while at < len(samples):
        size = sizes[len(found) % len(sizes)] * FRAME
        found.append(stream(samples[at : at + size]))
        at += size
    return np.concatenate(found)


@pytest.mark.parametrize("sizes", [[10_000], [156], [1], [3, 1, 7, 2, 50]])
def test_a_stream_in_blocks_equals_one_pass(vad: Vad, sizes: list[int]) -> None:
    samples = whole_frames(speech())
    # Their model blanks the end of the last frame it is given: one more frame than is compared.
    expected = get_vad_model()(np.concatenate([samples, silence(FRAME / 16_000)])).reshape(-1)[:-1]
    found = in_blocks(vad, samples, sizes)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.max() > 0.95
    assert expected.min() < 0.1


def test_streams_do_not_disturb_each_other(vad: Vad) -> None:
    samples = whole_frames(speech())[: 200 * FRAME]
    alone = vad.stream()(samples)
    one, other, found = vad.stream(), vad.stream(), []
    for start in range(0, len(samples), 20 * FRAME):
        found.append(one(samples[start : start + 20 * FRAME]))
        other(noise(20 * FRAME / 16_000, 0.3))
    np.testing.assert_allclose(np.concatenate(found), alone, atol=1e-4)


def test_silence_and_noise_are_not_speech(vad: Vad) -> None:
    for samples in (silence(3), noise(3, 0.001), noise(3, 0.05)):
        assert vad.stream()(whole_frames(samples)).max() < 0.4
