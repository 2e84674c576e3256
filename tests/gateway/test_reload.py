"""A config that is read again is prepared in a thread: the event loop only takes it over. Requests in progress meet it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from typing import Any

import pytest
from aiohttp import web

from eardrum import config
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.http_client import OutgoingRequest
from eardrum.transcription import Capabilities, TranscriptionRequest
from eardrum.wav import build_wav_header
from tests.ports import find_free_port
from tests.programs import build_fake_llm_command
from tests.upstreams import UpstreamCall, fake_upstream, fake_whisper_server

WAV = build_wav_header(32_000, 16_000) + bytes(32_000)


def build_settings(ttl: float, count: int = 1000) -> config.Settings:
    models = {
        f"model-{number}": config.ModelSettings(cmd=f"serve --port {number} --api-key {ttl}-secret-{number}", ttl=ttl)
        for number in range(count)
    }
    return config.Settings(models=models, default_model="moonshine-tiny-en")


async def test_the_event_loop_takes_over_a_large_config_in_a_moment() -> None:
    service = Service(build_settings(60))
    changed = build_settings(30)
    all_threads_s, loop_s = time.process_time(), time.thread_time()
    await service.apply_settings(changed)
    loop_s, all_threads_s = time.thread_time() - loop_s, time.process_time() - all_threads_s
    assert service.find_model("model-7").ttl == 30
    assert loop_s < all_threads_s / 5
    await service.shutdown()


async def test_unchanged_models_keep_the_capabilities_that_they_reported() -> None:
    service = Service(build_settings(60, count=1))
    reported = Capabilities(languages=frozenset({"en"}), max_batch=3)
    service.catalog.update_capabilities(service.catalog.default, reported)
    shown = service.catalog.default.capabilities
    await service.apply_settings(build_settings(30, count=2))
    assert service.catalog.default.capabilities == shown
    assert shown.max_batch == 3
    await service.shutdown()


@asynccontextmanager
async def run_service(**settings: Any) -> AsyncIterator[Service]:
    service = Service(config.Settings(**settings))
    try:
        yield service
    finally:
        await service.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("state", [ModelState.STOPPED, ModelState.STARTING])
async def test_a_request_that_found_its_model_before_starts_it_as_the_config_has_it_now(state: ModelState) -> None:
    port = find_free_port()

    def build_models(ttl: float, *habits: object) -> dict[str, config.ModelSettings]:
        command = build_fake_llm_command(port, *habits)
        return {"a": config.ModelSettings(cmd=command, proxy=f"http://127.0.0.1:{port}", ttl=ttl)}

    async with run_service(models=build_models(60, "--load-seconds", 1)) as service:
        found = service.find_model("a")

        async def list_arguments() -> list[str]:
            async with service.lease_model(found) as lease:
                answer = await lease.upstream.send_request(OutgoingRequest("GET", "/env"))
                arguments: list[str] = json.loads(await answer.read_body(1 << 20))["argv"]
                return arguments

        asking = asyncio.create_task(list_arguments()) if state is ModelState.STARTING else None
        await asyncio.sleep(0.1)
        assert service.get_state(found) is state
        await service.apply_settings(config.Settings(models=build_models(30, "--name", "new")))
        assert "new" in await (asking or list_arguments())
        assert [status.ttl for status in service.list_processes()] == [30]


async def test_a_request_whose_upload_begins_after_its_model_was_removed_does_not_start_it() -> None:
    async with run_service(models={"ears": {"source": "moonshine-tiny-en"}}) as service:
        found = service.find_model("ears")
        with service.create_spool() as spool:
            asking = asyncio.create_task(service.transcribe(found, TranscriptionRequest(), spool))
            await asyncio.sleep(0)  # it waits for the upload by now
            await service.apply_settings(config.Settings())
            await spool.write(WAV)
            spool.finish()
            with pytest.raises(ModelNotFoundError, match="ears is no longer in the config"):
                await asking
        assert service.get_state(found) is ModelState.STOPPED


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_a_server_is_asked_for_its_model_by_the_name_that_the_config_has_now(is_loaded: bool) -> None:
    loaded = Event()

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        if call.path == "/health":
            return web.Response(status=200 if loaded.is_set() else 503)
        return await fake_whisper_server(call, request)

    async def transcribe(service: Service) -> None:
        with service.create_spool() as spool:
            await spool.write(WAV)
            spool.finish()
            await service.transcribe(service.find_model("far"), TranscriptionRequest(), spool)

    with fake_upstream(answer) as upstream:

        def build_settings(name: str) -> dict[str, Any]:
            return {"models": {"far": {"proxy": upstream.url, "use_model_name": name, "check_endpoint": "/health"}}}

        async with run_service(**build_settings("one")) as service:
            if is_loaded:
                loaded.set()
                await transcribe(service)
            asking = asyncio.create_task(transcribe(service)) if not is_loaded else None
            await asyncio.sleep(0.05)
            changes = await service.apply_settings(config.Settings(**build_settings("two")))
            assert not changes.changed
            loaded.set()
            await (asking or transcribe(service))
        assert [call.get_value("model") for call in upstream.calls if call.fields] == (["one"] if is_loaded else []) + ["two"]


@pytest.mark.parametrize("owner", ["model", "server"])
async def test_a_command_that_runs_is_stopped_within_the_time_that_the_config_has_now(owner: str) -> None:
    port = find_free_port()

    def build_settings(unload_timeout: float) -> dict[str, Any]:
        entry = {"cmd": build_fake_llm_command(port, "--ignore-sigterm"), "proxy": f"http://127.0.0.1:{port}"}
        server = {"unload_timeout": unload_timeout} if owner == "server" else {}
        return {"models": {"a": entry | ({} if server else {"unload_timeout": unload_timeout})}, **server}

    async with run_service(**build_settings(60)) as service:
        model = await service.load_model(service.find_model("a"))
        changes = await service.apply_settings(config.Settings(**build_settings(0.2)))
        assert not changes.changed
        began = time.monotonic()
        await service.unload_model(model)
        assert time.monotonic() - began < 30


async def test_the_model_for_speaker_labels_is_unloaded_as_the_config_says_now() -> None:
    async with run_service(default_ttl=60) as service:
        await service.load_model(service._speaker_detector.model)
        await service.apply_settings(config.Settings(default_ttl=30))
        assert [status.ttl for status in service.list_processes()] == [30]


@pytest.mark.parametrize("kind", ["command", "runner"])
async def test_a_process_that_runs_is_given_up_after_the_time_that_the_config_has_now(kind: str) -> None:
    port = find_free_port()
    command = {"cmd": build_fake_llm_command(port), "proxy": f"http://127.0.0.1:{port}"}
    models = {"a": command if kind == "command" else {"source": "moonshine-tiny-en"}}
    async with run_service(models=models, liveness_timeout=0.4) as service:
        model = await service.load_model(service.find_model("a"))
        await service.apply_settings(config.Settings(models=models, liveness_timeout=60))
        await asyncio.sleep(0.5)  # until the check that began with the old limit is over
        [status] = service.list_processes()
        assert status.pid
        os.kill(status.pid, signal.SIGSTOP)
        await asyncio.sleep(2.5)
        assert service.get_state(model) is ModelState.READY
        os.kill(status.pid, signal.SIGCONT)


async def test_a_client_that_is_not_on_wyomings_new_list_is_locked_out_at_once() -> None:
    async with run_service(wyoming={"clients": ["10.0.0.0/8", "192.168.1.20"]}) as service:
        changes = await service.apply_settings(config.Settings(wyoming={"clients": ["10.0.0.0/8"]}))
        assert not changes.deferred
        assert not service.settings.wyoming.admits("192.168.1.20")
        changes = await service.apply_settings(config.Settings(wyoming={"clients": ["10.0.0.2"], "port": 10301}))
        assert changes.deferred == ("wyoming",)
        assert not service.settings.wyoming.admits("10.0.0.1")
        assert service.settings.wyoming.port == 10300
        changes = await service.apply_settings(config.Settings())
        assert changes.deferred == ("wyoming",)
        assert not service.settings.wyoming.admits("10.0.0.1"), "without a list, a start could listen on another address"


async def test_where_the_output_of_models_goes_is_decided_at_the_start() -> None:
    async with run_service() as service:
        changes = await service.apply_settings(config.Settings(log_to_stdout="both"))
        assert changes.deferred == ("log_to_stdout",)
