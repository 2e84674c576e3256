"""Splits a command line into words as llama-swap does: POSIX quoting, no shell, no variables, no wildcards.

It differs from `shlex.split`: inside double quotes `\\$` and `\\`` lose their backslash as in a shell, an open quote ends with
the line, and a carriage return is an ordinary character.
"""

from __future__ import annotations

from collections.abc import Iterator

BLANKS = " \t\n"
ESCAPED_IN_QUOTES = '"\\$`'


def split_command(command: str) -> list[str]:
    """The program and its arguments. Lines that are comments are left out, a line that ends in a backslash goes on."""
    return list(_split_words("\n".join(_join_continuation(line) for line in strip_comments(command).split("\n"))))


def strip_comments(command: str) -> str:
    """The command without lines that begin with `#`; a `#` further right is part of the command."""
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def _join_continuation(line: str) -> str:
    trimmed = line.strip()
    return f"{trimmed[:-1]} " if trimmed.endswith("\\") else line


def _split_words(text: str) -> Iterator[str]:
    letters = iter(text)
    word: list[str] | None = None  # None between words: '' is a word, and so is an empty pair of quotes
    for letter in letters:
        if letter in BLANKS:
            if word is not None:
                yield "".join(word)
            word = None
            continue
        word = [] if word is None else word
        if letter == "'":
            word.extend(_read_single_quoted(letters))
        elif letter == '"':
            word.extend(_read_double_quoted(letters))
        else:
            word.append(next(letters, "") if letter == "\\" else letter)
    if word is not None:
        yield "".join(word)


def _read_single_quoted(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == "'":
            return
        yield letter


def _read_double_quoted(letters: Iterator[str]) -> Iterator[str]:
    for letter in letters:
        if letter == '"':
            return
        if letter == "\\":
            escaped = next(letters, "")
            yield escaped if escaped and escaped in ESCAPED_IN_QUOTES else f"\\{escaped}"
        else:
            yield letter
