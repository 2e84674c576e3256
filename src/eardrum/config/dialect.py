"""YAML as llama-swap reads it: version 1.2 in what words mean, merges, octal numbers, no name twice.

PyYAML follows version 1.1, in which `no` is false and `1:30` is ninety. Its scanner and parser are used, what a word
means is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from eardrum.config.places import Errors, KeyPath, Place, Places, Remark, SettingError

MOST_VALUES = 500_000
"""Values a file may stand for, anchors counted as often as they are used: a short file could mean billions."""

TAG = "tag:yaml.org,2002:"
MERGE, COLLECTIONS = f"{TAG}merge", (f"{TAG}seq", f"{TAG}map")

WORDS = {
    "null": ("~nN", r"~|null|Null|NULL|"),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)"),
    "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    "merge": ("<", r"<<"),
}
"""First letters and patterns of words that are not text, the first that fits wins."""


class _Loader(yaml.SafeLoader):
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


_Loader.yaml_implicit_resolvers = {}
for _name, (_letters, _pattern) in WORDS.items():
    _first = [*_letters, ""] if _name == "null" else [*_letters]
    _Loader.add_implicit_resolver(f"{TAG}{_name}", re.compile(f"(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Document:
    """A file, read."""

    tree: Any
    places: Places = field(default_factory=Places)
    goes_on: int = 0
    """The line of a second document, which does not count; 0 if there is none."""


def parse(text: str, name: str, errors: Errors | None = None) -> Document:
    """Read a file's text; `name` is the file's, for messages. With `errors`, single values that are wrong go there and are None.

    Raises:
        ConfigError: it is not YAML; the message names the line.
    """
    try:
        with closing(_Loader(text)) as loader:
            node = loader.get_node() if loader.check_node() else None
            document = Document(None, goes_on=loader.get_mark().line + 1 if loader.check_node() else 0)
        if node:
            document.tree = _Builder(name, document.places, errors).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context and error.problem else ""
        tab = " Indent with spaces, not with tabs." if "\\t" in (error.problem or "") else ""
        what = f"This is not valid YAML: {context}{error.problem or error.context}.{tab}"
        raise SettingError(Remark(what, Place(name, mark.line + 1 if mark else 0))) from None
    except yaml.YAMLError as error:
        raise SettingError(Remark(f"This is not valid YAML: {str(error).splitlines()[0]}.", Place(name))) from None
    except RecursionError:
        raise SettingError(Remark("The values are nested too deep.", Place(name))) from None
    return document


def value(text: str) -> Any:
    """The value that a piece of YAML stands for.

    Raises:
        ConfigError: it is not YAML.
    """
    return parse(text, "").tree


class _Builder:
    """Turns nodes into values and keeps the places."""

    def __init__(self, name: str, places: Places, errors: Errors | None):
        self._name = name
        self._places = places
        self._errors = errors
        self._open: set[Node] = set()
        self._built = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self._built += 1
        if node in self._open or self._built > MOST_VALUES:
            raise self._error(node, "an anchor holds itself" if node in self._open else "it stands for too many values")
        if path and path not in self._places:
            self._place(node, path, node)
        self._open.add(node)
        try:
            return self._of(node, path)
        finally:
            self._open.discard(node)

    def _of(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in COLLECTIONS:
            return self._wrong(node, f"the tag {node.tag} means nothing here", path)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, position)) for position, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        built = {}
        for name, (key, item) in self._entries(node).items():
            self._place(key, (*path, name), item)
            built[name] = self.build(item, (*path, name))
        return built

    def _place(self, node: Node, path: KeyPath, written: Node) -> None:
        text = written.value if isinstance(written, ScalarNode) else None
        self._places[path] = Place(self._name, node.start_mark.line + 1, text)

    def _entries(self, node: MappingNode) -> dict[str, tuple[Node, Node]]:
        """Name to key and value: the node's own in the order written, then those merged in that it does not have itself."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: list[MappingNode] = []
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                self._wrong(key, "a name cannot be a list or a map")
            elif key.value in own:
                before = own[key.value][0].start_mark.line + 1
                self._wrong(key, f"{key.value!r} is here twice, first in line {before}")
            elif key.tag == MERGE:
                merged += self._merged(item)
            else:
                own[key.value] = key, item
        for source in merged:
            if source in self._open or source is node:
                raise self._error(source, "an anchor holds itself")
            own = {**own, **{name: entry for name, entry in self._entries_below(source).items() if name not in own}}
        return own

    def _entries_below(self, source: MappingNode) -> dict[str, tuple[Node, Node]]:
        self._open.add(source)
        try:
            return self._entries(source)
        finally:
            self._open.discard(source)

    def _merged(self, item: Node) -> Iterator[MappingNode]:
        for source in item.value if isinstance(item, SequenceNode) else [item]:
            if isinstance(source, MappingNode):
                yield source
            else:
                self._wrong(source, "`<<` takes a map, or a list of maps")

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(TAG)
        written = node.value.replace("_", "")
        try:
            if kind == "int":
                return _whole(written)
            if kind == "float":
                return float(written.lower().replace(".", "") if written[-1:].isalpha() else written)
        except ValueError:
            return self._wrong(node, f"{node.value!r} is not a number", path)
        if kind in ("str", "null", "bool", "merge"):
            return {"null": None, "bool": node.value.lower() == "true"}.get(kind, node.value)
        return self._wrong(node, f"the tag {node.tag} means nothing here", path)

    def _wrong(self, node: Node, what: str, path: KeyPath | None = None) -> None:
        """A mistake that keeps nobody from reading on; `path` is that of a value that there is not."""
        error = self._error(node, what)
        if self._errors is None:
            raise error
        self._errors.take(error, path)

    def _error(self, node: Node, what: str) -> SettingError:
        return SettingError(Remark(f"This is not valid YAML: {what}.", Place(self._name, node.start_mark.line + 1)))


def _whole(written: str) -> int:
    sign, digits = (-1 if written.startswith("-") else 1), written.lstrip("+-").lower()
    for prefix, base in (("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)):
        if digits.startswith(prefix) and len(digits) > len(prefix):
            return sign * int(digits.removeprefix(prefix), base)
    return sign * int(digits)
