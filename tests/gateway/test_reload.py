"""A config that is read again is prepared in a thread: the event loop only takes it over."""

from __future__ import annotations

import time

from eardrum import config
from eardrum.gateway.service import Service
from eardrum.transcription import Capabilities


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
