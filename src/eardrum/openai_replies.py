"""Parses replies of OpenAI-compatible servers: errors in the shapes that servers have, and streams of server-sent events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from msgspec import Struct

from eardrum import bounded_json
from eardrum.errors import UpstreamError

PAGE_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
PERMANENT_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
"""Codes of a 429 that waiting does not help."""

FORMAT_WORDS = ("response_format", "verbose_json", "timestamp_granularities")
"""A refusal with one of these words is about the response format, not about the audio."""

AMBIGUOUS_STATUSES = (200, 400, 406, 409, 415, 422, 500, 501, 502)
"""Statuses of refusals that the form of the request may have caused: on verbose_json, servers fail with any of them."""

RETRYABLE_STATUSES = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses of temporary failures."""

MAX_RETRY_AFTER_S = 86_400.0 * 365
"""Longer times are cut: servers have sent numbers of hundreds of digits."""


class UpstreamReply(Struct, frozen=True):
    """A complete HTTP response of a server."""

    path: str
    """Path of the request."""
    status: int
    headers: Mapping[str, str]
    """Any mapping that ignores the case of names."""
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
        """Whether a refusal names the response format as its reason."""
        return self.status in (200, 400, 415, 422) and any(word in self.text for word in FORMAT_WORDS)

    @property
    def is_ambiguous(self) -> bool:
        """Whether the form of the request may be the reason of a refusal although its message does not say so."""
        return self.status in AMBIGUOUS_STATUSES and not self.is_final

    @property
    def message(self) -> str:
        """The server's message in one line; it may be long and contain a key."""
        return " ".join((_find_message(self.json) or _summarize_text(self.text)).split())

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before the next request, if the server names them."""
        if (milliseconds := _parse_number(self.headers.get("retry-after-ms"))) is not None:
            return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
        wanted = self.headers.get("retry-after", "")
        if (seconds := _parse_number(wanted)) is not None:
            return min(seconds, MAX_RETRY_AFTER_S)
        try:
            seconds = (parsedate_to_datetime(wanted) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # not a date, or one without a time zone, or of an impossible year
            return None
        return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)

    @property
    def is_final(self) -> bool:
        """Whether the server declares that a retry cannot help."""
        return self.headers.get("x-should-retry", "").lower() == "false"

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status not in RETRYABLE_STATUSES or self.is_final:
            return False
        error = self.json.get("error") if isinstance(self.json, dict) else None
        return not (isinstance(error, dict) and error.get("code") in PERMANENT_CODES)


def _find_message(answer: Any) -> str:
    """Find the message in OpenAI's error object, FastAPI's `detail`, a plain `message` or a plain string."""
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
    """Return plain text as it is, and the title of an HTML page."""
    if not text:
        return "it gives no reason"
    if text.startswith("<"):
        title = PAGE_TITLE.search(text)
        return f"a page titled {title[1].strip()!r}" if title else "a page of markup"
    return text


def _parse_number(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\d+(\.\d+)?", value.strip()) else None


MAX_EVENT_BYTES = 64 << 20
"""Largest event: the last one of a transcript may hold all segments of a day."""

LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
"""End of a line. A `\\r` at the end of the buffer may be half of a `\\r\\n`."""


class SseDecoder:
    """Decodes server-sent events, however the stream was cut up: the data of each event, without comments and other fields."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the events that `piece` completes.

        Raises:
            UpstreamError: an event is larger than `MAX_EVENT_BYTES`.
        """
        self._line += piece
        found: list[str] = []
        at = 0
        for end in LINE_END.finditer(self._line, max(0, len(self._line) - len(piece) - 1)):
            found += self._feed_line(bytes(self._line[at : end.start()]))
            at = end.end()
        del self._line[:at]
        if len(self._line) + self._size > MAX_EVENT_BYTES:
            raise UpstreamError(f"The server behind the model sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return found

    def flush(self) -> list[str]:
        """Return the data of an event that the end of the stream completes."""
        line = bytes(self._line).removesuffix(b"\r")
        self._line.clear()
        return [*self._feed_line(line), *self._feed_line(b"")]

    def _feed_line(self, line: bytes) -> list[str]:
        if not line:
            text = "\n".join(self._data)
            self._data, self._size = [], 0
            return [text] if text else []
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode(errors="replace"))
            self._size += len(value)
        return []
