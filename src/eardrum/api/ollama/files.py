"""The files behind a model: how much there is, since when, and a digest that changes when they do. Reads directories."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eardrum.api.ollama.flags import Flags
from eardrum.gateway.inventory import Model

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
"""How weights in several files are numbered; a command names the first."""


@dataclass(frozen=True, slots=True)
class Files:
    """What is known of them."""

    size: int
    """Bytes."""
    modified: float
    """Unix time of the newest; 0 if there is none."""
    digest: str
    """64 hex digits: of the model's id and of its files' names, sizes and versions; not of their contents."""


def of(model: Model) -> Files:
    """The files of a model, as they are now."""
    size, newest, lines = 0, 0.0, [model.id]
    seen: set[Path] = set()
    for path, name in sorted(_paths(model)):
        try:
            real = path.resolve()
            status = real.stat()
        except OSError:
            continue  # gone since it was listed
        version = real.name if path.is_symlink() else str(status.st_mtime_ns)  # in the hub's cache, the name is a hash
        lines.append(f"{name} {status.st_size} {version}")
        newest = max(newest, status.st_mtime)
        size += 0 if real in seen else status.st_size
        seen.add(real)
    return Files(size, newest, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _paths(model: Model) -> Iterator[tuple[Path, str]]:
    """Every file with its name relative to the model."""
    if model.source:
        if model.source.is_file():
            yield model.source, model.source.name
        yield from ((path, str(path.relative_to(model.source))) for path in model.source.rglob("*") if path.is_file())
    elif model.entry:
        for named in Flags.of(model.entry.cmd, model.entry.env).files:
            path = Path(named)
            parts = path.parent.glob(SPLIT.sub("-*.gguf", path.name)) if SPLIT.search(path.name) else [path]
            yield from ((part, part.name) for part in parts if part.is_file())
