"""Terminal output: live text, progress of recordings, errors and warnings.

The displays of live text are pure: they turn messages of a live session into text to write. If stderr is not a terminal,
progress is printed as lines and nothing is coloured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from eardrum.errors import EardrumError
from eardrum.logging_setup import RED, YELLOW, color_for_stderr

if TYPE_CHECKING:  # rich takes 2 MB, which a server would hold for nothing
    from rich.console import Console
    from rich.table import Table

CLEAR_LINE = "\r\x1b[K"
"""Moves to the beginning of the line and erases it."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


WIDE_COLUMNS = 250
"""Width of a table when stdout is not a terminal."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class LiveDisplay(Protocol):
    """Turns messages of a live session into output."""

    def render_message(self, message: dict[str, Any]) -> str:
        """Return the output for a message of the server."""

    def render_hint(self, text: str) -> str:
        """Return the output for a hint that the next text replaces."""


class JsonDisplay:
    """Shows every message as a line of JSON."""

    def render_message(self, message: dict[str, Any]) -> str:
        return json.dumps(message, ensure_ascii=False) + "\n"

    def render_hint(self, _: str) -> str:
        return ""


class LineDisplay:
    """Shows each final text as a line."""

    def render_message(self, message: dict[str, Any]) -> str:
        return f"{message['text']}\n" if message["type"] == "final" and message["text"] else ""

    def render_hint(self, _: str) -> str:
        return ""


class TerminalDisplay:
    """Shows final texts as lines, and in the last line the text that may still change. `columns` returns the terminal's width."""

    def __init__(self, columns: Callable[[], int]):
        self._columns = columns

    def render_message(self, message: dict[str, Any]) -> str:
        match message["type"]:
            case "partial":
                return CLEAR_LINE + self._render_partial(message["stable"].lstrip(), message["tentative"])
            case "final":
                return CLEAR_LINE + LineDisplay().render_message(message)
            case "error" | "done":
                return CLEAR_LINE
        return ""

    def render_hint(self, text: str) -> str:
        return CLEAR_LINE + (f"{DIM}{fit_end(text, self._columns() - 1)}{PLAIN}" if text else "")

    def _render_partial(self, stable: str, tentative: str) -> str:
        """Render the end of the text, as much as fits one line: a text that wraps cannot be erased."""
        visible = fit_end(stable + tentative, self._columns() - 1)
        certain = max(0, len(visible) - len(tentative))
        return f"{visible[:certain]}{DIM}{visible[certain:]}{PLAIN}"


def fit_end(text: str, columns: int) -> str:
    """Cut a text to its last `columns` columns, with an ellipsis in front if something is cut."""
    from rich.cells import cell_len

    text = " ".join(text.split("\n"))
    if cell_len(text) <= columns:
        return text
    if columns < 1:
        return ""
    start = max(0, len(text) - columns + 1)
    while cell_len(text[start:]) > columns - 1:
        start += 1
    return "…" + text[start:]


PROGRESS_INTERVAL_S = 10.0
"""Time between two lines of progress."""

BAR_COLUMNS, MIN_TITLE_COLUMNS = 60, 15
"""Columns that the bar and its figures take, and the fewest of the title in front of them."""

ProgressCallback = Callable[[float, float | None], None]
"""Takes the seconds of audio done, and the recording's length if it is known."""


@contextmanager
def show_progress(title: str) -> Iterator[ProgressCallback]:
    """Show the progress of one recording on stderr. The bar is erased before the text is printed."""
    if not sys.stderr.isatty():
        yield _ProgressLines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    name = TextColumn("{task.description}", markup=False)  # brackets are common in names of files
    columns = (name, BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        shown = fit_end(title, max(MIN_TITLE_COLUMNS, console.width - BAR_COLUMNS))  # rich would cut off the end, the file's name
        line = bar.add_task(shown, total=None, done="")
        yield lambda seconds, length: bar.update(line, completed=seconds, total=length, done=f"{seconds:.0f} s")


class _ProgressLines:
    """Progress as lines. A recording that takes less than the interval prints none."""

    def __init__(self, title: str):
        self._title = title
        self._next_at: float | None = None

    def __call__(self, seconds: float, length: float | None) -> None:
        now = time.monotonic()
        if self._next_at is None:  # the first segment: loading the model does not count
            self._next_at = now + PROGRESS_INTERVAL_S
        if now >= self._next_at:
            self._next_at = now + PROGRESS_INTERVAL_S
            of = f" of {length:.0f} s" if length else ""
            print_status(f"{self._title}: {seconds:.0f} s{of} done")


@cache
def get_console() -> Console:
    """Return the console of stdout."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def print_table(table: Table) -> None:
    """Print a table, with brackets in its cells as they are. If stdout is not a terminal, it is wide: a program reads one line
    per row."""
    from rich.console import Console

    console = get_console()
    (console if console.is_terminal else Console(width=WIDE_COLUMNS)).print(table, markup=False)


@contextmanager
def guard_stdout(content: str) -> Iterator[None]:
    """Turn errors of writing `content` to stdout into one for people. A reader that has closed the pipe is none of them.

    Raises:
        EardrumError: stdout cannot be written any more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python flushes stdout again at exit
        raise EardrumError(f"Cannot write {content} to stdout: {error.strerror}.") from error


def print_status(line: str, color: str = "") -> None:
    """Print a text as one line on stderr, coloured on a terminal. Names of files keep all of their spaces."""
    text = " ".join(filter(None, map(str.strip, line.splitlines())))
    print(color_for_stderr(text, color) if color else text, file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    """Print an error as one line on stderr: `eardrum: ...`, the name in red on a terminal."""
    print_status(f"{color_for_stderr('eardrum:', RED)} {message}")


def print_warning(message: str) -> None:
    """Print a warning as one line on stderr: `eardrum: ...`, the name in yellow on a terminal."""
    print_status(f"{color_for_stderr('eardrum:', YELLOW)} {message}")


def format_duration(seconds: float) -> str:
    """Format seconds: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
