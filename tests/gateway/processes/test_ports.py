"""Which port a command is told to serve on, and whose it is."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from eardrum.gateway.processes import ports


@pytest.mark.parametrize(
    ("command", "address", "port"),
    [
        ("llama-server --port 5800 -m x", "http://localhost:5800", 5800),
        ("llama-server --port=5800", "http://127.0.0.1:5800/", 5800),
        ("docker run -p 5800:8080 x", "http://127.0.0.2:5800", 5800),
        ("x --listen [::1]:5800", "http://[::1]:5800", 5800),
        ("x --ctx-size 58000 -n 15800", "http://localhost:5800", 0),
        ("x --port 5800", "http://other:5800", 0),
        ("start-the-other-machine", "http://localhost:5800", 0),
        ("x 80", "http://localhost", 0),
    ],
)
def test_a_port_is_the_commands_if_it_is_told_so(command: str, address: str, port: int) -> None:
    assert ports.claimed(command, address) == port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_is_taken_on_whichever_protocol(address: str) -> None:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind) as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert ports.taken(port, "localhost")
        assert ports.holder(port).endswith(f" (pid {os.getpid()})")
    assert not ports.taken(port, "localhost")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be seen")
def test_who_listens_is_a_stranger_unless_it_is_of_the_family() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert ports.stranger(port, os.getpid(), "NOBODY=1") is None
        assert ports.stranger(port, 2**22 + 1, "NOBODY=1") == os.getpid()
        mark = next(f"{name}={value}" for name, value in os.environ.items() if value)
        assert ports.stranger(port, 2**22 + 1, mark) is None, "whoever carries the mark was started by the command"
