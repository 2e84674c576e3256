"""Child processes: starts one in its own session, reads its output by lines, and ends it with all its descendants."""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

from eardrum import redaction
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.orphans import MARK_VARIABLE, ProcessRegistry, end_descendants
from eardrum.request_ids import split_logged_id

log = logging.getLogger(__name__)

LAST_LINES = 12
MAX_LAST_LINE = 300
"""Characters of a line in an error."""

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL, unless the caller sets another time, and between SIGKILL and the end."""

COMPLAINT_PATTERN = re.compile(
    r"^(?![\s-]|(INFO|DEBUG)\b).*(\b(error|fatal|fail(ed|ure)?|panic(ked)?|exception|abort(ed)?|cannot|can't|could not|couldn't|"
    r"unable|unknown|unexpected|unrecogni[sz]ed|unsupported|invalid|illegal|undefined|"
    r"not (defined|found|supported|recogni[sz]ed)|no such|denied|missing|required|out of memory)\b|(error|exception):)",
    re.IGNORECASE,
)
"""Matches a line that reports an error. Lines that begin with a space or a dash are part of a usage text or a traceback. The
logger `uvicorn.error` writes all of uvicorn's lines, so a level that is none of an error decides."""

READ_BYTES = 1 << 14
MAX_MESSAGE_BYTES = 1 << 20
"""Longest line on stdout that a subclass can read: a voice model lists all its voices in one, and some have a thousand."""

LIKELY_CAUSES: dict[int, str] = {
    signal.SIGABRT: " (the program aborted itself)",
    signal.SIGBUS: " (a file in use was truncated, or /dev/shm is full)",
    signal.SIGILL: " (a library built for another processor)",
    signal.SIGKILL: " (by the system, if memory ran out)",
    signal.SIGSEGV: " (a fault in the program or a library)",
}
"""The usual causes of signals."""

LEVELS = {"DEBUG": logging.DEBUG, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}


class ChildProtocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Completes `exited` when the child ends, even while a grandchild still holds its pipes."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__(limit=MAX_MESSAGE_BYTES, loop=loop)
        self.exited = loop.create_future()

    def process_exited(self) -> None:
        """Complete `exited`; the event loop calls this."""
        if not self.exited.done():
            self.exited.set_result(None)
        super().process_exited()


class ChildProcess:
    """A child process. `exited` completes when it has ended, `ended` when all its descendants have ended too."""

    logs_stdout = True
    """Whether stdout is logged like stderr. If not, stdout is read by a subclass, and stdin is a pipe too."""

    def __init__(
        self,
        name: str,
        transport: asyncio.SubprocessTransport,
        protocol: ChildProtocol,
        log_buffer: LogBuffer,
        registry: ProcessRegistry,
        mark: str,
    ):
        self.name = name
        self.exited = protocol.exited
        self.left_descendants = False
        """Whether processes of its group were still running when it ended."""
        self._transport = transport
        self._child = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._log = log_buffer
        self._registry = registry
        self._mark = mark
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._scrolled_complaints: list[str] = []
        """The first and the latest error lines that `_last_lines` no longer holds."""
        self._first_line, self._started = "", False
        self._reading = asyncio.ensure_future(self._read_output())
        self.ended: asyncio.Future[None] = asyncio.ensure_future(self._wait_ended())

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log_buffer: LogBuffer | None = None,
        registry: ProcessRegistry | None = None,
    ) -> Self:
        """Start a program, with `environment` added to this process's. Its output goes into `log_buffer`.

        The program gets its own session: Ctrl-C reaches only the gateway, and signals reach all descendants. A program
        that does not end with the gateway by itself needs a `registry`.

        Raises:
            OSError: the program cannot be started.
        """
        loop, registry = asyncio.get_running_loop(), registry or ProcessRegistry(None)
        mark = registry.create_mark()
        transport, protocol = await loop.subprocess_exec(
            lambda: ChildProtocol(loop),
            *argv,
            env={**os.environ, MARK_VARIABLE: os.environ.get(MARK_VARIABLE, "") + mark, **environment},
            stdin=DEVNULL if cls.logs_stdout else PIPE,
            stdout=PIPE,
            stderr=STDOUT if cls.logs_stdout else PIPE,
            start_new_session=True,
        )
        child = cls(name, transport, protocol, log_buffer or LogBuffer(), registry, mark)
        registry.add_process(child.pid, name)
        return child

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group and session."""
        return self._child.pid

    @property
    def exit_description(self) -> str:
        """A clause for messages, such as "ended with exit code 1"."""
        code = self._child.returncode
        if code is None:
            return "is still running"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}{LIKELY_CAUSES.get(-code, '')}"
        return f"ended with exit code {code}{_explain_shell_code(code)}"

    @property
    def last_output(self) -> str:
        """The last lines of its output, and error lines from before them: usage texts and tracebacks come last."""
        lines = [line[:MAX_LAST_LINE] for line in self._last_lines if line]
        if not lines:
            return "It logged nothing."
        last = f"Its last output: {' / '.join(lines)}"
        if self._scrolled_complaints:
            return f"It reported: {' / '.join(self._scrolled_complaints)} -- {last}"
        return f"Its first output: {self._first_line} -- {last}" if self._first_line else last

    def mark_started(self) -> None:
        """Forget the output of the start: it does not explain a later end."""
        self._scrolled_complaints.clear()
        self._first_line, self._started = "", True

    @property
    def last_line(self) -> str:
        """The last line of its output that is not empty."""
        return next((line[:MAX_LAST_LINE].strip() for line in reversed(self._last_lines) if line.strip()), "it logged nothing")

    async def stop(self) -> None:
        """Send SIGTERM, after a grace period SIGKILL, and wait until it and all its descendants have ended."""
        self.send_signal(signal.SIGTERM)
        if not await self.ends_within(GRACE_S):
            await self.kill()

    async def kill(self) -> None:
        """Send SIGKILL, and wait until it and all its descendants have ended."""
        self.send_signal(signal.SIGKILL)
        await asyncio.shield(self.ended)

    async def clean_up(self) -> None:
        """Stop it after a failed start. If this is cancelled, it is killed at once."""
        stopping = asyncio.ensure_future(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            await stopping
            raise

    async def ends_within(self, seconds: float) -> bool:
        """Whether it and all its descendants end within so many seconds."""
        await asyncio.wait([self.ended], timeout=max(0.0, seconds))
        return self.ended.done()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and all processes in its group."""
        if self.ended.done():
            return  # the pid may belong to another process by now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def wait_for_output(self) -> None:
        """Wait for the last output of an ended process."""
        await asyncio.wait([self._reading], timeout=GRACE_S)

    async def _wait_ended(self) -> None:
        await self.exited
        group = process_info.list_group(self.pid) if _exists_group(self.pid) else set()
        self.left_descendants = bool(group)
        self.send_signal(signal.SIGKILL)  # descendants would keep the memory, the port, and the pipes to the gateway
        await end_descendants(self._mark, group, GRACE_S)
        await self.wait_for_output()
        self._registry.remove_process(self.pid)
        self._transport.close()

    async def _read_output(self) -> None:
        stream = self._child.stdout if self.logs_stdout else self._child.stderr
        assert stream
        lines = LineSplitter()
        while data := await stream.read(READ_BYTES):
            self._log_lines(lines.feed(data))
        self._log_lines(lines.flush())

    def _keep_complaint(self, line: str) -> None:
        """Keep a line that leaves the last lines, if it may explain why the process ended."""
        if COMPLAINT_PATTERN.search(line):
            self._scrolled_complaints[1:] = [line]
        elif not self._started:
            self._first_line = self._first_line or line

    def _log_lines(self, lines: list[str]) -> None:
        for line in map(redaction.redact, lines):  # before the line is kept: the last lines become parts of messages
            if len(self._last_lines) == LAST_LINES:
                self._keep_complaint(self._last_lines[0][:MAX_LAST_LINE])
            self._last_lines.append(line)
            self._log.write(line)
            message, id = split_logged_id(line)
            log.log(LEVELS.get(line.split(" ", 1)[0], logging.DEBUG), "%s: %s", self.name, message, extra={"request": id})


def _exists_group(group: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, 0)  # true for zombies too; saves reading all processes at nearly every end
        return True
    return False


def _explain_shell_code(code: int) -> str:
    """Explain exit codes above 128: shells and containers add 128 to the signal that ended their program."""
    with suppress(ValueError):
        number = signal.Signals(code - 128)
        return f", which means {number.name}{LIKELY_CAUSES.get(number, '')}"
    return ""


MAX_LINE_LENGTH = 8 << 10
"""Characters after which a line without an end is cut."""


class LineSplitter:
    """Splits a stream of bytes into lines. As on a terminal, a carriage return drops the text before it (progress bars)."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial_line = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes."""
        *whole, self._partial_line = (self._partial_line + self._decoder.decode(data)).split("\n")
        lines = [_clean_line(line.removesuffix("\r")) for line in whole]
        if "\r" in self._partial_line[:-1]:
            self._partial_line = _drop_overwritten(self._partial_line[:-1]) + self._partial_line[-1]
        while len(self._partial_line) > MAX_LINE_LENGTH:
            lines.append(self._partial_line[:MAX_LINE_LENGTH])
            self._partial_line = self._partial_line[MAX_LINE_LENGTH:]
        return lines

    def flush(self) -> list[str]:
        """Return the last line, if it had no end."""
        line, self._partial_line = _clean_line(self._partial_line.removesuffix("\r")), ""
        return [line] if line else []


def _clean_line(line: str) -> str:
    return _drop_overwritten(line).rstrip()


def _drop_overwritten(line: str) -> str:
    return line.rpartition("\r")[2]
