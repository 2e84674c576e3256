"""Redacts keys and passwords in headers, logs, errors, and the commands and addresses of models.

Two ways, because neither is enough. Values in places where secrets stand are redacted: the login of an address, the value of
`--api-key`, the text after `Bearer`. And secrets known from the config are redacted wherever they appear: a program may print its
own key in any form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eardrum.errors import HIDDEN, LOGIN, remove_logins

REDACTED = "[redacted]"

SECRET_WORDS = frozenset(
    {
        *("apikey", "assertion", "auth", "authentication", "authorization", "cookie", "credential", "credentials", "jwt"),
        *("key", "passwd", "password", "secret", "signature", "token"),
    }
)
"""Parts of the names of headers that hold secrets: `x-api-key`, `x-goog-api-key`, `api-key`, `set-cookie`."""

SUBPROTOCOLS = "sec-websocket-protocol"
HARMLESS_SUBPROTOCOLS = ("realtime", "openai-beta.")
"""Prefixes of the subprotocols that are shown. Any other may be a key: browsers have no other place for one."""

SECRET_NAME = r"[\w.-]*(?:key|token|secret|password|passwd|signature|credential|auth|authorization|jwt)"  # noqa: S105 -- a pattern
IN_QUERY = re.compile(rf"([?&]{SECRET_NAME}=)[^&\s\"'`<>#]+", re.IGNORECASE)
IN_SUBPROTOCOL = re.compile(r"(api-?key\.)[^\s,;\"'`<>]+", re.IGNORECASE)
QUERY = re.compile(r"\?\S+")

BEARER = re.compile(r"(?i:bearer|basic)\s+([\w.~+/=-]{6,})")
OPTION = re.compile(r"(?<![\w.-])-{0,2}[A-Za-z_][\w.-]*")
AFTER_OPTION = re.compile(r"(?:\s*[=:]\s*|\s+(?!-))(?P<value>\"[^\"]*\"|'[^']*'|[^\s\"'},]+)")
AFTER_NAME = re.compile(r"[\"']?\s*[=:]\s*(?:(?i:bearer|basic)\s+)?(?P<value>\"[^\"]*\"|'[^']*'|[^\s\"'},]+)")

MIN_SECRET_LENGTH = 6
"""Shortest secret that is redacted anywhere, in characters: shorter ones may be ordinary words."""


class _KnownSecrets:
    """The secrets of this process."""

    def __init__(self) -> None:
        self.values: set[str] = set()
        self.pattern: re.Pattern[str] | None = None

    def add(self, values: Iterable[str]) -> None:
        """Add secrets. Those of an earlier config stay, because the log may still hold them."""
        self.values |= {value for value in values if len(value) >= MIN_SECRET_LENGTH and not value.startswith(("/", "./", "${"))}
        longest_first = sorted(self.values, key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first))
        self.pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{either})(?![A-Za-z0-9])") if either else None


_known_secrets = _KnownSecrets()


def redact_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Redact headers, by their lower-case names. URLs in them lose their query, which may hold keys."""
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return {name: _redact_value(name, value) for name, value in named}


def redact_line(line: str) -> str:
    """Redact the keys in queries and subprotocols of a text."""
    if "=" in line and ("?" in line or "&" in line):
        line = IN_QUERY.sub(rf"\1{REDACTED}", line)
    if "key." in line.lower():
        line = IN_SUBPROTOCOL.sub(rf"\1{REDACTED}", line)
    return line


def _redact_value(name: str, value: str) -> str:
    if not SECRET_WORDS.isdisjoint(re.split("[-_]", name)):
        return REDACTED
    if name == SUBPROTOCOLS:
        offered = (item.strip() for item in value.split(","))
        return ", ".join(item if item.startswith(HARMLESS_SUBPROTOCOLS) else REDACTED for item in offered)
    return QUERY.sub(f"?{REDACTED}", redact_line(value)) if "?" in value else redact_line(value)


def add_secrets(values: Iterable[str]) -> None:
    """Redact these values wherever they appear from now on, in this process."""
    _known_secrets.add(values)


def redact(text: str) -> str:
    """Redact logins in addresses, keys in queries, and every known secret."""
    text = redact_line(text)
    text = remove_logins(text)
    return _known_secrets.pattern.sub(HIDDEN, text) if _known_secrets.pattern else text


def redact_command(command: str) -> str:
    """Redact the values in a command line whose option, variable or preceding word means a secret."""
    shown, at = [], 0
    for start, end in _find_spans(command):
        if start >= at:
            shown += [command[at:start], HIDDEN]
            at = end
    return redact("".join([*shown, command[at:]]))


def find_command_secrets(command: str) -> Iterator[str]:
    """Find the values that `redact_command` covers, and the passwords in addresses."""
    yield from (command[start:end] for start, end in _find_spans(command))
    yield from find_passwords(command)


def find_passwords(text: str) -> Iterator[str]:
    """Find the passwords, and keys in place of user names, in the addresses of a text."""
    for login in LOGIN.findall(text):
        name, _, password = login[:-1].partition(":")
        yield password or name


def find_named_secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """Find the settings in a tree whose names mean secrets, and the passwords in its addresses."""
    for name, value in values.items():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, Mapping):
                yield from find_named_secrets(inner)
            elif isinstance(inner, str) and is_secret(name):
                yield inner
            elif isinstance(inner, str):
                yield from find_passwords(inner)


def is_secret(name: str) -> bool:
    """Whether an option, variable or header of this name holds a secret."""
    parts = re.split(r"[-_.]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("-"))
    return not SECRET_WORDS.isdisjoint(parts) and parts[-1] not in ("file", "path", "env")


def _find_spans(command: str) -> Iterator[tuple[int, int]]:
    """Find the positions of secrets in a command line."""
    found = [match.span(1) for match in BEARER.finditer(command)]
    for name in OPTION.finditer(command):
        if is_secret(name[0]):
            after = AFTER_OPTION if name[0].startswith("-") else AFTER_NAME
            if match := after.match(command, name.end()):
                start, end = match.span("value")
                quoted = command[start] in "\"'" and end - start > 1
                found.append((start + quoted, end - quoted))
    yield from sorted(found)
