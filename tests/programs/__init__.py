"""Programs that tests start, and what starting them takes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FAKE_LLM = Path(__file__).parent / "fake_llm.py"
FAKE_RUNNER = Path(__file__).parent / "fake_runner.py"


def build_fake_llm_command(port: int, *habits: object) -> str:
    """The command line of a fake language model."""
    return shlex.join([sys.executable, str(FAKE_LLM), "--port", str(port), *map(str, habits)])
