"""An engine whose library is not installed says in one sentence what to run, and nothing is imported to find out."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from eardrum.engines import registry

pytestmark = pytest.mark.slow


ASK = """
import json, sys
from pathlib import Path
from eardrum.engines import registry
from eardrum.errors import ModelLoadError
from eardrum.runner.__main__ import load_engine
registry._find_spec = lambda name: None  # an installation without the libraries of any engine
try:
    load_engine(sys.argv[1], Path("/nowhere"), {})
except ModelLoadError as error:
    loaded = [name for name in (sys.argv[1], f"eardrum.engines.{sys.argv[1]}", "torch") if name in sys.modules]
    print(json.dumps([error.message, loaded]))
"""


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("onnx_asr", "The engine onnx_asr needs onnx_asr: run pip install 'eardrum[onnx]'."),
        (
            "nemo",
            "The engine nemo needs nemo in a separate interpreter: run python3 -m venv nemo && nemo/bin/pip install "
            "/path/to/eardrum 'nemo_toolkit[asr,speechlm2]>=3.0,<4', and set `python: nemo/bin/python` in the model's config.",
        ),
    ],
)
def test_a_missing_library_is_one_sentence_with_the_command(engine: str, message: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASK, engine], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [message, []]


def test_the_command_for_this_machine_names_where_the_package_came_from() -> None:
    card = registry.find_card("nemo")
    assert f"nemo/bin/pip install {Path(__file__).parents[2]} 'nemo_toolkit" in card.install_here
    assert card.install_hint_here.startswith("The engine nemo needs nemo in a separate interpreter: run python3 -m venv nemo &&")


def test_a_damaged_installation_is_repeated_from_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package index has no Eardrum, or another one."""
    card = registry.find_card("faster_whisper")
    source = Path(__file__).parents[2]
    assert card.install == "pip install --force-reinstall /path/to/eardrum"
    assert card.install_here == f"{sys.executable} -m pip install --force-reinstall --editable {source}"
    origin = json.dumps({"url": "file:///srv/eardrum-0.1.0-py3-none-any.whl", "archive_info": {}})
    monkeypatch.setattr(registry, "distribution", lambda name: SimpleNamespace(read_text=lambda file: origin))
    assert card.install_here.endswith("install --force-reinstall /srv/eardrum-0.1.0-py3-none-any.whl")


def test_an_extra_exists_for_every_engine_that_names_one() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for card in registry.list_cards().values():
        assert not card.extra or card.extra in extras, card.name
        assert not (card.extra and card.apart), f"{card.name} is installed either here or apart"
