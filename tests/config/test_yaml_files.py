"""YAML 1.2 words, merges, and what is refused."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eardrum.config import yaml_files
from eardrum.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("Yes", "Yes"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("null", None),
        ("NULL", None),
        ("nil", "nil"),
        ("0", 0),
        ("-5", -5),
        ("+5", 5),
        ("012", 10),
        ("-012", -10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000", 1000),
        ("089", 89.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e6", 1e6),
        ("1E-2", 0.01),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1.2.3", "1.2.3"),
        ("0x", "0x"),
        ("-", [None]),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
        ("[a, 1, no]", ["a", 1, "no"]),
        ("{1: a, true: b, ~: c, 1.0: d}", {"1": "a", "true": "b", "~": "c", "1.0": "d"}),
        ("<<", "<<"),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &x {b: 1}\nc: {b: 2, <<: *x}", {"a": {"b": 1}, "c": {"b": 2}}),
        ("a: &x {b: 1}\nd: &y {b: 3, e: 4}\nc: {<<: [*x, *y]}", {"a": {"b": 1}, "d": {"b": 3, "e": 4}, "c": {"b": 1, "e": 4}}),
        ("a: &x {b: 1}\nd: &y {<<: *x, e: 4}\nc: {<<: *y}", {"a": {"b": 1}, "d": {"b": 1, "e": 4}, "c": {"b": 1, "e": 4}}),
        ("a:\t1\t# one\nb:\t\t[1,\t2 ]\t\n", {"a": 1, "b": [1, 2]}),
        ("a: b\tc \t d\t\n  e\t# f", {"a": "b\tc \t d e"}),
        ("a: |\n  b\tc\n  \td\n", {"a": "b\tc\n\td\n"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_a_value(text: str, expected: Any) -> None:
    found = yaml_files.parse_value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan() -> None:
    assert math.isnan(yaml_files.parse_value(".nan"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "f:1: This is not valid YAML"),
        ("a: b: c", "f:1: This is not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "f:2: "),
        ("a:\n\tb: 2", "Indent with spaces, not with tabs."),
        ("a: 1\nb:\n  a: 1\n  a: 1", "f:4: This is not valid YAML: 'a' is here twice, first in line 3."),
        ("? [a]\n: b", "f:1: This is not valid YAML: a name cannot be a list or a map."),
        ("a: !x 1", "the tag !x is not supported"),
        ("a: !!python/object/apply:os.system [x]", "is not supported"),
        ("a: !!binary aGk=", "is not supported"),
        ("a: !!int five", "'five' is not a number"),
        ("a: *nowhere", "f:1: This is not valid YAML: found undefined alias 'nowhere'."),
        ("a: &x [*x]", "an anchor holds itself"),
        ("a: &x\n  <<: *x", "an anchor holds itself"),
        ("a: &x {b: &y {<<: *x}}", "an anchor holds itself"),
        ("a: {<<: 1}", "`<<` takes a map"),
        ("a: \0", "This is not valid YAML"),
        ("[" * 700, "nested too deep"),
    ],
)
def test_what_is_no_yaml(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yaml_files.parse_yaml(text, "f")
    assert says in caught.value.message
    assert caught.value.message.startswith("f:")


def test_a_few_lines_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_files, "MAX_VALUES", 20_000)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    with pytest.raises(ConfigError, match="too many values"):
        yaml_files.parse_yaml(bomb, "f")


def test_places() -> None:
    document = yaml_files.parse_yaml("a: 1\nb:\n  - c\n  -\n    d: 'x'\ne: &e {f: 2}\ng:\n  <<: *e\n", "f")
    of = document.locations.find
    assert [str(of(path)) for path in (("a",), ("b",), ("b", 0), ("b", 1, "d"), ("g", "f"))] == [
        "f:1",
        "f:2",
        "f:3",
        "f:5",
        "f:6",
    ]
    assert str(of(("b", 1, "nothing", "here"))) == "f:5", "what holds it"
    assert document.locations.get_text(("b", 1, "d")) == "x"
    assert of(("z",)) is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3),
    max_leaves=8,
)


class _QuotingDumper(yaml.SafeDumper):
    """PyYAML quotes what would be something else in 1.1, and what we hold to be a number and it does not."""


_QuotingDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@given(plain)
def test_what_is_written_is_read(value: Any) -> None:
    assert yaml_files.parse_value(yaml.dump({"v": value}, Dumper=_QuotingDumper)) == {"v": value}


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    with suppress(ConfigError):
        yaml_files.parse_yaml(text, "f")


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.characters(codec="utf-8"), max_size=8)))
def test_json_is_read_with_escapes_of_any_letter(value: dict[str, str]) -> None:
    assert yaml_files.parse_value(json.dumps(value)) == value


@pytest.mark.parametrize("text", ['a: "\\ud83c"', '"\\udfa4 b": 1', 'a: ["\\udfa4\\ud83c"]'])
def test_half_of_a_character_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="f:1: This is not valid YAML: the text holds half of a character"):
        yaml_files.parse_yaml(text, "f")
