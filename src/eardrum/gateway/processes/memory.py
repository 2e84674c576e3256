"""What the processes of models take of the machine's memory, seen from outside."""

from __future__ import annotations

import asyncio
import logging
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress

from eardrum.gateway.processes import proc

log = logging.getLogger(__name__)

GPU_S = 10.0
"""How long NVIDIA's driver may take to answer."""

EVERY_S = 15.0
"""Time between two looks: what a model takes grows with what it is asked."""

QUESTION = ("--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits")
NAMES = ("--query-gpu=index,uuid", "--format=csv,noheader,nounits")


async def watch(running: Callable[[], Mapping[str, int]], seen: Callable[[Mapping[str, Mapping[str, float]]], None]) -> None:
    """Look again and again, until nothing runs."""
    while pids := running():
        seen(await used(pids))
        await asyncio.sleep(EVERY_S)


async def used(pids: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Bytes that each model's process takes with all that it started: `cpu`, and if there are GPUs, `cuda` and `cuda:0` ...

    Nothing is known of what is gone, or of other systems than Linux.
    """
    families, resident = await asyncio.to_thread(_resident, pids)
    found = {model: {"cpu": size} for model, size in resident.items() if size}
    owners = {pid: model for model, family in families.items() for pid in family}
    for pid, gpu, size in await _on_gpus():
        if (model := owners.get(pid, "")) in found:
            for pool in ("cuda", f"cuda:{gpu}"):
                found[model][pool] = found[model].get(pool, 0.0) + size
    return found


def _resident(pids: Mapping[str, int]) -> tuple[dict[str, set[int]], dict[str, float]]:
    families = {model: {process.pid for process in proc.family(pid)} for model, pid in pids.items()}
    return families, {model: sum(map(_proportional, family)) for model, family in families.items()}


def _proportional(pid: int) -> float:
    """Bytes in memory; what several processes share counts in parts, so that it is not counted twice."""
    with suppress(OSError, ValueError):
        for line in (proc.PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024.0
    return 0.0


async def _on_gpus() -> list[tuple[int, str, float]]:
    """Process, index of the GPU and bytes, as NVIDIA's driver has it. In a container it may name processes that are not seen."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    rows = await _asked(program, QUESTION)
    indices = {uuid: index for index, uuid in await _asked(program, NAMES)} if rows else {}
    found = []
    for pid, uuid, size in rows:
        with suppress(ValueError):  # [N/A]
            found.append((int(pid), indices.get(uuid, uuid), float(size) * 2**20))
    return found


async def _asked(program: str, question: tuple[str, ...]) -> list[list[str]]:
    asked = await asyncio.create_subprocess_exec(program, *question, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(GPU_S):
            answer, _ = await asked.communicate()
    except TimeoutError:
        log.warning("%s did not answer in %g s: what models take of the GPU is not known.", program, GPU_S)
        return []
    finally:
        if asked.returncode is None:
            asked.kill()
            await asked.wait()
    return [[cell.strip() for cell in line.split(",")] for line in answer.decode(errors="replace").splitlines() if line.strip()]
