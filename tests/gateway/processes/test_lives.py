"""Models come to life in three ways; here those that are another server's."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eardrum import config
from eardrum.errors import ModelLoadError
from eardrum.gateway.inventory import ADDRESS, COMMAND, FOREIGN, Model
from eardrum.gateway.logs import Logs
from eardrum.gateway.processes.lives import Lives
from tests.ports import free_port
from tests.programs import fake_llm

pytestmark = pytest.mark.slow


def model(**entry: object) -> Model:
    kind = COMMAND if "cmd" in entry else ADDRESS
    return Model("m", kind, None, FOREIGN, "config", entry=config.Model.model_validate(entry))


@asynccontextmanager
async def another_server(port: int, *habits: object) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*shlex.split(fake_llm(port, *habits)), stdout=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_an_address_is_asked_nothing_unless_the_config_says_so() -> None:
    lives = Lives(config.Settings(), Logs())
    life = await lives.begin(model(proxy=f"http://127.0.0.1:{free_port()}"))
    assert (life.pid, life.ended.done()) == (None, False)
    await life.stop()
    assert life.ended.done()
    await life.close()


async def test_an_address_with_a_check_has_to_answer_it() -> None:
    lives, port = Lives(config.Settings(healthCheckTimeout=1), Logs()), free_port()
    checked = model(proxy=f"http://127.0.0.1:{port}", checkEndpoint="/health")
    with pytest.raises(
        ModelLoadError, match=rf"m was not ready after 1 s \(healthCheckTimeout\): nothing listens at .*:{port}/he"
    ):
        await lives.begin(checked)
    lives.settings = config.Settings(healthCheckTimeout=15)
    async with another_server(port, "--load-seconds", 0.5):
        began = time.monotonic()
        life = await lives.begin(checked)
        assert 0.3 < time.monotonic() - began < 15
        await life.stop()
        await life.close()


async def test_a_command_has_the_servers_times_unless_it_has_its_own(tmp_path: Path) -> None:
    settings, logs = config.Settings(healthCheckTimeout=15, unloadTimeout=0.4, spool_dir=tmp_path), Logs()
    for own, seconds in ((0, 0.4), (1, 1)):
        port = free_port()
        entry = {"cmd": fake_llm(port, "--ignore-sigterm"), "proxy": f"http://127.0.0.1:{port}", "unloadTimeout": own}
        lives = Lives(settings, logs)
        life = await lives.begin(model(**entry))
        assert any("listening on" in line for line in logs.of("m").lines())
        began = time.monotonic()
        await life.stop()
        assert seconds <= time.monotonic() - began < seconds + 5
        assert "The command of m was ended by SIGKILL" in life.ending
        await life.close()
        lives.register.close()
