"""The embedded model's files, for tests that need a real model elsewhere than where the package keeps it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_spec = find_spec("moonshine_voice")
assert _spec
assert _spec.submodule_search_locations
MOONSHINE = Path(_spec.submodule_search_locations[0]) / "assets" / "tiny-en"


def read_moonshine_files() -> dict[str, bytes]:
    """Contents by name: 44 MB."""
    return {path.name: path.read_bytes() for path in MOONSHINE.iterdir()}
