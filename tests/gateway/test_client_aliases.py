"""Names that clients add, and the tag that says nothing."""

from __future__ import annotations

from pathlib import Path

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
