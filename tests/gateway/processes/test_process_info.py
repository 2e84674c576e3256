"""What a model's processes take, with real ones."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from eardrum.gateway.processes import process_info

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is known")

HOG = "import time\nheld = bytearray(b'x' * (80 << 20))\nprint('holds', flush=True)\ntime.sleep(60)"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {HOG!r}])"


@contextmanager
def run_memory_hog() -> Iterator[int]:
    """A process whose child holds 80 MiB."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.readline() == b"holds\n"
        yield process.pid
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.wait(60)
        process.stdout.close()


async def test_what_a_process_and_its_children_take_is_seen() -> None:
    with run_memory_hog() as pid:
        taken = await process_info.measure_memory({"hog": pid, "gone": 2**22 + 1})
    assert set(taken) == {"hog"}
    assert 80 << 20 < taken["hog"]["cpu"] < 140 << 20


async def test_watching_ends_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_info, "MEMORY_INTERVAL_S", 0.01)
    running: list[dict[str, int]] = [{"a": 2**22 + 1}, {"a": 2**22 + 1}, {}]
    seen: list[object] = []
    await asyncio.wait_for(process_info.watch_memory(lambda: running.pop(0), seen.append), 60)
    assert seen == [{}, {}]


async def test_nvidias_driver_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There may be no GPU here: a program that answers as nvidia-smi does, for a process of ours."""
    with run_memory_hog() as pid:
        fake = tmp_path / "nvidia-smi"
        fake.write_text(f"""#!/bin/sh
case "$1" in
  --query-compute-apps=*) echo "{pid}, GPU-b, 2048"; echo "1, GPU-a, 99"; echo "{pid}, GPU-a, [N/A]";;
  *) echo "0, GPU-a"; echo "1, GPU-b";;
esac
""")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        taken = await process_info.measure_memory({"llm": pid})
    assert taken["llm"]["cuda"] == taken["llm"]["cuda:1"] == 2048 << 20
    assert "cuda:0" not in taken["llm"]


@pytest.mark.parametrize("broken", ["*", "--query-gpu=*"])
async def test_without_a_driver_that_works_only_the_memory_on_gpus_is_unknown(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After an update of the driver, until the machine is started again, nvidia-smi prints this and ends with code 18."""
    with run_memory_hog() as pid:
        fake = tmp_path / "nvidia-smi"
        fake.write_text(f"""#!/bin/sh
case "$1" in
  {broken}) echo "Failed to initialize NVML: Driver/library version mismatch"; echo "NVML library version: 580.95"; exit 18;;
  *) echo "{pid}, GPU-b, 2048";;
esac
""")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        taken = await process_info.measure_memory({"llm": pid})
    assert taken["llm"]["cpu"] > 80 << 20
    assert taken["llm"].get("cuda") == (None if broken == "*" else 2048 << 20)
