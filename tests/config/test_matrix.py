"""The matrix's grammar."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.config import matrix
from eardrum.config.llama_swap import MatrixSettings
from eardrum.config.matrix import AndExpression, MatrixError, MatrixExpression, ModelReference, OrExpression

MODELS = ("a", "b", "c", "d", "x-1.5_b", "Org/model:7b", "größe")
A, B, C, D = map(ModelReference, "abcd")


def parse_all(*sets: str, **vars: str) -> list[MatrixExpression]:
    return list(
        matrix.parse_matrix(MatrixSettings(vars=vars, sets={f"s{n}": text for n, text in enumerate(sets)}), MODELS).values()
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        (" ( ( a ) ) ", A),
        ("a & b", AndExpression((A, B))),
        ("a|b", OrExpression((A, B))),
        ("a & b | c & d", OrExpression((AndExpression((A, B)), AndExpression((C, D))))),
        ("a & (b | c) & d", AndExpression((A, OrExpression((B, C)), D))),
        ("a\n& b", AndExpression((A, B))),
        ("x-1.5_b & größe", AndExpression((ModelReference("x-1.5_b"), ModelReference("größe")))),
        ("v & a", AndExpression((ModelReference("Org/model:7b"), A))),
        ("+s1 | a", OrExpression((AndExpression((B, C)), A))),
        ("a & + s1", AndExpression((A, AndExpression((B, C))))),
    ],
)
def test_an_expression(text: str, expected: MatrixExpression) -> None:
    assert parse_all(text, "b & c", v="Org/model:7b")[0] == expected


def test_a_var_wins_over_a_model() -> None:
    assert parse_all("a", a="b") == [B]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it ends where a model is expected"),
        ("a &", "it ends where a model is expected"),
        ("a b", "'b' is not expected here"),
        ("& a", "'&' is not expected here"),
        ("a & (b", "a `)` is missing"),
        ("a)", "')' is not expected here"),
        ("a ! b", "'!' is not expected here"),
        ("Org/model:7b", "there is no model 'Org'"),
        ("aa", "there is no model 'aa'. Did you mean a?"),
        ("s1", "there is no model 's1'. It is a set: write +s1."),
        ("+nowhere", "there is no set 'nowhere'"),
        ("+", "there is no set ''"),
        ("+s0", "The sets refer to each other in a circle: s0 -> s0."),
        ("a & +s2", "The sets refer to each other in a circle: s0 -> s2 -> s3 -> s0."),
        ("(" * 200 + "a" + ")" * 200, "nested too deep"),
    ],
)
def test_what_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(MatrixError, match=r"^The set") as caught:
        parse_all(text, "a & b", "b | +s3", "c & +s0")
    assert says in caught.value.message
    assert caught.value.path[0] == "sets"


def test_a_chain_of_references_has_an_end() -> None:
    with pytest.raises(MatrixError, match="nested too deep"):
        parse_all(*(f"+s{n + 1}" for n in range(300)), "a")


@pytest.mark.parametrize("name", ["", "a b", "a_b", "x" * 33])
def test_a_bad_var(name: str) -> None:
    with pytest.raises(MatrixError, match="must be up to 32 letters") as caught:
        parse_all("a", **{name: "a"})
    assert caught.value.path == ("vars", name)


def test_costs() -> None:
    found = matrix.list_eviction_costs(MatrixSettings(vars={"v": "a"}, evict_costs={"v": 3, "b": 2}, sets={"s": "v"}))
    assert found == {"a": 3, "b": 2}


def list_sets(expression: MatrixExpression) -> Iterator[frozenset[str]]:
    """All sets, spelled out."""
    if isinstance(expression, ModelReference):
        yield frozenset({expression.model})
    elif isinstance(expression, OrExpression):
        for part in expression.parts:
            yield from list_sets(part)
    else:
        for chosen in product(*map(list_sets, expression.parts)):
            yield frozenset().union(*chosen)


expressions = st.recursive(
    st.sampled_from([A, B, C, D]),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3)
        .map(tuple)
        .flatmap(lambda parts: st.sampled_from([AndExpression(parts), OrExpression(parts)]))
    ),
    max_leaves=8,
)


def format_expression(expression: MatrixExpression) -> str:
    if isinstance(expression, ModelReference):
        return expression.model
    sign = " & " if isinstance(expression, AndExpression) else " | "
    return f"({sign.join(map(format_expression, expression.parts))})"


@given(expressions)
def test_what_is_written_is_read(expression: MatrixExpression) -> None:
    assert parse_all(format_expression(expression)) == [expression]


@given(expressions)
def test_holding_agrees_with_spelling_out(expression: MatrixExpression) -> None:
    spelled = set(list_sets(expression))
    for size in range(4):
        for models in combinations("abcd", size):
            assert matrix.allows_together(expression, models) == any(set(models) <= one for one in spelled)


def test_sets_too_many_to_count() -> None:
    tenfold = AndExpression(tuple(OrExpression(tuple(ModelReference(f"m{group}-{n}") for n in range(10))) for group in range(40)))
    assert matrix.allows_together(tenfold, [f"m{group}-{group % 10}" for group in range(40)])
    assert not matrix.allows_together(tenfold, ["m1-1", "m1-2"])
