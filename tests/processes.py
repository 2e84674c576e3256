"""Looks at processes that may end meanwhile: psutil raises for those that are gone, and for those that nobody has waited for."""

from __future__ import annotations

from pathlib import Path

import psutil


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and that its parent has not waited for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_command(process: psutil.Process) -> list[str]:
    """The command line of a process; empty once it has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def find_children(pid: int, program: str) -> list[psutil.Process]:
    """The running children of a process that run a module of this name, or a script whose file has it."""
    children = psutil.Process(pid).children()
    return [child for child in children if any(Path(argument).name == program for argument in read_command(child))]
