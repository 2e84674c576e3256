"""Where in the files a value is written, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eardrum.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""The way from the top of the settings to a value: names, and positions in lists."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; or a variable of the environment, or a `--set`, which have no lines."""

    file: str
    line: int = 0
    """Counted from 1; 0 is no file's."""
    text: str | None = None
    """What is written there, if it is one word, number or sentence."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that does not keep the settings from being used, but that whoever wrote them will want to know."""

    message: str
    place: Place | None = None
    path: str = ""
    """The setting, as in `models.a.cmd`."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class SettingError(ConfigError):
    """A value that is wrong, and where it is written."""

    def __init__(self, remark: Remark):
        super().__init__(str(remark))
        self.remark = remark


class Places:
    """The place of every setting that is written somewhere. Settings from flags such as `--port` have none."""

    def __init__(self) -> None:
        self._places: dict[KeyPath, Place] = {}
        self._elsewhere: set[KeyPath] = set()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._places

    def __setitem__(self, path: KeyPath, place: Place) -> None:
        self._places[path] = place

    def items(self) -> Iterable[tuple[KeyPath, Place]]:
        """Every setting that is written somewhere, and where."""
        return self._places.items()

    def in_file(self, path: KeyPath) -> bool:
        """Whether a file says so, and not the environment or a flag."""
        place = self._places.get(path)
        return bool(place and place.line)

    def text(self, path: KeyPath) -> str | None:
        """What is written there, before macros."""
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

    def copy(self, path: KeyPath, new: KeyPath) -> None:
        """Let what stands below `path` be known below `new` as well."""
        below = {place: at for place, at in self._places.items() if place[: len(path)] == path}
        self._places |= {(*new, *place[len(path) :]): at for place, at in below.items()}

    def override(self, tree: Any, by: Places | None = None, path: KeyPath = ()) -> None:
        """Take over the places that `by` knows of settings that `tree` sets anew; without it they have no place any more."""
        if isinstance(tree, dict) and (tree or not path):
            for name, value in tree.items():
                self.override(value, by, (*path, name))
            if by and path in by and path not in self._places:
                self._places[path] = by._places[path]
        else:
            self._places = {place: at for place, at in self._places.items() if place[: len(path)] != path}
            self._elsewhere.discard(path)
            if by:
                self.adopt(by, path)
            if path not in self._places:
                self._elsewhere.add(path)

    def error(self, path: KeyPath, message: str) -> SettingError:
        """An error that names the line."""
        return SettingError(self.remark(path, message))

    def remark(self, path: KeyPath, message: str) -> Remark:
        """A remark that names the line."""
        return Remark(message, self.of(path), dotted(path))


class Errors:
    """What is wrong with settings, gathered so that all of it can be told at once."""

    def __init__(self, places: Places):
        self.places = places
        self.found: list[Remark] = []
        self.incomplete = False
        """Whether something could not be read that may hold names: one that is not found may be there."""
        self._paths: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str) -> None:
        """One more."""
        self._paths.add(path)
        self.found.append(self.places.remark(path, message))

    def take(self, error: ConfigError, path: KeyPath | None = None) -> None:
        """One more, which somebody has raised who looked at `path`, if it is the value there that is wrong."""
        if path is not None:
            self._paths.add(path)
        self.found.append(error.remark if isinstance(error, SettingError) else Remark(error.message))

    def at(self, path: KeyPath) -> bool:
        """Whether a value is known to be wrong: what else there is to say of it would only follow from that."""
        return path in self._paths

    def in_order(self, files: Sequence[str]) -> list[Remark]:
        """All of them once, in the order of the files."""
        return in_order(self.found, files)


def in_order(remarks: Iterable[Remark], files: Sequence[str]) -> list[Remark]:
    """Each remark once, by file and line, and what has no line at the end."""

    def position(remark: Remark) -> tuple[int, int]:
        place = remark.place
        return (files.index(place.file), place.line) if place and place.file in files else (len(files), 0)

    return list(dict.fromkeys(sorted(remarks, key=position)))


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
