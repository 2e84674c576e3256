"""The engine interface, which every speech library in a runner implements.

One engine is one file in this folder; the file's name is the engine's name. The class declares
`requires` and `capabilities` as literals, so that the gateway can read them without importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from msgspec import Struct, field
from pydantic import BaseModel, ConfigDict, Field

from eardrum import transcription
from eardrum.errors import UnsupportedFeatureError
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, TranscriptionRequest

Audio = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Mono samples, shape [n], in -1..1: at 16 kHz where speech is transcribed, at the voice's rate where it is synthesized."""


class EngineOptions(BaseModel):
    """Base of every engine's options. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run; `auto` takes a GPU if there is one.")
    compute_type: str = Field("auto", description="Number format of the weights; `auto` leaves it to the engine.")


class RequestContext(Struct, eq=False):
    """State that a request's windows share: earlier windows pass it to later ones. The engine writes it.

    Windows of a request reach the engine in order, but several may be in one batch, and engines with `parallel` above 1
    decode batches side by side.
    """

    votes: dict[str, float] = field(default_factory=dict)
    """Language code to the sum of its probabilities, weighted by seconds of speech."""
    unheard: float = 0.0
    """Seconds of speech since the last language detection; the next one counts for them too."""
    text: str = ""
    """The text of earlier windows, as far as the engine keeps it."""


class Window(Struct, eq=False):
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
    """Stretches left after removing pauses: (position in the window, time in the request) of each, in seconds."""
    speech_stretches: tuple[tuple[float, float], ...] = ()
    """Stretches of speech in the window: (begin, end) in seconds, in order; empty if they were not computed."""
    cancelled: bool = False
    """The result is no longer needed. Set by another thread during `transcribe`; an engine that decodes step by step checks it
    and ends the row."""

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / SAMPLE_RATE

    def clock(self, position: float, *, ending: bool = False) -> float:
        """Return the time in the request of a position in the window; with `ending`, a seam belongs to the stretch before it."""
        for at, time in reversed(self.pieces):
            if at < position or (at == position and not ending):
                return time + position - at
        return self.start + position


class Device(Struct, frozen=True):
    """The device for a model."""

    name: str
    """`cpu` or `cuda`; `auto` leaves it to `load`."""
    reason: str = ""
    """Why it is not the GPU, if the machine seems to have one: a sentence with the remedy."""


class EngineResult(Struct):
    """An engine's result for one window: segments with times relative to the window's start."""

    segments: list[Segment] = field(default_factory=list)
    language: str = ""
    voice: Audio | None = None
    """The voice print of the window, if the engine computes these: a vector of length 1."""


class TuningPostponed(Exception):  # noqa: N818 -- no error: measuring continues later
    """A step of measuring may not begin now, but after `idle_s` seconds without requests; None: not before the next request."""

    def __init__(self, idle_s: float | None):
        super().__init__("The measurement continues later.")
        self.idle_s = idle_s


ClaimIdleTime = Callable[[float, int], None]
"""Asks for idle time for a step that takes so many seconds, and bytes of memory besides. Raises `TuningPostponed`."""


class ModelEngine(ABC):
    """A loaded model: the base of `Engine`, which transcribes, and of `VoiceEngine`, which speaks.

    It is unloaded by ending its process.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Importable module names; checked with find_spec, imported only in `load`."""

    extra: ClassVar[str] = ""
    """The extra of this package that installs `requires`; empty when the default install has them."""

    title: ClassVar[str] = ""
    """One line for people: which models this runs."""

    layouts: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """File patterns that identify this engine's models: a directory must match one of these sets.

    `config.json#key` is a file that holds a JSON object with this key, `*.bin@lmgg` one that begins with these letters."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """If any, `model_type` in config.json must be one of these, for the layouts that have a config.json."""

    names: ClassVar[dict[str, str]] = {}
    """Short names, and the Hugging Face repository of each."""

    repositories: ClassVar[tuple[str, ...]] = ()
    """Patterns of Hugging Face ids whose weights this engine runs, in lower case (`nvidia/parakeet-*`)."""

    voice_files: ClassVar[str] = ""
    """Pattern of the files that are a voice each, as in `voices/*.bin`: the gateway lists them before the model is loaded."""

    voice_languages: ClassVar[dict[str, str]] = {}
    """Pattern of a voice's name to its language; voices that match none are left out. Of several languages (`en de`) each makes a
    voice with its name at the end (`F1-de`). Empty where names begin with the language, as in `de_DE-thorsten`."""

    downloads: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files to fetch from a repository; empty fetches all."""

    variants: ClassVar[dict[str, dict[str, object]]] = {}
    """Pattern of a model's name, in lower case, to the capabilities in which such models differ from the engine's."""

    rank: ClassVar[int] = 50
    """If several engines fit a name, the installed one with the lowest rank runs it."""

    remote: ClassVar[bool] = False
    """The model is at an address in the options, without files here. Only its answers show its features."""

    apart: ClassVar[str] = ""
    """Packages that need a separate interpreter, set by the model's `python:`."""

    parallel: int = 1
    """Workers: calls of `transcribe` or `speak` that may run at the same time, each in its own thread (such as one for each
    of several GPUs)."""

    device: str = ""
    """Device of a loaded model: `cpu` or `cuda`; empty if unknown."""

    compute_type: str = ""
    """Number format of a loaded model; empty if unknown."""

    reason: str = ""
    """Why the model is not on the GPU that `auto` would use; set by the code that loads it."""

    capabilities: Capabilities

    class Options(EngineOptions):
        """The model's `options:` in the config."""

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """Choose the device for `load`, which gets it as `options.device`. Reads no weights.

        Raises:
            DeviceError: `options.device` is cuda, and no GPU can be used.
        """
        return Device(options.device)

    @classmethod
    @abstractmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the weights at `source`.

        Raises:
            DeviceError: the GPU cannot be used after all.
            ModelLoadError: a file is missing, damaged or of another kind; the message names the file.
        """

    def close(self) -> None:  # noqa: B027 -- most engines have nothing to release
        """Release resources that the end of the process would not."""


class VoiceEngine(ModelEngine):
    """A loaded model that turns text into speech. Its `capabilities` have `speak=True` and its voices, the default one first."""

    sample_rate: int = 24_000
    """Hz of the audio."""

    @abstractmethod
    def speak(self, text: str, voice: str, speed: float) -> Audio:
        """Synthesize one sentence.

        Args:
            text: plain text of at most a few hundred characters, without markup.
            voice: one of `capabilities.voices`.
            speed: 0.25 to 4; 1 is the voice's own pace.

        Returns:
            Samples at `sample_rate`, float32, shape [n], in -1..1.

        Raises:
            UnspeakableTextError: the voice has no sounds for the text.
        """


class Engine(ModelEngine):
    """A loaded model that turns speech into text."""

    measured: Mapping[str, Any] = MappingProxyType({})
    """Option values that `tune` measured; the next load of the model gets them."""

    can_be_tuned: bool = False
    """Whether `tune` would measure something."""

    batches_clips: bool = True
    """False if a batch takes about as long as its windows one by one, and only saves CPU: then only files and bulk share
    batches."""

    reserved_calls: int = 0
    """Calls of `transcribe` beyond `parallel` that may run at the same time. They share the machine with the others, and are
    for clips and live speech that come while files are decoded."""

    before_step: Callable[[], None] = staticmethod(lambda: None)
    """Engines that decode step by step call it before every step but the first. In it, a more urgent window may be decoded: by
    another call of `transcribe` in the same thread."""

    sequential: bool = False
    """Whether a request's windows are decoded one after another, because each needs `context.text` of the one before."""

    @abstractmethod
    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode 1 to `capabilities.max_batch` windows at once; returns one result per window, in order."""

    def refusal(self, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
        """Return the reason why the loaded model cannot serve a request; called once per request, before its audio is decoded.

        The gateway has checked the engine's declared capabilities; the loaded weights may have fewer.
        """
        if ability := transcription.find_missing_feature(self.capabilities, request):
            lack = transcription.describe_missing_feature(self.capabilities, ability, request)
            return UnsupportedFeatureError(f"This model {lack}.", param=ability)
        return None

    def measure_batch_size(self) -> int:
        """Find the batch size worth using by timing parts of the model. 0 leaves that to the caller, who times `transcribe`."""
        return 0

    def batch_key(self, window: Window) -> Hashable:
        """The batch key: only windows with equal keys reach `transcribe` together."""
        return None

    def tune(self, claim: ClaimIdleTime) -> None:
        """Measure in idle time which options are fastest on this machine, use them from now on, and set `measured`.

        Nothing is decoded meanwhile. `parallel` may change. If other processes were busy meanwhile, `tune` is called again later,
        and only the last result is remembered.

        Raises:
            TuningPostponed: by `claim`, which must be called before each step.
        """
