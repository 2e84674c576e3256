"""Parses the errors of upstreams, in whatever dialect they come: message, retry time, and whether a retry can help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from eardrum import bounded_json

PAGE_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
PERMANENT_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
"""Codes of 429 that waiting does not mend."""

FORMAT_WORDS = ("response_format", "verbose_json", "timestamp_granularities")
"""A refusal that has one of these in it is about the format of the answer and not about the audio."""

AMBIGUOUS_STATUSES = (200, 400, 406, 409, 415, 422, 500, 501, 502)
"""Statuses of refusals behind which there may be the way of asking, whatever they say: servers fail on verbose_json with any."""

RETRYABLE_STATUSES = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that may pass."""

MAX_RETRY_AFTER_S = 86_400.0 * 365
"""Nobody means more: a number of hundreds of digits is none that anybody could wait for."""


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A whole answer as it came over the wire."""

    path: str
    """Where the request went."""
    status: int
    headers: Mapping[str, str]
    """Found whatever the case of their names."""
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace").strip()

    @property
    def json(self) -> Any:
        """The body's JSON; None when it is something else."""
        try:
            return bounded_json.parse_upstream_json(self.body)
        except ValueError:
            return None

    @property
    def is_error(self) -> bool:
        """Whether this is an error. Some servers send one with status 200."""
        if self.status != 200:
            return True
        if b"error" not in self.body:  # which spares a long transcript from being parsed for nothing
            return False
        answer = self.json
        return isinstance(answer, dict) and (bool(answer.get("error")) or answer.get("object") == "error")

    @property
    def is_about_format(self) -> bool:
        """Whether a refusal says that it is about the format of the answer."""
        return self.status in (200, 400, 415, 422) and any(word in self.text for word in FORMAT_WORDS)

    @property
    def is_ambiguous(self) -> bool:
        """Whether a refusal may be about the way of asking although it does not say so."""
        return self.status in AMBIGUOUS_STATUSES and not self.is_final

    @property
    def message(self) -> str:
        """The message of the upstream in one line; it may be long and contain a key."""
        return " ".join((_find_message(self.json) or _summarize_text(self.text)).split())

    @property
    def retry_after(self) -> float | None:
        """Seconds the upstream asks to be left alone; None when it does not say."""
        if (milliseconds := _parse_number(self.headers.get("retry-after-ms"))) is not None:
            return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
        wanted = self.headers.get("retry-after", "")
        if (seconds := _parse_number(wanted)) is not None:
            return min(seconds, MAX_RETRY_AFTER_S)
        try:
            seconds = (parsedate_to_datetime(wanted) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone, or of no year that there will be
            return None
        return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)

    @property
    def is_final(self) -> bool:
        """Whether the upstream says itself that no other try will do."""
        return self.headers.get("x-should-retry", "").lower() == "false"

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status not in RETRYABLE_STATUSES or self.is_final:
            return False
        error = self.json.get("error") if isinstance(self.json, dict) else None
        return not (isinstance(error, dict) and error.get("code") in PERMANENT_CODES)


def _find_message(answer: Any) -> str:
    """The sentence in OpenAI's error object, FastAPI's `detail`, a plain `message` or a plain string."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(filter(None, map(_find_message, answer)))
    if not isinstance(answer, dict):
        return ""
    if "msg" in answer:
        where = ".".join(map(str, answer["loc"])) if isinstance(answer.get("loc"), list) else ""
        return f"{where}: {answer['msg']}" if where else str(answer["msg"])
    return next((said for key in ("error", "message", "detail") if (said := _find_message(answer.get(key)))), "")


def _summarize_text(text: str) -> str:
    """A plain text as it is, of an HTML page its title."""
    if not text:
        return "it says nothing more"
    if text.startswith("<"):
        title = PAGE_TITLE.search(text)
        return f"a page titled {title[1].strip()!r}" if title else "a page of markup"
    return text


def _parse_number(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\d+(\.\d+)?", value.strip()) else None
