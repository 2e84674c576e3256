"""The engine interface, which every speech library in a runner implements.

One engine is one file in this folder; the file's name is the engine's name. The class declares
`requires` and `capabilities` as literals, so that the gateway can read them without importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from eardrum import transcription
from eardrum.errors import UnsupportedFeatureError
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, TranscriptionRequest

Audio = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Mono samples at 16 kHz, shape [n], in -1..1."""


class EngineOptions(BaseModel):
    """Base of every engine's options: validated, documented, and unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run; `auto` takes a GPU if there is one.")
    compute_type: str = Field("auto", description="Number format of the weights; `auto` leaves it to the engine.")


@dataclass(slots=True, eq=False)
class RequestContext:
    """State that a request's windows share: earlier windows pass it to later ones. The engine writes it.

    Windows of a request reach the engine in order, but several may be in one batch, and engines with `parallel` above 1
    decode batches side by side.
    """

    votes: dict[str, float] = field(default_factory=dict)
    """Language code to the sum of its probabilities, weighted by seconds of speech."""
    unheard: float = 0.0
    """Seconds of speech since the engine last found out a language: the next finding stands for them, too."""
    text: str = ""
    """The text of earlier windows, as far as the engine keeps it."""


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
    request: TranscriptionRequest
    context: RequestContext = field(default_factory=RequestContext)
    pieces: tuple[tuple[float, float], ...] = ()
    """Where pauses were taken out: (position in the window, time in the request) of each stretch, in seconds."""
    speech_stretches: tuple[tuple[float, float], ...] = ()
    """Where in the window somebody speaks: (begin, end) in seconds, in order; empty if nobody has looked."""
    cancelled: bool = False
    """Nobody wants the hearing any more. Set from outside in the middle of `transcribe`; an engine that decodes step by
    step looks at it and gives up the row."""

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / SAMPLE_RATE

    def clock(self, position: float, *, ending: bool = False) -> float:
        """The time in the request of a position in the window; `ending` takes a seam as the end of what precedes it."""
        for at, time in reversed(self.pieces):
            if at < position or (at == position and not ending):
                return time + position - at
        return self.start + position


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is to be loaded."""

    name: str
    """`cpu` or `cuda`; `auto` leaves it to `load`."""
    reason: str = ""
    """Why it is not the GPU, where there seems to be one: a sentence, with what to do."""


@dataclass(slots=True)
class EngineResult:
    """An engine's result for one window: segments with times relative to the window's start."""

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

    layouts: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """File patterns that identify this engine's models: a directory must match one of these sets.

    `config.json#key` is a file that holds a JSON object with this key."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """If any, `model_type` in config.json must be one of these, for the layouts that have a config.json."""

    names: ClassVar[dict[str, str]] = {}
    """Short names people use, and the Hugging Face repository each means."""

    repositories: ClassVar[tuple[str, ...]] = ()
    """Patterns of Hugging Face ids whose weights this engine runs, in lower case (`nvidia/parakeet-*`)."""

    downloads: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files to fetch from a repository; empty fetches all."""

    variants: ClassVar[dict[str, dict[str, object]]] = {}
    """Pattern of a model's name, in lower case, to the capabilities in which such models differ from the engine's."""

    rank: ClassVar[int] = 50
    """Where several engines fit a name, the installed one with the lowest rank runs it."""

    remote: ClassVar[bool] = False
    """The weights are behind an address in the options; there are no files. Only an answer shows what they can do."""

    apart: ClassVar[str] = ""
    """Packages that need an interpreter of their own, which the model's `python:` names."""

    parallel: int = 1
    """Calls of `transcribe` that may run at once, each in a thread of its own (replicas on several GPUs)."""

    measured: Mapping[str, Any] = MappingProxyType({})
    """Options for which a value was found by timing at load; the next load of the model is given them."""

    gains_by_batching: bool = True
    """False where batches are known to gain nothing: the batch size is then 1, unless the config says otherwise, and no time
    is spent at load on finding out."""

    sequential: bool = False
    """The windows of a request are decoded one after another, each after `context.text` is there from the one before."""

    device: str = ""
    """Where a loaded model computes: `cpu` or `cuda`. Empty is not said."""

    compute_type: str = ""
    """The number format in which it computes. Empty is not said."""

    reason: str = ""
    """Why it is not on the GPU on which `auto` would have it. Whoever loads it says so."""

    capabilities: Capabilities

    class Options(EngineOptions):
        """The model's `options:` in the config."""

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Where `load` is to put the model, which is then told so in `options.device`. No weights are looked at.

        Raises:
            DeviceError: `options.device` is cuda, and that cannot be had.
        """
        return Device(options.device)

    @classmethod
    @abstractmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the weights at `source`.

        Raises:
            DeviceError: the GPU that was found cannot be used after all.
            ModelLoadError: a file is missing, damaged or of another kind; the message names it.
        """

    @abstractmethod
    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode 1 to `capabilities.max_batch` windows at once; one hearing per window, in order."""

    def refusal(self, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
        """Why the loaded model cannot do what is asked; asked once per request, before any of its audio is decoded.

        The gateway has asked the engine's card before; weights may turn out to be capable of less.
        """
        if ability := transcription.find_missing_feature(self.capabilities, request):
            lack = transcription.describe_missing_feature(self.capabilities, ability, request)
            return UnsupportedFeatureError(f"This model {lack}.", param=ability)
        return None

    def batch_key(self, window: Window) -> Hashable:
        """The batch key: only windows with equal keys reach `transcribe` together."""
        return None

    def close(self) -> None:  # noqa: B027 -- most engines have nothing to release
        """Release what the end of the process would not."""
