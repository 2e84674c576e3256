"""Imports aiohttp without the certificates that it reads when it is imported.

aiohttp creates two TLS contexts for connectors that are given none. Where the system's certificates are one file, that takes a
quarter of the CPU of the server's start, and 2 MB. Every connector of Eardrum is given a context (`tls.get_client_context`), so
those two stay empty: a connector without one refuses every certificate.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["aiohttp"]


@contextmanager
def _skip_default_certificates() -> Iterator[None]:
    ssl.SSLContext.set_default_verify_paths = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the method of its base class is visible again


with _skip_default_certificates():
    import aiohttp
    import aiohttp.abc
