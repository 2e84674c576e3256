"""One real server for clients that mean harm, and a watch over what they do to everybody else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

import psutil
import pytest

from tests.conftest import ServerUnderTest, run_server, wait_for

LATE_S = 0.25
"""How long `/health` may take beside a hostile client. On a machine with other work one look may be late by itself."""

GROWTH = 300 << 20
BACK = 120 << 20
"""What may stay: allocators keep some of what they had, and give it out again."""


@dataclass
class HostileClient:
    """The server, and what is tried on it."""

    server: ServerUnderTest
    looks: list[HealthSample] = field(default_factory=list)

    @property
    def rss(self) -> int:
        return psutil.Process(self.server.process.pid).memory_info().rss

    def exchange_bytes(self, *pieces: bytes, opening: bytes = b"", timeout: float = 20.0) -> bytes:
        """What the server answers to these bytes; to those of `opening` before the others are sent."""
        with socket.create_connection(self.server.host, timeout=timeout) as client:
            client.sendall(opening)
            answer = client.recv(1 << 16) if opening else b""
            sending = Thread(target=_send_all, args=(client, pieces))
            sending.start()
            with suppress(ConnectionError):
                while data := client.recv(1 << 16):
                    answer += data
                    if is_complete(answer):
                        break
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            sending.join()
            return answer

    def post_body(self, path: str, body: bytes, kind: str = "application/json", timeout: float = 60.0) -> tuple[int, str]:
        """Status and text."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = self.exchange_bytes(
            head.encode(), *(body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20)), timeout=timeout
        )
        return parse_status(answer), answer.partition(b"\r\n\r\n")[2].decode(errors="replace")

    @contextmanager
    def check_harmless(self) -> Iterator[None]:
        """Whatever is done inside: others are served at once, and the memory comes back."""
        before, began = self.rss, time.monotonic()
        yield
        ended = time.monotonic()
        wait_for(lambda: self.looks and self.looks[-1].at > ended)
        looks = [look for look in self.looks if began <= look.at + look.took_s]
        slow, worst = LATE_S * measure_slowness(), max(look.took_s for look in looks)
        assert sum(look.took_s > slow for look in looks) <= max(1, len(looks) // 50), f"/health took {worst:.2f} s"
        assert worst < 3 * slow, f"/health took {worst:.2f} s"
        grown = max(look.rss for look in looks) - before
        assert grown < GROWTH, f"the gateway grew by {grown >> 20} MiB"
        wait_for(lambda: self.rss - before < BACK)


@dataclass
class HealthSample:
    """One look at the server, by somebody with no other work."""

    at: float
    took_s: float
    """Without the time in which the server's event loop, or the looker, was ready to run and had no core: other tests run too."""
    rss: int


WATCH = """
import sys, time
from http.client import HTTPConnection
host, port, pid = sys.argv[1:]

def read_wait_s(process):
    with open(f"/proc/{process}/schedstat") as file:  # of its main thread: nanoseconds on a core, and in which it waited for one
        return int(file.read().split()[1]) / 1e9

while True:
    began, waited = time.monotonic(), read_wait_s(pid) + read_wait_s("self")
    connection = HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    waited = read_wait_s(pid) + read_wait_s("self") - waited
    took = max(0.0, time.monotonic() - began - waited)
    pages = int(open(f"/proc/{pid}/statm").read().split()[1])
    print(began, took, pages * 4096, flush=True)
    time.sleep(0.02)
"""


@contextmanager
def watch_server(server: ServerUnderTest) -> Iterator[list[HealthSample]]:
    """What a process of its own sees of the server's `/health` and memory."""
    looks: list[HealthSample] = []
    command = [sys.executable, "-c", WATCH, *map(str, server.host), str(server.process.pid)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert watching.stdout
        for line in watching.stdout:
            at, took_s, rss = line.split()
            looks.append(HealthSample(float(at), float(took_s), int(rss)))

    reading = Thread(target=read, daemon=True)
    reading.start()
    try:
        yield looks
    finally:
        watching.kill()
        watching.wait()
        reading.join()
        assert watching.stdout
        watching.stdout.close()


def _send_all(client: socket.socket, pieces: tuple[bytes, ...]) -> None:
    with suppress(OSError):
        for piece in pieces:
            client.sendall(piece)


def is_complete(answer: bytes) -> bool:
    """Whether an HTTP answer with a length is here."""
    head, end, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(end) and len(body) >= int(line.split(b":")[1])
    return False


def parse_status(answer: bytes) -> int:
    """Of an HTTP answer; 0 if there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def measure_slowness() -> float:
    """How much slower the machine is for being busy with other things."""
    beside = (
        2.0 if "PYTEST_XDIST_WORKER" in os.environ else 1.0
    )  # the load is an average, and late; what is looked for takes seconds
    return max(beside, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileClient]:
    """A server with a model behind an address at which nobody is, and many more."""
    config = tmp_path_factory.mktemp("hostile") / "config.yaml"
    others = {f"other-{number}": {"proxy": "http://127.0.0.1:9", "aliases": [f"alias-{number}"]} for number in range(1999)}
    config.write_text(json.dumps({"models": {"llm": {"proxy": "http://127.0.0.1:9"}, **others}, "limits": {"idle_timeout": 3}}))
    with run_server("--config", str(config)) as server, watch_server(server) as looks:
        wait_for(lambda: looks)
        yield HostileClient(server, looks)
        assert "Traceback" not in server.log
