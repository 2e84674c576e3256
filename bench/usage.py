"""What a process, and the machine, uses: CPU and memory."""

from __future__ import annotations

from pathlib import Path

import psutil


def measure_cpu(process: psutil.Process) -> float:
    """CPU seconds of the process, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure_main_thread(process: psutil.Process) -> float:
    """CPU seconds of the process's main thread, to the nanosecond; `measure_cpu` counts in hundredths of a second."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def measure_busy() -> float:
    """CPU seconds of the whole machine so far, other guests of its host included, less those of this process.

    What is left of a difference after taking off what was measured is other work, which disturbs the measurement.
    """
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return float(times.user + times.nice + times.system + times.steal - own.user - own.system)


def measure_rss_mb(process: psutil.Process) -> float:
    """Megabytes the process holds now."""
    return float(process.memory_info().rss / 1e6)


def measure_peak_mb(process: psutil.Process) -> float:
    """The most megabytes the process ever held (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_proportional_mb(process: psutil.Process) -> float:
    """Megabytes the process holds now, of what it shares with others its part (PSS)."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    (line,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024 / 1e6
