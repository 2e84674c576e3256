"""How far a recording is: a bar on a terminal, elsewhere lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_S = 10.0
"""How often a line says how far a recording is."""

Advance = Callable[[float, float | None], None]
"""Told how many seconds of audio are done, and of how many, if that is known."""


@contextmanager
def show_progress(title: str) -> Iterator[Advance]:
    """Show on stderr how far one recording is. The bar is gone when the text is printed."""
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(title, total=None, done="")
        yield lambda seconds, length: bar.update(line, completed=seconds, total=length, done=f"{seconds:.0f} s")


class _Lines:
    """Progress for a log: nothing of what is done at once."""

    def __init__(self, title: str):
        self._title = title
        self._next_at: float | None = None

    def __call__(self, seconds: float, length: float | None) -> None:
        now = time.monotonic()
        if self._next_at is None:  # the first text: it may have taken long to load the model
            self._next_at = now + EVERY_S
        if now >= self._next_at:
            self._next_at = now + EVERY_S
            of = f" of {length:.0f} s" if length else ""
            say(f"{self._title}: {seconds:.0f} s{of} done")


def say(line: str) -> None:
    """Print a line for people, who read stderr."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
