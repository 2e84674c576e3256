"""Tasks of TingWu's clients: their keys, their number, and their end."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

from eardrum.api.tingwu import tasks as module
from eardrum.api.tingwu.tasks import BackgroundTaskStore
from eardrum.config.api_keys import ApiKeySettings
from eardrum.errors import BusyError, InvalidRequestError
from eardrum.gateway.key_usage import CURRENT_KEY, KeyUsage


async def work() -> dict[str, Any]:
    return {"text": "hello"}


async def test_a_task_is_of_the_key_that_submitted_it_and_counts_until_its_end() -> None:
    store, gate = BackgroundTaskStore(), asyncio.Event()
    keys = [KeyUsage(ApiKeySettings(key=key), key) for key in ("a", "b")]

    async def wait() -> dict[str, Any]:
        await gate.wait()
        return await work()

    CURRENT_KEY.set(keys[0])
    task = store.submit(wait)
    await asyncio.sleep(0)
    assert (keys[0].in_progress, task.has_begun, store.find(task.id)) == (1, True, task)
    CURRENT_KEY.set(keys[1])
    assert store.find(task.id) is None
    CURRENT_KEY.set(KeyUsage(ApiKeySettings(key="a", requests_per_minute=1), "a after a reload"))
    assert store.find(task.id) is task
    gate.set()
    assert await task.work == {"text": "hello"}
    assert keys[0].in_progress == 0


async def test_tasks_are_bounded_run_some_at_a_time_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TASKS", 5)
    store, gate = BackgroundTaskStore(), asyncio.Event()

    async def fail() -> dict[str, Any]:
        await gate.wait()
        raise InvalidRequestError("No.")

    tasks = [copy_context().run(store.submit, fail) for _ in range(5)]
    await asyncio.sleep(0)
    assert [task.has_begun for task in tasks] == [True, True, True, False, False]
    with pytest.raises(BusyError):
        store.submit(work)
    gate.set()
    await asyncio.wait([task.work for task in tasks])
    assert [task.error for task in tasks] == ["No."] * 5
    monkeypatch.setattr(module, "KEPT_S", 0.0)
    again = store.submit(work)
    assert store.find(tasks[0].id) is None
    assert await again.work == {"text": "hello"}


async def test_tasks_end_with_the_server() -> None:
    store = BackgroundTaskStore()

    async def wait() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    task = store.submit(wait)
    await asyncio.sleep(0)
    await store.close()
    assert task.work.cancelled()
    assert task.error == "The server is shutting down."
