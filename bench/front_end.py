"""CPU from compressed bytes to windows: decoding and voice activity.

Also the program that is measured: `python -m bench.front_end ours|usual FILE` prints CPU seconds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import process_time

from bench.children import run_child
from bench.figure import BenchFigure, SeriesComparison

WARM_S = 5


def measure(quick: bool) -> list[BenchFigure]:
    """A long MP3 through our decoder and VAD, and through faster-whisper's; each time in a fresh process."""
    from bench.recordings import create_tape_mp3  # noqa: PLC0415 -- what measures itself below must not hold this module's memory

    minutes, repetitions = (6, 1) if quick else (60, 5)
    with tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(create_tape_mp3(60 * minutes))
        file.flush()
        ours, baseline = [], []
        for _ in range(repetitions):
            ours.append(_run_in_child("ours", file.name))
            baseline.append(_run_in_child("usual", file.name))
    note = (
        f"{minutes} min of 128 kbit/s stereo MP3. CPU time of a fresh process, libraries loaded beforehand; both sides also cut."
    )
    against = "faster_whisper decode_audio + get_speech_timestamps"
    return [
        BenchFigure("front-end", "CPU of decode and VAD", against, "s", ours, baseline, SeriesComparison.TIMES_LESS, 1.7, note)
    ]


def run_ours(data: bytes) -> int:
    """Bytes to windows as the runner does it; the number of windows."""
    from eardrum.runner.byte_pipe import BytePipe  # noqa: PLC0415
    from eardrum.runner.decoder import AudioDecoder  # noqa: PLC0415
    from eardrum.runner.segmenter import SegmenterConfig, SpeechSegmenter  # noqa: PLC0415
    from eardrum.runner.transcription import split_blocks  # noqa: PLC0415
    from eardrum.runner.vad import VadModel  # noqa: PLC0415

    vad, cutter = VadModel().open_stream(), SpeechSegmenter(SegmenterConfig(max_s=30.0))
    decoder = AudioDecoder(BytePipe.from_bytes(data), raw_pcm=False, max_seconds=24 * 3600)
    windows = sum(1 for block in split_blocks(decoder) for _ in cutter.feed(block, vad(block)))
    return windows + sum(1 for _ in cutter.finish())


def run_faster_whisper(data: bytes) -> int:
    """Bytes to stretches of speech as faster-whisper does it; their number."""
    import io  # noqa: PLC0415

    from faster_whisper.audio import decode_audio  # type: ignore[import-untyped]  # noqa: PLC0415
    from faster_whisper.vad import get_speech_timestamps  # type: ignore[import-untyped]  # noqa: PLC0415

    return len(get_speech_timestamps(decode_audio(io.BytesIO(data))))


def _run_in_child(way: str, file: str) -> float:
    with run_child(["-m", "bench.front_end", way, file], pipes=True) as process:
        assert process.stdout
        answer = process.stdout.read()
        if not answer:
            raise RuntimeError(f"The {way} front end failed")
        return float(answer)


def main() -> None:
    """Print the CPU seconds one way takes for one file."""
    way, data = {"ours": run_ours, "usual": run_faster_whisper}[sys.argv[1]], Path(sys.argv[2]).read_bytes()
    if sys.argv[1] == "ours":
        from eardrum.runner.process_tuning import freeze_garbage_collector, keep_freed_memory, limit_arenas  # noqa: PLC0415

        limit_arenas()
        keep_freed_memory()
        way(data[: WARM_S * 16_000])
        freeze_garbage_collector()
    way(data[: WARM_S * 16_000])
    started = process_time()
    if not way(data):
        raise RuntimeError("No speech was found")
    print(process_time() - started)


if __name__ == "__main__":
    main()
