"""Whisper: its rounds are shared with the other engines that run it."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from eardrum.engines.base import Hearing, Window
from eardrum.engines.families.base import Family, Wishes
from eardrum.engines.families.whisper_model import WhisperModel
from eardrum.engines.whisper.rounds import Rounds
from eardrum.engines.whisper.rules import Thresholds
from eardrum.transcription import Capabilities

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Whisper(Family):
    """Whisper tiny to large-v3, turbo, distil and what others trained from them."""

    loads = "AutoModelForSpeechSeq2Seq"
    abilities = {
        "detects_language": True,
        "translate": True,
        "words": True,
        "logprobs": True,
        "prompt": True,
        "hotwords": True,
        "temperature": True,
        "fixed_window": True,
    }

    def __init__(self, model: Any, processor: Any, wishes: Wishes):
        super().__init__(model, processor, wishes)
        library, torch = importlib.import_module("transformers"), importlib.import_module("torch")
        self._whisper = WhisperModel(library, torch, model, processor, beam_size=wishes.beam_size)
        self._rounds = Rounds(self._whisper, thresholds=Thresholds(), temperatures=TEMPERATURES, prompt="", remembers=False)

    def hear(self, windows: Sequence[Window]) -> list[Hearing]:
        """Decode the windows together."""
        return self._rounds.transcribe(windows)

    def key(self, window: Window) -> Hashable:
        """Where the text begins, and the temperature."""
        return self._rounds.key(window)

    def refined(self, capabilities: Capabilities) -> Capabilities:
        """English-only models neither detect nor translate; words need to be told which heads follow the speech."""
        several = self._whisper.multilingual
        return replace(
            capabilities,
            languages=tuple(self._whisper.special.languages) if several else ("en",),
            detects_language=several,
            translate=several,
            words=self._whisper.aligns,
            logprobs=self._whisper.aligns,
        )
