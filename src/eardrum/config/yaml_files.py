"""Reads YAML config files as llama-swap does, fills in `${env.NAME}`, and merges several files into one tree.

PyYAML follows YAML 1.1, in which `no` is false and `1:30` is ninety. Its scanner and parser are used; scalars follow YAML 1.2,
with merge keys and octal numbers, and duplicate keys are errors.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.scanner import ScannerError

from eardrum.config import diagnostics
from eardrum.config.diagnostics import ConfigDiagnostic, ErrorCollector, KeyPath, LocationMap, SettingError, SourceLocation
from eardrum.config.setting_names import use_native_names
from eardrum.errors import ConfigError
from eardrum.text import is_encodable

MAX_VALUES = 500_000
"""Limit of values in a file; anchors count at every use, since a short file can expand to billions."""

TAG = "tag:yaml.org,2002:"
MERGE, COLLECTIONS = f"{TAG}merge", (f"{TAG}seq", f"{TAG}map")

SCALAR_PATTERNS = {
    "null": ("~nN", r"~|null|Null|NULL|"),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)"),
    "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    "merge": ("<", r"<<"),
}
"""First letters and patterns of scalars that are not text; the first match wins."""


class _YamlLoader(yaml.SafeLoader):
    """Tabs may stand between words, as in the libraries of other languages; lines are not indented with them."""

    close = yaml.SafeLoader.dispose

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str]:
        blanks = ""
        while (letter := self.peek(len(blanks))) in (" ", "\t"):
            blanks += letter
        tabs = "\t" in blanks
        self.forward(len(blanks) if tabs else 0)
        found: list[str] | None = super().scan_plain_spaces(indent, start_mark)
        return found or ([blanks] if tabs else [])

    def scan_flow_scalar(self, style: str) -> yaml.ScalarToken:
        """Scan a text in quotes. JSON, which is YAML too, may write a letter as two escapes, such as ud83c and udfa4."""
        token: yaml.ScalarToken = super().scan_flow_scalar(style)
        if not token.value.isascii() and not is_encodable(token.value):
            try:
                token.value = token.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise ScannerError(None, None, "the text holds half of a character, as an escape", token.start_mark) from None
        return token


_YamlLoader.yaml_implicit_resolvers = {}
for _name, (_letters, _pattern) in SCALAR_PATTERNS.items():
    _first = [*_letters, ""] if _name == "null" else [*_letters]
    _YamlLoader.add_implicit_resolver(f"{TAG}{_name}", re.compile(f"(?:{_pattern})$"), _first)


class _YamlDumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or 1.2 reads as something else. Lists of texts are written in one line."""

    def represent_sequence(self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None) -> SequenceNode:
        entries = list(sequence)
        return super().represent_sequence(tag, entries, flow_style=not any(isinstance(entry, dict) for entry in entries))

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


for _name, (_letters, _pattern) in SCALAR_PATTERNS.items():
    _YamlDumper.add_implicit_resolver(f"{TAG}{_name}", re.compile(f"(?:{_pattern})$"), [*_letters])


def format_yaml(tree: Mapping[str, Any]) -> str:
    """Format settings of plain types as YAML that is read as the same settings."""
    text: str = yaml.dump(tree, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return text


@dataclass(slots=True)
class YamlDocument:
    """A parsed file."""

    tree: Any
    locations: LocationMap = field(default_factory=LocationMap)
    second_document_line: int = 0
    """The line of a second document, which is not read; 0 if there is none."""


def parse_yaml(text: str, name: str, errors: ErrorCollector | None = None) -> YamlDocument:
    """Parse a file's text; `name` is for messages. With `errors`, wrong values are reported there and become None.

    Raises:
        ConfigError: it is not YAML; the message names the line.
    """
    try:
        with closing(_YamlLoader(text)) as loader:
            node = loader.get_node() if loader.check_node() else None
            document = YamlDocument(None, second_document_line=loader.get_mark().line + 1 if loader.check_node() else 0)
        if node:
            document.tree = _TreeBuilder(name, document.locations, errors).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context and error.problem else ""
        tab = " Indent with spaces, not with tabs." if "\\t" in (error.problem or "") else ""
        what = f"This is not valid YAML: {context}{error.problem or error.context}.{tab}"
        raise SettingError(ConfigDiagnostic(what, SourceLocation(name, mark.line + 1 if mark else 0))) from None
    except yaml.YAMLError as error:
        raise SettingError(
            ConfigDiagnostic(f"This is not valid YAML: {str(error).splitlines()[0]}.", SourceLocation(name))
        ) from None
    except RecursionError:
        raise SettingError(ConfigDiagnostic("The values are nested too deep.", SourceLocation(name))) from None
    return document


def parse_value(text: str) -> Any:
    """Parse a value in YAML.

    Raises:
        ConfigError: it is not YAML.
    """
    return parse_yaml(text, "").tree


class _TreeBuilder:
    """Builds values from YAML nodes, and records their locations."""

    def __init__(self, name: str, places: LocationMap, errors: ErrorCollector | None):
        self._name = name
        self._locations = places
        self._errors = errors
        self._open_nodes: set[Node] = set()
        self._node_count = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self._node_count += 1
        if node in self._open_nodes or self._node_count > MAX_VALUES:
            raise self._build_error(
                node, "an anchor holds itself" if node in self._open_nodes else "it stands for too many values"
            )
        if path and path not in self._locations:
            self._record_location(node, path, node)
        self._open_nodes.add(node)
        try:
            return self._build_node(node, path)
        finally:
            self._open_nodes.discard(node)

    def _build_node(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, ScalarNode):
            return self._build_scalar(node, path)
        if node.tag not in COLLECTIONS:
            return self._report_error(node, f"the tag {node.tag} is not supported", path)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, position)) for position, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        built = {}
        for name, (key, item) in self._collect_entries(node).items():
            self._record_location(key, (*path, name), item)
            built[name] = self.build(item, (*path, name))
        return built

    def _record_location(self, node: Node, path: KeyPath, written: Node) -> None:
        text = written.value if isinstance(written, ScalarNode) else None
        self._locations[path] = SourceLocation(self._name, node.start_mark.line + 1, text)

    def _collect_entries(self, node: MappingNode) -> dict[str, tuple[Node, Node]]:
        """Collect the entries of a map by name: its own in written order, then merged ones under other names."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: list[MappingNode] = []
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                self._report_error(key, "a name cannot be a list or a map")
            elif key.value in own:
                before = own[key.value][0].start_mark.line + 1
                self._report_error(key, f"{key.value!r} is here twice, first in line {before}")
            elif key.tag == MERGE:
                merged += self._iterate_merged(item)
            else:
                own[key.value] = key, item
        for source in merged:
            if source in self._open_nodes or source is node:
                raise self._build_error(source, "an anchor holds itself")
            own = {**own, **{name: entry for name, entry in self._collect_merged_entries(source).items() if name not in own}}
        return own

    def _collect_merged_entries(self, source: MappingNode) -> dict[str, tuple[Node, Node]]:
        self._open_nodes.add(source)
        try:
            return self._collect_entries(source)
        finally:
            self._open_nodes.discard(source)

    def _iterate_merged(self, item: Node) -> Iterator[MappingNode]:
        for source in item.value if isinstance(item, SequenceNode) else [item]:
            if isinstance(source, MappingNode):
                yield source
            else:
                self._report_error(source, "`<<` takes a map, or a list of maps")

    def _build_scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(TAG)
        written = node.value.replace("_", "")
        try:
            if kind == "int":
                return _parse_integer(written)
            if kind == "float":
                return float(written.lower().replace(".", "") if written[-1:].isalpha() else written)
        except ValueError:
            return self._report_error(node, f"{node.value!r} is not a number", path)
        if kind in ("str", "null", "bool", "merge"):
            return {"null": None, "bool": node.value.lower() == "true"}.get(kind, node.value)
        return self._report_error(node, f"the tag {node.tag} is not supported", path)

    def _report_error(self, node: Node, what: str, path: KeyPath | None = None) -> None:
        """Report an error after which parsing continues; the value at `path` is missing."""
        error = self._build_error(node, what)
        if self._errors is None:
            raise error
        self._errors.add_exception(error, path)

    def _build_error(self, node: Node, what: str) -> SettingError:
        return SettingError(
            ConfigDiagnostic(f"This is not valid YAML: {what}.", SourceLocation(self._name, node.start_mark.line + 1))
        )


def _parse_integer(written: str) -> int:
    sign, digits = (-1 if written.startswith("-") else 1), written.lstrip("+-").lower()
    for prefix, base in (("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)):
        if digits.startswith(prefix) and len(digits) > len(prefix):
            return sign * int(digits.removeprefix(prefix), base)
    return sign * int(digits)


VARIABLE = re.compile(r"\$\{env\.([a-zA-Z_][a-zA-Z0-9_]*)\}")

UNSET, INVALID, END = "\ue000", "\ue001", "\ue002"
"""Enclose names of variables that have no usable value, until comments are known: there they are no error."""

MARKED = re.compile(f"([{UNSET}{INVALID}])(.*?){END}")

NAMED_ENTITIES = {
    ("models",),
    ("groups",),
    ("profiles",),
    ("selectors",),
    ("peers",),
    ("matrix",),
    ("routing", "router", "settings", "groups"),
    ("routing", "router", "settings", "matrix"),
}
"""Settings whose entries may be defined in one file only."""


def list_files(files: Sequence[Path], folder: Path | None, errors: ErrorCollector) -> list[Path]:
    """List the given files, then those of the folder in the order of their names.

    It is an error if the folder cannot be read, or holds a file that is also named by itself.
    """
    if not folder:
        return list(files)
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix in (".yml", ".yaml") and path.is_file())
    except OSError as error:
        errors.add_exception(ConfigError(f"Cannot read the config folder {folder}: {error.strerror}."))
        errors.incomplete = True
        return list(files)
    named = {os.path.realpath(file) for file in files}
    for twice in (path for path in inside if os.path.realpath(path) in named):
        message = f"The config file {twice} is listed, and is also in the config folder {folder}: remove one of the two."
        errors.add_exception(ConfigError(message))
    return [*files, *(path for path in inside if os.path.realpath(path) not in named)]


def read_files(files: Sequence[Path], environment: Mapping[str, str], errors: ErrorCollector) -> dict[str, Any]:
    """Read all files into one tree, and their locations into those of `errors`.

    It is an error if a file cannot be read or is not YAML, names a variable that is not set, or contradicts one before it.
    """
    tree: dict[str, Any] = {}
    for file in files:
        try:
            document = _read_file(file, environment, errors)
        except ConfigError as error:
            errors.add_exception(error)
            errors.incomplete = True
            continue
        if document.second_document_line:
            place = diagnostics.SourceLocation(str(file), document.second_document_line)
            errors.warnings.append(ConfigDiagnostic("Only the first document of a file counts; a second one begins here.", place))
        tree = _TreeMerger(errors, document.locations).merge_values(tree, document.tree or {}, ())
        errors.locations.adopt(document.locations)
    return tree


def _read_file(file: Path, environment: Mapping[str, str], errors: ErrorCollector) -> YamlDocument:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = " A folder of files is given with --config-dir." if file.is_dir() else ""
        raise ConfigError(f"Cannot read the config file {file}: {error.strerror}.{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config file {file} is not valid YAML: it is not text in UTF-8.") from error
    document = parse_yaml(VARIABLE.sub(_build_substitution(environment), text), str(file), errors)
    if document.tree is not None and not isinstance(document.tree, dict):
        raise ConfigError(f"The config file {file} must hold settings by name, as in `port: 8100`.")
    document.tree = _drop_unset_variables(document.tree, (), document.locations, errors)
    if isinstance(document.tree, dict):
        document.tree = use_native_names(document.tree, document.locations, errors)
    return document


def _build_substitution(environment: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    def substitute(match: re.Match[str]) -> str:
        value = environment.get(match[1])
        if value is None:
            return f"{UNSET}{match[1]}{END}"
        if set(value) & {"\n", "\r", "\0"}:
            return f"{INVALID}{match[1]}{END}"
        return value.replace("\\", "\\\\").replace('"', '\\"')

    return substitute


def _drop_unset_variables(value: Any, path: diagnostics.KeyPath, where: LocationMap, errors: ErrorCollector) -> Any:
    """Drop values with variables that have no usable value. Comments are gone by now, so that they may hold any."""
    if isinstance(value, dict):
        known = {name: inner for name, inner in value.items() if _is_variable_set(name, (*path, name), where, errors)}
        errors.incomplete |= len(known) < len(value)
        return {name: _drop_unset_variables(inner, (*path, name), where, errors) for name, inner in known.items()}
    if isinstance(value, list):
        return [_drop_unset_variables(inner, (*path, position), where, errors) for position, inner in enumerate(value)]
    return value if not isinstance(value, str) or _is_variable_set(value, path, where, errors) else None


def _is_variable_set(text: str, path: diagnostics.KeyPath, where: LocationMap, errors: ErrorCollector) -> bool:
    if not (match := MARKED.search(text)):
        return True
    wrong = "is not set" if match[1] == UNSET else "holds a line break or a null, which cannot stand in a config"
    errors.add_exception(where.build_error(path, f"The environment variable {match[2]} {wrong}."), path)
    return False


class _TreeMerger:
    """Merges a file into the files before it; `added` has its locations."""

    def __init__(self, errors: ErrorCollector, added: LocationMap):
        self._errors = errors
        self._added = added

    def merge_values(self, first: Any, second: Any, path: diagnostics.KeyPath) -> Any:
        """Merge two values of a setting: maps are joined, lists concatenated, and other values must be equal."""
        if first is None or second is None:
            return second if first is None else first
        if isinstance(first, dict) and isinstance(second, dict):
            return self._merge_maps(first, second, path)
        if isinstance(first, list) and isinstance(second, list):
            self._errors.locations.adopt(self._added, path, shift=len(first))
            return first + second
        if type(first) is not type(second) or first != second:
            there = self._errors.locations.find(path)
            self._report_error(path, f"{self._added.format_path(path)} is set to something else at {there}: set it in one file.")
        return first

    def _merge_maps(self, first: dict[str, Any], second: dict[str, Any], path: diagnostics.KeyPath) -> dict[str, Any]:
        joined = dict(first)
        for name, value in second.items():
            below = (*path, name)
            if name in first and path in NAMED_ENTITIES:
                there = self._errors.locations.find(below)
                self._report_error(
                    below, f"{self._added.format_path(below)} is described at {there} too: describe it in one file."
                )
            else:
                joined[name] = self.merge_values(first[name], value, below) if name in first else value
        return joined

    def _report_error(self, path: diagnostics.KeyPath, message: str) -> None:
        self._errors.add_exception(self._added.build_error(path, message))
