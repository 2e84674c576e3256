"""Runs a command and notes if it is not the only one that holds a file: `python alone.py FILE COMMAND...`.

The lock goes with the process, however that ends. If somebody else holds it, a line is added to FILE.broken.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path


def main() -> None:
    """Take the lock, and become the command."""
    file, *command = sys.argv[1:]
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with Path(f"{file}.broken").open("a") as broken:
            broken.write(" ".join(command) + "\n")
    os.execv(command[0], command)


main()
