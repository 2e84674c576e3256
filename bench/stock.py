"""faster-whisper as it comes, in a process with the usual allocator.

`python -m bench.stock windows|file|unload MODEL [COMPUTE_TYPE [DEVICE]]`; the defaults are int8 and cpu.

Nothing of this project is imported. Each line on stdin is a path, for `windows` with the language behind a tab; the answer is a
line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from faster_whisper import WhisperModel  # type: ignore[import-untyped]
from faster_whisper.audio import decode_audio  # type: ignore[import-untyped]

PLAIN = {"temperature": 0, "beam_size": 5, "condition_on_previous_text": False}
"""As our engine decodes: one temperature, its beam, windows that know nothing of each other."""


def measure_windows(model: WhisperModel, line: str) -> dict[str, Any]:
    """CPU seconds for a recording, decoded beforehand; behind a tab its language, if that is known."""
    path, _, language = line.partition("\t")
    audio = decode_audio(path)
    started = process_time()
    text = _transcribe(model, audio, language=language or None)
    return {"cpu_s": process_time() - started, "text": text}


def measure_file(model: WhisperModel, path: str) -> dict[str, Any]:
    """The most memory ever held, after a file; and that file's text."""
    text = _transcribe(model, path, vad_filter=True)
    return {"peak_mb": _read_status("VmHWM"), "text": text}


def _transcribe(model: WhisperModel, audio: Any, **options: Any) -> str:
    segments, _ = model.transcribe(audio, **{"language": "en", **PLAIN, **options})
    return " ".join(segment.text.strip() for segment in segments)


def measure_unload(folder: str, path: str) -> dict[str, Any]:
    """Memory and open files before a model was loaded, while it was, and after it was deleted."""
    gc.collect()
    before = _measure_held()
    model = WhisperModel(folder, device="cpu")
    _transcribe(model, path)
    loaded = _measure_held()
    del model
    gc.collect()
    return {"before": before, "loaded": loaded, "left": _measure_held()}


def _measure_held() -> tuple[float, int]:
    return _read_status("VmRSS"), len(list(Path("/proc/self/fd").iterdir()))


def _read_status(name: str) -> float:
    """Megabytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def main() -> None:
    """Answer until stdin closes."""
    way, folder, *others = sys.argv[1:]
    compute_type, device = (*others, *("int8", "cpu")[len(others) :])
    if way == "unload":
        answer: Callable[[str], dict[str, Any]] = lambda path: measure_unload(folder, path)  # noqa: E731 -- one of two
    else:
        model = WhisperModel(folder, device=device, compute_type=compute_type)
        do = {"windows": measure_windows, "file": measure_file}[way]
        answer = lambda path: do(model, path)  # noqa: E731 -- one of two
    for line in sys.stdin:
        print(json.dumps(answer(line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    main()
