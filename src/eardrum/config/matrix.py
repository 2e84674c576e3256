"""The matrix: which models may be loaded together, as expressions over models.

    sets:
      small: gemma & (whisper | moonshine)
      all: large | +small

`&` puts together, `|` is either, `+name` is another set, and a word is a model or a name from `vars`. An expression stands for
a family of sets of models; parsing does not spell the family out, which for ten times ten models would be ten thousand million.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from eardrum.config.known import nearest
from eardrum.config.llama_swap import Matrix

TOKEN = re.compile(r"\s*(?:([\w.-]+)|(.))", re.DOTALL)
IDENT = re.compile(r"[\w.-]+")
VAR = re.compile(r"[a-zA-Z0-9.-]{1,32}", re.ASCII)
DEEPEST = 100
"""Parentheses and references inside one another."""


@dataclass(frozen=True, slots=True)
class Ident:
    """A model, by its id."""

    model: str


@dataclass(frozen=True, slots=True)
class And:
    """Sets that hold one from each part."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Sets of any part, the first written first."""

    parts: tuple[Expression, ...]


Expression = Ident | And | Or
"""A set that is referred to twice is one object in two places: walk with a memory of what was seen."""


class MatrixError(ValueError):
    """An expression or a name is wrong; `path` is where below the matrix."""

    def __init__(self, path: tuple[str, ...], message: str):
        super().__init__(message)
        self.path = path
        self.message = message


def parse(matrix: Matrix, models: Collection[str]) -> dict[str, Expression]:
    """The sets by name, in the order written, with ids of models for words.

    Raises:
        MatrixError: bad grammar, or a name that is neither a var, a model nor a set.
    """
    for wrong in problems(matrix, models):
        raise wrong
    return _Sets(matrix, models).all()


def problems(matrix: Matrix, models: Collection[str]) -> Iterator[MatrixError]:
    """What is wrong with it: at most one for each name and each set."""
    for var, model in matrix.vars.items():
        if not VAR.fullmatch(var):
            yield MatrixError(("vars", var), f"The name {var!r} must be up to 32 letters, digits, `.` and `-`.")
        elif model not in models:
            yield _no_model(model, ("vars", var), models)
    for name in matrix.evict_costs:
        if (model := matrix.vars.get(name, name)) not in models and name not in matrix.vars:
            yield _no_model(model, ("evict_costs", name), models)
    sets = _Sets(matrix, models)
    told: set[tuple[str, ...]] = set()
    for name in matrix.sets:
        try:
            sets.get(name)
        except MatrixError as error:
            sets.forget_way()
            if error.path not in told:  # it may be a set's to which several refer
                told.add(error.path)
                yield error


def costs(matrix: Matrix) -> dict[str, int]:
    """What unloading a model costs, by its id; 1 for those not named."""
    return {matrix.vars.get(name, name): cost for name, cost in matrix.evict_costs.items()}


def _no_model(name: str, path: tuple[str, ...], models: Collection[str]) -> MatrixError:
    close = nearest(name, models)
    return MatrixError(path, f"There is no model {name!r}." + (f" Did you mean {close}?" if close else ""))


class _Sets:
    """Parses every set once, in whatever order they refer to each other."""

    def __init__(self, matrix: Matrix, models: Collection[str]):
        self._matrix = matrix
        self._models = models
        self._parsed: dict[str, Expression] = {}
        self._open: list[str] = []

    def all(self) -> dict[str, Expression]:
        return {name: self.get(name) for name in self._matrix.sets}

    def get(self, name: str) -> Expression:
        if name not in self._parsed:
            if name in self._open:
                circle = " -> ".join([*self._open[self._open.index(name) :], name])
                raise MatrixError(("sets", self._open[-1]), f"The sets go in a circle: {circle}.")
            self._open.append(name)
            self._parsed[name] = _Parser(name, self._matrix.sets[name], self).parsed()
            self._open.pop()
        return self._parsed[name]

    def forget_way(self) -> None:
        """Begin anew after an error."""
        self._open.clear()

    def has(self, name: str) -> bool:
        return name in self._matrix.sets

    def model(self, word: str) -> str | None:
        if word in self._matrix.vars:  # whose models have been looked at
            return self._matrix.vars[word]
        return word if word in self._models else None

    def nearest(self, word: str) -> str:
        close = nearest(word, [*self._matrix.vars, *self._models])
        return f" Did you mean {close}?" if close else ""

    @property
    def depth(self) -> int:
        return len(self._open)


class _Parser:
    """One expression, by recursive descent: or, and, atom."""

    def __init__(self, name: str, text: str, sets: _Sets):
        self._name = name
        self._sets = sets
        self._tokens = [word or sign for word, sign in TOKEN.findall(text) if (word or sign).strip()]
        self._at = 0
        self._depth = sets.depth

    def parsed(self) -> Expression:
        expression = self._or()
        if self._at < len(self._tokens):
            raise self._error(f"{self._tokens[self._at]!r} is not expected here")
        return expression

    def _or(self) -> Expression:
        parts = tuple(self._parts("|"))
        return parts[0] if len(parts) == 1 else Or(parts)

    def _and(self) -> Expression:
        parts = tuple(self._parts("&"))
        return parts[0] if len(parts) == 1 else And(parts)

    def _parts(self, sign: str) -> Iterator[Expression]:
        part = self._and if sign == "|" else self._atom
        yield part()
        while self._at < len(self._tokens) and self._tokens[self._at] == sign:
            self._at += 1
            yield part()

    def _atom(self) -> Expression:
        sign = self._next()
        if sign == "(":
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._error("it is nested too deep")
            inside = self._or()
            if self._next() != ")":
                raise self._error("a `)` is missing")
            self._depth -= 1
            return inside
        if sign == "+":
            return self._reference(self._next())
        if not IDENT.fullmatch(sign):
            raise self._error(f"{sign!r} is not expected here" if sign else "it ends where a model is expected")
        if model := self._sets.model(sign):
            return Ident(model)
        hint = f" It is a set: write +{sign}." if self._sets.has(sign) else self._sets.nearest(sign)
        raise self._error(f"there is no model {sign!r}", hint)

    def _reference(self, name: str) -> Expression:
        if self._sets.depth >= DEEPEST:
            raise self._error("it is nested too deep")
        if not self._sets.has(name):
            raise self._error(f"there is no set {name!r}")
        return self._sets.get(name)

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _error(self, what: str, hint: str = "") -> MatrixError:
        return MatrixError(("sets", self._name), f"The set {self._name} cannot be read: {what}.{hint}")


def models_of(expression: Expression) -> frozenset[str]:
    """All models that the sets speak of."""
    return frozenset(_walked(expression, set()))


def _walked(expression: Expression, seen: set[int]) -> Iterator[str]:
    if isinstance(expression, Ident):
        yield expression.model
    elif id(expression) not in seen:
        seen.add(id(expression))
        for part in expression.parts:
            yield from _walked(part, seen)


def holds(expression: Expression, models: Collection[str]) -> bool:
    """Whether one of the sets holds all of these models."""
    wanted = frozenset(models)
    return wanted in _held(expression, wanted, {})


def _held(
    expression: Expression, wanted: frozenset[str], seen: dict[int, frozenset[frozenset[str]]]
) -> frozenset[frozenset[str]]:
    """What the sets hold of the models wanted, as far as no other set holds more: few, however many sets there are."""
    if id(expression) in seen:
        return seen[id(expression)]
    if isinstance(expression, Ident):
        found = {wanted & {expression.model}}
    elif isinstance(expression, Or):
        found = {held for part in expression.parts for held in _held(part, wanted, seen)}
    else:
        found = {frozenset[str]()}
        for part in expression.parts:
            found = _largest({held | more for held in found for more in _held(part, wanted, seen)})
    seen[id(expression)] = frozenset(_largest(found))
    return seen[id(expression)]


def _largest(sets: set[frozenset[str]]) -> set[frozenset[str]]:
    return {held for held in sets if not any(held < other for other in sets)}
