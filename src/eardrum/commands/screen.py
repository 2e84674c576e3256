"""How live text looks on a terminal, and in a file. Pure: messages of a live session in, what to write out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from rich.cells import cell_len

CLEAR = "\r\x1b[K"
"""To the beginning of the line, and erase it."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Screen(Protocol):
    """Where messages are shown."""

    def shown(self, message: dict[str, Any]) -> str:
        """What to write for a message of the server."""

    def hint(self, text: str) -> str:
        """What to write for a remark that the next text takes the place of."""


class Json:
    """Every message as a line."""

    def shown(self, message: dict[str, Any]) -> str:
        """The message."""
        return json.dumps(message, ensure_ascii=False) + "\n"

    def hint(self, _: str) -> str:
        """Nothing: remarks are for people."""
        return ""


class Lines:
    """What was said, a line each, once it is certain."""

    def shown(self, message: dict[str, Any]) -> str:
        """The text of a final message."""
        return f"{message['text']}\n" if message["type"] == "final" and message["text"] else ""

    def hint(self, _: str) -> str:
        """Nothing."""
        return ""


class Terminal:
    """The same, and below it the text that may still change, in place. `columns` tells how wide the terminal is."""

    def __init__(self, columns: Callable[[], int]):
        self._columns = columns

    def shown(self, message: dict[str, Any]) -> str:
        """What takes the place of the last line."""
        match message["type"]:
            case "partial":
                return CLEAR + self._partial(message["stable"].lstrip(), message["tentative"])
            case "final":
                return CLEAR + Lines().shown(message)
            case "error" | "done":
                return CLEAR
        return ""

    def hint(self, text: str) -> str:
        """A remark in place of the last line."""
        return CLEAR + (f"{DIM}{ending(text, self._columns() - 1)}{PLAIN}" if text else "")

    def _partial(self, stable: str, tentative: str) -> str:
        """The end of the text, as much as one line holds: what does not fit could not be erased."""
        visible = ending(stable + tentative, self._columns() - 1)
        certain = max(0, len(visible) - len(tentative))
        return f"{visible[:certain]}{DIM}{visible[certain:]}{PLAIN}"


def ending(text: str, columns: int) -> str:
    """The end of a text that fits into so many columns, with an ellipsis before it if that is not all."""
    text = " ".join(text.split("\n"))
    if cell_len(text) <= columns:
        return text
    start = max(0, len(text) - columns + 1)
    while cell_len(text[start:]) > columns - 1:
        start += 1
    return "…" + text[start:]
