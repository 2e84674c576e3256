"""The conditions of a release: `scripts/release.py`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from eardrum import __version__
from tests.scripts import load_script

CHANGELOG = "# Changelog\n\n## Unreleased\n\n{unreleased}## 1.2.3 (2026-12-01)\n\n- One.\n\n## 1.2.2 (2026-11-01)\n\n- Two.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "eardrum"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.format(unreleased=""))
    return tmp_path


def test_a_tag_that_agrees_with_version_and_changelog_is_released(root: Path) -> None:
    assert list(load_script("release").find_faults("v1.2.3", root)) == []


@pytest.mark.parametrize(("tag", "fault"), [("v1.2.4", "The tag is v1.2.4"), ("1.2.3", "The tag is 1.2.3")])
def test_another_tag_is_refused(root: Path, tag: str, fault: str) -> None:
    (found,) = load_script("release").find_faults(tag, root)
    assert found.startswith(fault)


def test_lines_that_are_in_no_release_are_refused(root: Path) -> None:
    (root / "CHANGELOG.md").write_text(CHANGELOG.format(unreleased="- Three.\n\n"))
    (found,) = load_script("release").find_faults("v1.2.3", root)
    assert "'Unreleased'" in found


def test_a_version_without_a_section_is_refused(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.2 (2026-11-01)\n\n- Two.\n")
    (found,) = load_script("release").find_faults("v1.2.3", root)
    assert "no section '## 1.2.3 (YYYY-MM-DD)'" in found


def test_the_installed_version_is_the_one_in_the_code() -> None:
    assert version("eardrum") == __version__ == load_script("release").read_version()
