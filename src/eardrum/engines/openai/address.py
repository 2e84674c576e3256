"""Where an upstream is, and the key and headers that open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from yarl import URL

from eardrum.errors import ConfigError

SECRET = 6
"""A header's value at least this long may be a secret; a shorter one is a word that messages have too."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an upstream is and how it is spoken to."""

    url: URL
    """The base; requests go to paths below it."""
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    """What must appear in no message."""
    key_setting: str
    """Which setting holds the key, in words; empty when there is none."""
    timeout_s: float
    """For one attempt, from the connection to the end of the answer."""
    retries: int

    @classmethod
    def of(cls, url: str, *, key: str, key_env: str, headers: Mapping[str, str], timeout_s: float, retries: int) -> Self:
        """The address, with the key in its headers. The key is given, or in the environment variable `key_env`.

        Raises:
            ConfigError: the key is given twice, is not there, or cannot be sent.
        """
        key, setting = _key(key, key_env)
        if key and any(name.lower() == "authorization" for name in headers):
            raise ConfigError(f"headers.Authorization and {setting} both hold a key: leave one of them out.")
        _check_sendable(key, setting)
        for name, value in headers.items():
            _check_sendable(name + value, f"headers.{name}")
        return cls(
            url=URL(url),
            headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            secrets=tuple([key] * bool(key) + [value for value in headers.values() if len(value) >= SECRET]),
            key_setting=setting,
            timeout_s=timeout_s,
            retries=retries,
        )

    @property
    def host(self) -> str:
        """Host and port for messages."""
        return self.url.authority

    def target(self, path: str) -> URL:
        """The address of `path` below the base; `/` is the base itself. What follows the base's `?` stays."""
        return self.url.joinpath(path.lstrip("/")).with_query(self.url.query) if path.strip("/") else self.url

    def without_secrets(self, text: str) -> str:
        """The text with every secret blotted out."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def _key(key: str, key_env: str) -> tuple[str, str]:
    """The key, and in words which setting it comes from; both empty without one."""
    if not key_env:
        return key, "the option key" if key else ""
    if key:
        raise ConfigError("key and key_env are both set: leave one of them out.")
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise ConfigError(f"key_env: the environment variable {key_env} is not set or empty.")
    return key, f"the environment variable {key_env} (option key_env)"


def _check_sendable(value: str, setting: str) -> None:
    # A line break in a header begins another; the HTTP library's own complaint would quote the key.
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"The value of {setting} has characters in it that no header can have.")
