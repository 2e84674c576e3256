"""Which port a command is told to serve on, and whose it is."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from eardrum.gateway.processes import command as ports


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
    assert ports.find_claimed_port(command, address) == port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_is_taken_on_whichever_protocol(address: str) -> None:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind) as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert ports.is_port_taken(port, "localhost")
        assert ports.describe_port_holder(port).endswith(f" (pid {os.getpid()})")
    assert not ports.is_port_taken(port, "localhost")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel lets a port in TIME_WAIT be bound again")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_that_are_over_do_not_take_a_port(address: str) -> None:
    """As cpp-httplib listens, which is in whisper-server and older llama-servers: with SO_REUSEPORT and not SO_REUSEADDR."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        client = socket.create_connection((address, port))
        served, _ = listening.accept()
        served.close()  # first, so that its end is the one in TIME_WAIT
        assert client.recv(1) == b""
        client.close()
        assert ports.is_port_taken(port, "localhost"), "it still listens"
    with socket.socket(kind) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            trial.bind((address, port))
    assert not ports.is_port_taken(port, "localhost")
    assert not ports.is_port_taken(port, address)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be seen")
def test_a_connection_to_elsewhere_does_not_take_the_port_it_has_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as client:
        assert not ports.is_port_taken(client.getsockname()[1], "127.0.0.1")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be seen")
def test_who_listens_is_a_stranger_unless_it_is_of_the_family() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert ports.find_foreign_holder(port, os.getpid(), "NOBODY=1") is None
        assert ports.find_foreign_holder(port, 2**22 + 1, "NOBODY=1") == os.getpid()
        mark = next(f"{name}={value}" for name, value in os.environ.items() if value)
        assert ports.find_foreign_holder(port, 2**22 + 1, mark) is None, "whoever carries the mark was started by the command"
