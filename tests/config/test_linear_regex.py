"""Expressions of a config mean what Python's do, and no text makes them slow."""

from __future__ import annotations

import random
import re

import pytest

from eardrum.config.linear_regex import LinearRegex

PATTERNS = (
    r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",
    r"(a+)+$",
    r"^/(static/)?([^/]+/)*[^/]+\.css$",
    r"(?i)\.JS$",
    r"a{2,4}b?$",
    r"\d+[a-c\-]|x*y",
    r"(?:ab|a)(?:c|bcd)$",
    r"^$",
    r"\w\W\s*",
    r"(a|b|)*c",
    r"a(?!b)",
    r"(a)\1",
    r"[^a]b|\bx",
    "",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_finds_what_python_finds(pattern: str) -> None:
    chosen, expression = random.Random(1), LinearRegex(pattern)
    for _ in range(1000):
        text = "".join(chosen.choices("ab/c.jsJS1-xy d", k=chosen.randrange(12)))
        assert expression.matches(text) == bool(re.search(pattern, text)), text


@pytest.mark.parametrize("pattern", [*PATTERNS[:3], r"(.*)*x", r"(a|a)*b", r"(a|b|ab)*c$", r"(a{1,100}){1,100}c"])
def test_no_text_takes_it_long(pattern: str) -> None:
    """With Python's engine each of these would take minutes or years."""
    expression = LinearRegex(pattern)
    for text in ("a" * 60_000 + "!", "." * 60_000, ".js" * 20_000 + "!", "/ab" * 20_000 + "!"):
        expression.matches(text)
