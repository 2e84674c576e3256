"""Names to engines and repositories."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.gateway.models import names
from tests.cards import WHISPER, create_card

pytestmark = pytest.mark.usefixtures("cards")

SMALL = "Systran/faster-whisper-small"


@pytest.mark.parametrize(
    ("name", "engine", "repository"),
    [
        ("small", "whispering", SMALL),
        ("SMALL", "whispering", SMALL),
        ("openai/Whisper-Small", "whispering", SMALL),
        (SMALL, "whispering", SMALL),
        ("faster-whisper-small", "whispering", SMALL),
        ("Faster-Whisper-Large-v3", "whispering", "Systran/faster-whisper-large-v3"),
        ("systran/anything", "whispering", "systran/anything"),
        ("somebody/Tuned-CT2", "whispering", "somebody/Tuned-CT2"),
        ("openai/whisper-medium", "torching", "openai/whisper-medium"),
        ("nvidia/parakeet-tdt-0.6b-v3", "torching", "nvidia/parakeet-tdt-0.6b-v3"),
        ("solo", "torching", "openai/whisper-solo"),
        ("rare", "lacking", "Rare/rare-1b"),
    ],
)
def test_what_a_name_means(name: str, engine: str, repository: str) -> None:
    match = names.choose_match(name)
    assert (match.card.name, match.repository) == (engine, repository)


def test_an_engine_may_be_forced() -> None:
    assert names.choose_match("small", "torching").repository == "openai/whisper-small"
    assert names.choose_match("small", "whispering").repository == SMALL
    with pytest.raises(ModelNotFoundError, match="engine whispering knows no model 'solo'"):
        names.choose_match("solo", "whispering")
    with pytest.raises(ConfigError, match="no engine 'nobody'"):
        names.choose_match("small", "nobody")


def test_with_an_engine_any_id_will_do() -> None:
    match = names.choose_match("somebody/tuned", "whispering")
    assert (match.card, match.repository) == (WHISPER, "somebody/tuned")
    with pytest.raises(ModelNotFoundError):
        names.choose_match("somebody/tuned")


def test_installed_engines_come_before_those_that_are_meant_for_it(cards: Callable[..., None]) -> None:
    best = create_card("best", names={"small": "Best/small"}, requires=("no_such_library",), rank=0)
    cards(WHISPER, best)
    assert [match.card.name for match in names.find_matches("small")] == ["whispering", "best"]
    assert names.choose_match("small").repository == SMALL
    assert names.choose_match("small", "best").repository == "Best/small"


def test_what_could_mean_two_things_is_refused_with_both(cards: Callable[..., None]) -> None:
    cards(WHISPER, create_card("other", names={"small": "Other/small"}, rank=10))
    with pytest.raises(ModelNotFoundError) as caught:
        names.choose_match("small")
    for part in (f"{SMALL} (engine whispering)", "Other/small (engine other)", "is ambiguous"):
        assert part in caught.value.message
    assert names.choose_match("small", "other").repository == "Other/small"


def test_two_repositories_of_one_name_are_told_apart(cards: Callable[..., None]) -> None:
    cards(create_card("one", names={"a": "X/same", "b": "Y/same"}))
    with pytest.raises(ModelNotFoundError, match=r"X/same .*Y/same"):
        names.choose_match("same")


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'largev3'.*Close to it: large-v3") as caught:
        names.choose_match("largev3")
    assert caught.value.status == 404
    with pytest.raises(ModelNotFoundError, match="`eardrum engines` lists the known names"):
        names.choose_match("qqqqqqqqqqqqqqqqqqqq")
    with pytest.raises(ModelNotFoundError, match="solo"):
        names.choose_match("sollo", "torching")


def test_a_line_end_is_no_part_of_a_name() -> None:
    assert names.is_hub_id("systran/x")
    assert not names.is_hub_id("systran/x\n")


EVIL = [
    "",
    " ",
    "..",
    "../small",
    "systran/../../etc/passwd",
    "systran/..",
    "/etc/passwd",
    "systran//x",
    "systran/x/y",
    "systran/x\0",
    "systran/\nx",
    "systran/x\r\nERROR forged",
    "systran/.x",
    "systran/-x",
    "systran/a..b",
    "systran/a--b",
    "--cache=/srv/x-ct2",
    "-x/y-ct2",
    "models--systran--x",
    "models--a/b-ct2",
    "größe/modell-ct2",
    "systran/модель",
    "\ud800/x-ct2",
    "x/" + "y" * 10_000 + "-ct2",
    "small" * 2_000,
    "\0",
    "*",
    "systran/*",
]


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_what_is_no_name_means_nothing_and_does_not_reach_the_message_whole(name: str) -> None:
    assert names.find_matches(name) == []
    with pytest.raises(ModelNotFoundError) as caught:
        names.choose_match(name)
    assert "\n" not in caught.value.message
    assert "\0" not in caught.value.message
    assert len(caught.value.message) < 300
    assert not names.find_matches(name, "whispering"), "forcing the engine must not let it pass"


@pytest.mark.parametrize("name", ["gpt-4o-mini-transcribe-2025-12-15", "gpt-4o-mini-transcribe-2025-12-15:latest"])
def test_the_date_behind_a_name_that_clients_cannot_help_sending_says_nothing(name: str) -> None:
    assert names.list_meanings(name)[0] == name
    assert "gpt-4o-mini-transcribe" in names.list_meanings(name)


@pytest.mark.parametrize("name", ["", "tiny", "mine-2025-12-15", "gpt-4o-transcribe-2025", "gpt-4o-transcribe-2025-12-15-x"])
def test_other_names_mean_themselves(name: str) -> None:
    assert names.list_meanings(name) == names.list_spellings(name)
