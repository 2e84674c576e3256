"""The engine without a server: `python -m bench.direct FILE BATCHES`.

For each line on stdin, a number, it transcribes FILE that often in windows of the given batch sizes (such as `1,3`)
and prints the CPU seconds that took.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from time import process_time

from bench.runners import WEIGHTS
from eardrum.engines.base import Engine, Window
from eardrum.runner.__main__ import load_engine
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.process_tuning import freeze_garbage_collector, keep_freed_memory, limit_arenas
from eardrum.runner.segmenter import SegmenterConfig, SpeechChunk, SpeechSegmenter
from eardrum.runner.transcription import split_blocks
from eardrum.runner.vad import VadModel
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest


def transcribe(data: bytes, engine: Engine, vad: VadModel, batches: list[int]) -> None:
    """Bytes to text, in exactly these batches.

    Raises:
        RuntimeError: there are more or fewer windows.
    """
    stream, cutter = vad.open_stream(), SpeechSegmenter(SegmenterConfig(max_s=engine.capabilities.max_window_s))
    decoder = AudioDecoder(BytePipe.from_bytes(data), raw_pcm=False, max_seconds=3600)
    windows = [_create_window(cut) for block in split_blocks(decoder) for cut in cutter.feed(block, stream(block))]
    windows += [_create_window(cut) for cut in cutter.finish()]
    if len(windows) != sum(batches):
        raise RuntimeError(f"{len(windows)} windows do not fill batches of {batches}")
    waiting = iter(windows)
    for size in batches:
        engine.transcribe(list(islice(waiting, size)))


def _create_window(cut: SpeechChunk) -> Window:
    return Window(cut.audio, cut.start / SAMPLE_RATE, cut.speech, (0.0, len(cut.audio) / SAMPLE_RATE), TranscriptionRequest())


def main() -> None:
    """Answer until stdin closes."""
    limit_arenas()
    keep_freed_memory()
    engine, vad = load_engine("moonshine", WEIGHTS, {}), VadModel()
    data, batches = Path(sys.argv[1]).read_bytes(), [int(size) for size in sys.argv[2].split(",")]
    transcribe(data, engine, vad, batches)
    freeze_garbage_collector()
    for line in sys.stdin:
        started = process_time()
        for _ in range(int(line)):
            transcribe(data, engine, vad, batches)
        print(process_time() - started, flush=True)


if __name__ == "__main__":
    main()
