"""Ids of requests. Every log line about a request names its id, in the server and in the models' processes."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from contextvars import ContextVar

REQUEST_ID_HEADER = "x-request-id"
RAW_REQUEST_ID_HEADER = REQUEST_ID_HEADER.encode()

_CLIENT_ID = re.compile(r"[A-Za-z0-9._:=-]{1,128}")
"""Ids of clients that are taken over: UUIDs and those of proxies fit, forged log lines do not."""
_LINE_END = re.compile(r" request=(\S+)$")
_prefix = f"req_{secrets.token_hex(8)}"
_numbers = itertools.count()
_current: ContextVar[str] = ContextVar("request_id", default="")


def create_request_id() -> str:
    """Create an id that is unique among all servers. Random bytes from the system for each id would cost more."""
    return f"{_prefix}{next(_numbers):08x}"


def parse_client_id(value: str) -> str:
    """Return the id that a client chose; empty if it cannot be used: too long, odd characters, or like one of this server's."""
    return value if _CLIENT_ID.fullmatch(value) and not value.startswith(_prefix) else ""


def set_request_id(id: str) -> None:
    """Name the request that this task, and the tasks that it starts, work for."""
    _current.set(id)


def get_request_id() -> str:
    """Return the id of the request that this task works for; empty if there is none."""
    return _current.get()


def find_logged_id(record: logging.LogRecord) -> str:
    """Return the id, or the ids, of the request that a log record is about; empty if it is about none."""
    return getattr(record, "request", "") or _current.get()


def split_logged_id(line: str) -> tuple[str, str]:
    """Split a line of a model's process, formatted by `RunnerLogFormatter`, into its message and the request's id."""
    found = _LINE_END.search(line)
    return (line[: found.start()], found[1]) if found else (line, "")


class RunnerLogFormatter(logging.Formatter):
    """A line of a model's process: its level first, which the server logs it at, and the request's id last."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line before a traceback."""
        line, id = super().formatMessage(record), find_logged_id(record)
        return f"{line} request={id}" if id else line
