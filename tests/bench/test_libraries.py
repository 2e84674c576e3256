"""The model of Parakeet's size of `bench libraries`, and the way in which WhisperLive decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_asr
import pytest

from bench.library_alone import RATE, follow_speech
from bench.parakeets import BLOCKS, add_layers
from tests.models import onnx_asr as scripted

TEXT = ["▁hello", "▁world", "."]


@pytest.mark.slow
def test_layers_of_random_weights_are_run_and_change_no_text(tmp_path: Path) -> None:
    folder = scripted.build(tmp_path / "model", "tdt")
    audio = scripted.synthesize_speech(TEXT)
    before = onnx_asr.load_model("nemo-conformer-tdt", folder).recognize(audio)
    file = str(folder / "encoder-model.onnx")
    encoder = onnx.load(file)
    add_layers(encoder.graph, layers=2, width=16)
    onnx.save(encoder, file)
    assert onnx_asr.load_model("nemo-conformer-tdt", folder).recognize(audio) == before != ""
    matrices = [tensor for tensor in encoder.graph.initializer if tensor.name.endswith("_weights")]
    assert len(matrices) == 1 + 2 * len(BLOCKS) + 1
    assert [*matrices[0].dims] == [80, 16]
    assert [*matrices[-1].dims] == [16, scripted.BLANK + 1]


@dataclass
class HeardSegment:
    text: str
    end: float


@dataclass
class TwoSecondWhisper:
    """Hears a segment in every two seconds, named for when it begins. The last one may still grow."""

    lengths: list[float] = field(default_factory=list)
    heard_s: float = 0.0

    def transcribe(self, samples: Any, **_: Any) -> tuple[list[HeardSegment], None]:
        seconds = len(samples) / RATE
        self.lengths.append(seconds)
        begins = np.arange(0, seconds, 2)
        first = round(float(samples[0]) * 1000)
        return [HeardSegment(f" {first + int(at)}", min(float(at) + 2, seconds)) for at in begins], None


def test_what_is_not_final_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def monotonic() -> float:
        sleep(0.5)  # decoding takes so long
        return now

    monkeypatch.setattr("bench.library_alone.time.sleep", sleep)
    monkeypatch.setattr("bench.library_alone.time.monotonic", monotonic)
    whisper = TwoSecondWhisper()
    samples = np.repeat(np.arange(10) / 1000, RATE).astype(np.float32)  # each second says which one it is
    assert follow_speech(whisper, samples).split() == ["0", "2", "4", "6", "8"]
    assert sum(whisper.lengths) > 20, "every second is decoded about twice"
    assert max(whisper.lengths) <= 4
