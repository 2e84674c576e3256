"""Speech probabilities of a stream against those of the whole recording at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import faster_whisper
import numpy as np
import pytest
from faster_whisper.vad import get_vad_model

from eardrum.errors import ModelLoadError
from eardrum.runner.vad import FRAME, MODEL, Vad
from tests.recordings import ROOT, noise, phone, silence, speech

PUBLISHED = Path(faster_whisper.__file__).parent / "assets" / "silero_vad_v6.onnx"
RECORDINGS = {
    "phone": lambda: np.concatenate([samples for _, samples, _ in phone()]),
    "clear speech": speech,
    "silence": lambda: silence(5),
    "quiet noise": lambda: noise(5, 0.001),
    "loud noise": lambda: noise(5, 0.5),
}


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


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("sizes", [[156], [16, 1, 31]])
def test_the_graph_equals_the_published_one(vad: Vad, name: str, sizes: list[int]) -> None:
    samples = whole_frames(RECORDINGS[name]())
    found, published = in_blocks(vad, samples, sizes), in_blocks(Vad(PUBLISHED), samples, sizes)
    assert len(found) == len(samples) // FRAME
    assert np.abs(found - published).max() < 1e-4


def test_the_graph_is_what_its_script_writes() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "vad_graph.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_or_damaged_model_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(MODEL.read_bytes()[:500_000])
    for path in (tmp_path / "missing.onnx", damaged):
        with pytest.raises(ModelLoadError, match=path.name):
            Vad(path)
