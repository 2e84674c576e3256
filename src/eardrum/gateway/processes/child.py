"""Child processes: starts one with everything it starts itself, reads its output line by line, and ends it."""

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
from eardrum.gateway.processes.orphans import MARK_VARIABLE, ProcessRegistry, end_strays

log = logging.getLogger(__name__)

LAST_LINES = 12
MAX_LAST_LINE = 300
"""Characters of a line that an error shows."""

GRACE_S = 5.0
"""Time to end, for processes that nobody gave another one; and to be gone once killed."""

COMPLAINT_PATTERN = re.compile(
    r"^(?![\s-]).*(\b(error|fatal|fail(ed|ure)?|panic(ked)?|exception|abort(ed)?|cannot|can't|could not|couldn't|unable|"
    r"unknown|unexpected|unrecogni[sz]ed|unsupported|invalid|illegal|undefined|not (defined|found|supported|recogni[sz]ed)|"
    r"no such|denied|missing|required|out of memory)\b|(error|exception):)",
    re.IGNORECASE,
)
"""A line that says what is wrong. Those that begin with a space or a dash are of a usage text, or of a traceback."""

READ_BYTES = 1 << 14
LIKELY_CAUSES: dict[int, str] = {
    signal.SIGABRT: " (it gave up by itself)",
    signal.SIGBUS: " (a file it had mapped was cut, or /dev/shm is full)",
    signal.SIGILL: " (a library built for another processor)",
    signal.SIGKILL: " (by the system, if memory ran out)",
    signal.SIGSEGV: " (a fault in the program or a library)",
}
"""What usually lies behind a signal."""

LEVELS = {"DEBUG": logging.DEBUG, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}


class ChildProtocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Knows when the child is gone, even while a grandchild still holds its pipes."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__(limit=READ_BYTES, loop=loop)
        self.exited = loop.create_future()

    def process_exited(self) -> None:
        """Called by the event loop."""
        if not self.exited.done():
            self.exited.set_result(None)
        super().process_exited()


class ChildProcess:
    """The process. `exited` completes when it has ended, `ended` when nothing of what it started is left either."""

    logs_stdout = True
    """What it says on stdout is for people. If not, then only what it says on stderr."""

    def __init__(
        self,
        name: str,
        transport: asyncio.SubprocessTransport,
        protocol: ChildProtocol,
        said: LogBuffer,
        register: ProcessRegistry,
        mark: str,
    ):
        self.name = name
        self.exited = protocol.exited
        self.left_descendants = False
        """Whether processes that it had started were alive when it ended."""
        self._transport = transport
        self._child = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._log = said
        self._registry = register
        self._mark = mark
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._scrolled_complaints: list[str] = []
        """The first that the last lines hold no longer, and the latest one."""
        self._first_line, self._started = "", False
        self._reading = asyncio.ensure_future(self._read_output())
        self.ended: asyncio.Future[None] = asyncio.ensure_future(self._wait_ended())

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        said: LogBuffer | None = None,
        register: ProcessRegistry | None = None,
    ) -> Self:
        """Start a program, with `environment` added to our own. What it prints goes into `said`.

        It gets a session of its own, so that Ctrl-C reaches only the gateway and signals reach all that it starts. One that
        does not end with the gateway by itself is to be in the `register`.

        Raises:
            OSError: it cannot be started.
        """
        loop, register = asyncio.get_running_loop(), register or ProcessRegistry(None)
        mark = register.create_mark()
        transport, protocol = await loop.subprocess_exec(
            lambda: ChildProtocol(loop),
            *argv,
            env={**os.environ, MARK_VARIABLE: os.environ.get(MARK_VARIABLE, "") + mark, **environment},
            stdin=DEVNULL if cls.logs_stdout else PIPE,
            stdout=PIPE,
            stderr=STDOUT if cls.logs_stdout else PIPE,
            start_new_session=True,
        )
        child = cls(name, transport, protocol, said or LogBuffer(), register, mark)
        register.add_process(child.pid, name)
        return child

    @property
    def pid(self) -> int:
        """Its process id, which is its group's and its session's."""
        return self._child.pid

    @property
    def exit_description(self) -> str:
        """How it ended, in words."""
        code = self._child.returncode
        if code is None:
            return "is still running"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}{LIKELY_CAUSES.get(-code, '')}"
        return f"ended with exit code {code}{_explain_shell_code(code)}"

    @property
    def last_output(self) -> str:
        """The last lines it logged, after what it complained of before: usage texts and stacks come last."""
        lines = [line[:MAX_LAST_LINE] for line in self._last_lines if line]
        if not lines:
            return "It logged nothing."
        last = f"Its last output: {' / '.join(lines)}"
        if self._scrolled_complaints:
            return f"It reported: {' / '.join(self._scrolled_complaints)} -- {last}"
        return f"Its first output: {self._first_line} -- {last}" if self._first_line else last

    def mark_started(self) -> None:
        """What it said until now is of no interest if it should end."""
        self._scrolled_complaints.clear()
        self._first_line, self._started = "", True

    @property
    def last_line(self) -> str:
        """The very last line it logged."""
        return next((line[:MAX_LAST_LINE].strip() for line in reversed(self._last_lines) if line.strip()), "it logged nothing")

    async def stop(self) -> None:
        """Ask it to end, insist after a while, and wait until it and all that it started are gone."""
        self.send_signal(signal.SIGTERM)
        if not await self.ends_within(GRACE_S):
            await self.kill()

    async def kill(self) -> None:
        """End it without asking, and wait until it and all that it started are gone."""
        self.send_signal(signal.SIGKILL)
        await asyncio.shield(self.ended)

    async def clean_up(self) -> None:
        """Stop it after a start that failed. Who cancels this has no time: then it is killed."""
        stopping = asyncio.ensure_future(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            await stopping
            raise

    async def ends_within(self, seconds: float) -> bool:
        """Whether it is gone after so many seconds at most."""
        await asyncio.wait([self.ended], timeout=max(0.0, seconds))
        return self.ended.done()

    def send_signal(self, number: signal.Signals) -> None:
        """To the child and to whatever it started: the session is its own."""
        if self.ended.done():
            return  # its number may be another's by now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def wait_for_output(self) -> None:
        """Wait until what an ended process said last has arrived."""
        await asyncio.wait([self._reading], timeout=GRACE_S)

    async def _wait_ended(self) -> None:
        await self.exited
        left = _is_group_alive(self.pid)
        others = process_info.list_group(self.pid) if left else set()
        self.left_descendants = bool(others) if process_info.identify_system() else left
        self.send_signal(signal.SIGKILL)  # what it has left behind would keep its memory, its port, and our pipes
        await end_strays(self._mark, others, GRACE_S)
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
        """Keep of a line that the last lines hold no longer what explains an end."""
        if COMPLAINT_PATTERN.search(line):
            self._scrolled_complaints[1:] = [line]
        elif not self._started:
            self._first_line = self._first_line or line

    def _log_lines(self, lines: list[str]) -> None:
        for line in map(redaction.redact, lines):  # before anybody has it: last words become messages
            if len(self._last_lines) == LAST_LINES:
                self._keep_complaint(self._last_lines[0][:MAX_LAST_LINE])
            self._last_lines.append(line)
            self._log.write(line)
            log.log(LEVELS.get(line.split(" ", 1)[0], logging.DEBUG), "%s: %s", self.name, line)


def _is_group_alive(group: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, 0)  # which reaches those too that have ended and wait for somebody to take notice
        return True
    return False


def _explain_shell_code(code: int) -> str:
    """Shells and containers add 128 to the signal that ended what they ran."""
    with suppress(ValueError):
        number = signal.Signals(code - 128)
        return f", which means {number.name}{LIKELY_CAUSES.get(number, '')}"
    return ""


MAX_LINE_LENGTH = 8 << 10
"""Characters after which a line that does not end is taken as it is."""


class LineSplitter:
    """Takes bytes as they come. What a carriage return overwrites, as progress bars do, is dropped as on a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial_line = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, self._partial_line = (self._partial_line + self._decoder.decode(data)).split("\n")
        lines = [_clean_line(line.removesuffix("\r")) for line in whole]
        if "\r" in self._partial_line[:-1]:
            self._partial_line = _drop_overwritten(self._partial_line[:-1]) + self._partial_line[-1]
        while len(self._partial_line) > MAX_LINE_LENGTH:
            lines.append(self._partial_line[:MAX_LINE_LENGTH])
            self._partial_line = self._partial_line[MAX_LINE_LENGTH:]
        return lines

    def flush(self) -> list[str]:
        """What is left at the end."""
        line, self._partial_line = _clean_line(self._partial_line.removesuffix("\r")), ""
        return [line] if line else []


def _clean_line(line: str) -> str:
    return _drop_overwritten(line).rstrip()


def _drop_overwritten(line: str) -> str:
    return line.rpartition("\r")[2]
