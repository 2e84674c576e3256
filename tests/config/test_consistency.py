"""Which models the rules of a config let be loaded at a time."""

from __future__ import annotations

import pytest

from eardrum.config.consistency import can_coexist
from tests.config.conftest import Reader

MODELS = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}, c: {cmd: 's ${PORT}'}, d: {proxy: 'http://d'}}\n"


@pytest.mark.parametrize(
    ("rules", "meeting"),
    [
        ("", "ad bd cd"),
        ("memory: {cpu: 1G}", "ab ac ad bc bd cd"),
        ("groups: {g: {members: [a, b]}}", "ad bd cd"),
        ("groups: {g: {members: [a, b], swap: false}}", "ab ad bd cd"),
        ("groups: {g: {members: [a], exclusive: false}}", "ab ac ad bd cd"),
        ("groups: {g: {members: [a], persistent: true}}", "ab ac ad bd cd"),
        ("groups: {g: {members: [a, d]}}", ""),
        ("groups: {g: {members: [a]}, h: {members: [b], exclusive: false}}\nmemory: {cpu: 1G}", "ab ac ad bc bd cd"),
        ("groups: {g: {members: [a]}, h: {members: [b]}}\nmemory: {cpu: 1G}", "ac ad bc bd cd"),
        ("matrix: {sets: {s: a & b}}", "ab ad bd cd"),
        ("matrix: {sets: {s: a & (b | c), t: b & +s}}", "ab ac ad bc bd cd"),
        ("matrix: {sets: {s: a & d}}", "ad"),
        ("routing: {router: {settings: {groups: {g: {members: [a, b], swap: false}}}}}", "ab ad bd cd"),
    ],
)
def test_pairs(read_config: Reader, rules: str, meeting: str) -> None:
    settings = read_config(MODELS + rules).settings
    pairs = ("ab", "ac", "ad", "bc", "bd", "cd")
    assert " ".join(pair for pair in pairs if can_coexist(pair[0], pair[1], settings)) == meeting
    assert all(can_coexist(pair[0], pair[1], settings) == can_coexist(pair[1], pair[0], settings) for pair in pairs)
