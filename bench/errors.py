"""What whoever runs a benchmark can put right."""

from __future__ import annotations


class BenchError(Exception):
    """The message is a sentence or two that says what is wrong and what to do."""
