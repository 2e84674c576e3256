"""A library with its own pipeline: `python -m bench.library_alone moonshine|onnx-asr|re-decoding MODEL`.

Nothing of this project is imported. A line on stdin is the path of a recording (WAV, 16 kHz, one channel, 16 bits). For
`onnx-asr` there may be several, with tabs between them: they are one batch. The answer is a line of JSON: the texts, and the
CPU seconds that they took.
"""

from __future__ import annotations

import json
import sys
import time
import wave
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RATE = 16_000

Transcriber = Callable[[Sequence[str]], list[str]]
"""From the paths of recordings to their texts."""


def load_moonshine(model: str) -> Transcriber:
    """moonshine-voice with its own voice activity detection, and its defaults."""
    from moonshine_voice import ModelArch, Transcriber  # type: ignore[import-untyped]  # noqa: PLC0415

    library = Transcriber(model, ModelArch.TINY)

    def transcribe(paths: Sequence[str]) -> list[str]:
        said = [library.transcribe_without_streaming(read_samples(path).tolist(), RATE).lines for path in paths]
        return [" ".join(line.text for line in lines) for lines in said]

    return transcribe


def load_onnx_asr(model: str) -> Transcriber:
    """onnx-asr with its defaults."""
    import onnx_asr  # noqa: PLC0415

    library: Any = onnx_asr.load_model("nemo-conformer-tdt", model)
    return lambda paths: list(library.recognize(list(paths)))


def load_re_decoding(model: str) -> Transcriber:
    """faster-whisper that follows speech as WhisperLive does."""
    from faster_whisper import WhisperModel  # type: ignore[import-untyped]  # noqa: PLC0415

    whisper = WhisperModel(model, device="cpu", compute_type="int8")
    return lambda paths: [follow_speech(whisper, read_samples(path)) for path in paths]


LEAST_S = 1.0
"""No less audio is decoded."""

SAME_OUTPUTS = 10
"""The last segment is final when it has come so often without a change."""


def follow_speech(whisper: Any, samples: Any) -> str:
    """The text of speech that arrives at its own speed. What has no final text yet is decoded again, as soon as it has been.

    All segments but the last are final at once.
    """
    began = time.monotonic()
    done, finals, last, repeats = 0, [], "", 0
    while done < len(samples):
        heard = min(int((time.monotonic() - began) * RATE), len(samples))
        if heard - done < LEAST_S * RATE:
            if heard == len(samples):
                break
            time.sleep(0.1)
            continue
        segments = list(whisper.transcribe(samples[done:heard], language="en", vad_filter=True)[0])
        ended = heard == len(samples)
        final = segments if ended else segments[:-1]
        newest = segments[-1].text if segments else ""
        repeats = repeats + 1 if newest and newest == last else 0
        last = newest
        if repeats >= SAME_OUTPUTS:
            final, repeats = segments, 0
        finals += [segment.text.strip() for segment in final]
        if final:
            done += int(final[-1].end * RATE)
        if ended:
            break
    return " ".join(finals)


def read_samples(path: str) -> Any:
    """Float32 [n] at 16 kHz."""
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def main() -> None:
    """Answer until stdin closes."""
    kind, model = sys.argv[1:]
    transcribe = {"moonshine": load_moonshine, "onnx-asr": load_onnx_asr, "re-decoding": load_re_decoding}[kind](model)
    for line in sys.stdin:
        started = time.process_time()
        texts = transcribe(line.rstrip("\n").split("\t"))
        print(json.dumps({"texts": texts, "cpu_s": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main()
