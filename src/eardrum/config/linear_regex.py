r"""Regular expressions that match in linear time, for patterns from the config that are applied to client input.

Python's engine tries every way in which repetitions can share a text: `.*\.js$` takes quadratic time, `(a+)+$` exponential. Go's,
for which llama-swap's configs are written, passes over the text once and keeps the set of states; so does this one. `re` still
parses the pattern, so the syntax is Python's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

parser: Any = import_module("re._parser")
sre: Any = import_module("re._constants")

MAX_STATES = 2000
"""Of one expression: `(a{1000}){1000}` would have a million."""

MAX_CACHED_STEPS = 2000
"""Steps that are remembered, so that most characters cost one look."""

MAX_FALLBACK_LENGTH = 200
"""Characters of a text to which expressions are applied that look back or ahead: they need Python's engine."""

ASCII = [chr(code) for code in range(128)]

StateSet = frozenset[int]


class _UnsupportedPatternError(Exception):
    """The expression is not regular, or has another meaning at the ends of lines."""


class LinearRegex:
    """Searches ASCII texts for an expression.

    Raises:
        re.error: it is none.
    """

    def __init__(self, pattern: str):
        self._re = re.compile(pattern)
        self._states: list[tuple[str, Any, tuple[int, ...]]] = [("match", None, ())]
        self._transitions: dict[tuple[StateSet, str, bool], StateSet] = {}
        try:
            if self._re.flags & (re.MULTILINE | re.LOCALE):
                raise _UnsupportedPatternError
            self._start: int | None = self._compile_sequence(parser.parse(pattern), 0)
        except _UnsupportedPatternError:
            self._start = None

    def matches(self, text: str) -> bool:
        """Check whether the expression matches anywhere."""
        if self._start is None:
            return len(text) <= MAX_FALLBACK_LENGTH and self._re.search(text) is not None
        at = self._expand_states((self._start,), first=True, last=not text)
        for index, character in enumerate(text):
            if 0 in at:
                return True
            at = self._advance(at, character, last=index + 1 == len(text))
        return 0 in at

    def _advance(self, at: StateSet, character: str, *, last: bool) -> StateSet:
        key = (at, character, last)
        if (known := self._transitions.get(key)) is None:
            assert self._start is not None
            steps = (self._states[place] for place in at)
            moved = [then[0] for kind, characters, then in steps if kind == "one" and character in characters]
            if len(self._transitions) >= MAX_CACHED_STEPS:
                self._transitions.clear()
            known = self._transitions[key] = self._expand_states((*moved, self._start), first=False, last=last)
        return known

    def _expand_states(self, places: Iterable[int], *, first: bool, last: bool) -> StateSet:
        """Where one can be without a further character."""
        seen: set[int] = set()
        waiting = list(places)
        while waiting:
            if (place := waiting.pop()) in seen:
                continue
            seen.add(place)
            kind, at_end, then = self._states[place]
            if kind == "any of" or (kind == "edge" and (last if at_end else first)):
                waiting += then
        return frozenset(seen)

    def _add_state(self, kind: str, what: Any, *then: int) -> int:
        if len(self._states) >= MAX_STATES:
            raise _UnsupportedPatternError
        self._states.append((kind, what, then))
        return len(self._states) - 1

    def _compile_sequence(self, nodes: Iterable[tuple[Any, Any]], then: int) -> int:
        for kind, argument in reversed(list(nodes)):
            then = self._compile_node(kind, argument, then)
        return then

    def _compile_node(self, kind: Any, argument: Any, then: int) -> int:
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._add_state("one", self._list_characters(kind, argument), then)
        if kind is sre.SUBPATTERN:
            _, flags, without, nodes = argument
            if flags or without:
                raise _UnsupportedPatternError
            return self._compile_sequence(nodes, then)
        if kind is sre.BRANCH:
            return self._add_state("any of", None, *(self._compile_sequence(nodes, then) for nodes in argument[1]))
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._compile_repeat(*argument, then=then)
        if kind is sre.AT and argument in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING, sre.AT_END, sre.AT_END_STRING):
            return self._add_state("edge", argument in (sre.AT_END, sre.AT_END_STRING), then)
        raise _UnsupportedPatternError

    def _compile_repeat(self, least: int, most: Any, nodes: Any, *, then: int) -> int:
        if most is sre.MAXREPEAT:
            loop = self._add_state("any of", None)
            self._states[loop] = ("any of", None, (self._compile_sequence(nodes, loop), then))
            then = loop
        else:
            for _ in range(most - least):
                then = self._add_state("any of", None, self._compile_sequence(nodes, then), then)
        for _ in range(least):
            then = self._compile_sequence(nodes, then)
        return then

    def _list_characters(self, kind: Any, argument: Any) -> frozenset[str]:
        one = re.compile("".join(_render_character(kind, argument)), self._re.flags & (re.IGNORECASE | re.DOTALL | re.ASCII))
        return frozenset(character for character in ASCII if one.fullmatch(character))


def _render_character(kind: Any, argument: Any) -> Iterator[str]:
    """An expression for one character, in words again."""
    if kind is sre.ANY:
        yield "."
    elif kind is sre.LITERAL:
        yield f"[{_escape_code(argument)}]"
    elif kind is sre.NOT_LITERAL:
        yield f"[^{_escape_code(argument)}]"
    else:
        negated = argument[0][0] is sre.NEGATE
        yield "[^" if negated else "["
        for item, value in argument[negated:]:
            if item is sre.LITERAL:
                yield _escape_code(value)
            elif item is sre.RANGE:
                yield f"{_escape_code(value[0])}-{_escape_code(value[1])}"
            elif value in CATEGORIES:
                yield CATEGORIES[value]
            else:
                raise _UnsupportedPatternError
        yield "]"


CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


def _escape_code(code: int) -> str:
    return f"\\U{code:08x}"
