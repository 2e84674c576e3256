"""TLS contexts for the server and for its own clients."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from eardrum.errors import ConfigError


def create_server_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Create the TLS context of a server; None without a certificate.

    Raises:
        ConfigError: the message names the setting and the file at fault.
    """
    if not certificate:
        if key:
            raise ConfigError("tls_key is set but tls_certificate is not: name the certificate, or leave both out.")
        return None
    _check_certificate(certificate, "tls_certificate")
    holder = f"tls_key {key}" if key else f"tls_certificate {certificate}, which has to hold the key as there is no tls_key,"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])

    def password() -> str:
        raise ConfigError(f"{holder} is encrypted: write it without a password, as in `openssl pkey -in OLD -out NEW`.")

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{holder} is not the key of tls_certificate {certificate}.") from None
        raise ConfigError(f"{holder} has no private key in PEM format. ({error.reason or error})") from None
    except OSError as error:
        raise ConfigError(f"{holder} cannot be read: {error.strerror or error}.") from None
    return context


@functools.cache
def get_client_context() -> ssl.SSLContext:
    """Return the TLS context of all clients that need no other. It trusts the system's authorities, which are read once."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def create_client_context(certificate: Path, *, by_any_name: bool = False) -> ssl.SSLContext:
    """Create the TLS context of a client that also trusts the certificates in a file.

    With `by_any_name`, the host name in a certificate is not checked.

    Raises:
        ConfigError: the file has no certificate.
    """
    _check_certificate(certificate, "certificate")
    context = ssl.create_default_context()
    context.load_verify_locations(certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own is enough, without its signer's
    context.check_hostname = not by_any_name
    return context


def _check_certificate(certificate: Path, name: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise ConfigError(f"{name} {certificate} has no certificate in PEM format. ({error.reason or error})") from None
    except OSError as error:
        raise ConfigError(f"{name} {certificate} cannot be read: {error.strerror or error}.") from None
