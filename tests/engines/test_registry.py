"""What engines declare, read without importing them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import fields

from eardrum.engines import registry
from eardrum.engines.base import ModelEngine
from eardrum.errors import ConfigError

FOLDER = Path(registry.__file__).parent


@pytest.mark.parametrize("card", registry.list_cards().values(), ids=lambda card: card.name)
def test_a_card_says_what_its_class_says(card: registry.EngineCard) -> None:
    """The contract of every engine's file."""
    cls = getattr(importlib.import_module(card.module), card.class_name)
    assert issubclass(cls, ModelEngine)
    assert cls.__module__ == card.module
    assert card.name == card.module.rpartition(".")[2]
    declared = {f.name for f in fields(registry.EngineCard)} - {"name", "module", "class_name", "options", "package"}
    assert {name: getattr(card, name) for name in declared} == {name: getattr(cls, name) for name in declared}
    assert set(card.options) <= set(cls.Options.model_fields)
    assert set(cls.Options.model_fields) == {*card.options, *ModelEngine.Options.model_fields}
    assert card.title, "an engine says what it runs"
    assert all(field.description for field in cls.Options.model_fields.values())
    assert card.capabilities.max_batch >= 1
    assert card.capabilities.max_window_s > 0


def test_every_engines_file_has_a_card() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - registry.NOT_ENGINES
    assert set(registry.list_cards()) >= files
    assert "moonshine" in files


def test_moonshines_card() -> None:
    card = registry.find_card("moonshine")
    assert card.class_name == "Moonshine"
    assert card.layouts == (("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"),)
    assert card.capabilities.languages == ("en",)
    assert "threads" in card.options
    assert card.missing_packages == ()


def test_an_unknown_engine_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'whispr'.*moonshine"):
        registry.find_card("whispr")


ASK = """
import json, sys
from eardrum.engines import registry
found = list(registry.list_cards())
missing = [card.missing_packages for card in registry.list_cards().values()]
print(json.dumps([found, sorted(sys.modules)]))
"""


def test_reading_cards_imports_no_library() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=30)
    found, modules = json.loads(done.stdout)
    assert "moonshine" in found
    heavy = {
        "numpy",
        "onnxruntime",
        "av",
        "torch",
        "ctranslate2",
        "faster_whisper",
        "eardrum.engines.base",
        "eardrum.engines.moonshine",
    }
    assert heavy.isdisjoint(modules)


ENGINE = '''
raise RuntimeError("this file must be read, not imported")

class Options: ...

class Helper(Engine2): ...

class Parrot(Engine):
    """Not a real engine: the file of one that another package would bring."""
    requires = ("json", "no_such_library")
    extra = "parrot"
    title = "Parrots"
    layouts = (("parrot.bin",),)
    names: dict = {"polly": "parrots/polly"}
    capabilities = Capabilities(languages=("en", "de"), translate=True, max_batch=4)

    class Options(EngineOptions):
        volume: int = 3
        color: str = "green"
'''


def test_a_card_of_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    path = tmp_path / "parrot.py"
    path.write_text(ENGINE)
    card = registry._read_card("parrot", "parrots.parrot", path)
    assert card is not None
    assert (card.class_name, card.options, card.layouts) == ("Parrot", ("volume", "color"), (("parrot.bin",),))
    assert card.capabilities.languages == ("en", "de")
    assert card.capabilities.max_batch == 4
    assert card.names == {"polly": "parrots/polly"}
    assert card.missing_packages == ("no_such_library",)
    assert card.install == "pip install 'eardrum[parrot]'"


def test_a_file_without_an_engine_has_no_card(tmp_path: Path) -> None:
    path = tmp_path / "notes.py"
    path.write_text("class Notes: ...\n")
    assert registry._read_card("notes", "notes", path) is None
