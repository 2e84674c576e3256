"""Windows as files."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from eardrum.engines.shared.openai_http import encode_clip
from tests.recordings import load_speech


@pytest.mark.parametrize("form", ["flac", "wav"])
@pytest.mark.parametrize("samples", [1, 4000, 100_000])
def test_a_clip_holds_the_samples(form: str, samples: int) -> None:
    audio = np.concatenate([[1.5], load_speech()])[:samples].astype(np.float32)
    with av.open(io.BytesIO(encode_clip(audio, form).data)) as file:
        assert (file.streams.audio[0].rate, file.streams.audio[0].channels) == (16_000, 1)
        decoded = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])
    assert len(decoded) == samples
    assert np.abs(decoded / 32767 - np.clip(audio, -1, 1)).max() < 1e-4
