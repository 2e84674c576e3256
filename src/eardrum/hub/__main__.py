"""Runs the hub process; `eardrum.hub` describes its output."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from threading import Thread

from eardrum.errors import EardrumError
from eardrum.hub.download import download_repository, list_repository, write_message


def main() -> None:
    """Fetch, and say how it went."""
    arguments = _parse_arguments()
    if arguments.parent:
        Thread(target=_exit_with_parent, name="parent", daemon=True).start()
    try:
        if arguments.list:
            write_message({"listing": list_repository(arguments.repository)})
            return
        path = download_repository(arguments.repository, arguments.cache, arguments.pattern)
    except EardrumError as error:
        write_message({"failed": error.to_json()})
        sys.exit(1)
    write_message({"done": {"path": str(path)}})


def _exit_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.hub", description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder of the hub's cache")
    parser.add_argument("--pattern", action="append", default=[], help="fetch only files like this; repeatable")
    parser.add_argument("--list", action="store_true", help="say what files there are, and fetch nothing")
    parser.add_argument("--parent", action="store_true", help="end when stdin closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
