"""Voice prints: Kaldi's features, and a model that knows one voice from another."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_asr.preprocessors.numpy_preprocessor import KaldiPreprocessorNumpy

from eardrum.engines.base import EngineOptions, Window
from eardrum.errors import ModelLoadError
from eardrum.runner.speakers.voice_encoder import GRAPH_PATH, VoiceEncoder, compute_features
from eardrum.transcription import TranscriptionRequest
from tests.recordings import create_noise, load_announcements, load_speech

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder() -> VoiceEncoder:
    return VoiceEncoder.load(GRAPH_PATH, EngineOptions())


def encode(encoder: VoiceEncoder, *clips: np.ndarray) -> np.ndarray:
    windows = [Window(clip, 0.0, 1.0, (0.0, 1.0), TranscriptionRequest()) for clip in clips]
    return np.array([result.voice for result in encoder.transcribe(windows)])


def test_features_are_those_of_kaldi() -> None:
    """By another implementation of Kaldi's features, whose window is another one of Kaldi's."""
    other = KaldiPreprocessorNumpy("wespeaker")
    other._window = np.hanning(400).astype(np.float32) ** 0.85
    samples = load_speech()[16_000:40_000]
    (expected,), _ = other(samples[None], np.array([len(samples)]))
    features = compute_features(samples)
    assert features.shape == (148, 80)
    np.testing.assert_allclose(features, expected - expected.mean(axis=0), atol=2e-3)


def test_one_voice_is_nearer_to_itself_than_to_another(encoder: VoiceEncoder) -> None:
    reader, phone = load_speech(), np.concatenate([samples for _, samples, _ in load_announcements()[:4]])
    voices = encode(encoder, *(sound[at : at + 24_000] for sound in (reader, phone) for at in (16_000, 80_000, 140_000)))
    alike = voices @ voices.T
    np.testing.assert_allclose(np.diag(alike), 1.0, atol=1e-5)
    within = [alike[a, b] for group in (range(3), range(3, 6)) for a in group for b in group if a < b]
    assert min(within) > alike[:3, 3:].max() + 0.1


def test_a_batch_changes_nothing(encoder: VoiceEncoder) -> None:
    speech = load_speech()
    clips = [speech[at : at + 24_000] for at in range(0, 160_000, 20_000)]
    np.testing.assert_allclose(encode(encoder, *clips), np.concatenate([encode(encoder, clip) for clip in clips]), atol=1e-4)


@pytest.mark.parametrize("samples", [512, 8_000, 23_999])
def test_short_clips(encoder: VoiceEncoder, samples: int) -> None:
    assert np.isfinite(encode(encoder, load_speech()[16_000 : 16_000 + samples])).all()


def test_silence_and_noise_are_no_error(encoder: VoiceEncoder) -> None:
    assert np.isfinite(encode(encoder, np.zeros(24_000, np.float32), create_noise(1.5))).all()


def test_a_damaged_graph_is_named(tmp_path) -> None:
    broken = tmp_path / "voices.onnx"
    broken.write_bytes(GRAPH_PATH.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match=r"voices\.onnx is missing or damaged"):
        VoiceEncoder.load(broken, EngineOptions())
