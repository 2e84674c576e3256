"""Groups and pools with real processes: commands that serve HTTP, and time that really passes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from eardrum import config
from eardrum.errors import BusyError, ModelCoolingError, ModelUnloadedError, RunnerCrashedError
from eardrum.gateway import scheduler
from eardrum.gateway.change_feed import ChangeTopic
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.http_client import OutgoingRequest
from tests.ports import find_free_port
from tests.processes import read_command
from tests.programs import FAKE_LLM, build_fake_llm_command

pytestmark = pytest.mark.slow

LOAD_S = 0.3
JSON = ((b"content-type", b"application/json"),)
CHAT = b'{"model": "x", "messages": [{"role": "user", "content": "hello"}]}'


def build_command(*habits: object, **entry: Any) -> dict[str, Any]:
    port = find_free_port()
    return {"cmd": build_fake_llm_command(port, *habits), "proxy": f"http://127.0.0.1:{port}", **entry}


@asynccontextmanager
async def run_service(tmp_path: Path, models: dict[str, Any], **more: Any) -> AsyncIterator[Service]:
    """A service with these models; afterwards no process of theirs is left."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"models": models, **more}))
    service = Service(config.load_settings(file, environment={}))
    try:
        yield service
    finally:
        await service.shutdown()
        assert list_programs() == []


def list_programs() -> list[str]:
    """The ports of fake models that run, below this process."""
    lines = [read_command(child) for child in psutil.Process().children(recursive=True)]
    return sorted(line[line.index("--port") + 1] for line in lines if str(FAKE_LLM) in line)


async def post_chat(service: Service, name: str) -> str:
    async with service.lease_model(service.catalog.find_model(name)) as lease:
        response = await lease.upstream.send_request(OutgoingRequest("POST", "/v1/chat/completions", JSON, CHAT))
        answer: str = json.loads(await response.read_body(1 << 20))["choices"][0]["message"]["content"]
        return answer


def get_state(service: Service, name: str) -> ModelState:
    return service.get_state(service.catalog.find_model(name))


async def test_speech_stays_while_language_models_swap(tmp_path: Path) -> None:
    models = {"a": build_command(), "b": build_command(), "ears": build_command()}
    groups = {"speech": {"members": ["ears"], "persistent": True, "exclusive": False}}
    async with run_service(tmp_path, models, groups=groups) as service:
        await post_chat(service, "ears")
        for name in "abab":
            assert await post_chat(service, name) == "You said: hello"
            assert get_state(service, "ears") is ModelState.READY
            assert len(list_programs()) == 2


async def test_the_wait_for_a_model_counts_once_and_includes_its_load(tmp_path: Path) -> None:
    models = {"a": build_command("--load-seconds", LOAD_S), "b": build_command()}
    async with run_service(tmp_path, models) as service:
        await post_chat(service, "a")
        await post_chat(service, "a")
        await post_chat(service, "b")
        waits = service.metrics.model_waits
        assert {id: sum(histogram.counts) for id, histogram in waits.items()} == {"a": 2, "b": 1}
        assert waits["a"].total >= LOAD_S
        assert waits["a"].counts[0] == 1, "the second request found it loaded"


async def test_the_11th_request_for_a_command_is_refused_as_llama_swap_does(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"a": build_command("--delay", 0.5)}) as service:
        done = await asyncio.gather(*(post_chat(service, "a") for _ in range(12)), return_exceptions=True)
        refused = [answer for answer in done if isinstance(answer, BusyError)]
        assert [(error.status, error.retry_after) for error in refused] == [(429, 1.0)] * 2
        assert done.count("You said: hello") == 10


async def test_one_at_a_time(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"a": build_command("--delay", 0.2, max_concurrency=1)}) as service:
        await post_chat(service, "a")
        began = time.monotonic()
        await asyncio.gather(*(post_chat(service, "a") for _ in range(4)))
        assert time.monotonic() - began >= 0.8


async def test_unloading_one_that_is_slow_to_stop_stalls_no_other(tmp_path: Path) -> None:
    models = {"slow": build_command("--stop-seconds", 9), "a": build_command(), "b": build_command()}
    groups = {name: {"members": [name], "exclusive": False} for name in models}
    async with run_service(tmp_path, models, groups=groups) as service:
        await asyncio.gather(post_chat(service, "slow"), post_chat(service, "a"))
        pid = next(status.pid for status in service.list_processes() if status.model.id == "slow")
        unloading = asyncio.create_task(service.unload_model(service.catalog.find_model("slow")))
        await asyncio.sleep(0.05)
        await post_chat(service, "a")
        await post_chat(service, "b")
        assert not unloading.done()
        assert get_state(service, "slow") is ModelState.STOPPING
        psutil.Process(pid).kill()
        await unloading
        assert len(list_programs()) == 2, "when it returns, the process is gone"


async def test_force_ends_what_runs_and_says_so(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"a": build_command("--delay", 30)}) as service:
        asking = asyncio.create_task(post_chat(service, "a"))
        await service.load_model(service.catalog.find_model("a"))
        await asyncio.sleep(0.2)  # the request is on its way
        await service.unload_model(service.catalog.find_model("a"), force=True)
        assert list_programs() == []
        with pytest.raises(ModelUnloadedError, match="unloaded by force"):
            await asking


async def test_what_fits_into_memory_stays_and_the_one_used_longest_ago_goes(tmp_path: Path) -> None:
    models = {name: build_command(memory="4G") for name in "abc"}
    async with run_service(tmp_path, models, memory={"cpu": "10G"}) as service:
        await post_chat(service, "a")
        await post_chat(service, "b")
        assert len(list_programs()) == 2
        await post_chat(service, "a")
        await post_chat(service, "c")
        assert [get_state(service, name) for name in "abc"] == [ModelState.READY, ModelState.STOPPED, ModelState.READY]


async def test_why_a_model_has_gone_is_logged_once_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "eardrum.gateway")
    models = {
        "a": build_command(),
        "b": build_command(),
        "short": build_command(ttl=1),
        "mortal": build_command("--die-after", 0),
    }
    groups = {"ab": {"members": ["a", "b"]}, "rest": {"members": ["short", "mortal"], "exclusive": False, "swap": False}}
    async with run_service(tmp_path, models, groups=groups) as service:
        await post_chat(service, "a")
        await post_chat(service, "b")
        with service.change_feed.subscribe(ChangeTopic.MODELS) as changes:
            await post_chat(service, "short")
            async with asyncio.timeout(20):
                while get_state(service, "short") is not ModelState.STOPPED:
                    await anext(changes)
        await service.unload_model(service.catalog.find_model("b"))
        with pytest.raises(RunnerCrashedError):
            await post_chat(service, "mortal")
        found = {gone.model: gone.cause.reason.value for gone in service.unload_history}
        assert found == {"a": "group", "b": "hand", "short": "ttl", "mortal": "crash"}
        assert service.unload_history.counts["mortal", scheduler.UnloadReason.CRASH] >= 1
        lines = [record.getMessage() for record in caplog.records if "was unloaded" in record.getMessage()]
        assert lines == [
            "a was unloaded: it made room for b (group).",
            "short was unloaded: it had no requests for the length of its ttl.",
            "b was unloaded: on request.",
        ]
        await post_chat(service, "a")
        assert service.unload_history.find_last("a") is None, "it is there again"


async def test_a_start_that_is_stopped_before_it_has_begun_is_over(tmp_path: Path) -> None:
    async with run_service(tmp_path, {"a": build_command()}) as service:
        asking = asyncio.create_task(post_chat(service, "a"))
        await asyncio.sleep(0)  # the scheduler has said Start, and nothing more has happened
        assert get_state(service, "a") is ModelState.STARTING
        await asyncio.wait_for(service.unload_model(service.catalog.find_model("a"), force=True), 60)
        with pytest.raises(ModelUnloadedError):
            await asking
        assert get_state(service, "a") is ModelState.STOPPED
        assert await post_chat(service, "a") == "You said: hello"


async def test_a_model_that_dies_again_and_again_costs_no_other_its_place(tmp_path: Path) -> None:
    models = {"a": build_command("--die-after", 0), "b": build_command()}
    async with run_service(tmp_path, models) as service:
        for _ in range(3):
            with pytest.raises(RunnerCrashedError):
                await post_chat(service, "a")
        await post_chat(service, "b")
        with pytest.raises(ModelCoolingError, match="3 times in a row"):
            await post_chat(service, "a")
        assert get_state(service, "b") is ModelState.READY


async def wait_until(reached: Callable[[], object]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110 -- there is no event: it is looked at from outside
            await asyncio.sleep(0.02)


HURRIED_S = 40
"""Far less than `unload_timeout` grants here: who is told to end at once waits for none of it."""


async def test_force_waits_for_no_answer_and_for_no_command_that_takes_its_time(tmp_path: Path) -> None:
    models = {"a": build_command("--delay", 60, "--ignore-sigterm", unload_timeout=60)}
    async with run_service(tmp_path, models) as service:
        model = service.catalog.find_model("a")
        asking = asyncio.create_task(post_chat(service, "a"))
        await wait_until(service.list_processes)
        await asyncio.sleep(0.2)  # the request is with the command by then
        began = time.monotonic()
        unloading = asyncio.create_task(service.unload_model(model, force=True))
        with pytest.raises(ModelUnloadedError):
            await asking
        assert not unloading.done()  # the client is not kept until the process is gone
        await unloading
        assert time.monotonic() - began < HURRIED_S
        assert get_state(service, "a") is ModelState.STOPPED


@pytest.mark.parametrize(
    "habits", [("--stop-seconds", 60), ("--ignore-sigterm", "--load-seconds", 60)], ids=["stopping", "loading"]
)
async def test_force_ends_what_is_patiently_stopped_or_still_loading(tmp_path: Path, habits: tuple[object, ...]) -> None:
    async with run_service(tmp_path, {"a": build_command(*habits, unload_timeout=60)}) as service:
        model = service.catalog.find_model("a")
        loading = asyncio.create_task(service.load_model(model))
        if "--stop-seconds" in habits:
            await loading
            patient: asyncio.Task[Any] = asyncio.create_task(service.unload_model(model))
            await wait_until(lambda: get_state(service, "a") is ModelState.STOPPING)
        else:
            await wait_until(list_programs)
            await asyncio.sleep(0.5)  # it does not heed SIGTERM by then
            patient = loading
        began = time.monotonic()
        await service.unload_model(model, force=True)
        await asyncio.wait([patient])
        assert time.monotonic() - began < HURRIED_S
        assert get_state(service, "a") is ModelState.STOPPED
        assert isinstance(patient.exception(), ModelUnloadedError | None)
