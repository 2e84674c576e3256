"""What the engine `transformers` asks of a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eardrum.engines.base import Hearing, Window
from eardrum.engines.whisper.rules import compression_ratio
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, Token, Word


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the model's options say about decoding."""

    beam_size: int = 1
    language: str = ""
    """What is spoken where a request does not say and the model cannot tell; empty is unknown."""


class Family(ABC):
    """Models of one kind, loaded. `hear` is called by one thread."""

    loads: ClassVar[str]
    """The class of `transformers` that loads them."""

    known_as: ClassVar[str] = ""
    """A name by which the engine's variants recognise the family, whatever the directory is called."""

    abilities: ClassVar[dict[str, Any]] = {}
    """Fields of `Capabilities` in which the family differs from a model that only transcribes."""

    def __init__(self, model: Any, processor: Any, wishes: Wishes):
        self.model = model
        self.processor = processor
        self.wishes = wishes

    @abstractmethod
    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode a batch whose windows have one `key`; one hearing per window, in order."""

    def key(self, window: Window) -> Hashable:
        """What must be equal within a batch."""
        return None

    def refined(self, capabilities: Capabilities) -> Capabilities:
        """The capabilities, with what only the loaded weights know."""
        return capabilities

    def features(self, windows: Sequence[Window], **more: Any) -> Any:
        """The processor's tensors for the windows, padded to the longest, on the model's device and in its format."""
        audio = [window.audio for window in windows]
        made = self.processor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", **more)
        return self.to_model(made)

    def to_model(self, made: Any) -> Any:
        """A processor's tensors where the model is, the fractions in the model's number format."""
        return made.to(self.model.device, self.model.dtype)


def heard(window: Window, text: str, language: str, **measures: Any) -> Hearing:
    """One segment over the window's speech, or none without text. `measures` are fields of the segment."""
    text = text.strip()
    if not text:
        return Hearing([], language)
    segment = Segment(*window.speech_span, text, compression_ratio=compression_ratio(text), **measures)
    return Hearing([segment], language)


def sentences(words: Sequence[Word]) -> list[Segment]:
    """Words joined to a segment per sentence: for models that time words and know no segments."""
    found: list[list[Word]] = [[]]
    for word in words:
        found[-1].append(word)
        if word.word.rstrip().endswith((".", "?", "!", "。", "？", "！")):  # noqa: RUF001 -- full-width on purpose
            found.append([])
    return [
        Segment(said[0].start, said[-1].end, text, compression_ratio=compression_ratio(text), words=said)
        for said in found
        if said and (text := "".join(word.word for word in said).strip())
    ]


def tokens_of(tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float]) -> list[Token]:
    """Each token's text with its log probability, special tokens left out."""
    special = set(tokenizer.all_special_ids)
    return [Token(tokenizer.decode([id]), p) for id, p in zip(ids, logprobs, strict=False) if id not in special]
