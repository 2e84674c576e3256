"""Source locations of settings, and the errors and warnings about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from eardrum.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Path from the top of the settings to a value: names, and positions in lists."""


class SourceLocation(Struct, frozen=True):
    """A line of a file, an environment variable or a `--set` option; the latter two have no line."""

    file: str
    line: int = 0
    """Counted from 1; 0 outside files."""
    text: str | None = None
    """The text that is written there, if it is a scalar."""
    name: str = ""
    """The name under which the setting is written there, if it is not the setting's own."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class ConfigDiagnostic(Struct, frozen=True):
    """An error or warning about a setting, with its location."""

    message: str
    location: SourceLocation | None = None
    path: str = ""
    """The setting, as in `models.a.cmd`."""

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class SettingError(ConfigError):
    """A wrong value and its location."""

    def __init__(self, remark: ConfigDiagnostic):
        super().__init__(str(remark))
        self.diagnostic = remark


class LocationMap:
    """The source location of each setting. Settings from flags such as `--port` have none."""

    def __init__(self) -> None:
        self._locations: dict[KeyPath, SourceLocation] = {}
        self._not_in_files: set[KeyPath] = set()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._locations

    def __setitem__(self, path: KeyPath, place: SourceLocation) -> None:
        self._locations[path] = place

    def items(self) -> Iterable[tuple[KeyPath, SourceLocation]]:
        """All settings with a location."""
        return self._locations.items()

    def is_in_file(self, path: KeyPath) -> bool:
        """Check whether a setting is written in a file, not in the environment or a flag."""
        place = self._locations.get(path)
        return bool(place and place.line)

    def is_renamed(self, path: KeyPath) -> bool:
        """Check whether a setting is written under another name than its own."""
        place = self._locations.get(path)
        return bool(place and place.name)

    def get_text(self, path: KeyPath) -> str | None:
        """The text of a setting before macros are expanded."""
        place = self._locations.get(path)
        return place.text if place else None

    def find(self, path: KeyPath) -> SourceLocation | None:
        """Find the location of a setting, or else of the section around it; None for flags."""
        upwards = [path[:depth] for depth in range(len(path), 0, -1)]
        if not self._not_in_files.isdisjoint(upwards):
            return None
        return next((self._locations[above] for above in upwards if above in self._locations), None)

    def adopt(self, others: LocationMap, at: KeyPath = (), shift: int = 0) -> None:
        """Adopt locations below `at` from another file. Positions in a list that is appended grow by `shift`."""
        for path, place in others._locations.items():
            if path[: len(at)] == at:
                self._locations.setdefault(_shift_path(path, len(at), shift), place)

    def copy(self, path: KeyPath, new: KeyPath) -> None:
        """Give `new`, and what stands below it, the locations of `path`."""
        below = {place: at for place, at in self._locations.items() if place[: len(path)] == path}
        self._locations |= {(*new, *place[len(path) :]): at for place, at in below.items()}

    def rename(self, path: KeyPath, name: str) -> None:
        """Give the setting that is written as `path` its own name; messages keep the name that is written."""
        own = (*path[:-1], name)
        self.copy(path, own)
        if own in self._locations:
            self._locations[own] = replace(self._locations[own], name=str(path[-1]))

    def format_path(self, path: KeyPath) -> str:
        """Format a setting's path with the names that are written: `globalTTL` where a file calls `default_ttl` so."""
        return format_path(tuple(self.get_name(path[:depth]) for depth in range(1, len(path) + 1)))

    def get_name(self, path: KeyPath) -> str | int:
        """The name that is written for the last part of a path."""
        place = self._locations.get(path)
        return (place.name if place else "") or path[-1]

    def override(self, tree: Any, by: LocationMap | None = None, path: KeyPath = ()) -> None:
        """Replace the locations of settings that `tree` overrides by those of `by`, or by none."""
        if isinstance(tree, dict) and (tree or not path):
            for name, value in tree.items():
                self.override(value, by, (*path, name))
            if by and path in by and path not in self._locations:
                self._locations[path] = by._locations[path]
        else:
            self._locations = {place: at for place, at in self._locations.items() if place[: len(path)] != path}
            self._not_in_files.discard(path)
            if by:
                self.adopt(by, path)
            if path not in self._locations:
                self._not_in_files.add(path)

    def build_error(self, path: KeyPath, message: str) -> SettingError:
        """Build an error with the setting's location."""
        return SettingError(self.build_diagnostic(path, message))

    def build_diagnostic(self, path: KeyPath, message: str) -> ConfigDiagnostic:
        """Build a diagnostic with the setting's location."""
        return ConfigDiagnostic(message, self.find(path), format_path(path))


class ErrorCollector:
    """Collects errors and warnings about settings, so that one run reports all of them."""

    def __init__(self, places: LocationMap):
        self.locations = places
        self.diagnostics: list[ConfigDiagnostic] = []
        self.warnings: list[ConfigDiagnostic] = []
        self._former_names: set[tuple[str, str]] = set()
        self.incomplete = False
        """True if a part that may define names could not be read; unknown names are then not reported."""
        self._paths: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str) -> None:
        """Add an error about the setting at `path`."""
        self._paths.add(path)
        self.diagnostics.append(self.locations.build_diagnostic(path, message))

    def format_path(self, path: KeyPath) -> str:
        """Format a setting's path with the names that are written."""
        return self.locations.format_path(path)

    def add_warning(self, path: KeyPath, message: str) -> None:
        """Add a warning about the setting at `path`."""
        self.warnings.append(self.locations.build_diagnostic(path, message))

    def warn_of_former_name(self, path: KeyPath, name: str, locations: LocationMap) -> None:
        """Warn once of a name from earlier versions that is still in use; `path` is written, `name` is the new name."""
        if (str(path[-1]), name) not in self._former_names:
            self._former_names.add((str(path[-1]), name))
            message = f"{format_path(path)} is called {name} now: rename it. The old name still works."
            self.warnings.append(locations.build_diagnostic(path, message))

    def add_exception(self, error: ConfigError, path: KeyPath | None = None) -> None:
        """Add an error that was raised; `path` is that of the wrong value, if a value is wrong."""
        if path is not None:
            self._paths.add(path)
        self.diagnostics.append(error.diagnostic if isinstance(error, SettingError) else ConfigDiagnostic(error.message))

    def has_error_at(self, path: KeyPath) -> bool:
        """Check whether a value already has an error; others would only follow from it."""
        return path in self._paths


def sort_diagnostics(remarks: Iterable[ConfigDiagnostic], files: Sequence[str]) -> list[ConfigDiagnostic]:
    """Sort diagnostics by file and line, without duplicates; those without a line come last."""

    def position(remark: ConfigDiagnostic) -> tuple[int, int]:
        place = remark.location
        return (files.index(place.file), place.line) if place and place.file in files else (len(files), 0)

    return list(dict.fromkeys(sorted(remarks, key=position)))


def format_path(path: KeyPath) -> str:
    """Format a setting's path: `models.a.aliases[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shift_path(path: KeyPath, depth: int, shift: int) -> KeyPath:
    if shift and len(path) > depth and isinstance(position := path[depth], int):
        return (*path[:depth], position + shift, *path[depth + 1 :])
    return path
