"""A runner's process: a child process of our own program that serves one model."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from eardrum.engines import cuda
from eardrum.errors import DeviceError, ModelLoadError, error_from_json
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes.child import GRACE_S, ChildProcess

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 10.0
"""How often a process is asked for a sign of life."""

LATE_ANSWER_S = 1.0
"""How long after its time an answer is looked for once more."""


class RunnerProcess(ChildProcess):
    """One runner. `start` returns it when it serves; `ended` completes when it is gone."""

    logs_stdout = False
    ready_message: dict[str, Any]
    """What the runner said when it was ready."""
    _hang_description = ""
    """Why it was ended that did not work any more."""
    _asked_at: float | None = None
    """When it was asked for a sign of life that it has not given."""
    trying_device = ""
    """The device on which it was loading the model when it was last heard of, where that is known to end processes."""

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        within_s: float,
        environment: Mapping[str, str] | None = None,
        hint: str = "",
        said: LogBuffer | None = None,
    ) -> RunnerProcess:
        """Start `command`, with `environment` added to our own, and wait for its line of JSON on stdout.

        What it logs goes into `said`. `hint` is told to whoever reads that it did not behave like a runner. The child gets a
        pipe as stdin whose end tells it that the gateway is gone.

        Raises:
            DeviceError: it died when it tried a GPU.
            ModelLoadError: it said why it failed, died, or was not ready in time.
            OSError: it cannot be started.
        """
        process = await cls.spawn(name, command, environment or {}, said)
        try:
            async with asyncio.timeout(within_s):
                await process._wait_ready(hint)
        except TimeoutError:
            await process.clean_up()
            raise ModelLoadError(f"{name} was not ready after {within_s:g} s (start_seconds). {process.last_output}") from None
        except BaseException:
            await process.clean_up()
            raise
        process.mark_started()
        return process

    @property
    def exit_description(self) -> str:
        """How it ended, in words."""
        return self._hang_description or super().exit_description

    @property
    def unresponsive_s(self) -> float:
        """Seconds that it owes an answer."""
        return time.monotonic() - self._asked_at if self._asked_at is not None else 0.0

    def start_watchdog(self, *, answer_s: float, batch_s: float) -> None:
        """From now on end it if it gives no sign of life for `answer_s`, or needs more than `batch_s` for one batch.

        A program that does not say that it `answers` is left alone.
        """
        if self.ready_message.get("answers"):
            self._watchdog = asyncio.ensure_future(self._run_watchdog(answer_s, batch_s))

    async def _run_watchdog(self, answer_s: float, batch_s: float) -> None:
        every_s = min(CHECK_INTERVAL_S, answer_s / 2, batch_s / 2)
        while not await self.ends_within(every_s):
            found = await self._check_liveness(answer_s)
            if self.exited.done():
                return
            if found is None:
                self._hang_description = f"gave no sign of life for {answer_s:g} s (answer_seconds) and was killed"
            elif found.get("batch_s", 0.0) > batch_s:
                self._hang_description = f"did not come back from a batch for {batch_s:g} s (batch_seconds) and was killed"
            elif found.get("loop_s", 0.0) > answer_s:
                self._hang_description = f"took in nothing for {answer_s:g} s (answer_seconds) and was killed"
            if self._hang_description:
                log.error("The process of %s hangs: it %s.", self.name, self._hang_description)
                await self.kill()
                return

    async def _check_liveness(self, within_s: float) -> dict[str, float] | None:
        """What it says of itself; None if it says nothing, `{}` if it cannot be asked any more."""
        assert self._child.stdin
        assert self._child.stdout
        if self.exited.done() or self._child.stdin.is_closing():
            return {}  # its pipe goes before all that it started has gone, and uvloop raises where one writes into it
        self._child.stdin.write(b"?\n")
        self._asked_at = time.monotonic()
        reading = asyncio.ensure_future(self._child.stdout.readline())
        try:
            await asyncio.wait([reading, self.exited], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():  # this process may have been the one that stood still: its answer is there then
                await asyncio.wait([reading, self.exited], timeout=LATE_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            self._asked_at = None
            found: dict[str, float] = json.loads(reading.result() or "{}").get("alive", {})
            return found
        except (OSError, ValueError):  # it is on its way out
            return {}
        finally:
            reading.cancel()

    async def _wait_ready(self, hint: str) -> None:
        """Listen until it is ready."""
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
        await asyncio.wait([reading], timeout=GRACE_S)  # what the process said last may still be on its way
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
            said = line.decode(errors="replace").strip()
            raise ModelLoadError(f"The process of {self.name} is no runner: it says {said[:100]!r}.{hint}") from None
        return message
