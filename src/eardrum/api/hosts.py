"""Keeps out web pages that give their own name this server's address. Pure ASGI.

A page of `http://evil.example:8100` may have its name lead to 127.0.0.1, or to a machine of the network that its visitor is in.
For a browser page and server are then one origin, and nothing is hidden from the page. But the browser says by which name it
asks, in `host`: no page can have an address there, nor a name that only this machine or this network knows.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

from starlette.responses import Response

from eardrum.api.access import record
from eardrum.api.asgi import App, Scope, header
from eardrum.config import Settings
from eardrum.errors import EardrumError, UnknownHostError

PRIVATE = ("localhost", "local", "internal")
"""Ends of names that nobody can register: of this machine, of mDNS, and those set aside for private use. As Ollama has it."""

OF_NETWORKS = ("lan", "home", "home.arpa", "intranet", "corp", "private", "localdomain")
"""Further ones that routers and companies give to their machines. No public server of names knows them."""

SHOWN = 100


class Hosts:
    """Refuses requests and WebSockets for names that are not this server's.

    Whoever shows a key is no strange page, and a page cannot have a certificate for another's name: with `apiKeys` or TLS
    every name does. `refusal` words an error for a path.
    """

    def __init__(self, settings: Callable[[], Settings], refusal: Callable[[str, EardrumError], Response]):
        self._settings = settings
        self._refusal = refusal
        self._machine = socket.gethostname().lower()

    def route(self, scope: Scope) -> App | None:
        """What refuses the request, if it is not let in."""
        settings = self._settings()
        if settings.apiKeys or settings.tls_certificate:
            return None
        name = named(header(scope, b"host"))
        if self._is_ours(name, settings):
            return None
        error = UnknownHostError(
            f"This server is not known as {name[:SHOWN]}: add the name to `hosts` in the config, ask it by an address, or have "
            "clients show one of `apiKeys`."
        )
        record(scope).note = error.message
        return self._refusal(scope["path"], error)

    def _is_ours(self, name: str, settings: Settings) -> bool:
        if "." not in name or is_address(name) or name == self._machine or is_listed(name, settings.hosts):
            return True  # no web site is called by one word: a container or a machine of the network is
        private = PRIVATE if is_local(settings.host) else PRIVATE + OF_NETWORKS
        return name.endswith(tuple(f".{end}" for end in private))


def named(host: str) -> str:
    """The name or address in a `host` header, without the port and in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    before, colon, port = name.partition(":")
    if colon and port.isdecimal():
        name = before
    return name.rstrip(".")


def is_listed(name: str, hosts: tuple[str, ...]) -> bool:
    """Whether a name is one of the config's, in which `*.example.com` is every name below that one, and `*` every name."""
    parts = name.split(".")
    above = {f"*.{'.'.join(parts[at:])}" for at in range(1, len(parts))}
    return any(entry in ("*", name) or entry in above for entry in map(str.lower, hosts))


def is_address(name: str) -> bool:
    """Whether it is an address and no name."""
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_local(name: str) -> bool:
    """Whether a name or an address means the machine it is used on."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
