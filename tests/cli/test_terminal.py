"""How live text looks: in place on a terminal, a line each elsewhere."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from rich.table import Table

from eardrum.cli.terminal import (
    CLEAR_LINE,
    DIM,
    PLAIN,
    JsonDisplay,
    LineDisplay,
    TerminalDisplay,
    fit_end,
    print_status,
    print_table,
    show_progress,
)


def build_partial(stable: str, tentative: str) -> dict[str, Any]:
    return {"type": "partial", "stable": stable, "tentative": tentative, "text": (stable + tentative).strip()}


FINAL = {"type": "final", "text": "Hello world."}


def test_a_file_gets_a_line_for_what_is_certain_and_nothing_else() -> None:
    screen = LineDisplay()
    messages = [build_partial("", "Hell"), FINAL, {"type": "final", "text": ""}, {"type": "done"}, {"type": "error", "error": {}}]
    assert "".join(map(screen.render_message, messages)) + screen.render_hint("Listening") == "Hello world.\n"


def test_json_is_every_message_a_line() -> None:
    screen = JsonDisplay()
    assert json.loads(screen.render_message({"type": "partial", "text": "ä"})) == {"type": "partial", "text": "ä"}
    assert screen.render_message({"type": "x", "text": "ä"}).endswith('"ä"}\n')
    assert screen.render_hint("Listening") == ""


def test_a_terminal_shows_the_text_in_place_until_it_is_certain() -> None:
    screen = TerminalDisplay(lambda: 80)
    assert screen.render_hint("Listening") == f"{CLEAR_LINE}{DIM}Listening{PLAIN}"
    assert screen.render_hint("") == CLEAR_LINE
    assert screen.render_message(build_partial(" Hello", " wor")) == f"{CLEAR_LINE}Hello{DIM} wor{PLAIN}"
    assert screen.render_message(FINAL) == f"{CLEAR_LINE}Hello world.\n"
    assert screen.render_message({"type": "final", "text": ""}) == CLEAR_LINE
    assert screen.render_message({"type": "speech_started"}) == ""
    assert screen.render_message({"type": "done"}) == CLEAR_LINE


@pytest.mark.parametrize("stable", ["", "one", "one two three four five six seven", "数" * 20])
def test_what_a_line_does_not_hold_is_cut_at_its_beginning(stable: str) -> None:
    shown = TerminalDisplay(lambda: 21).render_message(build_partial(stable, " and the end"))
    text = shown.removeprefix(CLEAR_LINE).replace(DIM, "").replace(PLAIN, "")
    assert (stable + " and the end").lstrip().endswith(text.removeprefix("…").lstrip())
    assert len(text) <= 20
    assert shown.endswith(f"the end{PLAIN}")


@pytest.mark.parametrize(
    ("text", "columns", "cut"),
    [
        ("hello", 5, "hello"),
        ("hello", 4, "…llo"),
        ("数字数字", 8, "数字数字"),
        ("数字数字", 7, "…字数字"),
        ("数字数字", 6, "…数字"),
        ("a\nb", 5, "a b"),
        ("", 5, ""),
        ("hello", 1, "…"),
        ("hello", 0, ""),
    ],
)
def test_columns_are_counted_as_the_terminal_does(text: str, columns: int, cut: str) -> None:
    assert fit_end(text, columns) == cut


class FakeTerminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_brackets_in_the_name_of_a_file_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that load videos write their ids so."""
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    with show_progress("[1/2] Talk [dQw4w9WgXcQ].webm") as advance:
        advance(1.0, 2.0)
    assert "[1/2] Talk [dQw4w9WgXcQ].webm" in terminal.getvalue()


def test_brackets_in_a_table_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("key", "file")
    table.add_row("[bot] home", "[/a]")
    print_table(table)
    assert "[bot] home" in (printed := capsys.readouterr().out)
    assert "[/a]" in printed


def test_a_message_is_one_line_in_which_names_are_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_status("There is no file a  b.wav.\n  Traceback:\n\n  the end\n")
    assert capsys.readouterr().err == "There is no file a  b.wav. Traceback: the end\n"
