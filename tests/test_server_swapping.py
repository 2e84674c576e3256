"""Models that exclude each other, with real processes: many clients, some of which leave."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import requests
import yaml

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_ports

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"
MODELS = ("one", "two", "three")
REQUESTS, ARRIVE_S = 200, 6.0
PATIENCE_S, LONGEST_S, LOAD_S = 1.0, 0.3, 3.0
"""A request's longest service, and how long a model may take to be stopped and another to be started on a busy machine."""


def build_config(lock: Path) -> str:
    """Three commands in llama-swap's default group. Each of them notices if it is not alone."""
    alone = f"{sys.executable} {PROGRAMS / 'alone.py'} {lock} {sys.executable} {PROGRAMS / 'fake_llm.py'}"
    models = {name: {"cmd": f"{alone} --port ${{PORT}} --name {name} --delay 0.05", "concurrency_limit": 100} for name in MODELS}
    return yaml.safe_dump({"patience": PATIENCE_S, "start_port": find_free_ports(len(MODELS)), "models": models})


async def send_request(session: aiohttp.ClientSession, address: str, name: str, leaves_after: float | None) -> tuple[str, float]:
    """One request: what became of it, and after how many seconds."""
    began = time.monotonic()
    body = {"model": name, "messages": [{"role": "user", "content": name}]}
    try:
        async with asyncio.timeout(leaves_after), session.post(f"{address}/v1/chat/completions", json=body) as response:
            answer = await response.json()
            if response.status != 200:
                return f"{response.status} {answer}", time.monotonic() - began
            assert answer["choices"][0]["message"]["content"] == f"You said: {name}", "an answer of another model"
            return "answered", time.monotonic() - began
    except TimeoutError:
        return "left", time.monotonic() - began


async def send_storm(server: ServerUnderTest) -> list[tuple[str, float]]:
    """Two hundred clients; every third leaves at some time."""
    chance = random.Random(4)
    clients = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None)) as session:
        for number in range(REQUESTS):
            await asyncio.sleep(chance.uniform(0, 2 * ARRIVE_S / REQUESTS))
            leaves_after = chance.uniform(0.01, 3.0) if number % 3 == 0 else None
            asking = send_request(session, server.address, chance.choice(MODELS), leaves_after)
            clients.append(asyncio.ensure_future(asking))
        return await asyncio.gather(*clients)


def test_many_clients_of_models_that_exclude_each_other(tmp_path: Path) -> None:
    file, lock = tmp_path / "config.yaml", tmp_path / "lock"
    file.write_text(build_config(lock))
    with run_server("--config", str(file)) as server:
        outcomes = asyncio.run(send_storm(server))
        wait_for(lambda: all(model["requests"] == 0 for model in get_health(server)["models"]))
        commands = psutil.Process(server.process.pid).children(recursive=True)
        assert len(commands) == 1, "one model is left, and nothing else"
    assert not Path(f"{lock}.broken").exists(), "two models were up together"
    counts = Counter(outcome for outcome, _ in outcomes)
    assert set(counts) <= {"answered", "left"}, (counts, server.log)
    assert counts["answered"] >= REQUESTS * 2 // 3
    # In the worst case both other models had somebody waiting for longer.
    bound = (len(MODELS) - 1) * (PATIENCE_S + LONGEST_S + LOAD_S) + LOAD_S
    slowest = max(seconds for outcome, seconds in outcomes if outcome == "answered")
    assert slowest < bound, f"{slowest:.1f} s"
    assert not [process for process in commands if process.is_running()]


def get_health(server: ServerUnderTest) -> dict[str, Any]:
    """What the server says of itself."""
    answer: dict[str, Any] = requests.get(f"{server.address}/health", timeout=5).json()
    return answer
