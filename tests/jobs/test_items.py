"""Attempts at items: their windows are saved once each, whatever happens to a write."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eardrum.errors import StorageFullError
from eardrum.jobs.database import SqliteDatabase
from eardrum.jobs.items import RecordingRun
from eardrum.jobs.records import ItemStatus, JobKind, JobRecord, JobStatus, NewItem, WindowRow
from eardrum.jobs.store import JobStore
from eardrum.transcription import TranscriptionSummary, WindowCheckpoint


async def begin_run(store: JobStore) -> RecordingRun:
    """An attempt at the only item of a job."""
    await store.add_job(JobRecord("j", JobKind.RECORDING, "", "/e", 1.0, status=JobStatus.IN_PROGRESS), NewItem("0", "tiny"))
    item = await store.claim_item("w", 2.0, 30.0, model="tiny")
    assert item
    return RecordingRun(item, store)


def add_window(run: RecordingRun, number: int, text: str = "") -> None:
    run._add_row(WindowRow([{"text": text or f"w{number}"}]), WindowCheckpoint(number + 1, number + 1.0))


async def list_texts(store: JobStore) -> list[str]:
    return [row.segments[0]["text"] for _, row in await store.list_windows("j", 0)]


async def test_windows_that_could_not_be_saved_are_saved_later(tmp_path: Path) -> None:
    store = JobStore(SqliteDatabase(tmp_path / "s"))
    await store.open()
    try:
        run = await begin_run(store)
        async with store.database.begin() as tx:
            await tx.fetch("pragma max_page_count = 1")
        add_window(run, 0, "x" * 100_000)
        with pytest.raises(StorageFullError):
            await run.save(all=True)
        add_window(run, 1)
        async with store.database.begin() as tx:
            await tx.fetch("pragma max_page_count = 1000000")
        await run.save(all=True)
        assert await list_texts(store) == ["x" * 100_000, "w1"]
    finally:
        await store.close()


async def test_windows_are_saved_once_if_an_attempt_is_stopped_meanwhile(store: JobStore) -> None:
    run = await begin_run(store)
    for number in range(12):
        add_window(run, number)
        saving = asyncio.create_task(run.save(all=True))
        for _ in range(number):
            await asyncio.sleep(0.0005)
        saving.cancel()
        await asyncio.wait([saving])
    await run.save(all=True)
    assert await list_texts(store) == [f"w{number}" for number in range(12)]


async def test_the_first_window_after_an_attempt_without_progress_is_saved_at_once(store: JobStore) -> None:
    await store.release_item((await begin_run(store)).item)
    item = await store.claim_item("w", 3.0, 30.0, model="tiny")
    assert item
    run = RecordingRun(item, store)
    add_window(run, 0)
    await run.save()
    assert await list_texts(store) == ["w0"]
    assert item.tries == 0, "later ones are saved in lots"


async def test_audio_counts_once_it_is_saved(store: JobStore) -> None:
    run = await begin_run(store)
    heard: list[float] = []
    run.on_audio = heard.append
    add_window(run, 0)
    assert heard == []
    await run.save(all=True)
    assert heard == [1.0]
    add_window(run, 1)
    run.summary = TranscriptionSummary(language="en", duration=2.5)
    await run.finish()
    assert heard == [1.0, 2.5]


async def test_the_end_of_an_item_waits_for_windows_that_are_being_saved(store: JobStore) -> None:
    run = await begin_run(store)
    add_window(run, 0)
    saving = asyncio.create_task(run.save(all=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    add_window(run, 1)
    run.summary = TranscriptionSummary(language="en", duration=2.0)
    await run.finish()
    await saving
    assert await list_texts(store) == ["w0", "w1"]
    item = await store.get_item("j")
    assert item
    assert (item.status, item.windows) == (ItemStatus.DONE, 2)
