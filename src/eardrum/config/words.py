"""A command line to its words, as llama-swap splits it: POSIX quoting, no shell, no variables, no wildcards.

It differs from `shlex.split`: inside double quotes `\\$` and `\\`` lose their backslash as in a shell, a quote left open ends
with the line, and a carriage return is a letter like others.
"""

from __future__ import annotations

from collections.abc import Iterator

BLANK = " \t\n"
ESCAPED_IN_QUOTES = '"\\$`'


def split(command: str) -> list[str]:
    """The program and its arguments. Lines that are comments are left out, a line that ends in a backslash goes on."""
    return list(_words("\n".join(_continued(line) for line in without_comments(command).split("\n"))))


def without_comments(command: str) -> str:
    """The command without lines that begin with `#`; a `#` further right is part of the command."""
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def _continued(line: str) -> str:
    trimmed = line.strip()
    return f"{trimmed[:-1]} " if trimmed.endswith("\\") else line


def _words(text: str) -> Iterator[str]:
    letters = iter(text)
    word: list[str] | None = None  # None between words: '' is a word, and so is an empty pair of quotes
    for letter in letters:
        if letter in BLANK:
            if word is not None:
                yield "".join(word)
            word = None
            continue
        word = [] if word is None else word
        if letter == "'":
            word.extend(_until_quote(letters))
        elif letter == '"':
            word.extend(_until_double_quote(letters))
        else:
            word.append(next(letters, "") if letter == "\\" else letter)
    if word is not None:
        yield "".join(word)


def _until_quote(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == "'":
            return
        yield letter


def _until_double_quote(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == '"':
            return
        if letter == "\\":
            escaped = next(letters, "")
            yield escaped if escaped and escaped in ESCAPED_IN_QUOTES else f"\\{escaped}"
        else:
            yield letter
