"""What engines there are and what they can do, without importing one.

An engine's class body declares `requires`, `extra`, `title`, `files`, `names` and `capabilities` as literals.
They are read from the source with `ast`, so the gateway knows every engine while its libraries stay on disk.
Engines of other packages are found through the entry point group `eardrum.engines` (name = module).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eardrum.errors import ConfigError
from eardrum.types import Capabilities

ENTRY_POINTS = "eardrum.engines"
NOT_ENGINES = {"__init__", "base", "registry"}


@dataclass(frozen=True, slots=True)
class Card:
    """One engine's declarations."""

    name: str
    module: str
    class_name: str
    title: str
    requires: tuple[str, ...]
    extra: str
    files: tuple[str, ...]
    """Names of files whose presence in a directory says that its model is for this engine."""
    capabilities: Capabilities
    options: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Libraries it needs that are not installed. Looked up, never imported."""
        return tuple(name for name in self.requires if find_spec(name) is None)

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
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
    """The engine of this name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    try:
        return cards()[name]
    except KeyError:
        raise ConfigError(f"There is no engine {name!r}. Engines: {', '.join(sorted(cards()))}.") from None


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
            literals = dict(_literals(node))
            return Card(
                name=name,
                module=module,
                class_name=node.name,
                title=literals.get("title", ""),
                requires=literals.get("requires", ()),
                extra=literals.get("extra", ""),
                files=literals.get("files", ()),
                capabilities=literals["capabilities"],
                options=tuple(_option_names(node)),
            )
    return None


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        if not (isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name)):
            continue
        value = statement.value
        if target.id == "capabilities" and isinstance(value, ast.Call):
            yield target.id, Capabilities(**{k.arg: ast.literal_eval(k.value) for k in value.keywords if k.arg})
        elif target.id in {"title", "requires", "extra", "files"}:
            yield target.id, ast.literal_eval(value)


def _option_names(node: ast.ClassDef) -> Iterator[str]:
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Options":
            for statement in inner.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.target.id
