"""A real server for the tests that need one: its own process, port, temp folder and environment."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from itertools import combinations
from pathlib import Path
from threading import Thread

import psutil
import pytest
import requests

from eardrum.memory_trimming import return_free_memory
from tests.commands import end_fork_servers, start_eardrum
from tests.generated_cases import load_profile
from tests.leftovers import check_leftovers
from tests.processes import find_children, read_command

START_S = 60.0
NO_WYOMING = ("--no-wyoming",)
"""Its port is always the same: two servers at a time would want it. The tests that want it give `--wyoming --wyoming-port 0`."""


@dataclass
class ServerUnderTest:
    """A server under test."""

    address: str
    process: subprocess.Popen[str]
    temp: Path
    """Where it and its runners put temporary files."""
    output: list[str] = field(default_factory=list)

    @property
    def host(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.address.rsplit(":", 1)[1])

    @property
    def log(self) -> str:
        return "".join(self.output)

    def wait_for_log(self, part: str, seconds: float = 60.0) -> None:
        """Wait until `part` was logged: a line is read here later than a response, and a runner's comes through the gateway."""
        wait_for(lambda: part in self.log, seconds, lambda: f"{part!r} is not in the log:\n{self.log}")

    def list_runners(self) -> list[psutil.Process]:
        return find_children(self.process.pid, "eardrum.runner")

    def post_audio(
        self, audio: bytes | None = None, path: str = "transcriptions", *, within_s: float = 240, **fields: str
    ) -> requests.Response:
        files = {"file": ("audio", audio)} if audio is not None else {}
        return requests.post(f"{self.address}/v1/audio/{path}", data=fields, files=files, timeout=within_s)

    def count_windows(self) -> int:
        """Windows that the runner of its one model for speech has decoded, asked of the runner itself."""
        commands = [read_command(runner) for runner in self.list_runners()]
        (command,) = [command for command in commands if command and not {"speakers", "hibari"} & set(command)]
        path = command[command.index("--socket") + 1]
        connection = HTTPConnection("runner", timeout=60)
        with closing(connection), closing(socket.socket(socket.AF_UNIX)) as connection.sock:
            connection.sock.settimeout(60)
            connection.sock.connect(path)
            connection.request("GET", "/health")
            return int(json.loads(connection.getresponse().read())["windows"])

    def list_open_files(self) -> list[str]:
        """Temporary files that the server holds, with or without a name."""
        links = [_read_link(fd) for fd in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        return [link for link in links if str(self.temp) in link]


def _read_link(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""  # closed since it was listed


@contextmanager
def run_server(*arguments: str, prelude: str = "", **environment: str) -> Iterator[ServerUnderTest]:
    """A server with these arguments; afterwards nothing of it may be left. `prelude` is run in its process before it."""
    with tempfile.TemporaryDirectory(prefix="eardrum-test-") as temp:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("EARDRUM_", "STT_", "WHISPER_"))}
        process = start_eardrum(
            *("serve", "--port", "0", *NO_WYOMING, *arguments),
            prelude=prelude,
            env=clean | {"TMPDIR": temp, "PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server = ServerUnderTest("", process, Path(temp))
        reader = Thread(target=_read_output, args=(server,), daemon=True)
        reader.start()
        try:
            wait_for(lambda: server.address or process.poll() is not None, START_S)
            assert server.address, server.log
            yield server
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            reader.join()
            assert process.stdout
            process.stdout.close()
        assert not psutil.wait_procs(children, timeout=60)[1], "a runner outlived the server"
        assert not list(Path(temp).iterdir()), "files outlived the server"


def _read_output(server: ServerUnderTest) -> None:
    assert server.process.stdout
    for line in server.process.stdout:
        server.output.append(line)
        if found := re.search(r"listens on (https?://\S+)", line):
            server.address = found[1]


def wait_for(
    condition: Callable[[], object], seconds: float = 60.0, explain: Callable[[], str] = lambda: "waited in vain"
) -> None:
    """Wait until `condition` holds; a test that waits for an outside process has no event to wait on.

    A condition that asks a server takes CPU time of both, so it is looked at less often.
    """
    end = time.monotonic() + seconds
    while True:
        began = time.process_time()
        if condition():
            return
        assert time.monotonic() < end, explain()
        time.sleep(min(0.25, max(0.02, 5 * (time.process_time() - began))))


async def run_ready_tasks() -> None:
    """Let other tasks go on until all wait for something else than a turn of the loop."""
    for _ in range(100):
        await asyncio.sleep(0)


load_profile()

gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among modules and tests, which stay: a quarter of the time to collect them."""
    gc.enable()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of which `-m` selects no test, as far as its text shows: importing all of them takes seconds per worker."""
    if collection_path.suffix != ".py" or not config.option.markexpr:
        return None
    text = collection_path.read_text(encoding="utf-8")
    if (fixtures := collection_path.with_name("conftest.py")).is_file() and collection_path.parent != Path(__file__).parent:
        text += fixtures.read_text(encoding="utf-8")  # its parameters may be marked
    given = set(re.findall(r"mark\.(\w+)", " ".join(re.findall(r"^pytestmark = .*", text, re.MULTILINE))))
    possible = sorted(MARKERS.intersection(re.findall(r"(?:mark\.|^from )(\w+)", text, re.MULTILINE)) - given)
    choices = [given.union(chosen) for count in range(len(possible) + 1) for chosen in combinations(possible, count)]
    return None if any(is_selected(config.option.markexpr, frozenset(marks)) for marks in choices) else True


MARKERS = {
    "slow",
    "hostile",
    "endurance",
    "torch",
    "nemo",
    "whisper_base",
    "llm",
    "jobs",
    "fleet",
    "browser",
    "image",
    "package",
    "examples",
    "prometheus",
    "clients",
    "hypothesis",  # which gives it to its tests by itself
    "voices",
}


@cache
def is_selected(expression: str, marks: frozenset[str]) -> bool:
    """Whether `-m expression` selects a test with these marks."""
    return bool(eval(expression, {}, defaultdict(bool, dict.fromkeys(marks, True))))


MUCH_MEMORY = 400 << 20
"""Bytes of a worker; below, returning memory is not worth its time."""


@pytest.fixture(scope="module", autouse=True)
def returned_memory() -> Iterator[None]:
    """Return freed memory to the system after a module: the allocator keeps 50 to 120 MB of each model that a test loads."""
    yield
    if psutil.Process().memory_info().rss > MUCH_MEMORY:
        return_free_memory()


@pytest.fixture(scope="session", autouse=True)
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All tests together leave no temporary file and no process, and see nothing of what is cached on this machine."""
    cache, state = (
        tmp_path_factory.mktemp("cache"),
        tmp_path_factory.mktemp("state"),
    )  # not in there: pytest keeps them for a while
    with pytest.MonkeyPatch.context() as patch, check_leftovers(), end_fork_servers():
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("XDG_STATE_HOME", str(state))
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[ServerUnderTest]:
    """One server for all tests that leave it as they found it."""
    with run_server() as started:
        yield started
