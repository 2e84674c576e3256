"""Cards of engines for tests of names: what engines would declare, without the engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.transcription import Capabilities


def create_card(name: str, **declared: Any) -> EngineCard:
    declared = {"capabilities": Capabilities(), "title": f"Models of {name}"} | declared
    return EngineCard(name=name, module=f"nowhere.{name}", class_name=name.title(), **declared)


WHISPER = create_card(
    "whispering",
    layouts=(("model.bin", "config.json"),),
    names={
        "small": "Systran/faster-whisper-small",
        "openai/whisper-small": "Systran/faster-whisper-small",
        "large-v3": "Systran/faster-whisper-large-v3",
        "large": "Systran/faster-whisper-large-v3",
    },
    repositories=("systran/*", "*-ct2"),
    downloads=("*.bin", "*.json"),
    variants={"*.en": {"languages": ("en",), "translate": False}},
    capabilities=Capabilities(translate=True, words=True),
    options=("beam_size",),
    rank=10,
)
TORCH = create_card(
    "torching",
    layouts=(("config.json", "*.safetensors"),),
    model_types=("whisper", "seamless"),
    names={"small": "openai/whisper-small", "solo": "openai/whisper-solo"},
    repositories=("openai/whisper-*", "nvidia/*"),
    extra="torch",
    rank=30,
)
LACKING = create_card("lacking", requires=("no_such_library",), names={"rare": "Rare/rare-1b"}, extra="lacking", rank=1)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Engines in place of those there are, Moonshine excepted, which has no names."""
    there = {"moonshine": registry.find_card("moonshine")}

    def add(*more: EngineCard) -> None:
        everything = there | {one.name: one for one in more}
        monkeypatch.setattr(registry, "list_cards", lambda: everything)

    add(WHISPER, TORCH, LACKING)
    return add
