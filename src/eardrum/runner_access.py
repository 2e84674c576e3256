"""Access to runners: how long connections stay open, the token that a gateway sends on TCP, and the hosts that need none."""

from __future__ import annotations

from ipaddress import ip_address

GATEWAY_IDLE_S, RUNNER_IDLE_S = 15, 75
"""Seconds for which a gateway and a runner keep a connection without a request. The runner's are more: a request that a gateway
sends on a connection while the runner closes it looks like a crash of the model's process."""

TOKEN_VARIABLE = "EARDRUM_RUNNER_TOKEN"  # noqa: S105 -- a name
"""The environment variable that holds a runner's token: every user of a machine can read command lines."""

MIN_TOKEN_CHARS = 16
"""Fewer could be guessed."""


def find_token_problem(token: str) -> str:
    """Describe what is wrong with a token, to follow its name; empty if nothing is."""
    if len(token) < MIN_TOKEN_CHARS:
        return f"has fewer than {MIN_TOKEN_CHARS} characters: make one with `openssl rand -hex 32`"
    if not token.isascii() or not token.isprintable() or " " in token:
        return "has characters that no header can hold: use letters, digits and signs of ASCII"
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host to listen on. Names other than `localhost` count as reachable by others."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
