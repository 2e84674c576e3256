"""Names that clients add, and the tag that says nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from eardrum import config
from eardrum.gateway.live import find_live_model
from eardrum.gateway.models.names import list_spellings
from eardrum.gateway.selectors import ClientAliases
from eardrum.gateway.service import Service


def test_spellings() -> None:
    assert list_spellings("a") == ("a", "a:latest")
    assert list_spellings("a:latest") == ("a:latest", "a")
    for odd in ("", ":latest", "a:7b"):
        assert list_spellings(odd) == (odd,)


def test_a_copy_is_found_in_every_spelling() -> None:
    copies = ClientAliases()
    copies.add("new:latest", "a")
    copies.add("x:7b", "b")
    assert [copies.get(name) for name in ("new", "new:latest", "x:7b", "x", "")] == ["a", "a", "b", "", ""]
    assert "new" in copies
    assert list(copies) == [("new", "a"), ("x:7b", "b")]
    assert copies.remove("new:latest")
    assert not copies.remove("new")


def test_every_name_that_is_listed_anywhere_is_a_name_for_live_sessions(tmp_path: Path) -> None:
    service = Service(config.Settings(model_dir=tmp_path))
    service.client_aliases.add("ears:latest", "moonshine-tiny-en")
    for name in ("moonshine-tiny-en:latest", "whisper-1:latest", "ears", "ears:latest"):
        assert find_live_model(service, name).id == "moonshine-tiny-en"


@pytest.mark.parametrize("spelling", ["ears", "ears:latest"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"models": {"ears": {"cmd": "serve"}}}, id="a model"),
        pytest.param({"models": {"b": {"cmd": "serve", "aliases": ["ears"]}}}, id="an alias"),
        pytest.param(
            {"models": {"b": {"cmd": "serve"}}, "selectors": {"ears": {"strategy": "pin", "targets": ["b"]}}}, id="a selector"
        ),
    ],
)
async def test_a_copy_gives_way_to_a_name_that_a_reload_adds(
    settings: dict[str, Any], spelling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(config.Settings(model_dir=tmp_path))
    service.client_aliases.add(spelling, "moonshine-tiny-en")
    service.client_aliases.add("tts-1", "moonshine-tiny-en")
    await service.apply_settings(config.Settings(model_dir=tmp_path, **settings))
    assert "The copy ears of moonshine-tiny-en was dropped" in caplog.text
    for name in ("ears", "ears:latest"):
        assert service.find_model(name).is_external
    assert list(service.client_aliases) == [("tts-1", "moonshine-tiny-en")], "a name that stands for any model takes no place"
    await service.shutdown()


async def test_a_copy_gives_way_to_a_model_that_is_put_on_disk(tmp_path: Path) -> None:
    service = Service(config.Settings(model_dir=tmp_path))
    embedded = service.catalog.default
    service.client_aliases.add("mine", embedded.id)
    assert service.find_model("mine") is embedded
    shutil.copytree(embedded.source, tmp_path / "mine")
    service.catalog.scan()
    assert not service.client_aliases.remove("mine"), "the model was meant"
    assert service.find_model("mine").source == tmp_path / "mine"
    await service.shutdown()


async def test_a_pin_of_the_active_profile_comes_before_a_copy(tmp_path: Path) -> None:
    profiles = {"far": {"pins": {"ears": "b"}}}
    service = Service(config.Settings(model_dir=tmp_path, models={"b": {"cmd": "serve"}}, profiles=profiles))
    service.client_aliases.add("ears", "moonshine-tiny-en")
    service.activate_profile("far")
    assert {service.find_model(name).id for name in ("ears", "ears:latest")} == {"b"}
    service.activate_profile("")
    assert service.find_model("ears").id == "moonshine-tiny-en"
    await service.shutdown()
