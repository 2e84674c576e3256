"""The engine interface: what a speech library must offer to live in a runner.

One engine is one file in this folder; the file's name is the engine's name. The class declares
`requires` and `capabilities` as literals, so that the gateway can read them without importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from eardrum.types import SAMPLE_RATE, Capabilities, Request, Segment

Audio = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Mono samples at 16 kHz, shape [n], in -1..1."""


class EngineOptions(BaseModel):
    """Base of every engine's options: validated, documented, and unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run; `auto` takes a GPU if there is one.")
    compute_type: str = Field("auto", description="Number format of the weights; `auto` leaves it to the engine.")


@dataclass(slots=True, eq=False)
class Window:
    """The unit of decoding: a stretch of one request's audio, cut at pauses.

    `audio` is float32 mono at 16 kHz, shape [n], in -1..1; `start` its offset in the request in seconds;
    `speech` the highest speech probability the VAD gave it; `speech_span` where in the window speech begins
    and ends, in seconds.
    """

    audio: Audio
    start: float
    speech: float
    speech_span: tuple[float, float]
    request: Request
    cancelled: bool = False
    """Nobody wants the hearing any more. Set from outside in the middle of `transcribe`; an engine that decodes step by
    step looks at it and gives up the row."""

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / SAMPLE_RATE


@dataclass(slots=True)
class Hearing:
    """What an engine heard in one window: segments with times relative to the window's start."""

    segments: list[Segment] = field(default_factory=list)
    language: str = ""


class Engine(ABC):
    """A loaded model. Unloading is ending the process, so there is no way back to an unloaded object."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Importable module names; asked for with find_spec, imported only in `load`."""

    extra: ClassVar[str] = ""
    """The extra of this package that installs `requires`; empty when the default install has them."""

    title: ClassVar[str] = ""
    """One line for people: which models this runs."""

    files: ClassVar[tuple[str, ...]] = ()
    """Names of files whose presence in a directory says that its model is for this engine."""

    capabilities: Capabilities

    class Options(EngineOptions):
        """The model's `options:` in the config."""

    @classmethod
    @abstractmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the weights at `source`.

        Raises:
            ModelLoadError: a file is missing, damaged or of another kind; the message names it.
        """

    @abstractmethod
    def transcribe(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode 1 to `capabilities.max_batch` windows at once; one hearing per window, in order."""

    def close(self) -> None:  # noqa: B027 -- most engines have nothing to release
        """Release what the end of the process would not."""
