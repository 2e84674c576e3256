"""The data types of transcription that gateway, runner and engines share: request, segment, event, capabilities.

They are plain data that converts itself to JSON and back, because the same objects cross the process boundary between gateway and
runner. Times are seconds from the start of the audio. `ModelFeature` and its functions check a request against a model's
capabilities and word what the model lacks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol, Self

from msgspec import Struct, convert, field, to_builtins
from msgspec.structs import replace

from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedFeatureError, error_from_json
from eardrum.languages import get_language_name

SAMPLE_RATE = 16_000
"""Hz; the one rate inside the house. Decoding resamples to it, engines receive it."""


SIGNATURE_BYTES = 12
SIGNATURES = (
    ((0, b"RIFF"), (8, b"WAVE")),
    ((0, b"fLaC"),),
    ((0, b"OggS"),),
    ((0, b"ID3"),),
    ((4, b"ftyp"),),
    ((0, b"\x1aE\xdf\xa3"),),
)
"""Offsets and bytes with which containers begin. Samples do not: one recording in millions begins with one of these."""


def has_container_signature(head: bytes) -> bool:
    """Whether the first bytes are those of a container, so that the rest is not raw samples."""
    return any(all(head.startswith(mark, at) for at, mark in marks) for marks in SIGNATURES)


class JsonRecord:
    """A record (a `Struct`) that crosses a process boundary as a JSON object."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON-ready dict, nested records included."""
        record: dict[str, Any] = to_builtins(self, str_keys=True, enc_hook=_encode_value)
        return record

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The record from `to_json`'s dict, or from a part of it. Unknown keys are dropped: a newer peer may send more.

        Raises:
            ValueError: a value is missing, or not of its field's type.
        """
        return convert(data, cls, str_keys=True, dec_hook=_decode_value)


def _encode_value(value: object) -> object:
    if isinstance(value, EardrumError):
        return value.to_json()
    if isinstance(value, float):  # one of numpy's
        return float(value)
    raise NotImplementedError


def _decode_value(kind: type, value: Any) -> object:
    if kind is EardrumError:
        return error_from_json(value)
    raise NotImplementedError


class SpeechTask(StrEnum):
    """The task: transcribe, or translate into English."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"  # into English


class Priority(StrEnum):
    """The priority class of a request. Decides whose window is decoded next."""

    LIVE = "live"
    INTERACTIVE = "interactive"
    BULK = "bulk"


class KnownSpeaker(Struct, frozen=True):
    """A speaker whose name the client knows, with a recording of the voice."""

    name: str
    recording: bytes
    """A file of any format."""

    def __repr__(self) -> str:
        return f"KnownSpeaker({self.name!r})"


class SpeakerOptions(Struct, frozen=True):
    """The client's knowledge of the speakers."""

    min_speakers: int | None = None
    max_speakers: int | None = None
    known: tuple[KnownSpeaker, ...] = ()


class TranscriptionRequest(JsonRecord, Struct, frozen=True):
    """The parameters of a transcription, independent of any wire protocol."""

    task: SpeechTask = SpeechTask.TRANSCRIBE
    language: str | None = None
    """ISO 639 code; None lets the model decide."""
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    temperature: float = 0.0
    times: bool = True
    """Times of segments are wanted. Without them another server is asked for the text alone."""
    words: bool = False
    """The client wants word times."""
    logprobs: bool = False
    """The client wants tokens with their log probabilities."""
    speakers: bool = False
    """The client wants segments of one speaker each, with labels. The gateway adds these; no model does."""
    speaker_options: SpeakerOptions = SpeakerOptions()
    """Only for the gateway; as JSON without the recordings."""
    priority: Priority = Priority.INTERACTIVE
    raw_pcm: bool = False
    """The audio is s16le mono at `SAMPLE_RATE` without a header, unless it begins as a container does."""
    vad_threshold: float | None = None
    """Speech probability above which a frame counts as speech; None is the runner's default."""
    vad_silence_s: float | None = None
    """A pause at least this long may end a window; None is the runner's default."""
    vad_padding_s: float | None = None
    """Audio kept before and after speech; None is the runner's default."""
    audio_track: int | None = None
    """Which of several audio tracks is meant, counted from 1; None lets the file decide."""
    partial: bool = False
    """Text is wanted before its segment is complete, where a model has it so."""
    multilingual: bool = False
    """Each window is in its own language, if the request names none and the model detects languages."""
    language_only: bool = False
    """Only the language is wanted: the first half minute of speech decides."""
    words_if_any: bool = False
    """Word times are used if the model has them; nothing is refused because of missing ones."""
    extra: tuple[tuple[str, str], ...] = ()
    """Fields of the client for a server behind a model, in the client's own spelling."""
    checkpoints: bool = False
    """A checkpoint is wanted after each window."""
    resume: WindowCheckpoint | None = None
    """The last checkpoint of an earlier attempt, after which this one continues."""


class Word(JsonRecord, Struct, frozen=True):
    """One word with its times in seconds and its probability in 0..1."""

    word: str
    start: float
    end: float
    probability: float


class Token(JsonRecord, Struct, frozen=True):
    """One decoded token: its text and natural-log probability."""

    text: str
    logprob: float


class TimeMapping(Protocol):
    """Turns a position in seconds into a time in seconds."""

    def __call__(self, position: float, *, ending: bool = False) -> float:
        """The time of a position where something begins, or ends."""


class Segment(JsonRecord, Struct):
    """A stretch of recognised speech. Fields an engine does not know keep their defaults."""

    start: float
    end: float
    text: str
    avg_logprob: float = 0.0
    """Mean natural-log probability of the tokens; the confidence is its exponential."""
    no_speech_prob: float = 0.0
    compression_ratio: float = 1.0
    temperature: float = 0.0
    unended: bool = False
    """The decoder was stopped at its cap before it ended the text itself, as those do that loop."""
    tokens: list[int] = field(default_factory=list)
    token_logprobs: list[Token] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    speaker: str = ""
    """The speaker's name, or A, B, C ...; empty if it is not known."""

    def map_times(self, clock: TimeMapping) -> Segment:
        """The same segment with its times, words included, read on another clock."""
        words = [replace(word, start=clock(word.start), end=clock(word.end, ending=True)) for word in self.words]
        return replace(self, start=clock(self.start), end=clock(self.end, ending=True), words=words)


class AudioOpened(JsonRecord, Struct, frozen=True):
    """The audio has begun to decode; `duration` is what its header claims, in seconds."""

    duration: float | None
    audio_track: int = 0
    """The audio track that is transcribed, counted from 1; 0 if that is not known."""
    audio_tracks: int = 0


class TextDelta(JsonRecord, Struct, frozen=True):
    """More text, of a segment that comes later. All deltas joined are the text of all segments."""

    text: str
    start: float | None = None
    """Seconds at which the speech of the text begins, if it is known; likewise `end`."""
    end: float | None = None


class DroppedText(JsonRecord, Struct, frozen=True):
    """Text the model produced and the server threw away as a hallucination, with the reason."""

    start: float
    end: float
    text: str
    reason: str


class TranscriptionSummary(JsonRecord, Struct):
    """Totals that follow the last segment and end every successful response."""

    language: str
    duration: float
    """Seconds of audio decoded."""
    dropped: list[DroppedText] = field(default_factory=list)
    windows: int = 0
    queue_s: float = 0.0
    """Longest wait of a window for its turn."""
    decode_s: float = 0.0
    """Time the engine spent on batches that held this request's windows, shared evenly."""
    batches: float = 0.0
    """Batches that the engine decoded; of one that several requests shared, this request's share."""
    model: str = ""
    """Id of the model that answered."""
    audio_track: int = 0
    """The audio track that was transcribed, counted from 1; 0 if that is not known."""
    audio_tracks: int = 0
    """How many there are."""
    warnings: list[str] = field(default_factory=list)
    """Descriptions of the audio that could not be decoded."""
    language_probability: float = 0.0
    """Probability of a detected language, 0..1; 0 for a language that was not detected."""


class WindowCheckpoint(JsonRecord, Struct, frozen=True):
    """The state of a request after a window: all that another process needs to continue there.

    Windows are cut from the audio alone, so it cuts them again and leaves out the first `windows`.
    """

    windows: int
    """Windows that are finished."""
    until: float
    """Where the last of them ends, in seconds."""
    votes: tuple[tuple[str, float], ...] = ()
    """The context that windows share: language codes with their weights,"""
    unheard: float = 0.0
    """seconds of speech since the last detection,"""
    text: str = ""
    """and the text before."""
    spoken: tuple[tuple[str, float], ...] = ()
    """Seconds of speech by the language in which they were decoded."""
    dropped: tuple[DroppedText, ...] = ()
    """Text of the last window that was thrown away."""


TranscriptionEvent = AudioOpened | TextDelta | Segment | WindowCheckpoint | TranscriptionSummary
"""The events of a request, in this order: opened, any number of segments, a summary.

If the request asks for `checkpoints`, one may follow the segments of each window. If it asks for `partial` text, deltas may come
before the segments: then all text comes as deltas, and the segments at the end.
"""


class Capabilities(JsonRecord, Struct, frozen=True):
    """The features of a model. Declared once per engine as literals, refined by a loaded model."""

    languages: tuple[str, ...] = ()
    """ISO 639 codes; empty means any language that the server supports."""
    detects_language: bool = False
    translate: bool = False
    words: bool = False
    logprobs: bool = False
    prompt: bool = False
    hotwords: bool = False
    temperature: bool = False
    speak: bool = False
    """The model turns text into speech, and does not transcribe."""
    voices: tuple[tuple[str, str], ...] = ()
    """Voices of a model that speaks, each with its language: `("heart", "en-US")`. Empty: only the loaded model knows them."""
    max_window_s: float = 30.0
    """Longest stretch of audio the engine takes at once."""
    fixed_window: bool = False
    """A window costs the same however short it is, so stretches of speech are packed into one, without the pauses."""
    max_batch: int = 1
    """Most windows `transcribe` accepts in one call."""


class ModelPlacement(JsonRecord, Struct, frozen=True):
    """Where a loaded model computes, and in which numbers. Empty is not said."""

    device: str = ""
    """`cpu` or `cuda`."""
    compute_type: str = ""
    reason: str = ""
    """Why it is not on the GPU on which `auto` would have it: a sentence, with what to do."""


class Transcript(Struct):
    """The whole answer to a request."""

    segments: list[Segment] = field(default_factory=list)
    summary: TranscriptionSummary = field(default_factory=lambda: TranscriptionSummary(language="", duration=0.0))

    def add_event(self, event: TranscriptionEvent) -> None:
        """Take in the next event."""
        if isinstance(event, Segment):
            self.segments.append(event)
        elif isinstance(event, TranscriptionSummary):
            self.summary = event


MAX_HOTWORDS = 1000
MAX_HOTWORDS_CHARS = 64 << 10
"""Characters of all of them. Models look at a few hundred words."""


class ModelFeature(StrEnum):
    """A feature that only some models have. The value is the parameter with which clients request it."""

    TASK = "model"
    LANGUAGE = "language"
    WORDS = "timestamp_granularities"
    LOGPROBS = "include"


def has_feature(can: Capabilities, ability: ModelFeature, request: TranscriptionRequest) -> bool:
    """Whether the model has what the request needs of this feature. A model that speaks has nothing for any transcription."""
    return (
        not can.speak
        and {
            ModelFeature.LANGUAGE: _covers_language(can, request),
            ModelFeature.TASK: request.task is not SpeechTask.TRANSLATE or can.translate,
            ModelFeature.WORDS: not request.words or can.words,
            ModelFeature.LOGPROBS: not request.logprobs or can.logprobs,
        }[ability]
    )


def _covers_language(can: Capabilities, request: TranscriptionRequest) -> bool:
    if request.language_only:
        return can.detects_language
    return not (request.language and can.languages) or request.language in can.languages


def check_hotwords(request: TranscriptionRequest) -> None:
    """Refuse more hotwords than any model uses: every window would carry them.

    Raises:
        InvalidRequestError: the hotwords are too many, or too long.
    """
    if len(request.hotwords) > MAX_HOTWORDS or sum(map(len, request.hotwords)) > MAX_HOTWORDS_CHARS:
        most = f"{MAX_HOTWORDS} words with {MAX_HOTWORDS_CHARS} characters together"
        raise InvalidRequestError(f"keywords (or hotwords) may be {most} at most.", param="keywords")


def find_missing_feature(can: Capabilities, request: TranscriptionRequest) -> ModelFeature | None:
    """Return the first feature that the request needs and the model lacks."""
    return next((ability for ability in ModelFeature if not has_feature(can, ability, request)), None)


def describe_missing_feature(can: Capabilities, ability: ModelFeature, request: TranscriptionRequest) -> str:
    """Describe a missing feature, to follow the model's name: `does not support German (de), only English (en)`."""
    if can.speak:
        return "turns text into speech (/v1/audio/speech) and does not transcribe"
    if ability is ModelFeature.LANGUAGE and request.language_only:
        return "does not detect languages"
    if ability is ModelFeature.LANGUAGE:
        supported = ", ".join(map(_format_language, can.languages))
        return f"does not support {_format_language(request.language or '')}, only {supported}"
    return {
        ModelFeature.TASK: "transcribes but does not translate",
        ModelFeature.WORDS: "gives times per segment but not per word",
        ModelFeature.LOGPROBS: "gives no token probabilities",
    }[ability]


def check_source_language(can: Capabilities, request: TranscriptionRequest) -> UnsupportedFeatureError | None:
    """Return the refusal of a translation whose language is neither named nor detected by the model."""
    if request.task is not SpeechTask.TRANSLATE or request.language or can.detects_language:
        return None
    message = "This model translates but does not detect languages: send the spoken one in `language`."
    return UnsupportedFeatureError(message, param=ModelFeature.LANGUAGE)


def _format_language(code: str) -> str:
    return f"{get_language_name(code).title()} ({code})"
