"""Which model a name means: pins of a profile, and the strategies of selectors."""

from __future__ import annotations

import pytest

from eardrum import config
from eardrum.config.llama_swap import Profile, Selector, Spillover
from eardrum.errors import ModelNotFoundError, NotFoundError
from eardrum.gateway.events import Topic
from eardrum.gateway.scheduler import State
from eardrum.gateway.selection import Selection, Target, chosen
from eardrum.gateway.service import Service

WARM = Selector(strategy="warm", targets=("a", "b", "c"))
UP = State.READY


def spillover(room: int = 1) -> Selector:
    return Selector(strategy="spillover", targets=("a", "b", "c"), settings=Spillover(spillover=room))


def targets(**states: State | tuple[State | None, int] | None) -> list[Target]:
    return [Target(name, *(now if isinstance(now, tuple) else (now,))) for name, now in states.items()]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (targets(a=State.STOPPED, b=State.STARTING, c=UP), "c"),
        (targets(a=State.STOPPED, b=State.STARTING, c=State.STARTING), "b"),
        (targets(a=State.STOPPED, b=State.DRAINING, c=State.FAILED), "a"),
        (targets(a=None, b=UP), "b"),
        (targets(a=None, b=State.STOPPED), "a"),
    ],
)
def test_warm_takes_the_first_that_is_ready_then_the_first_that_starts(now: list[Target], expected: str) -> None:
    assert chosen(WARM, now) == expected


def test_pin_takes_the_first_whatever_its_state() -> None:
    pin = Selector(strategy="pin", targets=("a", "b"))
    assert chosen(pin, targets(a=State.FAILED, b=UP)) == "a"


@pytest.mark.parametrize(
    ("room", "now", "expected"),
    [
        (1, targets(a=State.STOPPED, b=State.STOPPED), "a"),
        (1, targets(a=(UP, 0), b=State.STOPPED), "a"),
        (1, targets(a=(UP, 1), b=State.STOPPED), "b"),
        (2, targets(a=(UP, 1), b=State.STOPPED), "a"),
        (1, targets(a=(UP, 1), b=(State.STARTING, 0)), "b"),
        (2, targets(a=(UP, 1), b=(UP, 0)), "b"),
        (1, targets(a=(UP, 3), b=(UP, 2)), "b"),
        (1, targets(a=(State.STOPPED, 1), b=State.STOPPED), "b"),
        (1, targets(a=(State.DRAINING, 0), b=State.STOPPED), "b"),
        (1, targets(a=(State.STOPPING, 0), b=(State.DRAINING, 0)), "a"),
        (1, targets(a=(UP, 1), b=State.FAILED, c=State.STOPPED), "c"),
        (1, targets(a=(UP, 1), b=State.FAILED), "b"),
        (1, targets(a=(None, 0), b=(UP, 0)), "b"),
    ],
)
def test_spillover_fills_what_is_up_before_it_starts_the_next(room: int, now: list[Target], expected: str) -> None:
    assert chosen(spillover(room), now) == expected


def selection() -> Selection:
    return Selection(
        config.Settings(
            profiles={
                "day": Profile(pins={"fast": "big", "off": "", "never": None, "pick": "any", "small": "big"}),
                "night": Profile(pins={"fast": "tiny"}),
            },
            selectors={"any": Selector(strategy="pin", targets=("one", "two"))},
        )
    )


def test_a_pin_comes_before_a_selector() -> None:
    names = selection()
    assert [names.meant(name, Target) for name in ("fast", "pick", "any", "small")] == ["fast", "pick", "one", "small"]
    assert names.activate("day")
    assert [names.meant(name, Target) for name in ("fast", "pick", "any", "small")] == ["big", "one", "one", "big"]
    assert not names.activate("day")
    assert names.activate("night")
    assert names.meant("fast", Target) == "tiny"
    assert names.activate("")
    assert names.meant("fast", Target) == "fast"


def test_an_empty_pin_refuses_the_name() -> None:
    names = selection()
    names.activate("day")
    for name in ("off", "never"):
        with pytest.raises(ModelNotFoundError, match=f"profile day has no model for '{name}'"):
            names.meant(name, Target)


def test_an_unknown_profile_changes_nothing() -> None:
    names = selection()
    names.activate("day")
    with pytest.raises(NotFoundError, match=r"no profile 'noon'. Profiles: day, night\."):
        names.activate("noon")
    assert names.active == "day"


def test_the_service_finds_models_through_profiles_and_selectors() -> None:
    service = Service(
        config.Settings(
            models={"a": config.Model(proxy="http://127.0.0.1:1"), "b": config.Model(proxy="http://127.0.0.1:2")},
            selectors={"s": Selector(strategy="spillover", targets=("a", "b"))},
            profiles={"p": Profile(pins={"gpt-4o": "s", "b": ""})},
        )
    )
    assert service.find("s").id == "a"
    assert service.find("b").id == "b"
    with pytest.raises(ModelNotFoundError):
        service.find("gpt-4o")
    service.activate("p")
    assert service.find("gpt-4o").id == "a"
    with pytest.raises(ModelNotFoundError, match="profile p"):
        service.find("b")


async def test_no_profile_is_active_after_the_config_was_read_again_and_followers_hear_of_it() -> None:
    settings = config.Settings(models={"a": config.Model(proxy="http://127.0.0.1:1")}, profiles={"p": Profile(pins={"x": "a"})})
    service = Service(settings)
    service.activate("p")
    with service.events.follow(*Topic) as changes:
        await service.reload(settings.model_copy(update={"selectors": {"s": Selector(strategy="pin", targets=("a",))}}))
        assert {Topic.PROFILE, Topic.MODELS} <= await anext(changes)
    assert service.selection.active == ""
    assert service.find("s").id == "a"
    with pytest.raises(ModelNotFoundError):
        service.find("x")
    await service.shutdown()


def test_dated_names_of_openai_mean_what_they_mean_without_the_date() -> None:
    mine = config.Model(proxy="http://127.0.0.1:1", aliases=("gpt-4o-transcribe", "gpt-realtime-whisper-2030-01-01"))
    service = Service(config.Settings(models={"mine": mine}, default_model="moonshine-tiny-en"))
    for name, id in {
        "gpt-4o-mini-transcribe-2025-12-15": "moonshine-tiny-en",
        "gpt-4o-transcribe-diarize": "moonshine-tiny-en",
        "gpt-4o-transcribe-2025-03-20": "mine",
        "gpt-4o-transcribe-2025-03-20:latest": "mine",
        "gpt-realtime-whisper-2026-05-07": "moonshine-tiny-en",
        "gpt-realtime-whisper-2030-01-01": "mine",
    }.items():
        assert service.find(name).id == id, name
        assert service.find_for_live(name).id == id, name
    for name in ("gpt-4o-transcribe-2025", "gpt-5-2025-08-07"):
        with pytest.raises(ModelNotFoundError):
            service.find(name)
