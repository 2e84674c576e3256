"""Which model a name means: pins of a profile, and the strategies of selectors."""

from __future__ import annotations

import pytest

from eardrum import config
from eardrum.config.llama_swap import ModelProfile, ModelSelector, SpilloverSettings
from eardrum.errors import ModelNotFoundError, NotFoundError
from eardrum.gateway.change_feed import ChangeTopic
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.selectors import NameResolver, SelectorTarget, choose_target
from eardrum.gateway.service import Service

WARM = ModelSelector(strategy="warm", targets=("a", "b", "c"))
UP = ModelState.READY


def create_spillover(room: int = 1) -> ModelSelector:
    return ModelSelector(strategy="spillover", targets=("a", "b", "c"), settings=SpilloverSettings(spillover=room))


def create_targets(**states: ModelState | tuple[ModelState | None, int] | None) -> list[SelectorTarget]:
    return [SelectorTarget(name, *(now if isinstance(now, tuple) else (now,))) for name, now in states.items()]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (create_targets(a=ModelState.STOPPED, b=ModelState.STARTING, c=UP), "c"),
        (create_targets(a=ModelState.STOPPED, b=ModelState.STARTING, c=ModelState.STARTING), "b"),
        (create_targets(a=ModelState.STOPPED, b=ModelState.DRAINING, c=ModelState.FAILED), "a"),
        (create_targets(a=None, b=UP), "b"),
        (create_targets(a=None, b=ModelState.STOPPED), "a"),
    ],
)
def test_warm_takes_the_first_that_is_ready_then_the_first_that_starts(now: list[SelectorTarget], expected: str) -> None:
    assert choose_target(WARM, now) == expected


def test_pin_takes_the_first_whatever_its_state() -> None:
    pin = ModelSelector(strategy="pin", targets=("a", "b"))
    assert choose_target(pin, create_targets(a=ModelState.FAILED, b=UP)) == "a"


@pytest.mark.parametrize(
    ("room", "now", "expected"),
    [
        (1, create_targets(a=ModelState.STOPPED, b=ModelState.STOPPED), "a"),
        (1, create_targets(a=(UP, 0), b=ModelState.STOPPED), "a"),
        (1, create_targets(a=(UP, 1), b=ModelState.STOPPED), "b"),
        (2, create_targets(a=(UP, 1), b=ModelState.STOPPED), "a"),
        (1, create_targets(a=(UP, 1), b=(ModelState.STARTING, 0)), "b"),
        (2, create_targets(a=(UP, 1), b=(UP, 0)), "b"),
        (1, create_targets(a=(UP, 3), b=(UP, 2)), "b"),
        (1, create_targets(a=(ModelState.STOPPED, 1), b=ModelState.STOPPED), "b"),
        (1, create_targets(a=(ModelState.DRAINING, 0), b=ModelState.STOPPED), "b"),
        (1, create_targets(a=(ModelState.STOPPING, 0), b=(ModelState.DRAINING, 0)), "a"),
        (1, create_targets(a=(UP, 1), b=ModelState.FAILED, c=ModelState.STOPPED), "c"),
        (1, create_targets(a=(UP, 1), b=ModelState.FAILED), "b"),
        (1, create_targets(a=(None, 0), b=(UP, 0)), "b"),
    ],
)
def test_spillover_fills_what_is_up_before_it_starts_the_next(room: int, now: list[SelectorTarget], expected: str) -> None:
    assert choose_target(create_spillover(room), now) == expected


def create_resolver() -> NameResolver:
    return NameResolver(
        config.Settings(
            profiles={
                "day": ModelProfile(pins={"fast": "big", "off": "", "never": None, "pick": "any", "small": "big"}),
                "night": ModelProfile(pins={"fast": "tiny"}),
            },
            selectors={"any": ModelSelector(strategy="pin", targets=("one", "two"))},
        )
    )


def test_a_pin_comes_before_a_selector() -> None:
    names = create_resolver()
    assert [names.resolve_name(name, SelectorTarget) for name in ("fast", "pick", "any", "small")] == [
        "fast",
        "pick",
        "one",
        "small",
    ]
    assert names.activate_profile("day")
    assert [names.resolve_name(name, SelectorTarget) for name in ("fast", "pick", "any", "small")] == ["big", "one", "one", "big"]
    assert not names.activate_profile("day")
    assert names.activate_profile("night")
    assert names.resolve_name("fast", SelectorTarget) == "tiny"
    assert names.activate_profile("")
    assert names.resolve_name("fast", SelectorTarget) == "fast"


def test_an_empty_pin_refuses_the_name() -> None:
    names = create_resolver()
    names.activate_profile("day")
    for name in ("off", "never"):
        with pytest.raises(ModelNotFoundError, match=f"profile day has no model for '{name}'"):
            names.resolve_name(name, SelectorTarget)


def test_an_unknown_profile_changes_nothing() -> None:
    names = create_resolver()
    names.activate_profile("day")
    with pytest.raises(NotFoundError, match=r"no profile 'noon'. Profiles: day, night\."):
        names.activate_profile("noon")
    assert names.active_profile == "day"


def test_the_service_finds_models_through_profiles_and_selectors() -> None:
    service = Service(
        config.Settings(
            models={"a": config.ModelSettings(proxy="http://127.0.0.1:1"), "b": config.ModelSettings(proxy="http://127.0.0.1:2")},
            selectors={"s": ModelSelector(strategy="spillover", targets=("a", "b"))},
            profiles={"p": ModelProfile(pins={"gpt-4o": "s", "b": ""})},
        )
    )
    assert service.find_model("s").id == "a"
    assert service.find_model("b").id == "b"
    with pytest.raises(ModelNotFoundError):
        service.find_model("gpt-4o")
    service.activate_profile("p")
    assert service.find_model("gpt-4o").id == "a"
    with pytest.raises(ModelNotFoundError, match="profile p"):
        service.find_model("b")


async def test_no_profile_is_active_after_the_config_was_read_again_and_followers_hear_of_it() -> None:
    settings = config.Settings(
        models={"a": config.ModelSettings(proxy="http://127.0.0.1:1")}, profiles={"p": ModelProfile(pins={"x": "a"})}
    )
    service = Service(settings)
    service.activate_profile("p")
    with service.change_feed.subscribe(*ChangeTopic) as changes:
        await service.apply_settings(
            settings.model_copy(update={"selectors": {"s": ModelSelector(strategy="pin", targets=("a",))}})
        )
        assert {ChangeTopic.PROFILE, ChangeTopic.MODELS} <= await anext(changes)
    assert service.name_resolver.active_profile == ""
    assert service.find_model("s").id == "a"
    with pytest.raises(ModelNotFoundError):
        service.find_model("x")
    await service.shutdown()


def test_dated_names_of_openai_mean_what_they_mean_without_the_date() -> None:
    mine = config.ModelSettings(proxy="http://127.0.0.1:1", aliases=("gpt-4o-transcribe", "gpt-realtime-whisper-2030-01-01"))
    service = Service(config.Settings(models={"mine": mine}, default_model="moonshine-tiny-en"))
    for name, id in {
        "gpt-4o-mini-transcribe-2025-12-15": "moonshine-tiny-en",
        "gpt-4o-transcribe-diarize": "moonshine-tiny-en",
        "gpt-4o-transcribe-2025-03-20": "mine",
        "gpt-4o-transcribe-2025-03-20:latest": "mine",
        "gpt-realtime-whisper-2026-05-07": "moonshine-tiny-en",
        "gpt-realtime-whisper-2030-01-01": "mine",
    }.items():
        assert service.find_model(name).id == id, name
        assert service.find_live_model(name).id == id, name
    for name in ("gpt-4o-transcribe-2025", "gpt-5-2025-08-07"):
        with pytest.raises(ModelNotFoundError):
            service.find_model(name)
