"""The API keys of the config with their use: requests and audio of each key, and whether they are within the limits.

`CURRENT_KEY` is the key of the current request. It holds for the request's task and the tasks that this one starts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from eardrum.config.api_keys import ApiKeySettings, hash_key
from eardrum.errors import KeyLimitError, ModelNotFoundError

MINUTE_S, HOUR_S = 60.0, 3600.0

DIGITS = 6
"""Digits after the point that count: the rest of a time is an error of rounding, and would refuse the last request."""


@dataclass(slots=True)
class RateLimit:
    """A budget that refills steadily: the generic cell rate algorithm, on the monotonic clock."""

    limit: float
    """Units in a period."""
    period_s: float
    empty_until: float = 0.0
    """When the whole budget will be there again."""

    def find_wait(self, now: float) -> float:
        """Return the seconds until something of the budget is left; 0 if it is now."""
        return max(0.0, round(self.empty_until - now - self.period_s + self._cost, DIGITS))

    def spend(self, amount: float, now: float) -> None:
        """Spend some of the budget, more than is left too: work that is done cannot be taken back."""
        self.empty_until = max(self.empty_until, now) + amount * self.period_s / self.limit

    def count_left(self, now: float) -> float:
        """Return the units that are left."""
        return max(0.0, round(self.limit - max(0.0, self.empty_until - now) * self.limit / self.period_s, DIGITS))

    @property
    def _cost(self) -> float:
        return self.period_s / self.limit


@dataclass(slots=True, eq=False)
class KeyUsage:
    """A key, and its use since the server started."""

    settings: ApiKeySettings
    name: str
    requests: int = 0
    """Admitted requests to models."""
    refused: int = 0
    """Requests refused by a limit."""
    audio_s: float = 0.0
    """Seconds of transcribed audio."""
    in_progress: int = 0
    last_used_at: float = 0.0
    """Unix time; 0: never."""
    is_limited: bool = field(init=False, default=False)
    """Whether a limit of the key may refuse a request."""
    _requests_limit: RateLimit | None = field(init=False, default=None)
    _audio_limit: RateLimit | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.settings.requests_per_minute:
            self._requests_limit = RateLimit(self.settings.requests_per_minute, MINUTE_S)
        if self.settings.audio_per_hour:
            self._audio_limit = RateLimit(self.settings.audio_per_hour, HOUR_S)
        self.is_limited = bool(self.settings.max_requests or self._requests_limit or self._audio_limit)

    def start_request(self) -> None:
        """Admit a request to a model, which `end_request` ends.

        Raises:
            KeyLimitError: a limit of the key is reached.
        """
        if self.is_limited:
            now = time.monotonic()
            try:
                self._check_limits(now)
            except KeyLimitError:
                self.refused += 1
                raise
            if self._requests_limit:
                self._requests_limit.spend(1, now)
        self.requests += 1
        self.in_progress += 1
        self.last_used_at = time.time()

    def _check_limits(self, now: float) -> None:
        settings = self.settings
        if settings.max_requests and self.in_progress >= settings.max_requests:
            raise KeyLimitError(
                f"{self.name} has {self.in_progress} requests in progress, its limit (max_requests).", retry_after=1.0
            )
        if self._requests_limit and (wait := self._requests_limit.find_wait(now)):
            message = f"{self.name} has made its {settings.requests_per_minute} requests of this minute (requests_per_minute)."
            raise KeyLimitError(message, retry_after=wait)
        if error := self.find_audio_error():
            raise error

    def find_audio_error(self) -> KeyLimitError | None:
        """Return the error of a key that has used up its audio of this hour; None while some is left."""
        if self._audio_limit and (wait := self.find_audio_wait()):
            message = f"{self.name} has used its {self._audio_limit.limit:g} seconds of audio of this hour (audio_per_hour)."
            return KeyLimitError(message, retry_after=wait)
        return None

    def continue_request(self) -> None:
        """Count a request whose work continues after its answer as in progress, until another `end_request`."""
        self.in_progress += 1

    def end_request(self) -> None:
        """End a request that `start_request` admitted."""
        self.in_progress -= 1

    def charge_audio(self, seconds: float) -> None:
        """Charge audio. What exceeds the limit ends a live session, and is refused with the next request."""
        self.audio_s += seconds
        if self._audio_limit:
            self._audio_limit.spend(seconds, time.monotonic())

    def find_audio_wait(self) -> float:
        """Return the seconds until more audio may be transcribed; 0 if it may be now."""
        return self._audio_limit.find_wait(time.monotonic()) if self._audio_limit else 0.0

    def build_limit_headers(self) -> list[tuple[bytes, bytes]]:
        """Build the headers in which OpenAI's clients read how much is left."""
        now, headers = time.monotonic(), []
        for name, limit in (("requests", self._requests_limit), ("audio-seconds", self._audio_limit)):
            if limit:
                reset = f"{math.ceil(max(0.0, round(limit.empty_until - now, DIGITS)))}s"
                values = (("limit", f"{limit.limit:g}"), ("remaining", str(int(limit.count_left(now)))), ("reset", reset))
                headers += [(f"x-ratelimit-{kind}-{name}".encode(), value.encode()) for kind, value in values]
        return headers


CURRENT_KEY: ContextVar[KeyUsage | None] = ContextVar("CURRENT_KEY", default=None)


@dataclass(slots=True)
class AudioMeter:
    """Charges the audio of a request or a live session to the key of the current request while it is transcribed."""

    usage: KeyUsage | None = field(default_factory=CURRENT_KEY.get)
    charged_s: float = 0.0
    """Seconds from the beginning that were charged."""

    def charge_until(self, seconds: float) -> float:
        """Charge the audio up to this time, and return the seconds that are new. What another attempt hears again is charged
        once."""
        new = max(0.0, seconds - self.charged_s)
        self.charged_s += new
        if self.usage and new:
            self.usage.charge_audio(new)
        return new


class KeyRegistry:
    """The keys in force. A key that a reload of the config leaves unchanged keeps its use."""

    def __init__(self, keys: Sequence[ApiKeySettings]):
        self._usages: list[KeyUsage] = []
        self._usages_by_digest: dict[bytes, KeyUsage] = {}
        self.is_empty = True
        """Whether every request is served without a key."""
        self.replace_keys(keys)

    def replace_keys(self, keys: Sequence[ApiKeySettings]) -> None:
        """Put these keys in force."""
        before = {usage.settings: usage for usage in self._usages}
        self._usages = [before.get(key) or KeyUsage(key, key.name) for key in keys]
        self._name_unnamed()
        self._usages_by_digest = {usage.settings.digest: usage for usage in reversed(self._usages)}
        self.is_empty = not self._usages

    def _name_unnamed(self) -> None:
        """Name the keys without a name by their position. One that has such a name keeps it: metrics show its use by the name."""
        taken = {usage.settings.name for usage in self._usages}
        unnamed = [(number, usage) for number, usage in enumerate(self._usages, 1) if not usage.settings.name]
        for number, usage in sorted(unnamed, key=lambda pair: not pair[1].name):
            names = (usage.name, *(f"key {other}" for other in range(number, number + len(taken) + 1)))
            usage.name = next(name for name in names if name not in taken)
            taken.add(usage.name)

    def __iter__(self) -> Iterator[KeyUsage]:
        return iter(self._usages)

    def __bool__(self) -> bool:
        return bool(self._usages)

    def find_usage(self, key: str) -> KeyUsage | None:
        """Find the key that a client showed. It is looked up by its hash, so the duration reveals nothing about the keys."""
        return self._usages_by_digest.get(hash_key(key))

    def find_owner(self, digest: str) -> KeyUsage | None:
        """Find the key with this digest, in hexadecimal digits."""
        return next((usage for usage in self._usages if usage.settings.digest.hex() == digest), None)

    def find_current(self, usage: KeyUsage) -> KeyUsage | None:
        """Find a key as it is in force now. A reload of the config may have changed it; None if it has withdrawn it."""
        return self.find_owner(usage.settings.digest.hex())


def check_model_allowed(id: str, aliases: Sequence[str] = ()) -> None:
    """Check that the key of the current request may use a model.

    Raises:
        ModelNotFoundError: it may not.
    """
    usage = CURRENT_KEY.get()
    if usage and usage.settings.models and not usage.settings.allows_model((id, *aliases)):
        raise ModelNotFoundError(f"{usage.name} may not use the model {id}. GET /v1/models lists its models.")


def is_model_visible(id: str, aliases: Sequence[str] = ()) -> bool:
    """Check whether the key of the current request may see a model."""
    usage = CURRENT_KEY.get()
    return not usage or usage.settings.allows_model((id, *aliases))
