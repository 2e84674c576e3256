"""Keeps the last log lines of the server and of each model's process, and streams new ones to followers.

A log keeps only its last lines. A follower remembers its position, so a slow one costs no memory: it skips the lines that are
already gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable

from eardrum import redaction

MAX_BYTES = 100 << 10
MAX_LINES = 4000
"""Limits of a log. Lines are limited too, because an empty line also takes memory."""

MAX_LINE_BYTES = 8 << 10
"""Longer lines are cut."""


class LogBuffer:
    """The last lines of one source. Runs on the event loop."""

    def __init__(self, forward: Callable[[str], object] | None = None):
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._written = 0
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        self._forward = forward

    def write(self, line: str) -> None:
        """Add a line, or several in one text that stay together. Secrets in it are redacted."""
        self.write_redacted(redaction.redact(line))

    def write_redacted(self, line: str) -> None:
        """Add a line, or several in one text, without secrets."""
        if len(line) > MAX_LINE_BYTES:
            line = f"{line[:MAX_LINE_BYTES]} [{len(line) - MAX_LINE_BYTES} characters more]"
        self._lines.append(line)
        self._bytes += _count_bytes(line)
        self._written += 1
        while self._bytes > MAX_BYTES or len(self._lines) > MAX_LINES:
            self._bytes -= _count_bytes(self._lines.popleft())
        for changed in self._waiting:
            changed.set()
        if self._forward:
            self._forward(line)

    def get_lines(self) -> list[str]:
        """Return the kept lines, the oldest first."""
        return list(self._lines)

    async def follow_lines(self, *, history: bool = True) -> AsyncGenerator[list[str], None]:
        """Yield batches of new lines until `close`; with `history`, the kept lines come first."""
        read = self._written - (len(self._lines) if history else 0)
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                if lines := self._read_since(read):
                    read = self._written
                    yield lines
                elif self._closed:
                    return
                else:
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiting.discard(changed)

    def close(self) -> None:
        """End all followers once they have read the kept lines. The log still accepts lines."""
        self._closed = True
        for changed in self._waiting:
            changed.set()

    def _read_since(self, read: int) -> list[str]:
        first = self._written - len(self._lines)
        if read >= first:
            return [self._lines[index] for index in range(read - first, len(self._lines))]
        return [f"[{first - read} lines more]", *self._lines]


class GatewayLogs:
    """The server's log and one log per model. `forward` receives every line of the models."""

    def __init__(self, forward: Callable[[str], object] | None = None) -> None:
        self.server = LogBuffer()
        self.models = LogBuffer(forward)
        """The lines of all models, each prefixed with the model's id."""
        self._model_logs: dict[str, LogBuffer] = {}

    def get_model_log(self, model: str) -> LogBuffer:
        """Return the log of the model with this id."""
        if model not in self._model_logs:
            self._model_logs[model] = LogBuffer(lambda line: self.models.write(f"{model}: {line}"))
        return self._model_logs[model]

    def close(self) -> None:
        """End all followers."""
        for log in (self.server, self.models, *self._model_logs.values()):
            log.close()


class LogBufferHandler(logging.Handler):
    """Writes the server's log records into a `LogBuffer`, from any thread. The formatter redacts secrets."""

    def __init__(self, log: LogBuffer, formatter: logging.Formatter):
        super().__init__()
        self.setFormatter(formatter)
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = self.format(record)
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._log.write_redacted, line)
                return
        self._log.write_redacted(line)


def _count_bytes(line: str) -> int:
    return 1 + (len(line) if line.isascii() else len(line.encode(errors="replace")))
