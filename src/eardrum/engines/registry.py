"""What engines there are and what they can do, without importing one.

What an engine's class body declares as literals (`requires`, `layouts`, `names`, `capabilities` ...) is read from the source
with `ast`, so the gateway knows every engine while its libraries stay on disk.
Engines of other packages are found through the entry point group `eardrum.engines` (name = module).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eardrum.errors import ConfigError
from eardrum.types import Capabilities

ENTRY_POINTS = "eardrum.engines"
CONFIG = "config.json"
OTHER_NAMES = {"whisper": "openai_whisper", "openai": "openai_api"}
"""Engines as other servers' settings call them."""

NOT_ENGINES = {"__init__", "base", "registry"}


@dataclass(frozen=True, slots=True)
class Card:
    """One engine's declarations; `base.Engine` says what each means."""

    name: str
    module: str
    class_name: str
    capabilities: Capabilities
    title: str = ""
    requires: tuple[str, ...] = ()
    extra: str = ""
    layouts: tuple[tuple[str, ...], ...] = ()
    model_types: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    repositories: tuple[str, ...] = ()
    downloads: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    rank: int = 50
    remote: bool = False
    apart: str = ""
    options: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Libraries it needs that are not installed. Looked up, never imported."""
        return tuple(name for name in self.requires if find_spec(name) is None)

    def runs(self, directory: Path) -> bool:
        """Whether the directory holds a model of this engine, by its files.

        The model type is asked of the layouts that have a config.json; the others have nowhere to say it.
        """
        found = [layout for layout in self.layouts if all(_holds(directory, pattern) for pattern in layout)]
        if not self.model_types or any(CONFIG not in layout for layout in found):
            return bool(found)
        return bool(found) and _json(directory / CONFIG).get("model_type", "") in self.model_types

    def capabilities_of(self, name: str, capabilities: Capabilities | None = None) -> Capabilities:
        """What a model of this name can do: the engine's capabilities, or the given ones, less what its kind cannot."""
        found = capabilities or self.capabilities
        for pattern, changes in self.variants.items():
            if fnmatchcase(name.lower(), pattern):
                found = replace(found, **changes)
        return found

    @property
    def how_to_install(self) -> str:
        """The sentence for whoever lacks its libraries."""
        needs = f"The engine {self.name} needs {', '.join(self.missing) or 'its libraries'}"
        if self.apart:
            then = f"set `python: {self.name}/bin/python` in the model's config"
            return f"{needs} in an interpreter of its own: run {self.install}, and {then}."
        return f"{needs}: run {self.install}."

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        if self.apart:
            return f"python3 -m venv {self.name} && {self.name}/bin/pip install eardrum '{self.apart}'"
        return f"pip install 'eardrum[{self.extra}]'" if self.extra else "pip install --force-reinstall eardrum"


@cache
def cards() -> dict[str, Card]:
    """All engines by name."""
    found = {}
    for name, module, path in _sources():
        if card := _read(name, module, path):
            found[name] = card
    return found


def card(name: str) -> Card:
    """The engine of this name, hyphens and other servers' words allowed.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    try:
        return cards()[OTHER_NAMES.get(name, name.replace("-", "_"))]
    except KeyError:
        raise ConfigError(f"There is no engine {name!r}. Engines: {', '.join(sorted(cards()))}.") from None


def _holds(directory: Path, pattern: str) -> bool:
    name, _, key = pattern.partition("#")
    return any(not key or key in _json(path) for path in directory.glob(name))


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sources() -> Iterator[tuple[str, str, Path]]:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in NOT_ENGINES:
            yield path.stem, f"{__package__}.{path.stem}", path
    for entry in entry_points(group=ENTRY_POINTS):
        path = Path(*entry.module.split(".")).with_suffix(".py")
        if entry.dist and (located := Path(str(entry.dist.locate_file(path)))).is_file():
            yield entry.name, entry.module, located


def _read(name: str, module: str, path: Path) -> Card | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Engine" for b in node.bases):
            declared = {f.name for f in fields(Card)}
            literals = {name: value for name, value in _literals(node) if name in declared}
            return Card(name=name, module=module, class_name=node.name, options=tuple(_option_names(node)), **literals)
    return None


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        match statement:
            case ast.Assign([ast.Name("capabilities")], ast.Call(keywords=keywords)):
                yield "capabilities", Capabilities(**{k.arg: ast.literal_eval(k.value) for k in keywords if k.arg})
            case ast.Assign([ast.Name(name)], value):
                with suppress(ValueError):  # computed: of no interest to a card
                    yield name, ast.literal_eval(value)


def _option_names(node: ast.ClassDef) -> Iterator[str]:
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Options":
            for statement in inner.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.target.id
