"""`eardrum doctor`: what this machine has, and what to do."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from eardrum.cli import doctor
from eardrum.cli.doctor import CgroupLimits, read_cgroup_limits
from eardrum.cli.main import app
from eardrum.gateway.processes import process_info
from tests.cuda_wheels import build_cublas

pytestmark = [
    pytest.mark.slow,  # each examines the machine, in a process
    pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU"),
    pytest.mark.usefixtures("forked_checks"),
]

W = "default_model: w\n"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in front of all others, an empty store and no settings."""
    for name in os.environ:
        if name.startswith("EARDRUM_") or name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_CACHE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs


def add_nvidia_smi(programs: Path, answer: str) -> None:
    program = programs / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--set", "port=0", "--set", "wyoming.port=0", *arguments])


def list_checks(*arguments: str) -> tuple[dict[str, dict[str, Any]], int]:
    result = run_doctor("--json", *arguments)
    report = json.loads(result.stdout)
    assert report["ok"] is (result.exit_code == 0)
    return {check["subject"]: check for check in report["checks"]}, result.exit_code


def test_a_machine_that_can_run_the_default_model() -> None:
    checks, code = list_checks()
    assert code == 0
    assert not [check for check in checks.values() if check["status"] == "error"]
    assert checks["default model"]["status"] == "ok"
    assert checks["default model"]["found"].startswith("moonshine-tiny-en (")
    assert checks["default model"]["found"].endswith(", on cpu")
    assert (checks["GPU"]["status"], checks["CUDA libraries"]["status"]) == ("note", "note")
    assert f"of which Eardrum may use {len(os.sched_getaffinity(0))}" in checks["CPU"]["found"]
    assert checks["engine faster_whisper"] == {
        "subject": "engine faster_whisper",
        "status": "ok",
        "found": "its libraries are installed",
        "advice": "",
    }
    assert checks["engine nemo"]["advice"].startswith("to use it: python3 -m venv nemo")


def test_for_people() -> None:
    result = run_doctor()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.startswith("ok    default model          moonshine-tiny-en (") for line in lines)
    (engine,) = (number for number, line in enumerate(lines) if "engine nemo" in line)
    assert lines[engine + 1].strip().startswith("-> to use it: python3 -m venv nemo && nemo/bin/pip install ")


def test_who_has_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        checks, code = list_checks("--set", f"wyoming.port={port}")
    assert code == 0
    assert checks["port of the server"]["status"] == "ok"
    found = checks["port of Wyoming"]
    assert (found["status"], found["advice"]) == ("warning", "stop it, or choose another with --wyoming-port")
    assert found["found"].startswith(f"{port} on 127.0.0.1 is taken by ")
    assert f"(pid {os.getpid()})" in found["found"]


def test_the_port_of_a_running_eardrum_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_info, "read_program_name", lambda pid: "eardrum")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        checks, _ = list_checks("--set", f"port={port}")
    found = checks["port of the server"]
    assert (found["status"], found["advice"]) == ("note", "")
    assert found["found"] == f"{port} on 127.0.0.1 is that of the running Eardrum (pid {os.getpid()})"


@pytest.mark.parametrize(
    ("text", "subject", "found", "advice"),
    [
        ("default_ttl: many\n", "config", "default_ttl", "`eardrum check` shows all"),
        ("models: {w: {source: large-v3}}\n" + W, "default model", "it is not on this machine", "eardrum pull large-v3"),
        ("models: {w: {cmd: 'absent ${PORT}'}}\n" + W, "default model", "the program absent is not", "install it"),
        ("device: cuda\n", "default model", "device is cuda, but onnxruntime cannot use", "set device to auto or cpu"),
        ("default_model: absent\n", "models", "absent", "correct the config"),
    ],
)
def test_what_keeps_the_default_model_from_running(tmp_path: Path, text: str, subject: str, found: str, advice: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    checks, code = list_checks("--config", str(file))
    assert code == 1
    assert checks[subject]["status"] == "error"
    assert found in checks[subject]["found"]
    assert advice in checks[subject]["advice"]
    assert checks["CPU"]["status"] == "ok", "an error does not hide the rest"


def test_a_program_is_looked_for_where_its_model_would_look(tmp_path: Path) -> None:
    program = tmp_path / "programs" / "elsewhere-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    (tmp_path / "config.yaml").write_text(
        f"models: {{w: {{cmd: 'elsewhere-server ${{PORT}}', env: ['PATH={program.parent}']}}}}\n{W}"
    )
    checks, code = list_checks("--config", str(tmp_path / "config.yaml"))
    assert (code, checks["default model"]["status"]) == (0, "ok")


def test_a_gpu_without_libraries(machine: Path) -> None:
    add_nvidia_smi(machine, "NVIDIA L4, 580.65.06, 23034")
    checks, code = list_checks()
    assert code == 0
    assert (checks["GPU"]["status"], checks["GPU"]["found"]) == ("ok", "NVIDIA L4 (24.2 GB), driver 580.65.06")
    found = checks["CUDA for CTranslate2"]
    assert found["found"] == "CUDA 12: libcublasLt.so.12, libcublas.so.12 not found"
    assert found["advice"].endswith("install 'eardrum[cuda]'")
    assert found["advice"].startswith(sys.executable)
    assert checks["CUDA for onnxruntime"]["advice"].endswith("pip install onnxruntime-gpu")


def test_a_driver_for_cuda_12(machine: Path) -> None:
    add_nvidia_smi(machine, "Tesla T4, 550.54.15, 15360")
    checks, _ = list_checks()
    assert checks["CUDA for CTranslate2"]["advice"].endswith("install 'eardrum[cuda12]'")
    assert checks["CUDA for onnxruntime"]["advice"].endswith("pip install onnxruntime-gpu==1.24.4")


def test_a_gpu_with_libraries(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_nvidia_smi(machine, "NVIDIA L4, 580.65.06, 23034")
    folder = build_cublas(tmp_path / "packages", 42)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    checks, _ = list_checks()
    assert checks["CUDA for CTranslate2"]["status"] == "ok"
    assert checks["CUDA for CTranslate2"]["found"] == f"CUDA 12: found in {folder}"


def test_gpus_that_cannot_be_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_nvidia_smi(machine, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")
    checks, _ = list_checks()
    assert (checks["GPU"]["status"], checks["GPU"]["advice"]) == ("warning", "install or update the NVIDIA driver")
    add_nvidia_smi(machine, "NVIDIA GB10, 580.95.05, [N/A]")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks, _ = list_checks()
    assert checks["GPU"]["found"] == "NVIDIA GB10 (memory [N/A]), driver 580.95.05, hidden by CUDA_VISIBLE_DEVICES"
    assert checks["GPU"]["advice"] == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, CgroupLimits()),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, CgroupLimits()),
        (
            "0::/\n",
            {
                "cpu.max": "150000 100000",
                "memory.max": "2000",
                "memory.current": "900",
                "memory.stat": "anon 1\ninactive_file 300",
            },
            CgroupLimits(1.5, 2000, 600),
        ),
        (
            "0::/system.slice/eardrum.service\n",  # a service of systemd, below a narrower group
            {
                "system.slice/memory.max": "1000",
                "system.slice/memory.current": "10",
                "system.slice/eardrum.service/memory.max": "4000",
                "system.slice/eardrum.service/memory.current": "5",
                "system.slice/eardrum.service/cpu.max": "50000 100000",
            },
            CgroupLimits(0.5, 1000, 10),
        ),
        (
            "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/\n",  # version 1; the namespace shows the group as the root
            {
                "memory/memory.limit_in_bytes": "3000",
                "memory/memory.usage_in_bytes": "500",
                "cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            CgroupLimits(2.0, 3000, 500),
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CgroupLimits()),
    ],
)
def test_limits_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: CgroupLimits
) -> None:
    write_cgroups(tmp_path, monkeypatch, groups, files)
    assert read_cgroup_limits() == expected


def write_cgroups(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]) -> None:
    (folder / "groups").write_text(groups)
    for name, text in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    monkeypatch.setattr(doctor, "CGROUP_FOLDER", folder / "cgroup")
    monkeypatch.setattr(doctor, "CGROUP_OF_PROCESS", folder / "groups")


def test_a_container_with_little_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": "50000 100000", "memory.max": str(1 << 29), "memory.current": "100000000"}
    write_cgroups(tmp_path, monkeypatch, "0::/\n", limits)
    checks, code = list_checks()
    assert code == 0
    assert checks["memory"]["status"] == checks["CPU"]["status"] == "warning"
    assert "the container or service may use 537 MB, 100 MB are in use" in checks["memory"]["found"]
    assert "raise the limit" in checks["memory"]["advice"]
    assert "the container or service has the time of 0.5" in checks["CPU"]["found"]
    assert "`threads` of models to 1" in checks["CPU"]["advice"]
