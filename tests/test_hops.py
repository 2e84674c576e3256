"""The way of a request through the package stays as short as docs/house.md says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.recordings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_request_passes_no_more_files_than_the_limits_allow() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "hops.py"), "--check", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert not done.returncode, done.stdout + done.stderr
