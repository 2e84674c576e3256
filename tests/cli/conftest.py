"""The command line in this process, and commands that ask a process of their own about engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing
from typer.main import get_command

from eardrum.cli import check
from tests.commands import run_module


@pytest.fixture(scope="session", autouse=True)
def cached_commands() -> Iterator[None]:
    """Build the commands once: typer's `CliRunner` would read the signatures of all of them for each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(get_command))
        yield


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
