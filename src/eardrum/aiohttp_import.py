"""Imports aiohttp when it is first used, without the certificates that it would read then.

The server answers before it has asked anybody, so its start does not pay for a client's library: a fifth of the imports.

aiohttp creates two TLS contexts for connectors that are given none. Where the system's certificates are one file, that takes
as long as its import, and 2 MB. Every connector of Eardrum is given a context (`tls.get_client_context`), so those two stay
empty: a connector without one refuses every certificate.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

__all__ = ["aiohttp", "import_aiohttp"]


@contextmanager
def _skip_default_certificates() -> Iterator[None]:
    """Let the contexts that this thread creates stay empty."""
    this_thread, original = threading.get_ident(), ssl.SSLContext.set_default_verify_paths

    def skip_here(context: ssl.SSLContext) -> None:
        if threading.get_ident() != this_thread:
            original(context)

    ssl.SSLContext.set_default_verify_paths = skip_here  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the method of its base class is visible again


def import_aiohttp() -> Any:
    """Import aiohttp now, if it is not imported yet: a tenth of a second of CPU, well spent while another process starts."""
    with _skip_default_certificates():
        import aiohttp  # noqa: PLC0415
        import aiohttp.abc  # noqa: PLC0415
    return aiohttp


class _ModuleOnDemand:
    """Stands for the module; the first use of each of its names imports it."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_aiohttp(), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = _ModuleOnDemand()
