"""Keeps keys out of what is shown: of the headers of requests, and of lines of logs."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = "[redacted]"

SECRET_WORDS = frozenset(
    {
        *("apikey", "assertion", "auth", "authentication", "authorization", "cookie", "credential", "credentials", "jwt"),
        *("key", "passwd", "password", "secret", "signature", "token"),
    }
)
"""A header with one of these in its name holds what is not shown: `x-api-key`, `x-goog-api-key`, `api-key`, `set-cookie`."""

SUBPROTOCOLS = "sec-websocket-protocol"
HARMLESS_SUBPROTOCOLS = ("realtime", "openai-beta.")
"""How the subprotocols begin that are shown. Any other may be a key: pages in browsers have no other place for one."""

NAME = r"[\w.-]*(?:key|token|secret|password|passwd|signature|credential|auth|authorization|jwt)"
IN_QUERY = re.compile(rf"([?&]{NAME}=)[^&\s\"'`<>#]+", re.IGNORECASE)
IN_SUBPROTOCOL = re.compile(r"(api-?key\.)[^\s,;\"'`<>]+", re.IGNORECASE)
QUERY = re.compile(r"\?\S+")


def redacted_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their lower-case names. Of URLs in them nothing is left of the query, where keys may be."""
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return {name: _redacted_value(name, value) for name, value in named}


def redacted_line(line: str) -> str:
    """Text without the keys that queries and subprotocols in it hold."""
    if "=" in line and ("?" in line or "&" in line):
        line = IN_QUERY.sub(rf"\1{REDACTED}", line)
    if "key." in line.lower():
        line = IN_SUBPROTOCOL.sub(rf"\1{REDACTED}", line)
    return line


def _redacted_value(name: str, value: str) -> str:
    if not SECRET_WORDS.isdisjoint(re.split("[-_]", name)):
        return REDACTED
    if name == SUBPROTOCOLS:
        offered = (item.strip() for item in value.split(","))
        return ", ".join(item if item.startswith(HARMLESS_SUBPROTOCOLS) else REDACTED for item in offered)
    return QUERY.sub(f"?{REDACTED}", redacted_line(value)) if "?" in value else redacted_line(value)
