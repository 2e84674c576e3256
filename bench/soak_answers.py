"""What became of requests, and which answers are right."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from bench.live_delays import spell_words

DOCUMENTED = {
    "busy": (503,),
    "concurrency_limit": (429,),
    "model_crashed": (500,),
    "model_load_failed": (500, 503),
    "model_unloaded": (503,),
    "upstream_died": (502,),
    "upstream_failed": (502,),
}
"""What docs/reference/api.md allows when processes are killed and models unloaded, with the statuses that belong to it."""

OLLAMAS = (429, 500, 502, 503)
"""Statuses of the same in Ollama's API, whose errors have no code."""

ALIKE = 0.5
"""The least share of the spoken text that an answer must match. Without any kills, the embedded model transcribed "followed by
the pound key" as "followed.about-bound key" in a batch with other windows: 0.53 of that text."""

KEPT = 20


class WrongAnswerError(Exception):
    """An answer that is neither right nor an error that the documentation knows."""


class RefusedAnswerError(Exception):
    """An error that the documentation knows; the message is its code."""


@dataclass(slots=True)
class SoakTally:
    """How many requests went which way, by kind."""

    right: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """By code."""
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """All of them."""
        return self.right.total() + self.left.total() + self.refused.total() + len(self.wrong)

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {code}" for code, count in self.refused.most_common()) or "none"
        right = ", ".join(f"{kind} {count}" for kind, count in sorted(self.right.items()))
        wrong = f" Wrong: {'; '.join(self.wrong[:KEPT])}." if self.wrong else ""
        return (
            f"{self.count} requests: {self.right.total()} answered right ({right}), {self.left.total()} left in the middle, "
            f"errors that the documentation knows: {refused}.{wrong}"
        )


def check_text(text: str, said: str) -> None:
    """See that it is what was said.

    Raises:
        WrongError: it is not.
    """
    expected, heard = spell_words(said), spell_words(text)
    alike = SequenceMatcher(None, expected, heard, autojunk=False).ratio()
    if alike < ALIKE:
        raise WrongAnswerError(f"{said!r} was heard as {text!r}")


def check_error(error: Any, status: int | None = None) -> None:
    """Raise what an error object of `/v1` means; its status, where it has one, must be one of its code's.

    Raises:
        RefusedError: it is one that may come.
        WrongError: it is not.
    """
    code = error.get("code") if isinstance(error, dict) and error.get("message") else None
    if isinstance(code, str) and code in DOCUMENTED and status in (None, *DOCUMENTED[code]):
        raise RefusedAnswerError(code)
    raise WrongAnswerError(f"{status or 'error'}: {json.dumps(error)[:300]}")


def check_status(status: int, body: bytes) -> None:
    """See that an answer of `/v1` is a 200; else raise as `check_error`."""
    if status == 200:
        return
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        raise WrongAnswerError(f"{status}: {body[:300]!r}") from None
    check_error(error, status)


def check_ollama_lines(status: int, body: bytes) -> list[Any]:
    """The lines of an answer of Ollama's API; errors are raised as by `check_error`."""
    try:
        lines = [json.loads(line) for line in body.splitlines()]
        error = next((line["error"] for line in lines if "error" in line), "")
    except (ValueError, TypeError):
        raise WrongAnswerError(f"{status}: {body[:300]!r}") from None
    if error and isinstance(error, str) and (status == 200 or status in OLLAMAS):
        raise RefusedAnswerError("Ollama's error")
    if status != 200 or error or not lines:
        raise WrongAnswerError(f"{status}: {body[:300]!r}")
    return lines


def parse_event_data(stream: bytes) -> list[Any]:
    """The data of server-sent events; `[DONE]` is None.

    Raises:
        WrongError: one is not whole.
    """
    try:
        lines = [line[5:].strip() for line in stream.decode().splitlines() if line.startswith("data:")]
        return [None if line == "[DONE]" else json.loads(line) for line in lines]
    except ValueError:
        raise WrongAnswerError(f"events broken off: {stream[-200:]!r}") from None
