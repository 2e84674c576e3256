"""Macros by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.config import macros
from eardrum.config.diagnostics import ErrorCollector, LocationMap


def expand_macros(value: Any, **known: Any) -> Any:
    return macros.expand_macros(value, known, ("x",), ErrorCollector(LocationMap()))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (5, "5"),
        (-5, "-5"),
        ("x", "x"),
        (1.0, "1"),
        (0.5, "0.5"),
        (-0.25, "-0.25"),
        (0.0, "0"),
        (1e5, "100000"),
        (1e6, "1e+06"),
        (1234567.5, "1.2345675e+06"),
        (1e21, "1e+21"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (-2.5e-7, "-2.5e-07"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_a_value_in_a_text(value: Any, expected: str) -> None:
    assert macros.format_scalar(value) == expected
    assert expand_macros("<${m}>", m=value) == f"<{expected}>"


def test_the_last_defined_comes_first() -> None:
    assert expand_macros("${b}", a="1", b="${a}2") == "12"
    assert expand_macros("${a}", a="${b}", b="2") == "${b}", "it is not known yet where it is defined"
    assert expand_macros("${a}${a}", a="x") == "xx"


def test_types_stay_when_nothing_else_is_there() -> None:
    assert expand_macros(["${n}", " ${n}", {"k": "${b}"}, 7, None], n=5, b=False) == [5, " 5", {"k": False}, 7, None]
    assert expand_macros("${b}", a=5, b="${a}") == 5, "through another macro too"


def test_names_stay_but_those_of_models() -> None:
    assert expand_macros({"${n}": "${n}"}, n=5) == {"${n}": 5}
    below = macros.expand_macros(
        {"${n}": {"${n}": 1}}, {"n": 5}, ("models", "a", "filters", "set_params_by_id"), ErrorCollector(LocationMap())
    )
    assert below == {"5": {"${n}": 1}}


def test_what_looks_like_a_macro_and_is_none() -> None:
    for text in ("$m", "${m", "${}", "${ m }", "$${x}", "${a.b}", "{m}"):
        assert expand_macros(text, m="x") == text
    assert [name for _, name in macros.find_unresolved({"a": ["${x} ${y-1}", "${a.b} ${}"]})] == ["x", "y-1"]


names = st.sampled_from("abcd")
texts = st.lists(st.sampled_from(["${a}", "${b}", "${c}", "${d}", "x", "$", "{", "}"]), max_size=6).map("".join)


@given(st.dictionaries(names, texts, max_size=4), texts)
def test_substitution_ends_whatever_refers_to_whatever(known: dict[str, str], text: str) -> None:
    known = {name: value for name, value in known.items() if f"${{{name}}}" not in value}
    found = expand_macros(text, **known)
    assert isinstance(found, str)
    position = {name: at for at, name in enumerate(known)}
    for name in macros.MACRO_REFERENCE.findall(found):
        users = [user for user, value in known.items() if f"${{{name}}}" in value]
        assert name not in known or any(position[user] < position[name] for user in users), "only what is used too early stays"


def test_macros_that_double_do_not_fill_the_memory() -> None:
    known = {"m0": "x" * 10} | {f"m{n}": f"${{m{n - 1}}}" * 2 for n in range(1, 63)}
    errors = ErrorCollector(LocationMap())
    macros.expand_macros("${m62}", known, ("x",), errors)
    assert "x gets too long" in errors.diagnostics[0].message
