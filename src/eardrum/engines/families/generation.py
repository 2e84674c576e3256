"""Step by step generation, watched: log probabilities without keeping every step's scores, and an end for rows nobody wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eardrum.engines.base import Window


@dataclass(slots=True)
class Row:
    """What was generated for one window, the end token left out."""

    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    """Natural log probability of each token and of the end token; empty after a beam search."""
    avg_logprob: float = 0.0


class Watcher:
    """A logits processor that notes the probability of each chosen token when it sees it as the last of the input."""

    def __init__(self) -> None:
        self.prompt = 0
        """Tokens there were before the first step."""
        self._logprobs: Any = None
        self._chosen: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Note the token chosen from the scores before these; change nothing. input_ids [b, t], scores [b, vocabulary]."""
        if self._logprobs is None:
            self.prompt = input_ids.shape[1]
        else:
            self._note(input_ids[:, -1:])
        self._logprobs = scores.float().log_softmax(-1)
        return scores

    def finish(self, sequences: Any) -> list[list[float]]:
        """The log probabilities of all steps, one list per row."""
        self._note(sequences[:, -1:])
        return [list(row) for row in zip(*(step.tolist() for step in self._chosen), strict=True)]

    def _note(self, chosen: Any) -> None:
        self._chosen.append(self._logprobs.gather(1, chosen)[:, 0])


class GivenUp:
    """A stopping criterion that ends the rows whose windows were cancelled."""

    def __init__(self, windows: Sequence[Window]):
        self._windows = windows

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """One truth value per row; input_ids [b x beams, t]."""
        return _per_row(input_ids, [window.cancelled for window in self._windows])


class Limit:
    """A stopping criterion that ends each row at a limit of its own, so that its text does not depend on its company.

    `before` tells how many tokens there were before the first step.
    """

    def __init__(self, limits: Sequence[int], before: Callable[[], int]):
        self._limits = limits
        self._before = before

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """One truth value per row; input_ids [b x beams, t]."""
        written = input_ids.shape[1] - self._before()
        return _per_row(input_ids, [written >= limit for limit in self._limits])


def generate(
    run: Any,
    inputs: Any,
    *,
    limits: Sequence[int],
    end: int | list[int],
    beams: int = 1,
    rules: Sequence[Any] = (),
    ends: Sequence[Any] = (),
    **more: Any,
) -> list[Row]:
    """Generate tokens for each row with `run`, a model's `generate`.

    `inputs` are its keyword arguments, `limits` the most tokens of each row, `end` the token or tokens that end a row,
    `rules` logits processors, `ends` stopping criteria.
    """
    watcher = Watcher()
    made = run(
        **inputs,
        **more,
        num_beams=beams,
        max_new_tokens=max(limits),
        return_dict_in_generate=True,
        output_scores=beams > 1,
        logits_processor=[*rules, watcher],
        stopping_criteria=[Limit(limits, lambda: watcher.prompt), *ends],
    )
    last = {end} if isinstance(end, int) else set(end)
    written = made.sequences[:, watcher.prompt :].tolist()
    rows = [_cut(ids[:limit], last) for ids, limit in zip(written, limits, strict=True)]
    if beams > 1:
        # The score of a beam is the mean log probability of its tokens, as long as no length penalty is set.
        return [Row(tokens, avg_logprob=score) for tokens, score in zip(rows, made.sequences_scores.tolist(), strict=True)]
    noted = watcher.finish(made.sequences)
    kept = [logprobs[: len(row) + 1] for row, logprobs in zip(rows, noted, strict=True)]
    return [Row(row, logprobs, sum(logprobs) / len(logprobs)) for row, logprobs in zip(rows, kept, strict=True)]


def _per_row(input_ids: Any, ended: Sequence[bool]) -> Any:
    beams = len(input_ids) // len(ended)
    return input_ids.new_tensor([end for end in ended for _ in range(beams)]).bool()


def _cut(ids: list[int], ends: set[int]) -> list[int]:
    at = next((i for i, id in enumerate(ids) if id in ends), len(ids))
    return ids[:at]
