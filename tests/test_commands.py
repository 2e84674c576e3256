"""Processes that tests fork behave as those that start from scratch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ForkedProcess, run_eardrum, start_eardrum, start_module
from tests.conftest import is_selected, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("arguments", [["--version"], ["show", "nobody"], ["serve", "--prot"]], ids=["0", "1", "2"])
def test_output_and_exit_code_are_those_of_a_process_from_scratch(arguments: list[str]) -> None:
    exact = subprocess.run([sys.executable, "-m", "eardrum", *arguments], capture_output=True, text=True, timeout=60, check=False)
    forked = run_eardrum(*arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (exact.returncode, exact.stdout, exact.stderr)


def test_a_process_has_its_own_environment_folder_and_input(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("models: {mine: {proxy: 'http://127.0.0.1:9'}}")
    assert "mine" in run_eardrum("list", "--config", "mine.yaml", cwd=tmp_path).stdout
    assert "No answer from http://127.0.0.1:9" in run_eardrum("ps", env=os.environ | {"EARDRUM_SERVER": "127.0.0.1:9"}).stderr
    assert "The file cannot be decoded" in run_eardrum("transcribe", "-", input="no audio").stderr


def test_a_signal_ends_it_and_is_its_status() -> None:
    with start_eardrum("serve", "--port", "0", "--no-wyoming", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        assert isinstance(server, ForkedProcess)
        assert server.stdout
        assert any(b"listens on" in line for line in server.stdout)
        assert server.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.1)
        server.send_signal(signal.SIGKILL)
        assert server.wait(10) == server.poll() == -signal.SIGKILL
    wait_for(lambda: not Path(f"/proc/{server.pid}").exists())


def test_what_counts_at_the_start_of_a_process_starts_it_from_scratch() -> None:
    with start_module("eardrum", "--version", env=os.environ | {"PYTHONVERBOSE": "1"}, stderr=subprocess.PIPE) as process:
        assert not isinstance(process, ForkedProcess)
        assert b"import 'eardrum'" in process.communicate(timeout=60)[1]


def test_files_without_a_selected_test_are_told_by_their_marks() -> None:
    expression = "slow and not (torch or nemo)"
    assert is_selected(expression, frozenset({"slow"}))
    assert not is_selected(expression, frozenset({"slow", "torch"}))
    assert not is_selected(expression, frozenset())
    assert is_selected("not (slow or other)", frozenset())
