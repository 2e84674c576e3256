"""Asks servers for `GET /health`, in turns, and notes how long each took: `python -m bench.health_looks PORT...`.

A process of its own, so that who makes the load does not delay who measures. A line on stdin begins a series, the next one ends
it and is answered by it: for each port when each look began and what it took, in seconds.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from threading import Event, Thread

PAUSE_S = 0.008
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

Look = tuple[float, float]
"""When it began, by the clock that all processes share, and what it took."""


def main() -> None:
    """Serve until stdin ends."""
    gc.disable()
    ports = [int(port) for port in sys.argv[1:]]
    while sys.stdin.readline():
        print("{}", flush=True)
        looks: list[list[Look]] = [[] for _ in ports]
        over = Event()
        looking = Thread(target=_look_repeatedly, args=(ports, looks, over))
        looking.start()
        sys.stdin.readline()
        over.set()
        looking.join()
        print(json.dumps({"looks": looks}), flush=True)


def _look_repeatedly(ports: list[int], looks: list[list[Look]], over: Event) -> None:
    while not over.wait(PAUSE_S):
        for port, found in zip(ports, looks, strict=True):
            began = time.monotonic()
            _look_once(port)
            found.append((began, time.monotonic() - began))


def _look_once(port: int) -> None:
    """One look over a connection of its own, as a monitor looks: accepting it is the loop's work too."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(REQUEST)
        answer = b""
        while piece := connection.recv(1 << 20):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"/health answered {answer[:200]!r}")


if __name__ == "__main__":
    main()
