"""Regular expressions of a config, applied to what clients send, in a time that grows with its length and no faster.

Python's own engine tries every way in which repetitions can share a text: `.*\\.js$` takes quadratic time, `(a+)+$` exponential.
Go's, for which llama-swap's configs are written, goes through the text once and keeps the set of places in the expression where
it may be; so does this one. `re` still reads the expression, so that it is Python's in every other respect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST_PLACES = 2000
"""Of one expression: `(a{1000}){1000}` would have a million."""

MOST_KEPT = 2000
"""Steps that are remembered, so that most characters cost one look."""

SHORT = 200
"""Characters of a text to which expressions are applied that look back or ahead: they need Python's engine."""

ASCII = [chr(code) for code in range(128)]

Places = frozenset[int]


class _UnsupportedError(Exception):
    """The expression is not regular, or has another meaning at the ends of lines."""


class Expression:
    """Whether an expression is found in an ASCII text.

    Raises:
        re.error: it is none.
    """

    def __init__(self, pattern: str):
        self._re = re.compile(pattern)
        self._steps: list[tuple[str, Any, tuple[int, ...]]] = [("match", None, ())]
        self._kept: dict[tuple[Places, str, bool], Places] = {}
        try:
            if self._re.flags & (re.MULTILINE | re.LOCALE):
                raise _UnsupportedError
            self._start: int | None = self._sequence(parser.parse(pattern), 0)
        except _UnsupportedError:
            self._start = None

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere."""
        if self._start is None:
            return len(text) <= SHORT and self._re.search(text) is not None
        at = self._reached((self._start,), first=True, last=not text)
        for index, character in enumerate(text):
            if 0 in at:
                return True
            at = self._after(at, character, last=index + 1 == len(text))
        return 0 in at

    def _after(self, at: Places, character: str, *, last: bool) -> Places:
        key = (at, character, last)
        if (known := self._kept.get(key)) is None:
            assert self._start is not None
            steps = (self._steps[place] for place in at)
            moved = [then[0] for kind, characters, then in steps if kind == "one" and character in characters]
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            known = self._kept[key] = self._reached((*moved, self._start), first=False, last=last)
        return known

    def _reached(self, places: Iterable[int], *, first: bool, last: bool) -> Places:
        """Where one can be without a further character."""
        seen: set[int] = set()
        waiting = list(places)
        while waiting:
            if (place := waiting.pop()) in seen:
                continue
            seen.add(place)
            kind, at_end, then = self._steps[place]
            if kind == "any of" or (kind == "edge" and (last if at_end else first)):
                waiting += then
        return frozenset(seen)

    def _add(self, kind: str, what: Any, *then: int) -> int:
        if len(self._steps) >= MOST_PLACES:
            raise _UnsupportedError
        self._steps.append((kind, what, then))
        return len(self._steps) - 1

    def _sequence(self, nodes: Iterable[tuple[Any, Any]], then: int) -> int:
        for kind, argument in reversed(list(nodes)):
            then = self._node(kind, argument, then)
        return then

    def _node(self, kind: Any, argument: Any, then: int) -> int:
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._add("one", self._characters(kind, argument), then)
        if kind is sre.SUBPATTERN:
            _, flags, without, nodes = argument
            if flags or without:
                raise _UnsupportedError
            return self._sequence(nodes, then)
        if kind is sre.BRANCH:
            return self._add("any of", None, *(self._sequence(nodes, then) for nodes in argument[1]))
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeated(*argument, then=then)
        if kind is sre.AT and argument in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING, sre.AT_END, sre.AT_END_STRING):
            return self._add("edge", argument in (sre.AT_END, sre.AT_END_STRING), then)
        raise _UnsupportedError

    def _repeated(self, least: int, most: Any, nodes: Any, *, then: int) -> int:
        if most is sre.MAXREPEAT:
            loop = self._add("any of", None)
            self._steps[loop] = ("any of", None, (self._sequence(nodes, loop), then))
            then = loop
        else:
            for _ in range(most - least):
                then = self._add("any of", None, self._sequence(nodes, then), then)
        for _ in range(least):
            then = self._sequence(nodes, then)
        return then

    def _characters(self, kind: Any, argument: Any) -> frozenset[str]:
        one = re.compile("".join(_written(kind, argument)), self._re.flags & (re.IGNORECASE | re.DOTALL | re.ASCII))
        return frozenset(character for character in ASCII if one.fullmatch(character))


def _written(kind: Any, argument: Any) -> Iterator[str]:
    """An expression for one character, in words again."""
    if kind is sre.ANY:
        yield "."
    elif kind is sre.LITERAL:
        yield f"[{_escaped(argument)}]"
    elif kind is sre.NOT_LITERAL:
        yield f"[^{_escaped(argument)}]"
    else:
        negated = argument[0][0] is sre.NEGATE
        yield "[^" if negated else "["
        for item, value in argument[negated:]:
            if item is sre.LITERAL:
                yield _escaped(value)
            elif item is sre.RANGE:
                yield f"{_escaped(value[0])}-{_escaped(value[1])}"
            elif value in CATEGORIES:
                yield CATEGORIES[value]
            else:
                raise _UnsupportedError
        yield "]"


CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"
