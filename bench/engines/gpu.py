"""Memory taken on NVIDIA GPUs while something runs, where there are any."""

from __future__ import annotations

import shutil
import subprocess
from threading import Event, Thread
from typing import Self

EVERY_S = 0.2


class GpuMemory:
    """The most that was in use on all GPUs together, less what was before. What others take meanwhile counts too."""

    def __init__(self) -> None:
        self.grown_mb: float | None = None
        """Megabytes; None where there is no `nvidia-smi`."""
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="gpu", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        if shutil.which("nvidia-smi"):
            self._before = _measure_used_mb()
            self.grown_mb = 0.0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.grown_mb = max(self.grown_mb or 0.0, _measure_used_mb() - self._before)


def _measure_used_mb() -> float:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return sum(float(line) for line in said.split()) * 1.048576
