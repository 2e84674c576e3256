"""Speech probabilities of a stream against those of the whole recording at once."""

from __future__ import annotations

import copy
import csv
import subprocess
import sys
from functools import cache
from pathlib import Path

import faster_whisper
import numpy as np
import onnxruntime as ort
import pytest

from eardrum.errors import ModelLoadError
from eardrum.live import EndpointingSettings
from eardrum.runner.live.endpointing import Endpointer, EndpointingRule, StretchBegan
from eardrum.runner.vad import ENCODER_PATH, FRAME_SAMPLES, MEMORY_PATH, VadModel, VadStream
from eardrum.transcription import Capabilities
from tests.recordings import PHONE, RATE, ROOT, create_noise, create_silence, load_announcements, load_speech

pytestmark = pytest.mark.slow


PUBLISHED = Path(faster_whisper.__file__).parent / "assets" / "silero_vad_v6.onnx"
RECORDINGS = {
    "phone": lambda: np.concatenate([samples for _, samples, _ in load_announcements()]),
    "clear speech": load_speech,
    "silence": lambda: create_silence(5),
    "quiet noise": lambda: create_noise(5, 0.001),
    "loud noise": lambda: create_noise(5, 0.5),
}


@pytest.fixture(scope="module")
def vad() -> VadModel:
    return VadModel()


def cut_to_frames(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES]


def run_in_blocks(vad: VadModel, samples: np.ndarray, sizes: list[int]) -> np.ndarray:
    return run_stream(vad.open_stream(), samples, sizes)


def run_stream(stream: VadStream, samples: np.ndarray, sizes: list[int]) -> np.ndarray:
    at, found = 0, []
    while at < len(samples):
        size = sizes[len(found) % len(sizes)] * FRAME_SAMPLES
        found.append(stream(samples[at : at + size]))
        at += size
    return np.concatenate(found)


def build_published_frames(samples: np.ndarray) -> np.ndarray:
    """Frames as the published model gets them: each behind the end of the one before."""
    frames = samples.reshape(-1, FRAME_SAMPLES)
    return np.concatenate([np.concatenate([np.zeros((1, 64), np.float32), frames[:-1, -64:]]), frames], axis=1)


def run_published(samples: np.ndarray) -> np.ndarray:
    """What the published model says, its memory never begun anew."""
    inputs = build_published_frames(samples)
    state = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
    return open_session(PUBLISHED).run(None, {"input": inputs - inputs.mean(axis=1, keepdims=True), **state})[0].reshape(-1)


@pytest.mark.parametrize("sizes", [[10_000], [156], [1], [3, 1, 7, 2, 50]])
def test_a_stream_in_blocks_equals_one_pass(vad: VadModel, sizes: list[int]) -> None:
    samples = cut_to_frames(load_speech())
    expected = run_published(samples)
    found = run_in_blocks(vad, samples, sizes)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.max() > 0.95
    assert expected.min() < 0.1


def test_streams_do_not_disturb_each_other(vad: VadModel) -> None:
    samples = cut_to_frames(load_speech())[: 200 * FRAME_SAMPLES]
    alone = vad.open_stream()(samples)
    one, other, found = vad.open_stream(), vad.open_stream(), []
    for start in range(0, len(samples), 20 * FRAME_SAMPLES):
        found.append(one(samples[start : start + 20 * FRAME_SAMPLES]))
        other(create_noise(20 * FRAME_SAMPLES / 16_000, 0.3))
    np.testing.assert_allclose(np.concatenate(found), alone, atol=1e-4)


def test_silence_and_noise_are_not_speech(vad: VadModel) -> None:
    for samples in (create_silence(3), create_noise(3, 0.001), create_noise(3, 0.05)):
        assert vad.open_stream()(cut_to_frames(samples)).max() < 0.4


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_graphs_one_after_the_other_equal_the_published_one(name: str) -> None:
    inputs = build_published_frames(cut_to_frames(RECORDINGS[name]()))
    state = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
    (features,) = open_session(ENCODER_PATH).run(None, {"input": inputs})
    found, *remembered = open_session(MEMORY_PATH).run(None, {"features": features, **state})
    published, *expected = open_session(PUBLISHED).run(None, {"input": inputs, **state})
    assert found.shape == (len(inputs),)
    assert np.abs(found - published.reshape(-1)).max() < 1e-4
    for one, other in zip(remembered, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def open_session(path: Path) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


# The memory, where nobody speaks


def create_random(seconds: float, low: int, high: int) -> np.ndarray:
    steps = np.random.default_rng(7).integers(low, high, int(seconds * RATE), endpoint=True)
    return (steps / 32768).astype(np.float32)


def create_constant(seconds: float, step: int) -> np.ndarray:
    return np.full(int(seconds * RATE), step / 32768, np.float32)


def create_hum(seconds: float) -> np.ndarray:
    return (0.001 * np.sin(2 * np.pi * 50 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def create_music(seconds: float, level: float) -> np.ndarray:
    """Chords that are struck four times a second, always others."""
    dice, step = np.random.default_rng(5), RATE // 4
    at = np.arange(step) / RATE
    notes = (220, 261, 329, 392, 440, 523, 659)
    chords = [
        sum(np.sin(2 * np.pi * note * part * at) / part for note in dice.choice(notes, 3) for part in (1, 2, 3)) * np.exp(-4 * at)
        for _ in range(int(4 * seconds))
    ]
    played = np.concatenate(chords)
    return (level * played / np.sqrt((played**2).mean())).astype(np.float32)


WITHOUT_SPEECH = {
    "digital silence": create_silence,
    "the last bit": lambda seconds: create_random(seconds, -1, 1),
    "one step off zero": lambda seconds: create_constant(seconds, 1),
    "a telephone's zero": lambda seconds: create_constant(seconds, 8),
    "an offset": lambda seconds: create_constant(seconds, -1000),
    "comfort noise": lambda seconds: create_noise(seconds, 0.001),
    "louder comfort noise": lambda seconds: create_noise(seconds, 0.003),
    "noise": lambda seconds: create_noise(seconds, 0.01),
    "hum": create_hum,
}


@cache
def load_words() -> list[np.ndarray]:
    """Fifty single words."""
    recordings = {name: samples for name, samples, _ in load_announcements()}
    with (PHONE / "words.tsv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if 0.3 <= float(row["end"]) - float(row["start"]) <= 0.9]
    cut = [recordings[row["name"]][int(float(row["start"]) * RATE) : int(float(row["end"]) * RATE)] for row in rows]
    loud = [word for word in cut if np.sqrt((word**2).mean()) > 0.04]
    return loud[:: len(loud) // 50][:50]


def find_start(stream: VadStream, said: np.ndarray, behind: np.ndarray) -> float | None:
    """After how many seconds a live session notices what is said, if it does."""
    probs = run_stream(copy.copy(stream), cut_to_frames(np.concatenate([said, behind])), [16])
    ends = Endpointer(EndpointingRule.of(EndpointingSettings(prefix_s=0), Capabilities(max_window_s=10)))
    marks = ends.feed(np.zeros(len(probs) * FRAME_SAMPLES, np.float32), probs)
    return next((mark.at * FRAME_SAMPLES / RATE for mark in marks if isinstance(mark, StretchBegan)), None)


@pytest.mark.parametrize("kind", WITHOUT_SPEECH)
@pytest.mark.parametrize("seconds", [20, 61])
def test_words_are_noticed_however_long_nobody_spoke_before(vad: VadModel, kind: str, seconds: int) -> None:
    make = WITHOUT_SPEECH[kind]
    short, long = vad.open_stream(), vad.open_stream()
    run_stream(short, cut_to_frames(make(1.0)), [16])
    before = run_stream(long, cut_to_frames(make(seconds)), [16])
    assert before.max() < 0.25
    missed = [number for number, word in enumerate(load_words()) if find_start(long, word, make(1.0)) is None]
    at_once = [number for number, word in enumerate(load_words()) if find_start(short, word, make(1.0)) is None]
    assert len(missed) <= max(len(at_once), 4 if kind == "noise" else 2)


@pytest.mark.parametrize("kind", WITHOUT_SPEECH)
def test_sentences_are_noticed_as_soon_as_at_once(vad: VadModel, kind: str) -> None:
    make = WITHOUT_SPEECH[kind]
    short, long = vad.open_stream(), vad.open_stream()
    run_stream(short, cut_to_frames(make(1.0)), [16])
    run_stream(long, cut_to_frames(make(61)), [16])
    late = 0
    for name, samples, _ in load_announcements()[:20]:
        expected, found = find_start(short, samples, make(1.0)), find_start(long, samples, make(1.0))
        assert expected is not None, name
        assert found is not None, name
        late += found > expected + 0.15
        assert found < expected + 0.3, name
    assert late <= (4 if kind == "noise" else 1)


def test_where_it_begins_anew_does_not_depend_on_the_blocks(vad: VadModel) -> None:
    pieces = [
        create_silence(7.3),
        load_speech()[: 3 * RATE],
        create_noise(12.1, 0.02),
        load_speech()[: 2 * RATE],
        create_silence(3),
    ]
    samples = cut_to_frames(np.concatenate(pieces))
    expected = run_in_blocks(vad, samples, [156])
    for sizes in ([10_000], [1], [16], [33, 5, 128]):
        np.testing.assert_allclose(run_in_blocks(vad, samples, sizes), expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_who_speaks_without_long_pauses_is_heard_as_by_one_pass(vad: VadModel, seed: int) -> None:
    """The memory is not begun anew between words, sentences or speakers."""
    order = np.random.default_rng(seed).permutation(len(load_announcements()))
    samples = cut_to_frames(
        np.concatenate([np.concatenate([load_announcements()[number][1], create_silence(0.5)]) for number in order[:12]])
    )
    expected = run_published(samples)
    np.testing.assert_allclose(run_in_blocks(vad, samples, [16]), expected, atol=1e-4)


@pytest.mark.parametrize("level", [0.1, 0.01, 0.003])
def test_music_is_not_speech_however_long_it_plays(vad: VadModel, level: float) -> None:
    """A memory that knew nothing of what was played before would take every tenth chord for a syllable."""
    probs = run_in_blocks(vad, cut_to_frames(create_music(60, level)), [16])
    assert (probs >= 0.5).sum() <= 10
    ends = Endpointer(EndpointingRule.of(EndpointingSettings(), Capabilities(max_window_s=10)))
    marks = list(ends.feed(np.zeros(len(probs) * FRAME_SAMPLES, np.float32), probs))
    assert sum(isinstance(mark, StretchBegan) for mark in marks) <= 1


def test_beginning_anew_costs_no_second_pass_over_the_sounds() -> None:
    calls: list[int] = []

    class CountingModel:
        def __init__(self, path: Path) -> None:
            self._session = open_session(path)

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            calls.append(len(next(iter(inputs.values()))))
            return self._session.run(names, inputs)

    samples = cut_to_frames(create_noise(60, 0.02))
    stream = VadStream(CountingModel(ENCODER_PATH), open_session(MEMORY_PATH))
    run_stream(stream, samples, [156])
    assert sum(calls) == len(samples) // FRAME_SAMPLES
    calls.clear()
    run_stream(VadStream(open_session(ENCODER_PATH), CountingModel(MEMORY_PATH)), samples, [156])
    assert sum(calls) <= 2 * len(samples) // FRAME_SAMPLES


def test_the_graph_is_what_its_script_writes() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "vad_graph.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_or_damaged_model_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(ENCODER_PATH.read_bytes()[:500_000])
    for path in (tmp_path / "missing.onnx", damaged):
        with pytest.raises(ModelLoadError, match=path.name):
            VadModel(path)
        with pytest.raises(ModelLoadError, match=path.name):
            VadModel(memory=path)
