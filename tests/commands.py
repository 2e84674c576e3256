"""Runs the command `eardrum`, and other modules of the package, as processes.

Two thirds of a second of CPU time go into the imports of each process. So processes are forked off one that has them behind it,
as far as nobody could tell the difference: with other variables for Python or the linker, a process starts from scratch.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tests.programs.fork_server import MAX_REQUEST, REPORT

FORK_SERVER = Path(__file__).parent / "programs" / "fork_server.py"

PRELOADED = {
    "eardrum": ("eardrum.cli.main", "eardrum.server.lifecycle", "eardrum.client"),
    "eardrum.runner.options": ("eardrum.engines.base", "eardrum.engines.registry"),
    "eardrum.hub": ("httpx2", "filelock", "tqdm.auto"),  # not huggingface_hub: it reads the environment when it is imported
}
"""Modules that can be forked, and what they import sooner or later."""

READ_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""Variables that count only when a process starts begin like this."""


class ForkServer:
    """A process that forks others off itself. It ends when this object is closed, or with this process."""

    def __init__(self, *modules: str):
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = Lock()
        command = [sys.executable, str(FORK_SERVER), str(theirs.fileno()), *modules]
        with theirs:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def fork(self, request: Mapping[str, Any], streams: list[int]) -> tuple[int, socket.socket]:
        """Fork a process with these standard streams. Returns its pid, and the socket on which its status comes."""
        reports, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], [*streams, theirs.fileno()])
        (pid,) = REPORT.unpack(reports.recv(REPORT.size))
        return pid, reports

    def close(self) -> None:
        self._control.close()
        self._process.wait(60)


_servers: dict[str, ForkServer] = {}
_starting = Lock()


@contextmanager
def end_fork_servers() -> Iterator[None]:
    """End the fork servers that are started in this block."""
    try:
        yield
    finally:
        for module in list(_servers):
            _servers.pop(module).close()


def _get_fork_server(module: str) -> ForkServer:
    with _starting:
        if module not in _servers:
            _servers[module] = ForkServer(*PRELOADED[module])
        return _servers[module]


class ForkedProcess(subprocess.Popen[Any]):
    """`subprocess.Popen` for `[sys.executable, "-m", MODULE, ...]` whose process is forked, and a child of the fork server."""

    if TYPE_CHECKING:
        _waitpid_lock: Lock
        _close_pipe_fds: Callable[..., None]
        _handle_exitstatus: Callable[[int], None]

    def _execute_child(self, *given: Any) -> None:
        """Start the process: the only method of `Popen` that does."""
        names = inspect.signature(subprocess.Popen._execute_child).parameters  # type: ignore[attr-defined]
        told = dict(zip(list(names)[1:], given, strict=True))
        _, _, module, *arguments = told["args"]
        request = {
            "argv": [module, *arguments],
            "cwd": os.fspath(told["cwd"] or Path.cwd()),
            "env": dict(os.environ if told["env"] is None else told["env"]),
            "new_session": told["start_new_session"],
        }
        pipes = (told["p2cread"], told["c2pwrite"], told["errwrite"])
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        self.pid, self._reports = _get_fork_server(module).fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*(told[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """What `os.waitpid` is for children of this process."""
        if self._reports.fileno() == -1:
            return 0, 0
        flags = socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0
        try:
            report = self._reports.recv(REPORT.size, flags)
        except BlockingIOError:
            return 0, 0
        self._reports.close()
        return self.pid, REPORT.unpack(report)[0]

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        ended: int | None = self.returncode
        return ended


def start_module(module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """Start `python -m module`, with the options of `subprocess.Popen`."""
    start = ForkedProcess if _can_be_forked(module, arguments, options) else subprocess.Popen
    return start([sys.executable, "-m", module, *arguments], **options)


def _can_be_forked(module: str, arguments: tuple[str, ...], options: Mapping[str, Any]) -> bool:
    env = options.get("env") or os.environ
    if not sys.platform.startswith("linux") or module not in PRELOADED or sum(map(len, arguments)) > MAX_REQUEST // 4:
        return False
    names = {name for name in {*env, *os.environ} if name.startswith(READ_AT_START)} - {"PYTHONUNBUFFERED"}
    return all(env.get(name) == os.environ.get(name) for name in names)


def start_eardrum(*arguments: str, prelude: str = "", **options: Any) -> subprocess.Popen[Any]:
    """Start the command `eardrum`, with the options of `subprocess.Popen`. `prelude` is run in its process before it."""
    if prelude:
        program = f"{prelude}\nfrom eardrum.cli.main import main; main()"
        return subprocess.Popen([sys.executable, "-c", program, *arguments], **options)
    return start_module("eardrum", *arguments, **options)


def run_eardrum(
    *arguments: str, input: str | bytes | None = None, timeout: float = 120, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run the command `eardrum` to its end, with the options of `subprocess.run`. Its output is captured, as text."""
    return run_module("eardrum", *arguments, input=input, timeout=timeout, check=check, **{"text": True} | options)


def run_module(
    module: str, *arguments: str, input: str | bytes | None = None, timeout: float = 120, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run `python -m module` to its end, with the options of `subprocess.run`. Its output is captured."""
    captured: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    piped = {} if input is None else {"stdin": subprocess.PIPE}
    with start_module(module, *arguments, **captured | piped | options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done
