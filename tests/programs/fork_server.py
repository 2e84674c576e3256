"""Forks Python programs off a process that has imported their modules: `python fork_server.py DESCRIPTOR MODULE...`.

Importing takes nearly all the CPU time of a short command. Each request on the socket DESCRIPTOR names a module that runs as with
`python -m`, and brings the program's standard streams and a socket, on which the fork server reports the process id and, when the
process has ended, its status. The fork server ends with its client.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

MAX_REQUEST = 100_000
"""Bytes of a request: arguments and environment."""

REPORT = struct.Struct("=i")
"""A process id, or a status as `os.waitpid` returns it."""

STREAMS = ("stdin", "stdout", "stderr")


def main() -> None:
    control, before = socket.socket(fileno=int(sys.argv[1])), set(os.environ)
    for module in sys.argv[2:]:
        importlib.import_module(module)
    added = {name: value for name, value in os.environ.items() if name not in before}
    gc.collect()
    gc.freeze()  # a collection in a forked process would write into all that it shares, and so copy it
    request, streams = serve(control)
    run_program(request, streams, added)


def serve(control: socket.socket) -> tuple[Mapping[str, Any], Sequence[int]]:
    """Fork a process for each request, and report when processes end. Return only in a forked process, with its request."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                woken.recv(4096)
                report_ends(running)
            if control not in ready:
                continue
            data, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST, len(STREAMS) + 1)
            if not data:
                sys.exit()
            *streams, reports = descriptors
            pid = os.fork()
            if not pid:
                break
            running[pid] = socket.socket(fileno=reports)
            running[pid].send(REPORT.pack(pid))
            for stream in streams:
                os.close(stream)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(reports)
    for shared in (control, woken, wake, *running.values()):
        shared.close()
    return json.loads(data), streams


def report_ends(running: dict[int, socket.socket]) -> None:
    """Report the status of each process that has ended."""
    for pid, reports in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del running[pid]
            with reports:
                reports.send(REPORT.pack(status))


def run_program(request: Mapping[str, Any], streams: Sequence[int], added: Mapping[str, str]) -> None:
    """Run the module with these streams, arguments, environment and working directory. `added`: variables that imports set."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream > 2:
            os.close(stream)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update({**added, **request["env"]})
    tempfile.tempdir = None
    for number, name in enumerate(STREAMS):
        setattr(sys, name, reopen_stream(number, name))
        setattr(sys, f"__{name}__", getattr(sys, name))
    module, *arguments = request["argv"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def reopen_stream(number: int, name: str) -> Any:
    """A standard stream as Python opens it when it starts."""
    before = getattr(sys, name)
    mode, lines = ("rb", False) if name == "stdin" else ("wb", name == "stderr" or "PYTHONUNBUFFERED" in os.environ)
    raw = open(number, mode, closefd=False)  # noqa: SIM115 -- open until the process ends
    return io.TextIOWrapper(raw, before.encoding, before.errors, "\n", line_buffering=lines)


if __name__ == "__main__":
    main()
