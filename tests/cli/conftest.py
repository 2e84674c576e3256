"""Commands that ask a process of their own about engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from eardrum.cli import check
from tests.commands import run_module


@pytest.fixture
def forked_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eardrum check` and `doctor` ask about engines in dozens of tests: fork the processes that answer them."""
    forking = SimpleNamespace(run=run_forked, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(check, "subprocess", forking)


def run_forked(command: Sequence[str], *, check: bool, capture_output: bool, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a module as `subprocess.run` does, and any other command with it."""
    if list(command[:2]) != [sys.executable, "-m"]:
        return subprocess.run(command, check=check, capture_output=capture_output, **options)
    assert capture_output
    return run_module(*command[2:], check=check, **options)
