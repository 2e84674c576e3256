"""Which ports the server insists on."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from eardrum.config import load_settings
from eardrum.errors import ConfigError
from eardrum.gateway.service import Service
from eardrum.server.lifecycle import create_wyoming_server

DEFAULT_PORT = 10300


@pytest.fixture
def taken_port() -> Iterator[int]:
    """The default port for Home Assistant, which another program has."""
    with closing(socket.socket()) as listening:
        with suppress(OSError):  # another program of this machine has it
            listening.bind(("127.0.0.1", DEFAULT_PORT))
            listening.listen()
        yield DEFAULT_PORT


def test_a_default_port_that_is_taken_is_a_warning(taken_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert create_wyoming_server(Service(load_settings(environment={}))) is None
    assert f"Wyoming is off, so Home Assistant cannot use this server. Port {taken_port} on 127.0.0.1 is taken" in caplog.text


@pytest.mark.parametrize("asked", [{"enabled": True}, {"port": DEFAULT_PORT}])
def test_a_port_that_was_asked_for_and_is_taken_is_an_error(taken_port: int, asked: dict[str, object]) -> None:
    service = Service(load_settings(overrides={"wyoming": asked}, environment={}))
    with pytest.raises(ConfigError, match=f"Port {taken_port} on 127.0.0.1 is taken"):
        create_wyoming_server(service)
