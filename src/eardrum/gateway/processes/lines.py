"""Bytes that a process prints to lines of text."""

from __future__ import annotations

import codecs

LONGEST = 8 << 10
"""Characters after which a line that does not end is taken as it is."""


class Lines:
    """Takes bytes as they come. What a carriage return overwrites, as progress bars do, is dropped as on a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, self._open = (self._open + self._decoder.decode(data)).split("\n")
        lines = [_shown(line.removesuffix("\r")) for line in whole]
        if "\r" in self._open[:-1]:
            self._open = _after_return(self._open[:-1]) + self._open[-1]
        while len(self._open) > LONGEST:
            lines.append(self._open[:LONGEST])
            self._open = self._open[LONGEST:]
        return lines

    def rest(self) -> list[str]:
        """What is left at the end."""
        line, self._open = _shown(self._open.removesuffix("\r")), ""
        return [line] if line else []


def _shown(line: str) -> str:
    return _after_return(line).rstrip()


def _after_return(line: str) -> str:
    return line.rpartition("\r")[2]
