"""Settings of API keys: what a client with the key may do, with which models, and how much."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import Field, field_validator

from eardrum.config.llama_swap import SettingsSection
from eardrum.units import OptionalByteSize, OptionalSeconds

HASH_PREFIX = "sha256:"


class KeyScope(StrEnum):
    """Groups of routes that a key may open."""

    TRANSCRIBE = "transcribe"
    """Recordings and live sessions."""
    SPEAK = "speak"
    """Text to speech."""
    CHAT = "chat"
    """Language models: chat, completions, embeddings, images, and all other routes that are forwarded to other servers."""
    MODELS = "models"
    """List and describe models."""
    MANAGE = "manage"
    """Load, unload, download and delete models, reload the config, cancel requests, and every route without another scope."""
    LOGS = "logs"
    """Logs and the requests of all clients."""
    METRICS = "metrics"
    """`/metrics`."""


ALL_SCOPES = tuple(KeyScope)


class ApiKeySettings(SettingsSection):
    """A key. A text in its place is a key with all rights."""

    shorthand = "key"

    key: str = Field(
        description="The key, or `sha256:` and its hash, as `eardrum key new` prints it: then the config holds no secret."
    )
    name: str = Field("", description="Name in errors, logs and the list of keys; empty: `key 1` for the first one.")
    scopes: tuple[KeyScope, ...] = Field(
        ALL_SCOPES,
        description="Rights: `transcribe`, `speak`, `chat`, `models` (list), `manage` (load, unload, download, delete, reload), "
        "`logs`, `metrics`. Unset: all.",
    )
    models: tuple[str, ...] = Field((), description="Models that the key may use and see, as in `whisper-*`; empty: all.")
    expires: datetime | None = Field(None, description="When the key ends, as in `2027-01-31` or `2027-01-31T18:00:00Z` (UTC).")
    requests_per_minute: int | None = Field(
        None, gt=0, description="Requests to models in a minute; more get 429. Unset: any number."
    )
    audio_per_hour: OptionalSeconds = Field(
        None, gt=0, description="Audio in an hour, as in `2h`; further requests get 429. Unset: any length."
    )
    max_requests: int | None = Field(
        None, gt=0, description="Requests to models at the same time, live sessions included; more get 429. Unset: any number."
    )

    max_job_items: int | None = Field(
        None,
        gt=0,
        description="Recordings in jobs that have not ended: while there are so many, new ones get 429. Unset: any number.",
    )
    max_file_bytes: OptionalByteSize = Field(
        None, gt=0, description="Size of all files of jobs, as in `20G`; more get 507. Unset: any size."
    )

    @field_validator("key")
    @classmethod
    def _check_hash(cls, key: str) -> str:
        if key.startswith(HASH_PREFIX) and not re.fullmatch(r"[0-9a-f]{64}", key.removeprefix(HASH_PREFIX)):
            raise ValueError("sha256: must be followed by 64 hexadecimal digits, as `eardrum key new` prints them")
        return key

    @field_validator("expires")
    @classmethod
    def _add_time_zone(cls, expires: datetime | None) -> datetime | None:
        return expires.replace(tzinfo=UTC) if expires and not expires.tzinfo else expires

    @property
    def plain_key(self) -> str:
        """The key itself; empty if the config holds its hash."""
        return "" if self.key.startswith(HASH_PREFIX) else self.key

    @property
    def digest(self) -> bytes:
        """The key's SHA-256. Keys are long and random: a slow hash would only help clients that want to keep the server busy."""
        return bytes.fromhex(self.key.removeprefix(HASH_PREFIX)) if not self.plain_key else hash_key(self.key)

    @property
    def has_expired(self) -> bool:
        """Whether the key's time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def allows_model(self, names: tuple[str, ...]) -> bool:
        """Check whether the key may use the model with these names."""
        return not self.models or any(fnmatchcase(name, pattern) for pattern in self.models for name in names)


def hash_key(key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
