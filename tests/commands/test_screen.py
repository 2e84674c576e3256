"""How live text looks: in place on a terminal, a line each elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eardrum.commands.screen import CLEAR, DIM, PLAIN, Json, Lines, Terminal, ending


def partial(stable: str, tentative: str) -> dict[str, Any]:
    return {"type": "partial", "stable": stable, "tentative": tentative, "text": (stable + tentative).strip()}


FINAL = {"type": "final", "text": "Hello world."}


def test_a_file_gets_a_line_for_what_is_certain_and_nothing_else() -> None:
    screen = Lines()
    messages = [partial("", "Hell"), FINAL, {"type": "final", "text": ""}, {"type": "done"}, {"type": "error", "error": {}}]
    assert "".join(map(screen.shown, messages)) + screen.hint("Listening") == "Hello world.\n"


def test_json_is_every_message_a_line() -> None:
    screen = Json()
    assert json.loads(screen.shown({"type": "partial", "text": "ä"})) == {"type": "partial", "text": "ä"}
    assert screen.shown({"type": "x", "text": "ä"}).endswith('"ä"}\n')
    assert screen.hint("Listening") == ""


def test_a_terminal_shows_the_text_in_place_until_it_is_certain() -> None:
    screen = Terminal(lambda: 80)
    assert screen.hint("Listening") == f"{CLEAR}{DIM}Listening{PLAIN}"
    assert screen.hint("") == CLEAR
    assert screen.shown(partial(" Hello", " wor")) == f"{CLEAR}Hello{DIM} wor{PLAIN}"
    assert screen.shown(FINAL) == f"{CLEAR}Hello world.\n"
    assert screen.shown({"type": "final", "text": ""}) == CLEAR
    assert screen.shown({"type": "speech_started"}) == ""
    assert screen.shown({"type": "done"}) == CLEAR


@pytest.mark.parametrize("stable", ["", "one", "one two three four five six seven", "数" * 20])
def test_what_a_line_does_not_hold_is_cut_at_its_beginning(stable: str) -> None:
    shown = Terminal(lambda: 21).shown(partial(stable, " and the end"))
    text = shown.removeprefix(CLEAR).replace(DIM, "").replace(PLAIN, "")
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
    ],
)
def test_columns_are_counted_as_the_terminal_does(text: str, columns: int, cut: str) -> None:
    assert ending(text, columns) == cut
