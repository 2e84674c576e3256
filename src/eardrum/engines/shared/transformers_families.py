"""The families of speech models in Transformers, and the table that finds a model's family by its type."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import Any

from eardrum.engines.base import EngineResult, Window
from eardrum.engines.shared.transformers_base import (
    CancelCriterion,
    GeneratingFamily,
    ModelFamily,
    Seq2SeqFamily,
    build_result,
    split_sentences,
)
from eardrum.engines.shared.transformers_whisper import WhisperFamily
from eardrum.languages import LANGUAGE_NAMES
from eardrum.transcription import SpeechTask, TranscriptionRequest, Word

STEPS_PER_SECOND = 150
"""More than a transducer can take: 12.5 frames a second, and at each at most ten tokens and a blank."""

Piece = tuple[str, float, float]
"""A token's text, its start and its end in seconds."""


class TransducerFamily(ModelFamily):
    """Parakeet RNNT: tokens with the frame each was emitted at."""

    loads = "AutoModelForRNNT"
    abilities = {"words": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode greedily; the library gives no probabilities."""
        made = self.model.generate(
            **self.extract_features(windows),
            **self.settings(),
            max_new_tokens=int(max(window.seconds for window in windows) * STEPS_PER_SECOND) + 1,
            return_dict_in_generate=True,
            stopping_criteria=[CancelCriterion(windows)],
        )
        _, times = self.processor.decode(made.sequences, durations=made.durations, skip_special_tokens=True)
        return [self._build_result(window, row) for window, row in zip(windows, times, strict=True)]

    def settings(self) -> dict[str, Any]:
        """More for the model's `generate`."""
        return {}

    def _build_result(self, window: Window, row: list[dict[str, Any]]) -> EngineResult:
        pieces = [(piece["token"], float(piece["start"]), float(piece["end"])) for piece in row]
        # The library lets rows that are through go on over their padding until the longest is.
        pieces = [piece for piece in pieces if piece[1] < window.seconds]
        segments = split_sentences(list(build_words(pieces, window.seconds)))
        for segment in segments:
            segment.words = segment.words if window.request.words else []
        return EngineResult(segments, window.request.language or self.wishes.language)


class DurationTransducerFamily(TransducerFamily):
    """Parakeet TDT: each token also says how long it lasts."""

    loads = "AutoModelForTDT"

    def settings(self) -> dict[str, Any]:
        """Durations stand behind the vocabulary in the model's scores: they are no tokens."""
        size = self.model.config.vocab_size
        return {"suppress_tokens": list(range(size, size + len(self.model.config.durations)))}


class CtcFamily(ModelFamily):
    """Parakeet CTC and its like: the best token of each frame, repetitions and blanks taken out."""

    loads = "AutoModelForCTC"

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode greedily; the confidence is the mean over the frames."""
        made = self.model.generate(**self.extract_features(windows), return_dict_in_generate=True)
        best = made.logits.float().log_softmax(-1).max(-1).values
        texts = self.processor.batch_decode(made.sequences, skip_special_tokens=True)
        return [
            build_result(window, text, window.request.language or self.wishes.language, avg_logprob=float(row[:frames].mean()))
            for window, text, row, frames in zip(windows, texts, best, self._count_frames(windows, best.shape[1]), strict=True)
        ]

    def _count_frames(self, windows: Sequence[Window], longest: int) -> list[int]:
        """Frames of each row that are not padding."""
        most = max(len(window.audio) for window in windows)
        return [max(1, round(longest * len(window.audio) / most)) for window in windows]


def build_words(pieces: Sequence[Piece], seconds: float) -> Iterator[Word]:
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


FALLBACK = "en"
"""Language for models that need one when the request names none."""

_SPELLED = LANGUAGE_NAMES | {"tl": "filipino"}
"""Languages as Qwen spells them, in lower case."""
_CODES = {name: code for code, name in _SPELLED.items()}


class CanaryFamily(GeneratingFamily):
    """Canary: the language spoken and the language to write, for each row."""

    known_as = "canary-1b-v2"
    abilities = GeneratingFamily.abilities | {"translate": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        spoken = [window.request.language or self.wishes.language or FALLBACK for window in windows]
        written = ["en" if w.request.task is SpeechTask.TRANSLATE else code for w, code in zip(windows, spoken, strict=True)]
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows], source_language=spoken, target_language=written
        )
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, code)
            for window, row, text, code in zip(windows, rows, texts, spoken, strict=True)
        ]


class CohereFamily(GeneratingFamily):
    """Cohere's transcription models: the language is one per call."""

    known_as = "cohere-transcribe"

    def batch_key(self, window: Window) -> Hashable:
        """Sampling and language are one per call."""
        return window.request.temperature, window.request.language

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        language = windows[0].request.language or self.wishes.language or FALLBACK
        made = self.extract_features(windows, language=language)
        made.pop("audio_chunk_index", None)
        rows = self.generate_rows(made, windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, language) for window, row, text in zip(windows, rows, texts, strict=True)
        ]


class QwenFamily(GeneratingFamily):
    """Qwen3-ASR: tells the language before the text unless it is told, and takes words to expect."""

    known_as = "qwen3-asr"
    abilities = GeneratingFamily.abilities | {"detects_language": True, "prompt": True, "hotwords": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows],
            language=[_find_language_name(window.request.language) for window in windows],
            prompt=[build_context(window.request) or None for window in windows],
        )
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        answers = self.processor.parse_output(texts)
        return [
            self.build_row_result(
                window, row, answer["transcription"], window.request.language or _find_language_code(answer["language"])
            )
            for window, row, answer in zip(windows, rows, answers, strict=True)
        ]


class GlmFamily(GeneratingFamily):
    """GLM-ASR: a chat whose only question is to transcribe."""

    loads = "AutoModelForMultimodalLM"

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request([window.audio for window in windows])
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, window.request.language or "")
            for window, row, text in zip(windows, rows, texts, strict=True)
        ]


def build_context(request: TranscriptionRequest) -> str:
    """The context given to a model: the prompt, then the hotwords."""
    return " ".join(part for part in (request.prompt, ", ".join(request.hotwords)) if part)


def _find_language_name(code: str | None) -> str | None:
    return _SPELLED[code].title() if code else None


def _find_language_code(name: str | None) -> str:
    """The code of a language as the model spells it; empty when it said none."""
    return _CODES.get((name or "").lower(), "")


FAMILIES: dict[str, type[ModelFamily]] = {
    "canary": CanaryFamily,
    "cohere_asr": CohereFamily,
    "glmasr": GlmFamily,
    "moonshine": Seq2SeqFamily,
    "moonshine_streaming": Seq2SeqFamily,
    "parakeet_ctc": CtcFamily,
    "parakeet_rnnt": TransducerFamily,
    "parakeet_tdt": DurationTransducerFamily,
    "qwen3_asr": QwenFamily,
    "whisper": WhisperFamily,
}
"""Only what the tests run: each of these has been loaded, asked and read with the library."""
