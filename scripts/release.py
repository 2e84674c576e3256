"""Checks that a tag may be released: `python scripts/release.py check v1.2.3`.

The version is written once, in `src/eardrum/__init__.py`; the tag and the newest section of `CHANGELOG.md` have to say the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
SECTION = re.compile(r"^## (?:(\d\S*) \((\d{4}-\d\d-\d\d)\)|Unreleased)$", re.MULTILINE)


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] != "check":
        sys.exit("usage: release.py check TAG")
    faults = list(find_faults(sys.argv[2], ROOT))
    if faults:
        sys.exit("\n".join(faults))
    print(f"{sys.argv[2]} may be released")


def read_version(root: Path = ROOT) -> str:
    """Return the version of the package."""
    found = VERSION.search((root / "src" / "eardrum" / "__init__.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def find_faults(tag: str, root: Path) -> Iterator[str]:
    """Yield what keeps the tag from being released."""
    version = read_version(root)
    if tag != f"v{version}":
        yield f"The tag is {tag}, the package's version is {version}: tag v{version}, or change __version__."
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = list(SECTION.finditer(changelog))
    newest = next((section for section in sections if section[1]), None)
    if not newest or newest[1] != version:
        yield f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)' above the older ones."
    unreleased = next((section for section in sections if not section[1]), None)
    if unreleased and changelog[unreleased.end() : next(iter_starts(sections, unreleased), len(changelog))].strip():
        yield "CHANGELOG.md has lines under 'Unreleased': move them to the version's section."


def iter_starts(sections: list[re.Match[str]], after: re.Match[str]) -> Iterator[int]:
    """Yield where the sections after one begin."""
    return (section.start() for section in sections if section.start() > after.start())


if __name__ == "__main__":
    main()
