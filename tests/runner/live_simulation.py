"""Plays a scripted stream to a live session, with decodes that take their time.

Every frame of speech says one word, whose number is in its samples: so a window can be read without a model, and a word that is
lost, doubled or out of order shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eardrum.engines.base import EngineResult, Window
from eardrum.errors import EardrumError
from eardrum.live import (
    FinalTranscript,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionSettings,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.runner.live.session import AdoptPartial, DecodeWindow, DropWindow, LiveSession, SessionOutput
from eardrum.runner.vad import FRAME_SAMPLES
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, Word

CAN = Capabilities(max_window_s=10.0)
WORD = 9
"""Frames of a word: 0.288 s. An odd number, so that one side of a cut has more of it."""

Mishear = Callable[[list[int], bool], list[str]]


def spell_numbers(numbers: Sequence[int], final: bool = True) -> list[str]:
    """The words of these numbers."""
    return [f"w{number}" for number in numbers]


@dataclass
class FrameStream:
    """Frames to come: the samples say which word is spoken, the probabilities that one is."""

    samples: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    probs: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    said: int = 0

    def add_speech(self, words: int) -> FrameStream:
        """Speech without a pause."""
        numbers = np.repeat(np.arange(self.said + 1, self.said + words + 1), WORD)
        self.said += words
        return self._add_frames(numbers, 0.9)

    def add_pause(self, seconds: float) -> FrameStream:
        return self._add_frames(np.zeros(round(seconds * SAMPLE_RATE / FRAME_SAMPLES)), 0.02)

    def _add_frames(self, numbers: np.ndarray, prob: float) -> FrameStream:
        self.samples = np.concatenate([self.samples, np.repeat(numbers, FRAME_SAMPLES).astype(np.float32)])
        self.probs = np.concatenate([self.probs, np.full(len(numbers), prob, np.float32)])
        return self


def create_stream(*parts: tuple[int, float]) -> FrameStream:
    """So many words, then so long a pause, again and again."""
    whole = FrameStream()
    for words, pause in parts:
        whole.add_speech(words).add_pause(pause)
    return whole


def read_numbers(window: Window) -> list[int]:
    """The words of which a window holds the most part; of a cut one either side gets it."""
    frames = window.audio[::FRAME_SAMPLES].astype(int)
    found, counts = np.unique(frames[frames > 0], return_counts=True)
    return [int(number) for number, count in zip(found, counts, strict=True) if count > WORD // 2]


@dataclass
class SessionSimulation:
    """A session and what came of it."""

    settings: SessionSettings = field(default_factory=SessionSettings)
    can: Capabilities = CAN
    mishear: Mishear = spell_numbers
    delay: int = 0
    """Steps that a decode takes at most."""
    seed: int = 0
    fails: frozenset[int] = frozenset()
    """Windows, by their number, on which the engine fails."""
    events: list[LiveEvent] = field(default_factory=list)
    decodes: list[DecodeWindow] = field(default_factory=list)
    finals: list[Window] = field(default_factory=list)
    """The windows whose text is in finals."""
    most_waiting: int = 0

    def __post_init__(self) -> None:
        self.session = LiveSession(self.settings, self.can)
        self._random = random.Random(self.seed)
        self._engine: list[tuple[int, DecodeWindow]] = []
        self._step = 0
        self._promised: set[int] = set()  # windows whose text is part of a final

    def play_stream(self, heard: FrameStream, split: int | Iterable[int] = 1) -> SessionSimulation:
        """Play a stream in portions of so many frames."""
        at = 0
        sizes = iter(split) if not isinstance(split, int) else iter(lambda: split, None)
        while at < len(heard.probs):
            size = next(sizes, 1)
            self._perform(
                self.session.process_audio(
                    heard.samples[at * FRAME_SAMPLES : (at + size) * FRAME_SAMPLES], heard.probs[at : at + size]
                )
            )
            at += size
            self.run_engine()
        return self

    def send_command(self, command: LiveCommand, rest: np.ndarray | None = None) -> SessionSimulation:
        self._perform(self.session.handle_command(command, rest))
        return self

    def finish_session(self) -> list[LiveEvent]:
        """End the session, and let the engine end its work."""
        self.send_command(FinishCommand())
        while self._engine:
            self.run_engine()
        return self.events

    def run_engine(self) -> None:
        """Let the engine work for a step."""
        self._step += 1
        for due, decode in sorted(self._engine, key=lambda item: item[0]):
            if due <= self._step and (due, decode) in self._engine:
                self._engine.remove((due, decode))
                self._perform(self._decode_window(decode))

    def _decode_window(self, decode: DecodeWindow) -> list[SessionOutput]:
        if decode.id in self.fails:
            return self.session.handle_failure(decode.id, EardrumError("scripted"))
        words = self.mishear(read_numbers(decode.window), decode.final)
        begin, end = decode.window.speech_span
        segments = [Segment(begin, end, " ".join(words), words=_add_times(decode.window, words))] if words else []
        return self.session.handle_result(decode.id, EngineResult(segments, "en"), 0.01, 0.0)

    def _perform(self, outputs: list[SessionOutput]) -> None:
        for output in outputs:
            match output:
                case DecodeWindow():
                    assert output.final or not self._promised & {decode.id for _, decode in self._engine}
                    self.decodes.append(output)
                    self._engine.append((self._step + self._random.randint(0, self.delay), output))
                    if output.final:
                        self._promised.add(output.id)
                        self.finals.append(output.window)
                case DropWindow(number):
                    self._engine = [item for item in self._engine if item[1].id != number]
                case AdoptPartial(number):
                    self._promised.add(number)
                    self.finals.append(next(d.window for d in self.decodes if d.id == number))
                case _:
                    self.events.append(output)
        self.most_waiting = max(self.most_waiting, len(self._engine))

    def list_events(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def text(self) -> str:
        return " ".join(final.text for final in self.list_events(FinalTranscript) if final.text)


def _add_times(window: Window, words: list[str]) -> list[Word]:
    """Times for the words of a window that wants them."""
    if not window.request.words:
        return []
    frames = window.audio[::FRAME_SAMPLES].astype(int)
    timed = []
    for number, word in zip(read_numbers(window), words, strict=False):
        at = np.flatnonzero(frames == number) * FRAME_SAMPLES / SAMPLE_RATE
        timed.append(Word(word, float(at[0]), float(at[-1] + FRAME_SAMPLES / SAMPLE_RATE), 0.9))
    return timed


def check_promises(events: list[LiveEvent]) -> None:
    """What holds of every session: stable text is kept, and every commit gets one outcome, in order."""
    stable: dict[int, str] = {}
    for event in events:
        if isinstance(event, PartialTranscript):
            assert event.stable.startswith(stable.get(event.utterance, ""))
            stable[event.utterance] = event.stable
        elif isinstance(event, FinalTranscript):
            assert event.text.startswith(stable.get(event.utterance, ""))
    committed = [event.utterance for event in events if isinstance(event, UtteranceCommitted)]
    outcomes = [event.utterance for event in events if isinstance(event, FinalTranscript | UtteranceFailed)]
    assert committed == outcomes
    assert committed == sorted(set(committed))
    assert [type(event) for event in events].count(SessionEnded) == 1
    assert isinstance(events[-1], SessionEnded)
