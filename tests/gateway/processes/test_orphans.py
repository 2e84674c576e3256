"""What a killed gateway leaves behind is ended by the next one, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.orphans import MARK_VARIABLE, ProcessRegistry, find_mark
from tests.conftest import wait_for
from tests.processes import is_alive

pytestmark = pytest.mark.slow

GATEWAY = """
import asyncio, sys
from pathlib import Path
from eardrum.gateway.processes.child import ChildProcess
from eardrum.gateway.processes.orphans import ProcessRegistry

async def main():
    register = ProcessRegistry(Path(sys.argv[1]))
    child = await ChildProcess.spawn("llm", sys.argv[2:], {}, None, register)
    print(child.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def run_gateway(folder: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started a command, and the command's pid."""
    program = [sys.executable, "-c", textwrap.dedent(GATEWAY), str(folder), *command]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        wait_for(lambda: MARK_VARIABLE in psutil.Process(pid).environ())  # which is empty for a moment while it starts a program
        mark = psutil.Process(pid).environ()[MARK_VARIABLE]
        try:
            yield process, pid
        finally:
            process.kill()
            for left in process_info.find_marked(mark):
                os.kill(left.pid, signal.SIGKILL)


def end_orphans(folder: Path) -> None:
    asyncio.run(ProcessRegistry(folder).end_orphans())


def list_files(folder: Path) -> list[Path]:
    return [*folder.rglob("*.jsonl")]


def test_a_command_is_ended_that_a_killed_gateway_has_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with run_gateway(tmp_path, "sleep", "60") as (process, pid):
        process.kill()
        process.wait()
        assert is_alive(pid)
        end_orphans(tmp_path)
        assert not is_alive(pid)
        assert f"left processes of llm behind (sleep {pid})" in caplog.text
        assert not list_files(tmp_path)
        ProcessRegistry(tmp_path).close()
        assert not list(tmp_path.iterdir())


def test_what_it_started_ends_too_however_it_hides(tmp_path: Path) -> None:
    """In a session of its own, with its parent gone, and ignoring SIGTERM."""
    hidden = tmp_path / "hidden"
    script = (
        f"trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo $$ > {hidden}; while true; do sleep 0.1; done' &) ; exec sleep 60"
    )
    with run_gateway(tmp_path, "sh", "-c", script) as (process, pid):
        wait_for(lambda: hidden.exists() and hidden.read_text())
        process.kill()
        process.wait()
        began = time.monotonic()
        end_orphans(tmp_path)
        assert time.monotonic() - began > 5, "it was asked first"
        assert not is_alive(pid)
        assert not is_alive(int(hidden.read_text()))


def test_one_that_sheds_its_mark_while_it_ends_is_waited_for(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    ending = f"trap 'exec env -u {MARK_VARIABLE} sleep 1' TERM; echo $$ > {hidden}; while true; do sleep 0.1; done"
    with run_gateway(tmp_path, "sh", "-c", f"(setsid sh -c {shlex.quote(ending)} 2>&- &) ; exec sleep 60") as (process, _):
        wait_for(lambda: hidden.exists() and hidden.read_text())
        process.kill()
        process.wait()
        end_orphans(tmp_path)
        assert not is_alive(int(hidden.read_text()))


def test_a_gateway_that_lives_keeps_its_commands(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "sleep", "60") as (_, pid):
        end_orphans(tmp_path)
        assert is_alive(pid)
        assert len(list_files(tmp_path)) == 1


def test_a_number_that_is_another_process_by_now_is_left_alone(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "sleep", "60") as (process, _), subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        process.kill()
        process.wait()
        (file,) = list_files(tmp_path)
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        found = process_info.find_process(other.pid)
        assert found
        entries[1] |= {"pid": other.pid, "born": process_info.read_start_ticks(found) - 1}
        file.write_text("\n".join(map(json.dumps, entries[:2])) + '\n{"pid": 1')
        end_orphans(tmp_path)
        assert is_alive(other.pid)
        assert not list_files(tmp_path)
        other.kill()


def test_numbers_of_another_run_of_the_machine_mean_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        found = process_info.find_process(other.pid)
        assert found
        folder = tmp_path / f"eardrum-{os.getuid()}"
        folder.mkdir(mode=0o700)
        entries = [
            {"mark": "0123456789abcdef0123456789abcdef.", "here": "yesterday"},
            {"pid": other.pid, "born": process_info.read_start_ticks(found), "model": "m"},
        ]
        (folder / "1.jsonl").write_text("\n".join(map(json.dumps, entries)))
        end_orphans(tmp_path)
        assert is_alive(other.pid)
        other.kill()


def test_a_number_that_came_back_is_known_by_its_last_birth(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        found = process_info.find_process(process.pid)
        assert found
        register = ProcessRegistry(tmp_path)
        for step in (register.add_process, lambda pid, _: register.remove_process(pid), register.add_process):
            step(process.pid, "m")
        (file,) = list_files(tmp_path)
        text = file.read_text()
        register.close()
        file.parent.mkdir(mode=0o700)
        file.write_text(text)
        threading.Thread(target=process.wait).start()  # nobody else takes notice of its end
        end_orphans(tmp_path)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("mark", ["", "x", None])
def test_a_mark_that_others_could_carry_is_none(mark: str | None) -> None:
    assert find_mark([{"mark": mark, "here": "x"}, {"pid": 1}]) is None, "it would end whatever runs"
    assert find_mark([{"pid": 1}]) is None
    assert find_mark([{"mark": "0123456789abcdef0123456789abcdef."}]) == "0123456789abcdef0123456789abcdef."


def test_the_file_is_for_nobody_else_and_goes_with_the_last_process(tmp_path: Path) -> None:
    register = ProcessRegistry(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written as long as nothing is started"
    register.add_process(os.getpid(), "m")
    (file,) = list_files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    register.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / f"eardrum-{os.getuid()}"
    folder.mkdir(mode=0o755)
    register = ProcessRegistry(tmp_path)
    register.add_process(os.getpid(), "m")
    register.remove_process(os.getpid())
    assert not list_files(tmp_path)
    (folder / "1.jsonl").write_text('{"mark": "0123456789abcdef0123456789abcdef", "here": ""}')
    end_orphans(tmp_path)
    assert list_files(tmp_path), "it is not read: anybody may have written it"
    assert "may have left behind are not ended" in caplog.text
    assert caplog.text.count("is not a folder that only this user can enter") == 2


def test_a_command_of_a_command_carries_the_marks_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK_VARIABLE, "outer.0.")
    with run_gateway(tmp_path, "sleep", "60") as (_, pid):
        assert process_info.has_mark(pid, "outer.0.")
        assert psutil.Process(pid).environ()[MARK_VARIABLE] != "outer.0."
