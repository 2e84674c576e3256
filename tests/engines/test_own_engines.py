"""Engines of other packages: found however they are installed, run by nobody who only looks, and left out if they are wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from eardrum.config import Settings
from eardrum.engines import registry
from eardrum.errors import ConfigError
from eardrum.gateway.models.inventory import ModelInventory
from eardrum.transcription import Capabilities
from tests.recordings import encode_speech

pytestmark = pytest.mark.slow


PAGE = Path(__file__).parents[2] / "docs" / "guides" / "own-engine.md"

GOOD = """
class Parrot(Engine):
    title = "Parrots"
    capabilities = Capabilities(languages=("en",), max_batch=4)
"""

ASK = """
import json, sys
{before}
from eardrum.engines import registry
cards = {{name: [card.module, card.package] for name, card in registry.list_cards().items() if card.package != "eardrum"}}
failed = [str(failed) for failed in registry.list_broken()]
print(json.dumps([cards, failed, "moonshine" in registry.list_cards(), "parrots" in sys.modules]))
"""

Look = Callable[..., tuple[dict[str, list[str]], list[str]]]


@pytest.fixture
def inspect_engines(tmp_path: Path) -> Look:
    """What another interpreter finds that has a package with these files and this entry point installed."""

    def inspect_engines(
        entry: str, files: dict[str, str], *, before: str = "", where: str = ""
    ) -> tuple[dict[str, list[str]], list[str]]:
        info = tmp_path / "site" / "parrots-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrots\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[eardrum.engines]\n{entry}\n")
        root = tmp_path / (where or "site")
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        code = ASK.format(before=before)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        cards, failed, others, was_run = json.loads(done.stdout)
        assert others, "what is wrong with one engine is no harm to others"
        assert not was_run, "looking at an engine runs nothing of its package"
        return cards, failed

    return inspect_engines


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("parrot = parrots", "parrots.py"),
        ("parrot = parrots", "parrots/__init__.py"),
        ("parrot = parrots.engine", "parrots/engine.py"),
        ("parrot = parrots.deep.engine:Parrot", "parrots/deep/engine.py"),
    ],
)
def test_where_the_module_is(inspect_engines: Look, entry: str, file: str) -> None:
    around = {f"{folder}/__init__.py": "raise RuntimeError\n" for folder in map(str, Path(file).parents) if folder != "."}
    cards, failed = inspect_engines(entry, around | {file: GOOD})
    assert (cards, failed) == ({"parrot": [entry.split()[2].partition(":")[0], "parrots"]}, [])


def test_folders_without_a_file_of_their_own(inspect_engines: Look) -> None:
    cards, failed = inspect_engines(
        "parrot = parrots.deep.engine", {"parrots/__init__.py": "raise RuntimeError\n", "parrots/deep/engine.py": GOOD}
    )
    assert (list(cards), failed) == (["parrot"], [])


def test_a_package_on_a_path_of_its_own(inspect_engines: Look, tmp_path: Path) -> None:
    """`pip install -e` of most builders: a .pth file puts the folder of the sources on Python's path."""
    before = f"import site; site.addsitedir({str(tmp_path / 'site')!r})"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__editable__.parrots.pth").write_text(f"{tmp_path / 'work' / 'src'}\n")
    cards, failed = inspect_engines("parrot = parrots.engine", {"parrots/engine.py": GOOD}, before=before, where="work/src")
    assert (list(cards), failed) == (["parrot"], [])


FINDER = """
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location

class Finder:  # as setuptools writes it for packages that are not all in one folder
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "parrots":
            return spec_from_file_location(name, {init!r}, submodule_search_locations=[{folder!r}])

sys.meta_path.append(Finder)
"""


def test_a_package_that_only_a_finder_knows(inspect_engines: Look, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "src"
    before = FINDER.format(init=str(folder / "__init__.py"), folder=str(folder))
    files = {"__init__.py": "raise RuntimeError\n", "engine.py": GOOD}
    cards, failed = inspect_engines("parrot = parrots.engine", files, before=before, where="work/src")
    assert (list(cards), failed) == (["parrot"], [])


WRONG = {
    "no such module": ("parrot = parrots.nothing", "", "there is no module parrots.nothing"),
    "no engine": ("parrot = parrots", "class Parrot: ...", "has no class derived from `Engine`"),
    "no such class": ("parrot = parrots:Polly", GOOD, "has no class Polly"),
    "no Python": ("parrot = parrots", "class Parrot(Engine:\n", "parrots.py:1: "),
    "no text": ("parrot = parrots", "x = '\0'", "parrots.py"),
    "no capabilities": ("parrot = parrots", "class P(Engine):\n    title = 'x'", "declares no `capabilities`"),
    "computed capabilities": ("parrot = parrots", "class P(Engine):\n    capabilities = can()", "must be written out"),
    "a capability that is none": (
        "parrot = parrots",
        "class P(Engine):\n    capabilities = Capabilities(max_bach=4)",
        "there is no capability max_bach",
    ),
    "a computed capability": (
        "parrot = parrots",
        "class P(Engine):\n    capabilities = Capabilities(max_batch=N)",
        "its capability max_batch must be a literal",
    ),
    "names that are a list": (
        "parrot = parrots",
        f"{GOOD}    names = ['x']",
        "`names` is wrong: Expected `dict`, got `list`",
    ),
    "requires that is a word": (
        "parrot = parrots",
        f"{GOOD}    requires = 'json'",
        "`requires` is wrong: Expected `list`, got `str`",
    ),
    "a layout too flat": (
        "parrot = parrots",
        f"{GOOD}    layouts = ('a.bin', 'b.bin')",
        "`layouts[0]` is wrong: Expected",
    ),
    "batches of words": (
        "parrot = parrots",
        GOOD.replace("max_batch=4", "max_batch='four'"),
        "`capabilities.max_batch` is wrong",
    ),
    "a name that is taken": ("moonshine = parrots", GOOD, "there is an engine of that name already, in eardrum"),
    "an entry that means nothing": ("parrot = !", GOOD, "there is no module !"),
}


@pytest.mark.parametrize(("entry", "text", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_one_is_reported_and_left_out(inspect_engines: Look, entry: str, text: str, says: str) -> None:
    cards, failed = inspect_engines(entry, {"parrots.py": text})
    assert cards == {}
    assert len(failed) == 1
    assert failed[0].startswith(f"The engine {entry.split(maxsplit=1)[0]} of the package parrots is left out: ")
    assert says in failed[0]
    assert "\n" not in failed[0]


def test_a_library_below_another_that_is_missing() -> None:
    """As `nemo.collections` is, where there is no nemo; it is asked for without importing anything."""
    assert registry.EngineCard("x", "x", "X", Capabilities(), requires=("no_such.thing", "json.decoder")).missing_packages == (
        "no_such.thing",
    )


def read_example(language: str) -> str:
    """The first one, which transcribes; the second one speaks."""
    found, *_ = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_example_is_short() -> None:
    code = [line for line in read_example("python").splitlines() if line and not line.startswith(("#", "import", "from"))]
    assert len(code) <= 25


@pytest.mark.slow
def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """Installed in an interpreter of its own that sees this one's packages, as `pip install -e` does it; listed, and run."""
    project, folder = tmp_path / "project", tmp_path / "model"
    for path in (project, folder):
        path.mkdir()
    (project / "loudness.py").write_text(read_example("python"))
    (folder / "loudness.json").write_text("{}")
    python = str(tmp_path / "venv" / "bin" / "python")
    run_command(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    site = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "__editable__.eardrum_loudness.pth").write_text(f"{project}\n")
    info = site / "eardrum_loudness-1.0.dist-info"
    info.mkdir()
    told = tomllib.loads(read_example("toml"))["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")
    ((group, entries),) = told["entry-points"].items()
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *(f"{name} = {at}" for name, at in entries.items())]))
    assert "loudness" in run_command(python, "-m", "eardrum", "engines")
    (tmp_path / "speech.wav").write_bytes(encode_speech("wav"))
    chosen = ["--set", f"models.loud.source={folder}", "--set", "models.loud.options.unit=dBFS", "--model", "loud"]
    said = run_command(python, "-m", "eardrum", "transcribe", str(tmp_path / "speech.wav"), *chosen)
    assert re.fullmatch(r"(-\d+ dBFS\s*)+", said)
    (project / "loudness.py").write_text("class Loudness(Engine): ...\n")
    for command in ("engines", "list", "check"):
        assert "The engine loudness of the package eardrum-loudness is left out: " in run_command(
            python, "-m", "eardrum", command
        )


def run_command(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_broken_engine_that_is_asked_for_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "list_broken", lambda: (registry.BrokenEngine("parrot", "parrots", "it is ill"),))
    with pytest.raises(ConfigError, match="The engine parrot of the package parrots is left out: it is ill"):
        ModelInventory(Settings(default_engine="parrot"))
