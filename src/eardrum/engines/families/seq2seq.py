"""Encoder-decoders that are told nothing but the audio: Moonshine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from eardrum.engines.base import Hearing, Window
from eardrum.engines.families.base import Family, heard, tokens_of
from eardrum.engines.families.generation import GivenUp, Row, generate


class Generating(Family):
    """What the families have in common that write token by token."""

    loads = "AutoModelForSpeechSeq2Seq"
    abilities = {"logprobs": True, "temperature": True}

    tokens_per_second: ClassVar[float] = 16.0
    """What writes more than this is a loop, not speech; the densest scripts stay below."""
    spare_tokens: ClassVar[int] = 32
    """On top of that, for what a family writes besides the text."""

    def key(self, window: Window) -> Hashable:
        """Sampling is one setting per call."""
        return window.request.temperature

    def generated(self, inputs: Any, windows: Sequence[Window]) -> list[Row]:
        """Tokens for each window; `inputs` are the keyword arguments of the model's `generate`."""
        temperature = windows[0].request.temperature
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        return generate(
            self.model.generate,
            inputs,
            ends=[GivenUp(windows)],
            beams=1 if temperature > 0 else self.wishes.beam_size,
            end=self.model.generation_config.eos_token_id,
            limits=[self._limit(window) for window in windows],
            **sampling,
        )

    def _limit(self, window: Window) -> int:
        return int(window.seconds * self.tokens_per_second) + self.spare_tokens

    def hearing(self, window: Window, row: Row, text: str, language: str) -> Hearing:
        """A row as one segment."""
        made = heard(window, text, language, avg_logprob=row.avg_logprob, tokens=row.tokens)
        for segment in made.segments:
            segment.temperature = window.request.temperature
            segment.unended = len(row.tokens) >= self._limit(window)
            if window.request.logprobs:
                segment.token_logprobs = tokens_of(self.processor.tokenizer, row.tokens, row.logprobs)
        return made


class Seq2Seq(Generating):
    """Moonshine and Moonshine Streaming: one language each, known by the model's name."""

    known_as = "moonshine"

    tokens_per_second = 6.5
    spare_tokens = 4

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows as one batch."""
        rows = self.generated(self.features(windows, padding=True), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.hearing(window, row, text, self.wishes.language) for window, row, text in zip(windows, rows, texts, strict=True)
        ]
