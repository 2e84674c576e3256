"""Programs that tests start, and what starting them takes."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

FAKE_LLM = Path(__file__).parent / "fake_llm.py"
FAKE_RUNNER = Path(__file__).parent / "fake_runner.py"


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def fake_llm(port: int, *habits: object) -> str:
    """The command line of a fake language model."""
    return shlex.join([sys.executable, str(FAKE_LLM), "--port", str(port), *map(str, habits)])
