"""An engine that listens to nothing: its text is a digest of the window, and a file tells which windows it decoded.

`install_scripted_engine` puts it in a folder as an installed package, which PYTHONPATH then names.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

SOURCE = """
import hashlib
import os
import time
from pathlib import Path

from pydantic import Field

from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.transcription import Capabilities, Segment


class Scripted(Engine):
    title = "Says which window it got"
    layouts = (("scripted.json",),)
    capabilities = Capabilities(languages=("en",), max_window_s=6.0, max_batch=1)

    class Options(EngineOptions):
        begun: str = Field("", description="File that is created when a window is begun.")
        hurry: str = Field("", description="File whose presence ends the time for a window.")
        log: str = Field("", description="File of the decoded windows.")
        seconds: float = Field(0.02, description="Time for a window.")
        poison: str = Field("", description="Digest of a window that ends the process.")

    def __init__(self, options):
        self.options = options

    @classmethod
    def load(cls, source, options):
        return cls(options)

    def transcribe(self, windows):
        return [self._transcribe(window) for window in windows]

    def _transcribe(self, window):
        digest = hashlib.sha256(window.audio.tobytes()).hexdigest()[:12]
        if digest == self.options.poison:
            os._exit(9)
        if self.options.begun:
            Path(self.options.begun).touch()
        end = time.monotonic() + self.options.seconds
        while (left := end - time.monotonic()) > 0 and not (self.options.hurry and os.path.exists(self.options.hurry)):
            time.sleep(min(left, 0.1) if self.options.hurry else left)
        with open(self.options.log, "a") as log:
            log.write(f"{digest}\\n")
        return EngineResult([Segment(*window.speech_span, digest)])
"""


def install_scripted_engine(folder: Path) -> dict[str, str]:
    """Install the engine, and a model of it as `folder/model`; returns the environment that finds it."""
    info = folder / "site" / "scripted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eardrum.engines]\nscripted = scripted_engine\n")
    (folder / "site" / "scripted_engine.py").write_text(SOURCE)
    (folder / "model").mkdir()
    (folder / "model" / "scripted.json").write_text("{}")
    return {"PYTHONPATH": str(folder / "site")}


def count_windows(log: Path) -> Counter[str]:
    """Count the decodings of each window."""
    return Counter(log.read_text().split()) if log.exists() else Counter()
