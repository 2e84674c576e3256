"""Connections that end without a word to the other end, as if a firewall forgot them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

TCP_REPAIR = 19
"""Linux's option of a socket that then sends nothing more, not even that it is closed."""


def skip_without_silent_ends() -> None:
    """Skip a test where no connection can end silently."""
    try:
        with closing(socket.socket()) as tried:
            tried.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except OSError:
        pytest.skip("only root can end a connection silently, and only on Linux")


def end_silently(transport: asyncio.BaseTransport) -> None:
    """End a connection without telling the other end."""
    assert isinstance(transport, asyncio.WriteTransport)
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    transport.abort()
