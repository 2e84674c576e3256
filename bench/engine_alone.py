"""An engine without a server: `python -m bench.engine_alone --engine NAME --source DIR [--options JSON]`.

Options may also come in EARDRUM_RUNNER_OPTIONS, as for a runner.

Each line on stdin is a path, and behind a tab the language, if that is known; the answer is a line of JSON with the text and
the CPU seconds it took. A recording is one window; for those longer than a window the text is null.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from eardrum.engines.base import Engine, Window
from eardrum.runner.__main__ import load_engine
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.process_tuning import freeze_garbage_collector, keep_freed_memory, limit_arenas, set_passive_waiting
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest


def transcribe_file(engine: Engine, path: Path, language: str | None) -> dict[str, Any]:
    """Text and CPU of a recording that fits into one window."""
    blocks = list(AudioDecoder(BytePipe.from_bytes(path.read_bytes()), raw_pcm=False, max_seconds=24 * 3600))
    audio = np.concatenate(blocks)
    seconds = len(audio) / SAMPLE_RATE
    if seconds > engine.capabilities.max_window_s:
        return {"text": None, "cpu_s": 0.0}
    started = process_time()
    (hearing,) = engine.transcribe([Window(audio, 0.0, 1.0, (0.0, seconds), TranscriptionRequest(language=language))])
    return {"text": " ".join(segment.text for segment in hearing.segments), "cpu_s": process_time() - started}


def main() -> None:
    """Answer until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--source", type=Path, required=True)
    options = os.environ.get("EARDRUM_RUNNER_OPTIONS", "{}")  # may hold keys
    parser.add_argument("--options", default=options)
    arguments = parser.parse_args()
    limit_arenas()
    keep_freed_memory()
    set_passive_waiting()
    engine = load_engine(arguments.engine, arguments.source, json.loads(arguments.options))
    freeze_garbage_collector()
    for line in sys.stdin:
        path, _, language = line.rstrip("\n").partition("\t")
        print(json.dumps(transcribe_file(engine, Path(path), language or None)), flush=True)


if __name__ == "__main__":
    main()
