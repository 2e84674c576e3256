"""Models that decide at each frame of the audio: CTC and transducers. Their tokens come with times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from eardrum.engines.base import Hearing, Window
from eardrum.engines.families.base import Family, heard, sentences
from eardrum.engines.families.generation import GivenUp
from eardrum.transcription import Word

STEPS_PER_SECOND = 150
"""More than a transducer can take: 12.5 frames a second, and at each at most ten tokens and a blank."""

Piece = tuple[str, float, float]
"""A token's text, its start and its end in seconds."""


class Transducer(Family):
    """Parakeet RNNT: tokens with the frame each was emitted at."""

    loads = "AutoModelForRNNT"
    abilities = {"words": True}

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode greedily; the library gives no probabilities."""
        made = self.model.generate(
            **self.features(windows),
            **self.settings(),
            max_new_tokens=int(max(window.seconds for window in windows) * STEPS_PER_SECOND) + 1,
            return_dict_in_generate=True,
            stopping_criteria=[GivenUp(windows)],
        )
        _, times = self.processor.decode(made.sequences, durations=made.durations, skip_special_tokens=True)
        return [self._hearing(window, row) for window, row in zip(windows, times, strict=True)]

    def settings(self) -> dict[str, Any]:
        """More for the model's `generate`."""
        return {}

    def _hearing(self, window: Window, row: list[dict[str, Any]]) -> Hearing:
        pieces = [(piece["token"], float(piece["start"]), float(piece["end"])) for piece in row]
        # The library lets rows that are through go on over their padding until the longest is.
        pieces = [piece for piece in pieces if piece[1] < window.seconds]
        segments = sentences(list(words(pieces, window.seconds)))
        for segment in segments:
            segment.words = segment.words if window.request.words else []
        return Hearing(segments, window.request.language or self.wishes.language)


class DurationTransducer(Transducer):
    """Parakeet TDT: each token also says how long it lasts."""

    loads = "AutoModelForTDT"

    def settings(self) -> dict[str, Any]:
        """Durations stand behind the vocabulary in the model's scores: they are no tokens."""
        size = self.model.config.vocab_size
        return {"suppress_tokens": list(range(size, size + len(self.model.config.durations)))}


class Ctc(Family):
    """Parakeet CTC and its like: the best token of each frame, repetitions and blanks taken out."""

    loads = "AutoModelForCTC"

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode greedily; the confidence is the mean over the frames."""
        made = self.model.generate(**self.features(windows), return_dict_in_generate=True)
        best = made.logits.float().log_softmax(-1).max(-1).values
        texts = self.processor.batch_decode(made.sequences, skip_special_tokens=True)
        return [
            heard(window, text, window.request.language or self.wishes.language, avg_logprob=float(row[:frames].mean()))
            for window, text, row, frames in zip(windows, texts, best, self._frames(windows, best.shape[1]), strict=True)
        ]

    def _frames(self, windows: Sequence[Window], longest: int) -> list[int]:
        """Frames of each row that are not padding."""
        most = max(len(window.audio) for window in windows)
        return [max(1, round(longest * len(window.audio) / most)) for window in windows]


def words(pieces: Sequence[Piece], seconds: float) -> Iterator[Word]:
    """Pieces joined to words: a new one begins where a piece begins with a space. No word ends after `seconds`.

    Probabilities are not known and said to be 1.
    """
    number = 0

    def numbered(piece: Piece) -> int:
        nonlocal number
        number += piece[0].startswith(" ")
        return number

    for _, group in groupby(pieces, numbered):
        parts = list(group)
        text = "".join(text for text, _, _ in parts)
        start, end = min(parts[0][1], seconds), min(parts[-1][2], seconds)
        if text.strip():
            yield Word(text, start, max(start, end), 1.0)
