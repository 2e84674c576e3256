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
from eardrum.gateway.logs import GatewayLogs
from eardrum.gateway.models.inventory import ADDRESS, COMMAND, EXTERNAL_CAPABILITIES, Model
from eardrum.gateway.processes.launcher import ModelLauncher
from tests.ports import find_free_port
from tests.programs import build_fake_llm_command

pytestmark = pytest.mark.slow


def create_model(**entry: object) -> Model:
    kind = COMMAND if "cmd" in entry else ADDRESS
    return Model("m", kind, None, EXTERNAL_CAPABILITIES, "config", entry=config.ModelSettings.model_validate(entry))


@asynccontextmanager
async def run_other_server(port: int, *habits: object) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *shlex.split(build_fake_llm_command(port, *habits)), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_an_address_is_asked_nothing_unless_the_config_says_so() -> None:
    lives = ModelLauncher(config.Settings(), GatewayLogs())
    life = await lives.launch_model(create_model(proxy=f"http://127.0.0.1:{find_free_port()}"))
    assert (life.pid, life.ended.done()) == (None, False)
    await life.stop()
    assert life.ended.done()
    await life.close()


async def test_an_address_with_a_check_has_to_answer_it() -> None:
    lives, port = ModelLauncher(config.Settings(health_check_timeout=1), GatewayLogs()), find_free_port()
    checked = create_model(proxy=f"http://127.0.0.1:{port}", check_endpoint="/health")
    with pytest.raises(
        ModelLoadError, match=rf"m was not ready after 1 s \(health_check_timeout\): nothing listens at .*:{port}/he"
    ):
        await lives.launch_model(checked)
    lives.settings = config.Settings(health_check_timeout=60)
    async with run_other_server(port, "--load-seconds", 0.5):
        began = time.monotonic()
        life = await lives.launch_model(checked)
        assert 0.3 < time.monotonic() - began < 50
        await life.stop()
        await life.close()


async def test_a_command_has_the_servers_times_unless_it_has_its_own(tmp_path: Path) -> None:
    settings, logs = config.Settings(health_check_timeout=60, unload_timeout=0.4, spool_dir=tmp_path), GatewayLogs()
    for own, seconds in ((None, 0.4), (1, 1)):
        port = find_free_port()
        entry = {
            "cmd": build_fake_llm_command(port, "--ignore-sigterm"),
            "proxy": f"http://127.0.0.1:{port}",
            "unload_timeout": own,
        }
        lives = ModelLauncher(settings, logs)
        life = await lives.launch_model(create_model(**entry))
        assert any("listening on" in line for line in logs.get_model_log("m").get_lines())
        began = time.monotonic()
        await life.stop()
        assert seconds <= time.monotonic() - began < 30
        assert "The command of m was ended by SIGKILL" in life.exit_description
        await life.close()
        lives.process_registry.close()
