"""Values of headers that repeat what a client sent, which may be anything: bounded, and in characters that a header can hold."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

MOST_NAMES, LONGEST_NAME = 20, 80
"""So much is named: a header has an end, and many clients refuse one of 8 kB."""

LONGEST_TEXT = 2000

PLAIN = "!#$&'()*+/:;=?@[]^`{|}~"
"""Besides letters, digits and `_.-`, what a name may hold as it is: no comma, which stands between two names."""


def listed(names: Iterable[str]) -> str:
    """Names with commas between. What is not plain in one is percent-encoded; of many names the first are told, and how many more
    there are."""
    unique = list(dict.fromkeys(names))
    shown = [_name(name) for name in unique[:MOST_NAMES]]
    more = len(unique) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)


def sentence(text: str) -> str:
    """A text for people: one line of ASCII."""
    text = text[:LONGEST_TEXT].encode("ascii", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _name(name: str) -> str:
    shown = quote(name[:LONGEST_NAME], safe=PLAIN, errors="replace")
    return f"{shown}..." if len(name) > LONGEST_NAME else shown
