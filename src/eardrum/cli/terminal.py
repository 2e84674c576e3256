"""Terminal output: live text, and the progress of recordings.

The displays of live text are pure: messages of a live session in, text to write out. Where stderr is no terminal, progress is
printed as lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

CLEAR_LINE = "\r\x1b[K"
"""To the beginning of the line, and erase it."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class LiveDisplay(Protocol):
    """Where messages are shown."""

    def render_message(self, message: dict[str, Any]) -> str:
        """What to write for a message of the server."""

    def render_hint(self, text: str) -> str:
        """What to write for a remark that the next text takes the place of."""


class JsonDisplay:
    """Every message as a line."""

    def render_message(self, message: dict[str, Any]) -> str:
        """The message."""
        return json.dumps(message, ensure_ascii=False) + "\n"

    def render_hint(self, _: str) -> str:
        """Nothing: remarks are for people."""
        return ""


class LineDisplay:
    """What was said, a line each, once it is certain."""

    def render_message(self, message: dict[str, Any]) -> str:
        """The text of a final message."""
        return f"{message['text']}\n" if message["type"] == "final" and message["text"] else ""

    def render_hint(self, _: str) -> str:
        """Nothing."""
        return ""


class TerminalDisplay:
    """The same, and below it the text that may still change, in place. `columns` tells how wide the terminal is."""

    def __init__(self, columns: Callable[[], int]):
        self._columns = columns

    def render_message(self, message: dict[str, Any]) -> str:
        """What takes the place of the last line."""
        match message["type"]:
            case "partial":
                return CLEAR_LINE + self._render_partial(message["stable"].lstrip(), message["tentative"])
            case "final":
                return CLEAR_LINE + LineDisplay().render_message(message)
            case "error" | "done":
                return CLEAR_LINE
        return ""

    def render_hint(self, text: str) -> str:
        """A remark in place of the last line."""
        return CLEAR_LINE + (f"{DIM}{fit_end(text, self._columns() - 1)}{PLAIN}" if text else "")

    def _render_partial(self, stable: str, tentative: str) -> str:
        """The end of the text, as much as one line holds: what does not fit could not be erased."""
        visible = fit_end(stable + tentative, self._columns() - 1)
        certain = max(0, len(visible) - len(tentative))
        return f"{visible[:certain]}{DIM}{visible[certain:]}{PLAIN}"


def fit_end(text: str, columns: int) -> str:
    """The end of a text that fits into so many columns, with an ellipsis before it if that is not all."""
    text = " ".join(text.split("\n"))
    if cell_len(text) <= columns:
        return text
    start = max(0, len(text) - columns + 1)
    while cell_len(text[start:]) > columns - 1:
        start += 1
    return "…" + text[start:]


PROGRESS_INTERVAL_S = 10.0
"""How often a line says how far a recording is."""

ProgressCallback = Callable[[float, float | None], None]
"""Told how many seconds of audio are done, and of how many, if that is known."""


@contextmanager
def show_progress(title: str) -> Iterator[ProgressCallback]:
    """Show on stderr how far one recording is. The bar is gone when the text is printed."""
    if not sys.stderr.isatty():
        yield _ProgressLines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(title, total=None, done="")
        yield lambda seconds, length: bar.update(line, completed=seconds, total=length, done=f"{seconds:.0f} s")


class _ProgressLines:
    """Progress for a log: nothing of what is done at once."""

    def __init__(self, title: str):
        self._title = title
        self._next_at: float | None = None

    def __call__(self, seconds: float, length: float | None) -> None:
        now = time.monotonic()
        if self._next_at is None:  # the first text: it may have taken long to load the model
            self._next_at = now + PROGRESS_INTERVAL_S
        if now >= self._next_at:
            self._next_at = now + PROGRESS_INTERVAL_S
            of = f" of {length:.0f} s" if length else ""
            print_status(f"{self._title}: {seconds:.0f} s{of} done")


def print_status(line: str) -> None:
    """Print a line for people, who read stderr."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
