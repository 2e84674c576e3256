"""Lists the engines and their capabilities without importing them.

The literals in an engine's class body (`requires`, `layouts`, `names`, `capabilities` ...) are read from the source
with `ast`, so the gateway knows every engine while its libraries stay on disk.
Engines of other packages are found through the entry point group `eardrum.engines` (name = module, or module:class), wherever
Python's import system finds the module: nothing of it is run. An invalid one is reported and skipped.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from msgspec import Struct, ValidationError, convert, field, to_builtins
from msgspec.structs import fields, replace

from eardrum.errors import ConfigError
from eardrum.transcription import Capabilities

ENTRY_POINTS = "eardrum.engines"
CONFIG = "config.json"
PYTHON_TYPES = {"array": "list", "object": "dict", "null": "None"}
"""Types of Python by the names that msgspec has for them, which are JSON's."""
OTHER_NAMES = {"whisper": "openai_whisper", "openai": "openai_api"}
"""Engines as other servers' settings call them."""

OURS = "eardrum"

SOURCE_PLACEHOLDER = "/path/to/eardrum"
"""Stands for the clone of the repository: the package index has no Eardrum."""
NOT_ENGINES = {"__init__", "base", "cuda", "registry"}


class EngineCard(Struct, frozen=True):
    """One engine's declarations; `base.Engine` documents each."""

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
    voice_files: str = ""
    voice_languages: dict[str, str] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    rank: int = 50
    remote: bool = False
    apart: str = ""
    options: tuple[str, ...] = ()
    package: str = OURS
    """The distribution that contains it."""

    @property
    def missing_packages(self) -> tuple[str, ...]:
        """Libraries it needs that are not installed. Looked up, never imported."""
        return tuple(name for name in self.requires if _find_spec(name) is None)

    def can_run(self, directory: Path) -> bool:
        """Whether the directory holds a model of this engine, by its files.

        The model type is checked only for layouts with a config.json, because it stands there.
        """
        try:
            found = [layout for layout in self.layouts if all(_has_file(directory, pattern) for pattern in layout)]
        except OSError:  # it is being deleted, or cannot be read
            return False
        if not self.model_types or any(CONFIG not in layout for layout in found):
            return bool(found)
        return bool(found) and _read_json(directory / CONFIG).get("model_type", "") in self.model_types

    def find_capabilities(self, name: str, capabilities: Capabilities | None = None) -> Capabilities:
        """The capabilities of a model with this name: the engine's or the given ones, less those its kind lacks."""
        found = capabilities or self.capabilities
        for pattern, changes in self.variants.items():
            if fnmatchcase(name.lower(), pattern):
                found = replace(found, **changes)
        return found

    def find_voices(self, directory: Path) -> tuple[tuple[str, str], ...]:
        """The voices whose files are in a directory, with their languages, the engine's own default first."""
        if not self.voice_files:
            return ()
        suffix = self.voice_files.rpartition("*")[2]
        names: set[str] = set()
        with suppress(OSError):  # it is being deleted
            names = {path.name.removesuffix(suffix) for path in directory.glob(self.voice_files)}
        known = [name for name, _ in self.capabilities.voices]
        ordered = [*(name for name in known if name in names), *sorted(names.difference(known))]
        return tuple(voice for name in ordered for voice in self._list_voices(name))

    def _list_voices(self, name: str) -> list[tuple[str, str]]:
        """The voices of a file with this name; none if its language is not one of the engine's."""
        if not self.voice_languages:
            found = re.match(r"([a-z]{2,3})_([A-Z]{2})-", name)
            return [(name, f"{found[1]}-{found[2]}" if found else "")]
        spelled = next((spelled for pattern, spelled in self.voice_languages.items() if fnmatchcase(name, pattern)), "")
        languages = spelled.split()
        return [(f"{name}-{language}" if len(languages) > 1 else name, language) for language in languages]

    @property
    def install_hint(self) -> str:
        """A sentence that names the missing libraries and how to install them."""
        return self._format_install_hint(self.install)

    @property
    def install_hint_here(self) -> str:
        """The same, with the command for this machine."""
        return self._format_install_hint(self.install_here)

    def _format_install_hint(self, install: str) -> str:
        needs = f"The engine {self.name} needs {', '.join(self.missing_packages) or 'its libraries'}"
        if self.apart:
            then = f"set `python: {self.name}/bin/python` in the model's config"
            return f"{needs} in a separate interpreter: run {install}, and {then}."
        return f"{needs}: run {install}."

    @property
    def install(self) -> str:
        """The command that installs what is missing. It names no folder of this machine: clients see it."""
        if self.apart:
            others = "" if self.package == OURS else f" '{self.package}'"
            return f"python3 -m venv {self.name} && {self.name}/bin/pip install {SOURCE_PLACEHOLDER}{others} '{self.apart}'"
        if self.extra:
            return f"pip install '{self.package}[{self.extra}]'"
        return f"pip install --force-reinstall {SOURCE_PLACEHOLDER if self.package == OURS else self.package}"

    @property
    def install_here(self) -> str:
        """The same for the interpreter that runs this: `pip` on the PATH may be another one's."""
        install = self.install.replace(SOURCE_PLACEHOLDER, find_own_source(in_place=not self.apart), 1)
        return install if self.apart else name_interpreter(install)


class BrokenEngine(Struct, frozen=True):
    """An engine of another package that cannot be used."""

    name: str
    package: str
    why: str
    """A sentence about it, without a subject or a full stop."""

    def __str__(self) -> str:
        return f"The engine {self.name} of the package {self.package} is left out: {self.why}."


class CardError(ValueError):
    """A file holds no engine, or one with wrong declarations; the message names the error."""


def name_interpreter(command: str) -> str:
    """Return a `pip install` command for the interpreter that runs this."""
    python = shlex.quote(sys.executable)
    pip = f"{python} -m pip install" if _find_spec("pip") else f"uv pip install --python {python}"
    return command.replace("pip install", pip, 1)


def list_cards() -> dict[str, EngineCard]:
    """All engines by name."""
    return _find_engines()[0]


def list_broken() -> tuple[BrokenEngine, ...]:
    """Entry points of other packages that are no valid engines."""
    return _find_engines()[1]


@cache
def _find_engines() -> tuple[dict[str, EngineCard], tuple[BrokenEngine, ...]]:
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in NOT_ENGINES and (card := _read_card(path.stem, f"{__package__}.{path.stem}", path)):
            found[path.stem] = card
    failed: dict[str, BrokenEngine] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        package = entry.dist.name if entry.dist else "?"
        name = entry.name.replace("-", "_")
        try:
            card = _load_foreign_card(entry, name, package)
            if (other := found.get(name)) and other != card:  # a package may be found twice, as where it is developed
                raise CardError(f"there is an engine of that name already, in {other.package}")
            found[name] = card
        except Exception as error:  # noqa: BLE001 -- a file of another package may raise anything; the error is reported
            why = str(error) if isinstance(error, CardError) else f"{type(error).__name__}: {error}"
            failed[name] = BrokenEngine(name, package, why.splitlines()[0].rstrip(".") if why else type(error).__name__)
    return found, tuple(failed.values())


def find_card(name: str) -> EngineCard:
    """The engine of this name, hyphens and other servers' words allowed.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    meant = OTHER_NAMES.get(name, name.replace("-", "_"))
    if meant in list_cards():
        return list_cards()[meant]
    if failed := next((failed for failed in list_broken() if failed.name == meant), None):
        raise ConfigError(str(failed))
    raise ConfigError(f"There is no engine {name!r}. Engines: {', '.join(sorted(list_cards()))}.")


def _has_file(source: Path, pattern: str) -> bool:
    """Whether a folder has a file, or a file is one, of this name, with this JSON key or beginning."""
    glob, _, beginning = pattern.partition("@")
    name, _, key = glob.partition("#")
    paths = [source] if source.is_file() and fnmatchcase(source.name, name) else source.glob(name)
    return any((not key or key in _read_json(path)) and _begins_with(path, beginning.encode()) for path in paths)


def _begins_with(path: Path, beginning: bytes) -> bool:
    if not beginning:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _load_foreign_card(entry: EntryPoint, name: str, package: str) -> EngineCard:
    """The card of an engine that is registered as an entry point.

    Raises:
        CardError: there is none.
    """
    module, _, attribute = entry.value.partition("[")[0].replace(" ", "").partition(":")
    spec = _find_spec(module)
    if not spec:
        raise CardError(f"there is no module {module}")
    if not (spec.has_location and spec.origin and spec.origin.endswith(".py")):
        raise CardError(f"the module {module} has no file with its source, from which it could be read what it can do")
    try:
        card = _read_card(name, module, Path(spec.origin), package, attribute)
    except SyntaxError as error:
        raise CardError(f"{spec.origin}:{error.lineno or 1}: {error.msg}") from None
    except ValidationError as error:
        fault, _, path = str(error).partition(" - at `$.")
        fault = re.sub("`(.+?)`", lambda names: re.sub(r"\w+", lambda name: PYTHON_TYPES.get(name[0], name[0]), names[0]), fault)
        raise CardError(f"{spec.origin}: its `{path.rstrip('`')}` is wrong: {fault}") from None
    except CardError as error:
        raise CardError(f"{spec.origin}: {error}") from None
    if not card:
        expected = f"class {attribute}" if attribute else "class derived from `Engine`"
        raise CardError(f"{spec.origin} has no {expected}")
    return card


def find_own_source(*, in_place: bool) -> str:
    """Return what pip can install Eardrum from once more: the folder, file or repository that it was installed from.

    In the place of this installation, an editable one stays editable.
    """
    with suppress(PackageNotFoundError, ValueError):
        origin = json.loads(distribution(OURS).read_text("direct_url.json") or "{}")
        url = str(origin.get("url", ""))
        if url.startswith("file:"):
            option = "--editable " if in_place and origin.get("dir_info", {}).get("editable") else ""
            return option + shlex.quote(unquote(url.removeprefix("file://")))
        if vcs := origin.get("vcs_info"):
            return shlex.quote(f"{vcs['vcs']}+{url}@{vcs['commit_id']}")
        return shlex.quote(url) if url else SOURCE_PLACEHOLDER
    return SOURCE_PLACEHOLDER


def _find_spec(module: str) -> ModuleSpec | None:
    """Where a module would be imported from. Unlike `find_spec` it runs nothing of the packages around it."""
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        try:
            finding = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            spec = next((found for found in finding if found), None)
        except KeyError:  # a folder without `__init__.py`: Python looks into its parent module, which is not imported
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(Path(around, parts[depth])) for around in path or ()]
        if not spec:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts) - 1:
            return None
    return spec


def _read_card(name: str, module: str, path: Path, package: str = OURS, class_name: str = "") -> EngineCard | None:
    """The card of the first engine in a file, or of the one that is named.

    Raises:
        CardError, ValidationError: it declares what an engine cannot be.
        SyntaxError: the file is no Python.
    """
    tree = ast.parse(path.read_bytes(), str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (node.name == class_name if class_name else _is_an_engine(node)):
            declared = {f.name for f in fields(EngineCard)} - {"name", "module", "class_name", "options", "package"}
            literals = {name: value for name, value in _list_literals(node) if name in declared}
            if "capabilities" not in literals:
                raise CardError("the engine declares no `capabilities`, as in `capabilities = Capabilities(max_batch=8)`")
            options = tuple(_list_option_names(node))
            card = EngineCard(name=name, module=module, class_name=node.name, package=package, options=options, **literals)
            return card if package == OURS else _validate_card(card)
    return None


def _is_an_engine(node: ast.ClassDef) -> bool:
    names = (base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases)
    return bool({"Engine", "VoiceEngine"}.intersection(names))


def _validate_card(card: EngineCard) -> EngineCard:
    """The card with everything of the type that it should have."""
    return convert(to_builtins(card), EngineCard)


def _list_literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        match statement:
            case ast.Assign([ast.Name("capabilities")], value) | ast.AnnAssign(ast.Name("capabilities"), _, value) if value:
                yield "capabilities", _parse_capabilities(value)
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value) if value:
                with suppress(ValueError):  # computed: of no interest to a card
                    yield name, ast.literal_eval(value)


def _parse_capabilities(value: ast.expr) -> Capabilities:
    made = value.func if isinstance(value, ast.Call) else None
    by = made.attr if isinstance(made, ast.Attribute) else getattr(made, "id", "")
    if (
        not isinstance(value, ast.Call)
        or by != "Capabilities"
        or value.args
        or any(keyword.arg is None for keyword in value.keywords)
    ):
        raise CardError("its `capabilities` must be written out, as in `Capabilities(max_batch=8)`: they are read, not run")
    known = {f.name for f in fields(Capabilities)}
    given: dict[str, Any] = {}
    for keyword in value.keywords:
        assert keyword.arg
        if keyword.arg not in known:
            raise CardError(f"there is no capability {keyword.arg}, only {', '.join(sorted(known))}")
        try:
            given[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise CardError(f"its capability {keyword.arg} must be a literal: it is read, not run") from None
    return Capabilities(**given)


def _list_option_names(node: ast.ClassDef) -> Iterator[str]:
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Options":
            for statement in inner.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.target.id
