"""Stands in for the commands of examples/one-port/config.yaml where they cannot run: `llama-server` and `vllm`.

    python tests/programs/one_port_commands.py COMMAND [the command's own arguments]

A language model says back what it is told, one that sees tells what the picture looks like, and the speech model hears with
Eardrum's embedded one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent


def main() -> None:
    """Become the program that stands in for the command."""
    command, *arguments = sys.argv[1:]
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--served-model-name", default="fake")
    parser.add_argument("-m", "--model", default="")
    known, rest = parser.parse_known_args(arguments)
    is_speech_model = command == "vllm" and "ASR" in rest[-1]
    program = PROGRAMS / ("fake_vllm.py" if is_speech_model else "fake_llm.py")
    os.execv(sys.executable, [sys.executable, str(program), "--port", known.port, "--name", known.served_model_name])


def install_commands(folder: Path, weights: Path | None = None) -> str:
    """Write the commands into a folder; returns the variable PATH that begins with it.

    With the weights of a language model, `llama-server` is a real one, for these.
    """
    python = f'#!/bin/sh\nexec "{sys.executable}"'
    programs = {name: f'{python} "{Path(__file__)}" {name} "$@"\n' for name in ("llama-server", "vllm")}
    if weights:
        programs["llama-server"] = f'{python} "{PROGRAMS / "llama_server.py"}" "$@" --model "{weights}"\n'
    for name, program in programs.items():
        command = folder / name
        command.write_text(program, encoding="utf-8")
        command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    main()
