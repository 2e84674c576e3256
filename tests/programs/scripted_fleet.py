"""Stands in for `eardrum.fleet` without a cluster: `python -m tests.programs.scripted_fleet` writes lines, and keeps those read.

The folder in SCRIPTED_FLEET holds `write`, the lines to write at the start, and gets `read`, the lines that were read, and
`arguments`. With a line `die` it ends after the lines before it. It ends after `stop`, and with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    folder = Path(os.environ["SCRIPTED_FLEET"])
    (folder / "arguments").write_text(" ".join(sys.argv[1:]))
    for line in (folder / "write").read_text().splitlines():
        if line == "die":
            sys.exit("It was told to die.")
        print(line, flush=True)
    for line in sys.stdin:
        with (folder / "read").open("a") as file:
            file.write(line)
        if "stop" in json.loads(line):
            return


if __name__ == "__main__":
    main()
