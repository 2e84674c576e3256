"""The matrix: expressions for the sets of models that may be loaded together.

    sets:
      small: gemma & (whisper | moonshine)
      all: large | +small

`&` combines, `|` is either, `+name` refers to another set, and a word is a model or a name from `vars`. An expression describes a
family of sets of models; parsing does not enumerate it, which for ten times ten models would be ten thousand million sets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from msgspec import Struct

from eardrum.config.llama_swap import MatrixSettings
from eardrum.config.setting_names import find_nearest

TOKEN = re.compile(r"\s*(?:([\w.-]+)|(.))", re.DOTALL)
MODEL_NAME = re.compile(r"[\w.-]+")
VARIABLE_NAME = re.compile(r"[a-zA-Z0-9.-]{1,32}", re.ASCII)
MAX_DEPTH = 100
"""Limit of nested parentheses and references."""


class ModelReference(Struct, frozen=True):
    """A model, by its id."""

    model: str


class AndExpression(Struct, frozen=True):
    """Sets that hold one from each part."""

    parts: tuple[MatrixExpression, ...]


class OrExpression(Struct, frozen=True):
    """Sets of any part, the first written first."""

    parts: tuple[MatrixExpression, ...]


MatrixExpression = ModelReference | AndExpression | OrExpression
"""A set that is referred to twice is one object in two places: walk with a memory of what was seen."""


class MatrixError(ValueError):
    """An expression or a name is wrong; `path` is where below the matrix."""

    def __init__(self, path: tuple[str, ...], message: str):
        super().__init__(message)
        self.path = path
        self.message = message


def parse_matrix(matrix: MatrixSettings, models: Collection[str]) -> dict[str, MatrixExpression]:
    """The sets by name, in the order written, with ids of models for words.

    Raises:
        MatrixError: bad grammar, or a name that is neither a var, a model nor a set.
    """
    for wrong in find_problems(matrix, models):
        raise wrong
    return _MatrixSets(matrix, models).parse_all()


def find_problems(matrix: MatrixSettings, models: Collection[str]) -> Iterator[MatrixError]:
    """Find the errors of a matrix: at most one for each name and each set."""
    for var, model in matrix.vars.items():
        if not VARIABLE_NAME.fullmatch(var):
            yield MatrixError(("vars", var), f"The name {var!r} must be up to 32 letters, digits, `.` and `-`.")
        elif model not in models:
            yield _build_unknown_model_error(model, ("vars", var), models)
    for name in matrix.evict_costs:
        if (model := matrix.vars.get(name, name)) not in models and name not in matrix.vars:
            yield _build_unknown_model_error(model, ("evict_costs", name), models)
    sets = _MatrixSets(matrix, models)
    told: set[tuple[str, ...]] = set()
    for name in matrix.sets:
        try:
            sets.parse_set(name)
        except MatrixError as error:
            sets.clear_path()
            if error.path not in told:  # several sets may refer to one with an error
                told.add(error.path)
                yield error


def list_eviction_costs(matrix: MatrixSettings) -> dict[str, int]:
    """List the cost of unloading each model by its id; models not listed cost 1."""
    return {matrix.vars.get(name, name): cost for name, cost in matrix.evict_costs.items()}


def _build_unknown_model_error(name: str, path: tuple[str, ...], models: Collection[str]) -> MatrixError:
    close = find_nearest(name, models)
    return MatrixError(path, f"There is no model {name!r}." + (f" Did you mean {close}?" if close else ""))


class _MatrixSets:
    """Parses every set once, in any order in which they refer to each other."""

    def __init__(self, matrix: MatrixSettings, models: Collection[str]):
        self._matrix = matrix
        self._models = models
        self._parsed: dict[str, MatrixExpression] = {}
        self._open_sets: list[str] = []

    def parse_all(self) -> dict[str, MatrixExpression]:
        return {name: self.parse_set(name) for name in self._matrix.sets}

    def parse_set(self, name: str) -> MatrixExpression:
        if name not in self._parsed:
            if name in self._open_sets:
                circle = " -> ".join([*self._open_sets[self._open_sets.index(name) :], name])
                raise MatrixError(("sets", self._open_sets[-1]), f"The sets refer to each other in a circle: {circle}.")
            self._open_sets.append(name)
            self._parsed[name] = _ExpressionParser(name, self._matrix.sets[name], self).parse()
            self._open_sets.pop()
        return self._parsed[name]

    def clear_path(self) -> None:
        """Begin again after an error."""
        self._open_sets.clear()

    def has(self, name: str) -> bool:
        return name in self._matrix.sets

    def find_model(self, word: str) -> str | None:
        if word in self._matrix.vars:  # `vars` are already checked
            return self._matrix.vars[word]
        return word if word in self._models else None

    def suggest_model(self, word: str) -> str:
        close = find_nearest(word, [*self._matrix.vars, *self._models])
        return f" Did you mean {close}?" if close else ""

    @property
    def depth(self) -> int:
        return len(self._open_sets)


class _ExpressionParser:
    """One expression, by recursive descent: or, and, atom."""

    def __init__(self, name: str, text: str, sets: _MatrixSets):
        self._name = name
        self._sets = sets
        self._tokens = [word or sign for word, sign in TOKEN.findall(text) if (word or sign).strip()]
        self._position = 0
        self._depth = sets.depth

    def parse(self) -> MatrixExpression:
        expression = self._parse_or()
        if self._position < len(self._tokens):
            raise self._build_error(f"{self._tokens[self._position]!r} is not expected here")
        return expression

    def _parse_or(self) -> MatrixExpression:
        parts = tuple(self._parse_parts("|"))
        return parts[0] if len(parts) == 1 else OrExpression(parts)

    def _parse_and(self) -> MatrixExpression:
        parts = tuple(self._parse_parts("&"))
        return parts[0] if len(parts) == 1 else AndExpression(parts)

    def _parse_parts(self, sign: str) -> Iterator[MatrixExpression]:
        part = self._parse_and if sign == "|" else self._parse_atom
        yield part()
        while self._position < len(self._tokens) and self._tokens[self._position] == sign:
            self._position += 1
            yield part()

    def _parse_atom(self) -> MatrixExpression:
        sign = self._next_token()
        if sign == "(":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._build_error("it is nested too deep")
            inside = self._parse_or()
            if self._next_token() != ")":
                raise self._build_error("a `)` is missing")
            self._depth -= 1
            return inside
        if sign == "+":
            return self._parse_reference(self._next_token())
        if not MODEL_NAME.fullmatch(sign):
            raise self._build_error(f"{sign!r} is not expected here" if sign else "it ends where a model is expected")
        if model := self._sets.find_model(sign):
            return ModelReference(model)
        hint = f" It is a set: write +{sign}." if self._sets.has(sign) else self._sets.suggest_model(sign)
        raise self._build_error(f"there is no model {sign!r}", hint)

    def _parse_reference(self, name: str) -> MatrixExpression:
        if self._sets.depth >= MAX_DEPTH:
            raise self._build_error("it is nested too deep")
        if not self._sets.has(name):
            raise self._build_error(f"there is no set {name!r}")
        return self._sets.parse_set(name)

    def _next_token(self) -> str:
        self._position += 1
        return self._tokens[self._position - 1] if self._position <= len(self._tokens) else ""

    def _build_error(self, what: str, hint: str = "") -> MatrixError:
        return MatrixError(("sets", self._name), f"The set {self._name} cannot be read: {what}.{hint}")


def list_models(expression: MatrixExpression) -> frozenset[str]:
    """List all models in the sets."""
    return frozenset(_walk_models(expression, set()))


def _walk_models(expression: MatrixExpression, seen: set[int]) -> Iterator[str]:
    if isinstance(expression, ModelReference):
        yield expression.model
    elif id(expression) not in seen:
        seen.add(id(expression))
        for part in expression.parts:
            yield from _walk_models(part, seen)


def allows_together(expression: MatrixExpression, models: Collection[str]) -> bool:
    """Check whether one of the sets holds all of these models."""
    wanted = frozenset(models)
    return wanted in _intersect_sets(expression, wanted, {})


def _intersect_sets(
    expression: MatrixExpression, wanted: frozenset[str], seen: dict[int, frozenset[frozenset[str]]]
) -> frozenset[frozenset[str]]:
    """List the largest parts of the wanted models that sets hold: few, however many sets there are."""
    if id(expression) in seen:
        return seen[id(expression)]
    if isinstance(expression, ModelReference):
        found = {wanted & {expression.model}}
    elif isinstance(expression, OrExpression):
        found = {held for part in expression.parts for held in _intersect_sets(part, wanted, seen)}
    else:
        found = {frozenset[str]()}
        for part in expression.parts:
            found = _keep_largest({held | more for held in found for more in _intersect_sets(part, wanted, seen)})
    seen[id(expression)] = frozenset(_keep_largest(found))
    return seen[id(expression)]


def _keep_largest(sets: set[frozenset[str]]) -> set[frozenset[str]]:
    return {held for held in sets if not any(held < other for other in sets)}
