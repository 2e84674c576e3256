"""An engine that needs no CPU: it sleeps for as long as one of a given speed would work, and a log tells when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SOURCE = """
import time

from pydantic import Field

from eardrum.engines.base import Engine, EngineOptions, EngineResult
from eardrum.transcription import Capabilities, Segment


class Scripted(Engine):
    title = "Sleeps as long as an engine of this speed would work"
    layouts = (("scripted.json",),)
    capabilities = Capabilities(languages=("en",), max_window_s=15.0, max_batch=1)

    class Options(EngineOptions):
        log: str = Field("", description="File of the windows.")
        rate: float = Field(20.0, description="Seconds of audio that a second of work transcribes.")

    def __init__(self, options):
        self.options = options

    @classmethod
    def load(cls, source, options):
        return cls(options)

    def transcribe(self, windows):
        return [self._transcribe(window) for window in windows]

    def _transcribe(self, window):
        asleep = window.seconds / self.options.rate
        self._write(f"begun {time.time()} {asleep}")
        time.sleep(asleep)
        self._write(f"done {time.time()} {asleep}")
        return EngineResult([Segment(*window.speech_span, "words")])

    def _write(self, line):
        if self.options.log:
            with open(self.options.log, "a") as log:
                log.write(line + "\\n")
"""


@dataclass(frozen=True, slots=True)
class ScriptedModel:
    """The engine as an installed package, and a model of it."""

    folder: Path

    @property
    def entry(self) -> dict[str, str]:
        """The model's entry in a config."""
        return {"engine": "scripted", "source": str(self.folder / "model")}

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which processes find the engine."""
        return {"PYTHONPATH": str(self.folder / "site")}

    def install(self) -> None:
        """Write all of it."""
        info = self.folder / "site" / "scripted-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("[eardrum.engines]\nscripted = scripted_engine\n", encoding="utf-8")
        (self.folder / "site" / "scripted_engine.py").write_text(SOURCE, encoding="utf-8")
        (self.folder / "model").mkdir()
        (self.folder / "model" / "scripted.json").write_text("{}", encoding="utf-8")


def read_log(path: Path, kind: str, begin: float = 0.0, end: float = float("inf")) -> list[float]:
    """The seconds of sleep of each window that was `begun` or `done` between two Unix times."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [float(asleep) for name, at, asleep in lines if name == kind and begin <= float(at) <= end]
