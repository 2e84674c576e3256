"""How clients spell languages."""

from __future__ import annotations

import pytest

from eardrum import languages
from eardrum.errors import InvalidRequestError
from eardrum.languages import LANGUAGE_NAMES, find_language_in_name, get_language_name, parse_language


def test_every_code_and_every_name_is_understood() -> None:
    assert len(LANGUAGE_NAMES) == 100
    for code, name in LANGUAGE_NAMES.items():
        assert parse_language(code) == parse_language(name) == parse_language(name.title()) == code
        assert parse_language(f"{code}-XX") == parse_language(f"{code.upper()}_xx") == code
        assert get_language_name(code) == name


@pytest.mark.parametrize(
    ("spelled", "code"),
    [
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("zh-Hans-CN", "zh"),
        ("yue", "yue"),
        ("jv", "jw"),
        ("nb-NO", "no"),
        ("iw", "he"),
        ("Mandarin", "zh"),
        ("Haitian Creole", "ht"),
        (" de ", "de"),
    ],
)
def test_other_spellings(spelled: str, code: str) -> None:
    assert parse_language(spelled) == code


@pytest.mark.parametrize(
    ("spelled", "code"),
    [
        ("eng", "en"),
        ("deu", "de"),
        ("ger", "de"),
        ("GER", "de"),
        ("fra", "fr"),
        ("fre", "fr"),
        ("spa", "es"),
        ("por-BR", "pt"),
        ("zho", "zh"),
        ("chi", "zh"),
        ("cmn-Hans-CN", "zh"),
        ("jav", "jw"),
        ("nob", "no"),
        ("fil", "tl"),
        ("fas", "fa"),
        ("per", "fa"),
        ("may", "ms"),
    ],
)
def test_codes_of_three_letters(spelled: str, code: str) -> None:
    assert parse_language(spelled) == code


def test_every_language_has_a_code_of_three_letters_and_none_has_two_meanings() -> None:
    table = languages._LONG_CODES
    assert set(table.values()) == set(LANGUAGE_NAMES)
    assert all(len(long) == 3 and long.isascii() and long.islower() for long in table)
    assert all(table[long] == long for long in table if long in LANGUAGE_NAMES)
    assert not {long for long in table if long in languages._CODES and languages._CODES[long] != table[long]}


@pytest.mark.parametrize("spelled", [None, "", "  ", "auto", "AUTO", "null", "multi", "und", "UND", "mul", "mis", "zxx"])
def test_no_language_named(spelled: str | None) -> None:
    assert parse_language(spelled) is None


@pytest.mark.parametrize("spelled", ["klingon", "xx", "e", "-", "en US", "english please", "1", "ab-en"])
def test_unknown_languages_are_refused(spelled: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_language(spelled)
    assert caught.value.param == "language"
    assert repr(spelled) in caught.value.message


def test_a_code_without_a_name_stands_for_itself() -> None:
    assert get_language_name("tlh") == "tlh"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("moonshine-tiny-en", "en"),
        ("whisper-base.en", "en"),
        ("Org/base-ja", "ja"),
        ("base_EN", "en"),
        ("whisper-large-v3", None),
        ("Org/whisper", None),
        ("tiny-english", None),
        ("golden", None),
        ("", None),
    ],
)
def test_a_language_at_the_end_of_a_models_name(name: str, code: str | None) -> None:
    assert find_language_in_name(name) == code


@pytest.mark.parametrize("spelled", ["und-US", "und_x", "mul-Latn", "qaa", "QAD", "qtz"])
def test_tags_that_name_no_language(spelled: str) -> None:
    assert parse_language(spelled) is None


@pytest.mark.parametrize("spelled", ["-", "-us", "qua", "quenya"])
def test_no_more_than_these(spelled: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_language(spelled)
