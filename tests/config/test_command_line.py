"""Command lines to words."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eardrum.config.macros import split_command


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        (" \t\n ", []),
        ("server --port 5800", ["server", "--port", "5800"]),
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("a''b \"\" ''", ["ab", "", ""]),
        ("a\\ b", ["a b"]),
        (r'"\$HOME \`x\` \" \\ \n"', [r'$HOME `x` " \ \n']),
        (r"'\$ \\'", [r"\$ \\"]),
        (r"\$HOME $HOME *.gguf ~", ["$HOME", "$HOME", "*.gguf", "~"]),
        ("a 'b c", ["a", "b c"]),
        ('a "b c', ["a", "b c"]),
        ("a\rb", ["a\rb"]),
        ("a | b && c > d; e", ["a", "|", "b", "&&", "c", ">", "d;", "e"]),
        ("# before\nserver\n  # between\n-m x\n#after", ["server", "-m", "x"]),
        ("server --seed #1 -m a#b", ["server", "--seed", "#1", "-m", "a#b"]),
        ("server \\\n  --port 1 \\ \n --host x\\", ["server", "--port", "1", "--host", "x"]),
        ("server \\\n # off \\\n --port 1", ["server", "--port", "1"]),
        ("a\\\nb", ["a", "b"]),
        ("-- 'übung 語'", ["--", "übung 語"]),
    ],
)
def test_a_line(line: str, expected: list[str]) -> None:
    assert split_command(line) == expected


@given(st.text(st.sampled_from("ab1- =.'\"\\\t\n#ü"), max_size=30))
def test_as_shlex_where_the_two_agree(line: str) -> None:
    """They differ in carriage returns, escaped dollars and backticks, open quotes, comments and lines that go on."""
    assume(not any(part.strip().startswith("#") or part.strip().endswith("\\") for part in line.split("\n")))
    try:
        expected = shlex.split(line)
    except ValueError:
        assert isinstance(split_command(line), list), "an open quote is no error"
        return
    assert split_command(line) == expected


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12), max_size=6))
def test_what_is_quoted_comes_back(arguments: list[str]) -> None:
    line = shlex.join(["server", *arguments])
    assume(not line.strip().endswith("\\"))
    assert split_command(line) == ["server", *arguments]
