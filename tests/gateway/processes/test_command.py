"""Commands as models: readiness, failures, endings. Every one is a real process."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from eardrum import config
from eardrum.errors import ModelLoadError
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes import command as ports
from eardrum.gateway.processes.command import CommandProcess
from eardrum.gateway.upstreams.external import ExternalUpstream
from tests.conftest import wait_for
from tests.ports import find_free_port
from tests.processes import is_alive
from tests.programs import build_fake_llm_command

pytestmark = pytest.mark.slow


def create_entry(port: int, *habits: object, **keys: object) -> config.ModelSettings:
    return config.ModelSettings.model_validate(
        {"cmd": build_fake_llm_command(port, *habits), "proxy": f"http://127.0.0.1:{port}", **keys}
    )


@asynccontextmanager
async def open_upstream(model: config.ModelSettings) -> AsyncIterator[ExternalUpstream]:
    way = ExternalUpstream(model.proxy)
    try:
        yield way
    finally:
        await way.close()


@asynccontextmanager
async def start_command(
    model: config.ModelSettings, *, within_s: float = 50, unload_s: float = 5, said: LogBuffer | None = None
) -> AsyncIterator[tuple[CommandProcess, ExternalUpstream]]:
    async with open_upstream(model) as way:
        command = await CommandProcess.start(
            "m", model, way.session, within_s=within_s, find_unload_s=lambda: unload_s, log_buffer=said
        )
        try:
            yield command, way
        finally:
            await command.stop()
            assert not is_alive(command.pid)


async def get_start_error(model: config.ModelSettings, *, within_s: float = 50, unload_s: float = 5) -> str:
    with pytest.raises(ModelLoadError) as caught:
        async with start_command(model, within_s=within_s, unload_s=unload_s):
            pass
    return caught.value.message


async def test_a_command_serves_with_its_environment_in_a_session_of_its_own() -> None:
    model = create_entry(find_free_port(), env=["GREETING=hello = you", "WITHOUT_VALUE"])
    async with start_command(model) as (command, way), way.session.get(f"{way.address}/env") as response:
        told = await response.json()
        assert (told["env"]["GREETING"], "WITHOUT_VALUE" in told["env"]) == ("hello = you", False)
        assert told["env"]["PATH"] == os.environ["PATH"]
        assert told["pid"] == command.pid == os.getpgid(command.pid) == os.getsid(command.pid)
        assert told["stdin"] == "/dev/null"


async def test_it_is_asked_until_it_is_ready_and_no_longer() -> None:
    began = time.monotonic()
    async with start_command(create_entry(find_free_port(), "--load-seconds", 0.5, "--unhealthy-seconds", 1)):
        assert 1 <= time.monotonic() - began < 50


async def test_one_that_is_not_asked_has_to_take_connections() -> None:
    began = time.monotonic()
    habits = ("--load-seconds", 0.7, "--unhealthy-seconds", 20)
    async with start_command(create_entry(find_free_port(), *habits, check_endpoint="none")) as (_, way):
        assert 0.7 <= time.monotonic() - began < 20
        async with way.session.get(f"{way.address}/env") as response:
            assert response.status == 200
    said = await get_start_error(
        create_entry(port := find_free_port(), "--load-seconds", 60, check_endpoint="none"), within_s=0.5
    )
    assert f"(health_check_timeout): nothing listens at http://127.0.0.1:{port}. " in said
    dead = config.ModelSettings.model_validate({"cmd": "sh -c 'exit 3'", "proxy": "http://127.0.0.1:1", "check_endpoint": "none"})
    assert "ended with exit code 3 before it served. It logged nothing." in await get_start_error(dead)


async def test_one_that_never_becomes_ready_says_what_it_answers() -> None:
    began, port = time.monotonic(), find_free_port()
    said = await get_start_error(create_entry(port, "--say", "warming up", "--unhealthy-seconds", 60), within_s=2.5)
    assert (
        f"m was not ready after 2.5 s (health_check_timeout): http://127.0.0.1:{port}/health answers 503 instead of 200" in said
    )
    assert "warming up" in said
    assert time.monotonic() - began < 40
    assert "/nowhere answers 404" in await get_start_error(
        create_entry(find_free_port(), check_endpoint="/nowhere"), within_s=2.5
    )
    assert "nothing listens at" in await get_start_error(create_entry(find_free_port(), "--load-seconds", 60), within_s=1)


OPTIONS = [f"  --option-{letter} N   what to do if it should fail (error: 0)" for letter in "abcdefghijklmnopqrst"]


def build_printing_command(*lines: str) -> str:
    """A command that says this, and ends."""
    return shlex.join([sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(1)", "\n".join(lines)])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "models.m.cmd is empty"),
        ("no-such-program --port 1", "there is no program no-such-program on the PATH (models.m.cmd)"),
        ("/no/such/program", "there is no program /no/such/program (models.m.cmd)"),
        ("/etc/passwd", "/etc/passwd is not executable (models.m.cmd)"),
        (
            build_printing_command("error: unknown argument: --foo", "", "usage: x [options]", *OPTIONS),
            "It reported: error: unknown argument: --foo --",
        ),
        (
            build_printing_command("INFO uvicorn.error: Started server process [7]", *OPTIONS),
            "Its first output: INFO uvicorn.error: Started server process [7] -- Its last output: ",
        ),
        (
            build_printing_command("x: --foo is none of ours", *OPTIONS),
            "Its first output: x: --foo is none of ours -- Its last output: ",
        ),
        (
            build_printing_command(
                "model.cpp:7: GGML_ASSERT(x) failed", *(f"{n}: 0x7f in main ()" for n in range(30)), "Aborted"
            ),
            "It reported: model.cpp:7: GGML_ASSERT(x) failed -- Its last output: 19: 0x7f",
        ),
        (
            build_printing_command(
                "ValueError: the cause", *["  File x"] * 30, "RuntimeError: it failed, see above", *["  File y"] * 30
            ),
            "It reported: ValueError: the cause / RuntimeError: it failed, see above -- Its last output: ",
        ),
        (
            build_printing_command("error: the last words hold it", "usage: x [options]"),
            "served. Its last output: error: the last words hold it / ",
        ),
        ("sh -c 'echo bad flag >&2; exit 2'", "ended with exit code 2 before it served. Its last output: bad flag"),
        ("sh -c 'kill -9 $$'", "was ended by SIGKILL (by the system, if memory ran out) before it served."),
        ("sh -c 'exit 137'", "exit code 137, which means SIGKILL (by the system, if memory ran out) before"),
        ("sh -c 'kill -11 $$'", "was ended by SIGSEGV (a fault in the program or a library) before it served."),
        ("sh -c 'echo usage: ...'", "exit code 0 before it served. The command must stay in the foreground"),
    ],
)
async def test_a_start_that_fails_says_why(line: str, says: str) -> None:
    model = config.ModelSettings.model_validate({"cmd": line, "proxy": f"http://127.0.0.1:{find_free_port()}"})
    began = time.monotonic()
    assert says in await get_start_error(model)
    assert time.monotonic() - began < 40, "a death is told, not waited for"


async def test_one_that_leaves_the_foreground_is_refused_and_its_children_end() -> None:
    port = find_free_port()
    said = await get_start_error(create_entry(port, "--daemonise", "--load-seconds", 1))
    assert (
        "ended with exit code 0 (processes that it left running were ended too) before it served. The command must stay" in said
    )
    assert not ports.is_port_taken(port, "127.0.0.1")


async def test_one_that_leaves_the_foreground_later_ends_with_what_it_left() -> None:
    port = find_free_port()
    line = f"sh -c {shlex.quote(build_fake_llm_command(port) + ' & sleep 2')}"
    model = config.ModelSettings.model_validate({"cmd": line, "proxy": f"http://127.0.0.1:{port}"})
    async with start_command(model) as (command, _):
        assert await command.ends_within(20)
        assert command.exit_description == "ended with exit code 0 (processes that it left running were ended too)"
        assert "foreground" in command.exit_hint
        assert not ports.is_port_taken(port, "127.0.0.1")


async def test_one_that_was_just_stopped_starts_again_although_its_connections_are_remembered() -> None:
    model = create_entry(port := find_free_port(), "--reuse-port")
    async with start_command(model), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # which the server is the first to close
    assert await reader.read() == b""
    writer.close()
    began = time.monotonic()
    async with start_command(model) as (_, way), way.session.get(f"{way.address}/health") as response:
        assert response.status == 200
    assert time.monotonic() - began < 45, "which are remembered for 60 s"


async def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        said = await get_start_error(create_entry(port))
        assert said.endswith(f" (pid {os.getpid()}) already listens on its port {port}.")


async def test_a_stranger_who_takes_the_port_meanwhile_is_not_taken_for_the_model() -> None:
    port = find_free_port()
    stranger = await asyncio.create_subprocess_exec(
        *shlex.split(build_fake_llm_command(port, "--load-seconds", 0.7)), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        model = config.ModelSettings.model_validate({"cmd": f"sh -c 'sleep 60' {port}", "proxy": f"http://127.0.0.1:{port}"})
        said = await get_start_error(model)
        assert f"The port {port} of m belongs to another process" in said
        assert f"(pid {stranger.pid}) answers there." in said
    finally:
        stranger.terminate()
        await stranger.wait()


@pytest.mark.parametrize("check", ["/health", "none"])
async def test_a_stranger_on_a_port_that_the_command_was_not_told_is_warned_of(
    check: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = find_free_port()
    async with start_command(create_entry(port)) as (stranger, way):
        model = config.ModelSettings.model_validate({"cmd": "sleep 60", "proxy": way.address, "check_endpoint": check})
        async with start_command(model):
            (warning,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
        assert f"(pid {stranger.pid}) listens on port {port}" in warning
        assert "models.m.proxy" in warning


async def test_a_wrapper_may_serve_from_a_child() -> None:
    port = find_free_port()
    model = config.ModelSettings.model_validate(
        {"cmd": f"sh -c {shlex.quote(build_fake_llm_command(port) + '; true')}", "proxy": f"http://127.0.0.1:{port}"}
    )
    async with start_command(model) as (command, way), way.session.get(f"{way.address}/env") as response:
        child = (await response.json())["pid"]
        assert child != command.pid
    assert not is_alive(child)


@pytest.mark.parametrize("where", [["--detached"], []])
async def test_what_it_started_ends_with_it(where: list[str], tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    async with start_command(create_entry(find_free_port(), "--grandchild", noted, *where)):
        grandchild = int(noted.read_text())
        assert is_alive(grandchild)
    assert not is_alive(grandchild)
    async with start_command(create_entry(find_free_port(), "--grandchild", noted, *where)) as (command, _):
        grandchild = int(noted.read_text())
        os.kill(command.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(command.ended), 60)
        assert not is_alive(grandchild)


async def test_one_that_ignores_sigterm_is_killed_after_unload_timeout() -> None:
    async with open_upstream(model := create_entry(find_free_port(), "--ignore-sigterm")) as way:
        command = await CommandProcess.start("m", model, way.session, within_s=50, find_unload_s=lambda: 0.5)
        began = time.monotonic()
        await command.stop()
        assert 0.5 <= time.monotonic() - began < 40
        assert "SIGKILL" in command.exit_description


async def test_one_that_needs_time_to_stop_gets_it() -> None:
    async with open_upstream(model := create_entry(find_free_port(), "--stop-seconds", 0.7)) as way:
        command = await CommandProcess.start("m", model, way.session, within_s=50, find_unload_s=lambda: 5)
        await command.stop()
        assert command.exit_description == "ended with exit code 0"


async def test_a_stop_command_gets_pid_and_environment(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    stop = f"""sh -c 'echo "$WHO ${{PID}}" > {noted}; kill -INT ${{PID}}'"""
    async with open_upstream(model := create_entry(find_free_port(), cmd_stop=stop, env=["WHO=me"])) as way:
        command = await CommandProcess.start("m", model, way.session, within_s=50, find_unload_s=lambda: 5)
        await command.stop()
        assert noted.read_text().split() == ["me", str(command.pid)]
        assert command.exit_description == "ended with exit code 0"


@pytest.mark.parametrize(
    ("stop", "seconds"),
    [("sh -c 'exit 1'", 0), ("no-such-program", 0), ("sleep 60", 0.5), ("true", 0.5)],
)
async def test_a_stop_command_that_does_not_stop_it_is_helped_out(stop: str, seconds: float) -> None:
    async with open_upstream(model := create_entry(find_free_port(), cmd_stop=stop)) as way:
        command = await CommandProcess.start("m", model, way.session, within_s=50, find_unload_s=lambda: seconds or 60)
        began = time.monotonic()
        await command.stop()
        assert seconds <= time.monotonic() - began < 40
        assert command.exit_description == "ended with exit code 0"


async def test_megabytes_of_output_block_nobody_and_the_end_is_kept() -> None:
    said = LogBuffer()
    async with start_command(create_entry(find_free_port(), "--print-bytes", 20_000_000), said=said) as (_, way):
        async with way.session.get(f"{way.address}/health") as response:
            assert response.status == 200
        await asyncio.sleep(0.1)
        assert said.get_lines()[-1].endswith("listening on " + way.address.removeprefix("http://"))
        assert sum(map(len, said.get_lines())) < 200_000


async def test_a_start_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    async with open_upstream(model := create_entry(find_free_port(), "--grandchild", noted, "--load-seconds", 60)) as way:
        starting = asyncio.create_task(CommandProcess.start("m", model, way.session, within_s=60, find_unload_s=lambda: 5))
        await asyncio.to_thread(wait_for, lambda: noted.exists() and noted.read_text())
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        assert not is_alive(int(noted.read_text()))


async def test_a_failed_start_that_is_cleared_away_is_killed_when_nobody_has_time() -> None:
    async with open_upstream(model := create_entry(find_free_port(), "--ignore-sigterm", "--unhealthy-seconds", 60)) as way:
        starting = asyncio.create_task(CommandProcess.start("m", model, way.session, within_s=1.5, find_unload_s=lambda: 60))
        await asyncio.wait([starting], timeout=2.5)
        assert not starting.done(), "it is being asked to end"
        starting.cancel()
        await asyncio.wait([starting], timeout=15)
        assert starting.cancelled()
        with pytest.raises(aiohttp.ClientConnectorError):
            await way.session.get(way.address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_localhost_is_found_on_either_protocol(host: str) -> None:
    port = find_free_port()
    async with start_command(create_entry(port, "--host", host, proxy=f"http://localhost:{port}")):
        pass


@pytest.mark.parametrize("shell", [False, True])
async def test_one_that_is_stopped_is_ended_after_a_while_and_a_busy_one_is_not(shell: bool) -> None:
    model = create_entry(find_free_port())
    if shell:
        model = model.model_copy(update={"cmd": f"sh -c {shlex.quote(model.cmd + '; exit 3')}"})
    async with start_command(model) as (command, _):
        command.start_watchdog(lambda: 1.6)
        server = psutil.Process(command.pid).children()[0] if shell else psutil.Process(command.pid)
        server.suspend()
        await asyncio.to_thread(wait_for, lambda: command.suspended_s)
        server.resume()
        assert not await command.ends_within(2.2), "it goes on"
        assert command.suspended_s == 0
        server.suspend()
        assert await command.ends_within(10)
        assert "was stopped (SIGSTOP) for 1.6 s (liveness_timeout)" in command.exit_description
