"""The actor that holds the resources of one replica on a node of the cluster, and runs its runner there.

Ray starts it again, here or on another node, when its process or its node is lost. It ends itself, and the runner, when nobody
has asked for it during the lease: a server that was killed must not keep a GPU for ever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import ray

from eardrum.runner_access import TOKEN_VARIABLE

MODELS_VARIABLE = "EARDRUM_MODELS"
"""The environment variable with the runner's config: every user of a machine can read command lines."""

END_S = 5.0
"""Seconds between SIGTERM and SIGKILL for a runner that has nothing to finish."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
"""Seconds before a model that could not be loaded is tried again: each time twice as long."""

SHORT_LIFE_S = 10.0
"""A runner that ends sooner than this after its start is started again with a pause."""

LAST_LINES = 4


@dataclass
class ReplicaOrder:
    """The order for one replica."""

    model: str
    """The model's id."""
    entry: dict[str, Any]
    """Its entry in the config of the runner: `engine`, `source`, `options`, `batch_size`."""
    python: str
    """The runner's interpreter; empty: that of Ray."""
    token: str = field(repr=False)
    """The token that the runner asks for."""
    digest: str
    """A hash of everything above: an actor with another one is replaced."""


@dataclass
class ReplicaReport:
    """The state of a replica."""

    state: str = "starting"
    """"starting", "ready", "draining", or "failed": the model could not be loaded, and is tried again later."""
    address: str = ""
    """Where the runner answers, once it does."""
    incarnation: str = ""
    """An id of this life of the actor."""
    node: str = ""
    """The node: its address, and the first letters of its id."""
    why: str = ""
    """Why it is not ready, if that is known."""
    digest: str = ""
    """That of the order."""


class ReplicaActor:
    """Runs one runner. Ray calls its methods in several threads."""

    def __init__(self, order: ReplicaOrder, lease_s: float):
        context = ray.get_runtime_context()
        self._order = order
        self._host = ray.util.get_node_ip_address()
        self._lease_s = lease_s
        self._renewed_at = time.monotonic()
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._report = ReplicaReport(
            incarnation=uuid.uuid4().hex, node=f"{self._host}/{context.get_node_id()[:8]}", digest=order.digest
        )
        self._handle = context.current_actor
        threading.Thread(target=self._run, daemon=True).start()
        threading.Thread(target=self._watch_lease, daemon=True).start()

    def report(self) -> dict[str, Any]:
        """Return the state of the replica, and renew the lease."""
        self._renewed_at = time.monotonic()
        return asdict(self._report)

    def end(self, drain_s: float) -> None:
        """End the runner and then this actor. The runner may finish its requests for so many seconds."""
        self._ending.set()
        self._report.state = "draining"
        if process := self._process:
            _end_runner(process, drain_s)
        self._end_actor()

    def _end_actor(self) -> None:
        """End this actor permanently. Leaving the process alone would have Ray start it again."""
        ray.kill(self._handle, no_restart=True)

    def _watch_lease(self) -> None:
        while time.monotonic() < self._renewed_at + self._lease_s:
            time.sleep(min(1.0, self._lease_s / 4))
        print(
            f"No server has renewed the lease of {self._order.model} for {self._lease_s:g} s: the replica ends.", file=sys.stderr
        )
        self.end(0.0)

    def _run(self) -> None:
        """Run the runner. Once it has served, its end is that of this process, which Ray starts again."""
        pause = FIRST_PAUSE_S
        while not self._ending.is_set():
            began = time.monotonic()
            was_ready, why = self._run_once()
            if self._ending.is_set():
                return
            if was_ready:
                print(f"The runner of {self._order.model} {why}.", file=sys.stderr, flush=True)
                time.sleep(FIRST_PAUSE_S if time.monotonic() - began < SHORT_LIFE_S else 0.0)
                os._exit(1)
            self._report.state, self._report.why = "failed", why
            time.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)
            self._report.state = "starting"

    def _run_once(self) -> tuple[bool, str]:
        """Run the runner until its end; returns whether it has served, and how it ended."""
        try:
            process = self._process = self._start_runner()
        except OSError as error:
            return False, f"{self._order.python or sys.executable} cannot be started: {error.strerror or error}"
        assert process.stdout
        assert process.stderr
        errors = threading.Thread(target=self._copy_log, args=(process.stderr,), daemon=True)
        errors.start()
        failure = ""
        for line in process.stdout:
            message = self._parse_message(line)
            if "failed" in message:
                failure = str(message["failed"].get("message", message["failed"]))
            elif "ready" in message and not self._ending.is_set():
                self._report.state, self._report.address, self._report.why = "ready", message["ready"]["address"], ""
        code = process.wait()
        errors.join(END_S)
        was_ready, self._report.address = bool(self._report.address), ""
        if not self._ending.is_set():
            self._report.state = "starting"
        return was_ready, failure or f"ended with exit code {code}: {' / '.join(self._last_lines) or 'it logged nothing'}"

    def _start_runner(self) -> subprocess.Popen[bytes]:
        """Start the runner on a free port of this node. It ends with its stdin, so also when this process is killed."""
        order = self._order
        listen = f"[{self._host}]:0" if ":" in self._host else f"{self._host}:0"
        command = [order.python or sys.executable, "-m", "eardrum", "runner", order.model, "--listen", listen, "--parent"]
        secret = {TOKEN_VARIABLE: order.token, MODELS_VARIABLE: json.dumps({order.model: order.entry})}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **secret})  # noqa: S603

    def _parse_message(self, line: bytes) -> dict[str, Any]:
        """Parse a message of the runner. Other lines, which its interpreter may print at its start, are part of its log."""
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        self._log_line(line)
        return {}

    def _copy_log(self, stream: IO[bytes]) -> None:
        """Copy the runner's log to that of this process, which Ray keeps."""
        for line in stream:
            self._log_line(line)

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._last_lines.append(text)
        print(text, file=sys.stderr, flush=True)


def _end_runner(process: subprocess.Popen[bytes], drain_s: float) -> None:
    """End a runner: it drains after SIGTERM, and ends at once when its stdin closes."""
    assert process.stdin
    if drain_s:
        process.send_signal(signal.SIGTERM)
    else:
        process.stdin.close()
    try:
        process.wait(drain_s + END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
