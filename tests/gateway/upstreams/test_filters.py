"""What the config changes in a body, as llama-swap changes it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eardrum.config import ModelSettings
from eardrum.gateway.upstreams import filters

CHAT: dict[str, Any] = {"model": "m", "temperature": 0.5, "messages": [{"role": "user", "content": "hi"}], "options": {"a": 1}}


def apply_filters(body: dict[str, Any], requested: str = "m", **entry: Any) -> dict[str, Any]:
    return filters.apply_filters(body, ModelSettings(**entry), requested)


def test_a_body_that_no_filter_touches_is_returned_itself() -> None:
    assert apply_filters(CHAT) is CHAT
    assert filters.apply_filters(CHAT, None, "m") is CHAT
    assert apply_filters(CHAT, filters={"strip_params": "top_k, options.b, messages.7, messages.0.name"}) is CHAT


def test_the_upstream_gets_the_name_it_knows() -> None:
    assert apply_filters(CHAT, use_model_name="org/real")["model"] == "org/real"


def test_parameters_are_stripped_but_never_the_model() -> None:
    changed = apply_filters(CHAT, filters={"strip_params": " temperature ,, model, options.a, messages.0.content "})
    assert changed == {"model": "m", "messages": [{"role": "user"}], "options": {}}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 1}, {"temperature": 1}),
        ({"model": "other"}, {}),
        ({"a.b.c": [1]}, {"a": {"b": {"c": [1]}}}),
        ({"options.a": None}, {"options": {"a": None}}),
        ({"temperature.low": 0}, {"temperature": {"low": 0}}),
        ({"messages.0.role": "system"}, {"messages": [{"role": "system", "content": "hi"}]}),
        ({"messages.-1": "x"}, {"messages": [{"role": "user", "content": "hi"}, "x"]}),
        ({"messages.2": "x"}, {"messages": [{"role": "user", "content": "hi"}, None, "x"]}),
        ({"stop.0": "a"}, {"stop": ["a"]}),
        ({"ids.:1": "a"}, {"ids": {"1": "a"}}),
        (r"a\.b", {"a.b": 1}),
        ({"messages.name": 1}, {}),
        ({"messages.99999999": 1}, {}),
    ],
)
def test_keys_are_paths(params: Any, expected: dict[str, Any]) -> None:
    params = {params: 1} if isinstance(params, str) else params
    assert apply_filters(CHAT, filters={"set_params": params}) == CHAT | expected


def test_what_is_set_for_the_requested_name_comes_last() -> None:
    entry = {"set_params": {"temperature": 1, "top_p": 1}, "set_params_by_id": {"m:high": {"temperature": 2}}}
    assert apply_filters(CHAT, filters=entry)["temperature"] == 1
    assert apply_filters(CHAT, requested="m:high", filters=entry)["temperature"] == 2
    assert apply_filters(CHAT, requested="m:high", filters=entry)["top_p"] == 1


def test_stripping_comes_before_setting() -> None:
    changed = apply_filters(CHAT, use_model_name="x", filters={"strip_params": "temperature", "set_params": {"temperature": 9}})
    assert (changed["temperature"], changed["model"]) == (9, "x")


KEY = st.sampled_from(["a", "b", "0", "1"])
LEAF = st.none() | st.integers() | st.text(max_size=3)
JSON = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEY, inner, max_size=2), max_leaves=6)
PATH = st.lists(st.sampled_from(["a", "b", "0", "1", "-1", ":1"]), min_size=1, max_size=4).map(".".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine proves nothing
@given(st.dictionaries(KEY, JSON), st.dictionaries(PATH, st.integers(), max_size=3), st.lists(PATH, max_size=3))
def test_a_filter_never_changes_the_body_it_is_given(body: dict[str, Any], params: dict[str, Any], strip: list[str]) -> None:
    before = copy.deepcopy(body)
    apply_filters(body, filters={"strip_params": ",".join(strip), "set_params": params})
    assert body == before
