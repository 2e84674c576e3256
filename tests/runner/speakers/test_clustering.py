"""Clustering of voice prints: how many speakers there are, and whose each voice print is."""

from __future__ import annotations

import time

import numpy as np
import pytest

from eardrum.runner.speakers.clustering import SpeakerBounds, VoicePrints, cluster_voices

SPREAD = 0.75
"""Length of what differs between voice prints of one voice: they are as alike as those of real windows, 0.64 on average."""


def speak(*speakers: int, windows: int = 10, seed: int = 1) -> tuple[VoicePrints, np.ndarray]:
    """Voice prints of turns of these speakers, of so many windows each, and the speaker of each."""
    random = np.random.default_rng(seed)
    centers = np.linalg.qr(random.normal(size=(192, 192)))[0]
    labels = np.repeat(speakers, windows)
    noise = random.normal(size=(len(labels), 192)) / np.sqrt(192)
    voices = centers[labels] + SPREAD * noise
    return (voices / np.linalg.norm(voices, axis=1, keepdims=True)).astype(np.float32), labels


def cluster(voices: VoicePrints, least: int = 1, most: int = 1000, hop: float = 0.75) -> np.ndarray:
    return cluster_voices(voices, np.full(len(voices), hop), SpeakerBounds(least, most))


def assert_same_partition(found: np.ndarray, labels: np.ndarray) -> None:
    assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == len(set(found.tolist())) == len(set(labels.tolist()))


@pytest.mark.parametrize("speakers", [(0,), (0, 1), (0, 1, 0, 2, 1), tuple(range(40)), (3, 2, 1, 0) * 5])
def test_every_speaker_is_found(speakers: tuple[int, ...]) -> None:
    voices, labels = speak(*speakers)
    assert_same_partition(cluster(voices), labels)


def test_nobody_speaks() -> None:
    assert cluster(np.zeros((0, 192), np.float32)).tolist() == []


def test_a_single_window_is_a_speaker() -> None:
    assert cluster(speak(0, windows=1)[0]).tolist() == [0]


def test_at_most() -> None:
    voices, _ = speak(0, 1, 2, 3)
    assert len(set(cluster(voices, most=2))) == 2
    assert len(set(cluster(voices, most=1))) == 1


def test_at_least() -> None:
    voices, _ = speak(0)
    assert len(set(cluster(voices))) == 1
    assert len(set(cluster(voices, least=2))) >= 1, "one voice that cannot be divided into two is one"
    pair, labels = speak(0, 1)
    near = pair + pair[labels == 0].mean(axis=0)  # two voices that are much alike
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    assert len(set(cluster(near))) == 1
    assert_same_partition(cluster(near, least=2), labels)


def test_a_cough_is_no_speaker() -> None:
    voices, _ = speak(0, 1)
    cough, _ = speak(5, windows=2, seed=1)
    found = cluster(np.concatenate([voices, cough]))
    assert len(set(found)) == 2


@pytest.mark.slow
def test_hours_are_clustered_in_seconds() -> None:
    voices, labels = speak(*(0, 1, 2, 1) * 25, windows=48)
    began = time.process_time()
    assert_same_partition(cluster(voices), labels)
    assert time.process_time() - began < 20
