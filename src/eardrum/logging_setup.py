"""Log formats: lines of text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

from eardrum import redaction
from eardrum.request_ids import find_logged_id


class JsonLogFormatter(logging.Formatter):
    """One JSON object per line; the facts of a request become separate keys."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        facts: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        facts |= getattr(record, "facts", None) or {"message": record.getMessage()}
        if id := find_logged_id(record):
            facts["request"] = id
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return redaction.redact(json.dumps(facts, default=str))


class TextLogFormatter(logging.Formatter):
    """A line for people. The time of day is put into words once a second, not once a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._second = 0
        self._time = ""
        self._last: tuple[logging.LogRecord | None, str] = None, ""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text. What several handlers show is put into words once."""
        last, text = self._last
        if record is not last:
            if record.exc_info or record.exc_text or record.stack_info:
                text = super().format(record)
            else:  # the same in half the time: every request has a line
                text = f"{self.formatTime(record)} {record.levelname:<7} {_format_message(record)}"
            text = redaction.redact(text)
            self._last = record, text
        return text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line before a traceback."""
        record.message = _format_message(record)
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """The time of day."""
        if (second := int(record.created)) != self._second:
            self._second, self._time = second, time.strftime("%H:%M:%S", time.localtime(second))
        return self._time


def _format_message(record: logging.LogRecord) -> str:
    """Format the message with the request's id, which the line of a finished request has among its facts."""
    message = record.getMessage()
    id = "" if hasattr(record, "facts") else find_logged_id(record)
    return f"{message} request={id}" if id else message


RED, YELLOW, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


def color_for_stderr(text: str, color: str) -> str:
    """The text in a color if stderr is a terminal, unless the variable NO_COLOR (https://no-color.org) is set."""
    return f"{color}{text}{PLAIN}" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text


class ColorHandler(logging.StreamHandler[TextIO]):
    """Shows warnings in yellow and errors in red on a terminal. The formatter stays plain: the log buffer shares it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, in the color of its level."""
        line = super().format(record)
        if record.levelno < logging.WARNING:
            return line
        return color_for_stderr(line, RED if record.levelno >= logging.ERROR else YELLOW)


def configure_logging(level: str, kind: str) -> None:
    """Send the log to stderr in the chosen form."""
    handler = logging.StreamHandler(sys.stderr) if kind == "json" else ColorHandler(sys.stderr)
    handler.setFormatter(JsonLogFormatter() if kind == "json" else TextLogFormatter())
    for fact in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):  # no format prints them
        setattr(logging, fact, False)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
