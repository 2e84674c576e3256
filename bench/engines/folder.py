"""A folder of recordings and what is said in them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from bench.errors import BenchError

TABLE = "references.tsv"
TEXTS = (".txt", ".tsv", ".md", ".json")


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, its length in seconds, what is said in it, and in which language ("" if nobody says)."""

    path: Path
    seconds: float
    text: str
    language: str


def read_folder(folder: Path, language: str = "") -> list[Recording]:
    """The recordings of a folder, those below it included: by its `references.tsv`, else each `x.wav` beside its `x.txt`.

    The table has a header with `name`, `text` and perhaps `language`; or none, and begins with the name and ends with the
    text, the language in between if it has more columns. A name may leave out the file's ending.

    Raises:
        BenchError: there is nothing to measure with, or a recording is missing.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder} is not a folder.")
    table = folder / TABLE
    found = _read_table(folder, table) if table.is_file() else _read_pairs(folder)
    recordings = [Recording(path, _measure_seconds(path), text, spoken or language) for path, text, spoken in found]
    if not recordings:
        raise BenchError(f"{folder} has neither a {TABLE} nor any recording x.wav with its text beside it in x.txt.")
    return recordings


def _read_pairs(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for path in _list_audio(folder):
        text = path.with_suffix(".txt")
        if text.is_file():
            yield path, " ".join(text.read_text(encoding="utf-8").split()), ""


def _read_table(folder: Path, table: Path) -> Iterator[tuple[Path, str, str]]:
    files = {key: path for path in _list_audio(folder) for key in (path.stem, path.name, str(path.relative_to(folder)))}
    for name, text, language in _read_rows(table):
        if name not in files:
            raise BenchError(f"{table} names {name!r}, but no such recording is in {folder}.")
        yield files[name], text, language


def _read_rows(table: Path) -> Iterator[tuple[str, str, str]]:
    with table.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    header = rows[0] if {"name", "text"} <= set(rows[0]) else None
    for row in rows[1:] if header else rows:
        if len(row) < 2:
            raise BenchError(f"{table} has a line without a text: {row[0]!r}.")
        if header:
            cells = dict(zip(header, row, strict=False))
            yield cells["name"], cells.get("text", ""), cells.get("language", "")
        else:
            yield row[0], row[-1], row[1] if len(row) > 2 else ""


def _list_audio(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() not in TEXTS]


def _measure_seconds(path: Path) -> float:
    """How long it plays; by its packets where the container does not say."""
    try:
        with av.open(str(path)) as file:
            if file.duration:
                return float(file.duration / av.time_base)
            return float(sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0)))
    except (OSError, ValueError, IndexError) as error:
        raise BenchError(f"{path} cannot be read as audio: {error}.") from error
