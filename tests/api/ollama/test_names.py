"""Names with and without tags, and copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from eardrum import config
from eardrum.api.ollama.listing import OllamaNames, add_tag
from eardrum.errors import InvalidRequestError, ModelNotFoundError
from eardrum.gateway import selectors as copies
from eardrum.gateway.service import Service


@pytest.fixture
def ollama_names(tmp_path: Path) -> OllamaNames:
    proxy = {"proxy": "http://127.0.0.1:1"}
    models = {"a": proxy | {"aliases": ["b", "c:7b"]}, "x:latest": proxy, "x": proxy, "y:2": proxy, "z:latest": proxy}
    selectors = {
        "auto": {"targets": ["y:2", "a"]},
        "secret": {"targets": ["a"], "unlisted": True},
        "lost": {"targets": ["nobody"]},
    }
    profiles = {"night": {"pins": {"day": "a", "off": ""}}}
    settings = config.Settings(model_dir=tmp_path, models=models, selectors=selectors, profiles=profiles)
    return OllamaNames(Service(settings))


def test_every_listed_name_has_a_tag() -> None:
    assert [add_tag(id) for id in ("a", "a:7b", "o/a")] == ["a:latest", "a:7b", "o/a:latest"]


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("z", "z:latest"),
        ("z:latest", "z:latest"),
        ("a", "a"),
        ("a:latest", "a"),
        ("b:latest", "a"),
        ("c:7b", "a"),
        ("x", "x"),
        ("x:latest", "x:latest"),
        ("y:2", "y:2"),
    ],
)
def test_names_are_found_with_and_without_the_tag(ollama_names: OllamaNames, name: str, id: str) -> None:
    assert ollama_names.find(name).id == id


@pytest.mark.parametrize("name", ["y", "a:7b", "A", "a:latest:latest", "nobody", "nobody:latest", "a\nb"])
def test_other_names_are_not_found(ollama_names: OllamaNames, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ollama_names.find(name)
    assert caught.value.message == f"model '{name}' not found"


def test_of_a_name_that_could_be_fetched_that_is_said(ollama_names: OllamaNames) -> None:
    with pytest.raises(ModelNotFoundError, match="model 'small:latest' not found, try pulling it first"):
        ollama_names.find("small:latest")


def test_a_long_name_is_not_repeated_whole(ollama_names: OllamaNames) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ollama_names.find("n" * 10_000)
    assert len(caught.value.message) < 150


def test_pins_and_selectors_decide_what_a_name_means(ollama_names: OllamaNames, tmp_path: Path) -> None:
    assert ollama_names.resolve("auto:latest")[1] == "y:2"
    with pytest.raises(ModelNotFoundError):
        ollama_names.find("day")
    ollama_names.copy("y:2", "mine")
    assert ollama_names.resolve("mine")[1] == "y:2"
    assert ollama_names.resolve("b:latest") == (ollama_names.find("a"), "b")
    settings = config.Settings(
        model_dir=tmp_path,
        models={"a": {"proxy": "http://127.0.0.1:1", "aliases": ["b"]}},
        profiles={"night": {"pins": {"day": "b", "off": ""}}},
        include_aliases_in_list=True,
    )
    service = Service(settings)
    service.activate_profile("night")
    pinned = OllamaNames(service)
    assert pinned.resolve("day:latest") == (pinned.find("a"), "b")
    with pytest.raises(ModelNotFoundError, match="model 'off' not found"):
        pinned.find("off")
    assert ("b", pinned.find("a")) in list(pinned.list_others())


def test_copies(ollama_names: OllamaNames, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama_names.copy("a", "new")
    ollama_names.copy("new:latest", "newer:latest")
    assert [(name, model.id) for name, model in ollama_names.list_others()] == [("auto", "y:2"), ("new", "a"), ("newer", "a")]
    assert ollama_names.find("newer").id == ollama_names.find("new:latest").id == "a"
    ollama_names.copy("y:2", "new")
    assert ollama_names.find("new").id == "y:2"
    assert ollama_names.forget("new:latest")
    assert not ollama_names.forget("new")
    assert not ollama_names.forget("a")
    with pytest.raises(InvalidRequestError, match="already a name of a"):
        ollama_names.copy("y:2", "b")
    monkeypatch.setattr(copies, "MAX_ALIASES", 1)
    with pytest.raises(InvalidRequestError, match="1 copies"):
        ollama_names.copy("a", "one-more")


def test_a_copy_may_be_a_copy_of_a_copy_that_goes(ollama_names: OllamaNames) -> None:
    ollama_names.copy("a", "new")
    ollama_names.copy("new", "newer")
    ollama_names.forget("new")
    assert ollama_names.find("newer:latest").id == "a"
