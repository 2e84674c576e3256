"""What an upstream says when it does not do what it was asked, in whatever dialect it says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from eardrum import json_text

TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
HOPELESS = {"insufficient_quota", "billing_hard_limit_reached"}
"""Codes of 429 that waiting does not mend."""

FORMAT_WORDS = ("response_format", "verbose_json", "timestamp_granularities")
"""A refusal that has one of these in it is about the format of the answer and not about the audio."""

OF_ANY_CAUSE = (200, 400, 406, 409, 415, 422, 500, 501, 502)
"""Statuses of refusals behind which there may be the way of asking, whatever they say: servers fail on verbose_json with any."""

AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that may pass."""

LONGEST_PAUSE_S = 86_400.0 * 365
"""Nobody means more: a number of hundreds of digits is none that anybody could wait for."""


@dataclass(frozen=True, slots=True)
class Reply:
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
            return json_text.parsed_of_server(self.body)
        except ValueError:
            return None

    @property
    def refused(self) -> bool:
        """Whether this is an error. Some servers send one with status 200."""
        if self.status != 200:
            return True
        if b"error" not in self.body:  # which spares a long transcript from being parsed for nothing
            return False
        answer = self.json
        return isinstance(answer, dict) and (bool(answer.get("error")) or answer.get("object") == "error")

    @property
    def names_the_format(self) -> bool:
        """Whether a refusal says that it is about the format of the answer."""
        return self.status in (200, 400, 415, 422) and any(word in self.text for word in FORMAT_WORDS)

    @property
    def leaves_the_cause_open(self) -> bool:
        """Whether a refusal may be about the way of asking although it does not say so."""
        return self.status in OF_ANY_CAUSE and not self.stays

    @property
    def message(self) -> str:
        """What the upstream says, in one line; it may be long, and have a key in it."""
        return " ".join((_said(self.json) or _page(self.text)).split())

    @property
    def retry_after(self) -> float | None:
        """Seconds the upstream asks to be left alone; None when it does not say."""
        if (milliseconds := _number(self.headers.get("retry-after-ms"))) is not None:
            return min(milliseconds / 1000, LONGEST_PAUSE_S)
        wanted = self.headers.get("retry-after", "")
        if (seconds := _number(wanted)) is not None:
            return min(seconds, LONGEST_PAUSE_S)
        try:
            seconds = (parsedate_to_datetime(wanted) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone, or of no year that there will be
            return None
        return min(max(seconds, 0.0), LONGEST_PAUSE_S)

    @property
    def stays(self) -> bool:
        """Whether the upstream says itself that no other try will do."""
        return self.headers.get("x-should-retry", "").lower() == "false"

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status not in AGAIN or self.stays:
            return False
        error = self.json.get("error") if isinstance(self.json, dict) else None
        return not (isinstance(error, dict) and error.get("code") in HOPELESS)


def _said(answer: Any) -> str:
    """The sentence in OpenAI's error object, FastAPI's `detail`, a plain `message` or a plain string."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(filter(None, map(_said, answer)))
    if not isinstance(answer, dict):
        return ""
    if "msg" in answer:
        where = ".".join(map(str, answer["loc"])) if isinstance(answer.get("loc"), list) else ""
        return f"{where}: {answer['msg']}" if where else str(answer["msg"])
    return next((said for key in ("error", "message", "detail") if (said := _said(answer.get(key)))), "")


def _page(text: str) -> str:
    """A plain text as it is, of an HTML page its title."""
    if not text:
        return "it says nothing more"
    if text.startswith("<"):
        title = TITLE.search(text)
        return f"a page titled {title[1].strip()!r}" if title else "a page of markup"
    return text


def _number(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\d+(\.\d+)?", value.strip()) else None
