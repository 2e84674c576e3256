"""What tests leave behind: files in their temporary folder, and processes that still run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

END_S = 30.0
"""A process that was told to end may take so long."""


@contextmanager
def check_leftovers() -> Iterator[None]:
    """Temporary files of this process and of those it starts get a folder of their own, which must be empty in the end."""
    with tempfile.TemporaryDirectory(prefix="eardrum-tests-") as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
            yield
        running = psutil.wait_procs(_list_processes(folder), timeout=END_S)[1]
        described = list(map(_describe_process, running))
        for process in running:
            process.kill()
        files = [str(file.relative_to(folder)) for file in Path(folder).rglob("*")]
    assert not running, f"processes outlived their tests: {described}"
    assert not files, f"files outlived their tests: {files[:20]}"


def _list_processes(folder: str) -> list[psutil.Process]:
    """Processes whose environment names the folder: whoever is started inherits it, and nobody else has it."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _has_folder(process, folder)]


def _has_folder(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in value for value in process.environ().values())
    except psutil.Error:
        return False  # of another user, or gone


def _describe_process(process: psutil.Process) -> str:
    """Its command, and the test that started it."""
    try:
        test = process.environ().get("PYTEST_CURRENT_TEST", "no test")
        return f"{' '.join(process.cmdline())[:200]} (pid {process.pid}, started by {test})"
    except psutil.Error:
        return f"pid {process.pid}"
