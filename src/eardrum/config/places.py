"""Where in the files a value is written, and what there is to say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eardrum.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""The way from the top of the settings to a value: names, and positions in lists."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file."""

    file: str
    line: int
    """Counted from 1."""
    text: str | None = None
    """What is written there, if it is one word, number or sentence."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that does not keep the settings from being used, but that whoever wrote them will want to know."""

    message: str
    place: Place | None = None
    path: str = ""
    """The setting, as in `models.a.cmd`."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class Places:
    """The place of every setting that a file has. Settings from the environment and from flags have none."""

    def __init__(self) -> None:
        self._places: dict[KeyPath, Place] = {}
        self._elsewhere: set[KeyPath] = set()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._places

    def __setitem__(self, path: KeyPath, place: Place) -> None:
        self._places[path] = place

    def text(self, path: KeyPath) -> str | None:
        """What the file says there, before macros."""
        place = self._places.get(path)
        return place.text if place else None

    def of(self, path: KeyPath) -> Place | None:
        """The place of a setting, or else of what holds it; None for what is not from a file."""
        upwards = [path[:depth] for depth in range(len(path), 0, -1)]
        if not self._elsewhere.isdisjoint(upwards):
            return None
        return next((self._places[above] for above in upwards if above in self._places), None)

    def adopt(self, others: Places, at: KeyPath = (), shift: int = 0) -> None:
        """Take over the places below `at` of another file; the items of a list that is appended to lie `shift` further on."""
        for path, place in others._places.items():
            if path[: len(at)] == at and path not in self._places:
                self._places[_shifted(path, len(at), shift)] = place

    def forget(self, tree: Any, path: KeyPath = ()) -> None:
        """Give up the places of settings that something else than a file sets, which `tree` holds."""
        if isinstance(tree, dict) and (tree or not path):
            for name, value in tree.items():
                self.forget(value, (*path, name))
        else:
            self._places = {place: at for place, at in self._places.items() if place[: len(path)] != path}
            self._elsewhere.add(path)

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """An error that names the line."""
        place = self.of(path)
        return ConfigError(f"{place}: {message}" if place else message)

    def remark(self, path: KeyPath, message: str) -> Remark:
        """A remark that names the line."""
        return Remark(message, self.of(path), dotted(path))


class Errors:
    """What is wrong with settings, gathered so that all of it can be told at once."""

    def __init__(self, places: Places):
        self.places = places
        self.found: list[tuple[KeyPath, ConfigError]] = []

    def add(self, path: KeyPath, message: str) -> None:
        """One more."""
        self.found.append((path, self.places.error(path, message)))


def dotted(path: KeyPath) -> str:
    """The setting as people write it: `models.a.aliases[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shifted(path: KeyPath, depth: int, shift: int) -> KeyPath:
    if shift and len(path) > depth and isinstance(position := path[depth], int):
        return (*path[:depth], position + shift, *path[depth + 1 :])
    return path
