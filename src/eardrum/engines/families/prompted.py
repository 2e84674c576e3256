"""Models that are told in a prompt what to do: Canary, Cohere, Qwen3-ASR, GLM-ASR."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from eardrum.engines.base import Hearing, Window
from eardrum.engines.families.seq2seq import Generating
from eardrum.languages import LANGUAGE_NAMES
from eardrum.transcription import SpeechTask, TranscriptionRequest

FALLBACK = "en"
"""What models that must be told a language are told when nobody said one."""

_SPELLED = LANGUAGE_NAMES | {"tl": "filipino"}
"""Languages as Qwen spells them, in lower case."""
_CODES = {name: code for code, name in _SPELLED.items()}


class Canary(Generating):
    """Canary: the language spoken and the language to write, for each row."""

    known_as = "canary-1b-v2"
    abilities = Generating.abilities | {"translate": True}

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows as one batch."""
        spoken = [window.request.language or self.wishes.language or FALLBACK for window in windows]
        written = ["en" if w.request.task is SpeechTask.TRANSLATE else code for w, code in zip(windows, spoken, strict=True)]
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows], source_language=spoken, target_language=written
        )
        rows = self.generated(self.to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.hearing(window, row, text, code) for window, row, text, code in zip(windows, rows, texts, spoken, strict=True)
        ]


class Cohere(Generating):
    """Cohere's transcription models: the language is one per call."""

    known_as = "cohere-transcribe"

    def key(self, window: Window) -> Hashable:
        """Sampling and language are one per call."""
        return window.request.temperature, window.request.language

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows as one batch."""
        language = windows[0].request.language or self.wishes.language or FALLBACK
        made = self.features(windows, language=language)
        made.pop("audio_chunk_index", None)
        rows = self.generated(made, windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [self.hearing(window, row, text, language) for window, row, text in zip(windows, rows, texts, strict=True)]


class Qwen(Generating):
    """Qwen3-ASR: tells the language before the text unless it is told, and takes words to expect."""

    known_as = "qwen3-asr"
    abilities = Generating.abilities | {"detects_language": True, "prompt": True, "hotwords": True}

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows],
            language=[_name(window.request.language) for window in windows],
            prompt=[context(window.request) or None for window in windows],
        )
        rows = self.generated(self.to_model(made), windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        answers = self.processor.parse_output(texts)
        return [
            self.hearing(window, row, answer["transcription"], window.request.language or _code(answer["language"]))
            for window, row, answer in zip(windows, rows, answers, strict=True)
        ]


class Glm(Generating):
    """GLM-ASR: a chat whose only question is to transcribe."""

    loads = "AutoModelForMultimodalLM"

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request([window.audio for window in windows])
        rows = self.generated(self.to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.hearing(window, row, text, window.request.language or "")
            for window, row, text in zip(windows, rows, texts, strict=True)
        ]


def context(request: TranscriptionRequest) -> str:
    """What a model is told to expect: the prompt, then the hotwords."""
    return " ".join(part for part in (request.prompt, ", ".join(request.hotwords)) if part)


def _name(code: str | None) -> str | None:
    return _SPELLED[code].title() if code else None


def _code(name: str | None) -> str:
    """The code of a language as the model spells it; empty when it said none."""
    return _CODES.get((name or "").lower(), "")
