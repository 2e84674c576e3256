"""Compares transcripts of the same audio."""

from __future__ import annotations

import re


def remove_logprobs(document: str) -> str:
    """Windows that share a batch are decoded with other roundings than windows alone: their probabilities differ a little."""
    return re.sub(r'("(?:avg_logprob|no_speech_prob|logprob)": ?)[-\d.e]+', r"\1?", document).strip()
