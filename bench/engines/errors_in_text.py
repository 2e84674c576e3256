"""Word error rates, after the texts were made alike by Whisper's rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer  # type: ignore[import-untyped]
from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-untyped]

from bench.engines.folder import Recording

WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my"})
"""Languages in which each character is compared, since no space ends a word."""


def compute_word_error_rate(recordings: Sequence[Recording], texts: Sequence[str]) -> float:
    """Words wrong, missing and too many, as a share of those said; English by English rules, the rest by the basic ones."""
    normal = [_load_normalizer(recording.language) for recording in recordings]
    said = [alike(recording.text) for alike, recording in zip(normal, recordings, strict=True)]
    heard = [alike(text) for alike, text in zip(normal, texts, strict=True)]
    return float(jiwer.wer(said, heard))


def count_word_errors(said: str, heard: str, language: str) -> tuple[int, int]:
    """How many words are wrong, missing and too many, and how many were said, by the same rules."""
    alike = _load_normalizer(language)
    reference = alike(said)
    if not reference.split():
        return len(alike(heard).split()), 0
    found = jiwer.process_words(reference, alike(heard))
    return found.substitutions + found.deletions + found.insertions, len(reference.split())


@cache
def _load_normalizer(language: str) -> Any:
    if language in ("", "en"):
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=language in WITHOUT_SPACES)
