"""The ports of a server."""

from __future__ import annotations

import errno
import logging
import os
import socket

from eardrum.api.wyoming.server import WyomingServer
from eardrum.errors import ConfigError
from eardrum.gateway.processes.register import VARIABLE
from eardrum.gateway.service import Service

log = logging.getLogger(__name__)


def home_assistant(service: Service) -> WyomingServer | None:
    """The server for Home Assistant, if the config wants one.

    Raises:
        ConfigError: its port cannot be had, or it cannot be announced.
    """
    settings = service.settings.wyoming
    if not settings.serves(service.settings.apiKeys):
        if settings.enabled is None:
            log.warning("Wyoming is off: it has no room for apiKeys. To serve it to everybody, set wyoming.enabled: true.")
        return None
    if settings.enabled is None and VARIABLE in os.environ:
        return None  # this server is a model of another, which has the port
    if service.settings.apiKeys:
        log.warning("Wyoming is open to everybody who reaches its port: it has no room for apiKeys.")
    advice = "choose another for Home Assistant with --wyoming-port, or do without with --no-wyoming"
    return WyomingServer(service, bind(settings.host or service.settings.host, settings.port, advice))


def bind(host: str, port: int, advice: str) -> socket.socket:
    """A socket that has the port, and does not take connections yet. `advice` is what to do where somebody else has it.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"Port {port} on {host} is taken: stop what uses it, or {advice}.") from None
        raise ConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from None
    return listening
