"""A runner's process: a child process that runs `eardrum.runner` and serves one model."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eardrum.aiohttp_import import import_aiohttp
from eardrum.engines import cuda
from eardrum.errors import DeviceError, ModelLoadError, error_from_json
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes.child import GRACE_S, ChildProcess

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 10.0
"""Seconds between two liveness checks of a process."""

LATE_ANSWER_S = 1.0
"""Seconds that an overdue answer gets in addition: this process may have been the one that was suspended."""


class RunnerProcess(ChildProcess):
    """One runner. `start` returns it once it serves; `ended` completes when it has ended."""

    logs_stdout = False
    ready_message: dict[str, Any]
    """The runner's message that it is ready."""
    _hang_description = ""
    """Why the watchdog killed it; empty if it did not."""
    _asked_at: float | None = None
    """When the liveness check was sent that is still unanswered."""
    on_tuned: Callable[[dict[str, Any]], None] = staticmethod(lambda result: None)
    """Called with the first report of what the runner measured in idle time: `batch` and `options`."""
    _tuned: dict[str, Any] | None = None
    """The last report of that."""
    trying_device = ""
    """The GPU on which it last tried to load the model; loading there may crash a process."""

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        within_s: float,
        environment: Mapping[str, str] | None = None,
        hint: str = "",
        log_buffer: LogBuffer | None = None,
    ) -> RunnerProcess:
        """Start `command`, with `environment` added to this process's, and wait for its line of JSON on stdout.

        Its log lines go into `log_buffer`. `hint` is added to the error if it does not behave like a runner. The runner ends
        when the gateway does: the pipe at its stdin is closed then.

        Raises:
            DeviceError: it crashed when it tried a GPU.
            ModelLoadError: it reported a failure, ended, or was not ready in time.
            OSError: it cannot be started.
        """
        process = await cls.spawn(name, command, environment or {}, log_buffer)
        import_aiohttp()  # for the way to the runner, which imports its own libraries meanwhile
        try:
            async with asyncio.timeout(within_s):
                await process._wait_ready(hint)
        except TimeoutError:
            await process.clean_up()
            raise ModelLoadError(f"{name} was not ready after {within_s:g} s (start_timeout). {process.last_output}") from None
        except BaseException:
            await process.clean_up()
            raise
        process.mark_started()
        return process

    @property
    def exit_description(self) -> str:
        """A clause for messages, such as "ended with exit code 1"."""
        return self._hang_description or super().exit_description

    @property
    def unresponsive_s(self) -> float:
        """Seconds since the liveness check that is still unanswered; 0 if there is none."""
        return time.monotonic() - self._asked_at if self._asked_at is not None else 0.0

    def start_watchdog(self, find_limits: Callable[[], tuple[float, float]]) -> None:
        """Kill it if it does not answer for too long, or works for too long on one batch.

        `find_limits` returns both limits in seconds, by the config at that time.

        Only runners that announce `answers` are checked.
        """
        if self.ready_message.get("answers"):
            self._watchdog = asyncio.ensure_future(self._run_watchdog(find_limits))

    async def _run_watchdog(self, find_limits: Callable[[], tuple[float, float]]) -> None:
        while not await self.ends_within(min(CHECK_INTERVAL_S, *(limit_s / 2 for limit_s in find_limits()))):
            answer_s, batch_s = find_limits()
            found = await self._check_liveness(answer_s)
            if self.exited.done():
                return
            if found is None:
                self._hang_description = f"did not answer liveness checks for {answer_s:g} s (liveness_timeout) and was killed"
            elif found.get("batch_s", 0.0) > batch_s:
                self._hang_description = f"worked on one batch for {batch_s:g} s (batch_timeout) and was killed"
            elif found.get("loop_s", 0.0) > answer_s:
                self._hang_description = f"read no input for {answer_s:g} s (liveness_timeout) and was killed"
            if self._hang_description:
                log.error("The process of %s hangs: it %s.", self.name, self._hang_description)
                await self.kill()
                return

    async def _check_liveness(self, within_s: float) -> dict[str, float] | None:
        """Send a liveness check and return the answer: None if there is none, `{}` if the process is ending."""
        assert self._child.stdin
        assert self._child.stdout
        if self.exited.done() or self._child.stdin.is_closing():
            return {}  # its pipe closes before its descendants have ended, and uvloop raises on a write to it
        self._child.stdin.write(b"?\n")
        self._asked_at = time.monotonic()
        reading = asyncio.ensure_future(self._child.stdout.readline())
        try:
            await asyncio.wait([reading, self.exited], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():  # this process may have been the one that was suspended: then the answer has arrived
                await asyncio.wait([reading, self.exited], timeout=LATE_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            self._asked_at = None
            message = json.loads(reading.result() or "{}")
            self._report_tuning(message.get("tuned"))
            found: dict[str, float] = message.get("alive", {})
            return found
        except (OSError, ValueError):  # it is ending
            return {}
        finally:
            reading.cancel()

    def _report_tuning(self, tuned: dict[str, Any] | None) -> None:
        if tuned and tuned != self._tuned:
            self._tuned = tuned
            self.on_tuned(tuned)

    async def _wait_ready(self, hint: str) -> None:
        """Read messages until it is ready."""
        message = await self._read_message(hint)
        while "trying" in message:
            self.trying_device = message["trying"]
            message = await self._read_message(hint)
        if "failed" in message:
            raise error_from_json(message["failed"])
        self.ready_message = message["ready"]

    async def _read_message(self, hint: str) -> dict[str, Any]:
        assert self._child.stdout
        reading = asyncio.ensure_future(self._child.stdout.readline())
        either: list[asyncio.Future[Any]] = [reading, self.exited]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([reading], timeout=GRACE_S)  # the last output of an ended process may not have arrived yet
        if not reading.done() or not reading.result():
            reading.cancel()
            await asyncio.shield(self.ended)
            if self.trying_device:
                tried = f"The process of {self.name} {self.exit_description} when it tried the GPU"
                raise DeviceError(f"{tried} ({self.last_line}): {cuda.find_remedy(self.last_line)}.")
            raise ModelLoadError(
                f"The process of {self.name} {self.exit_description} before it was ready. {self.last_output}{hint}"
            )
        line = reading.result()
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            text = line.decode(errors="replace").strip()
            raise ModelLoadError(f"The process of {self.name} is no runner: it printed {text[:100]!r}.{hint}") from None
        return message
