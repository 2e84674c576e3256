"""The contract of the job store, for every database: leases, epochs, windows, turns, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from msgspec.structs import replace

from eardrum.errors import FileElsewhereError
from eardrum.jobs import file_store
from eardrum.jobs.database import DuplicateRowError, Transaction
from eardrum.jobs.records import (
    OUTPUT_PURPOSE,
    SPEECH,
    SPEECH_ENDPOINT,
    TEXT,
    AudioReference,
    DeliveryRecord,
    FileRecord,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
    NewItem,
    OpenItems,
    WindowRow,
)
from eardrum.jobs.store import IDEMPOTENCY_S, MAX_TRIES, JobStore, LeaseLostError
from eardrum.jobs.tables import insert_file
from eardrum.transcription import DroppedText, WindowCheckpoint

LEASE_S = 30.0
REQUEST: dict[str, Any] = {"task": "transcribe", "language": "en", "hotwords": ["a"]}


def create_item(key: str, **more: Any) -> NewItem:
    return NewItem(key, "tiny", AudioReference(file=f"file-{key}"), REQUEST, {"model": ["tiny"]}, **more)


def create_row(number: int) -> WindowRow:
    return WindowRow([{"start": number, "end": number + 1, "text": f"w{number}"}])


async def begin_validation(store: JobStore, id: str, owner: str = "", endpoint: str = "/e", **more: Any) -> JobRecord:
    """A batch whose validation is claimed until 31."""
    await store.add_job(JobRecord(id, JobKind.BATCH, owner, endpoint, 1.0, **more))
    job = await store.claim_job((JobStatus.VALIDATING,), 1.0, LEASE_S)
    assert job
    assert job.id == id
    return job


async def add_batch(store: JobStore, id: str, items: int | list[NewItem], owner: str = "", **more: Any) -> JobRecord:
    """A batch whose items may begin."""
    made = [create_item(f"{id}{n}") for n in range(items)] if isinstance(items, int) else items
    job = await begin_validation(store, id, owner, "/v1/audio/transcriptions", **more)
    await store.add_items(job, 0, made, 1.0, LEASE_S)
    await store.start_job(job, 1.0)
    return job


async def claim(store: JobStore, now: float = 2.0, worker: str = "a", **more: Any) -> ItemRecord:
    item = await store.claim_item(worker, now, LEASE_S, **{"model": "tiny", **more})
    assert item
    return item


async def finish_all(store: JobStore, id: str, now: float = 99.0) -> JobRecord:
    job = await store.claim_job((JobStatus.IN_PROGRESS, JobStatus.FINALIZING, JobStatus.CANCELLING), now, LEASE_S)
    assert job
    assert job.id == id
    await store.finish_job(job, JobStatus(job.outcome or JobStatus.COMPLETED), now)
    ended = await store.get_job(id)
    assert ended
    return ended


def delay_commit(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Delay the commit of the store's next transaction until another one waits for it; the event says that it is near."""
    begin, written = store.database.begin, asyncio.Event()

    @asynccontextmanager
    async def begin_slowly(*, exclusive: bool = False) -> AsyncIterator[Transaction]:
        monkeypatch.setattr(store.database, "begin", begin)
        async with begin(exclusive=exclusive) as tx:
            yield tx
            written.set()
            # In SQLite, every other transaction waits for its turn before its first statement.
            while store.database.shared and not await tx.fetch("select 1 as one from pg_locks where not granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    monkeypatch.setattr(store.database, "begin", begin_slowly)
    return written


async def test_a_request_comes_back_whole(store: JobStore) -> None:
    await add_batch(store, "j", [create_item("k")])
    item = await claim(store)
    assert (item.request, item.fields, item.source.file, item.key) == (REQUEST, {"model": ["tiny"]}, "file-k", "k")
    built = item.build_request()
    assert (built.language, built.hotwords, built.priority, built.checkpoints) == ("en", ("a",), "bulk", True)
    assert built.resume is None


async def test_the_next_owner_continues_behind_the_last_saved_window(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    first = await claim(store)
    checkpoint = WindowCheckpoint(2, 20.0, (("en", 1.5),), 3.0, "before", (("en", 18.0),))
    await store.save_windows(first, [create_row(0), create_row(1)], checkpoint, 3.0, LEASE_S)
    assert await store.requeue_lost_items(32.9) == []
    assert await store.requeue_lost_items(33.0) == [("tiny", ItemStatus.QUEUED)]
    second = await claim(store, 34.0, "b")
    assert (second.epoch, second.windows, second.until_s, second.checkpoint) == (first.epoch + 1, 2, 20.0, checkpoint)
    assert second.build_request().resume == checkpoint
    with pytest.raises(LeaseLostError):
        await store.save_windows(first, [create_row(2)], replace(checkpoint, windows=3), 35.0, LEASE_S)
    with pytest.raises(LeaseLostError):
        await store.finish_item(first, ItemStatus.DONE, {})
    await store.save_windows(second, [create_row(2)], replace(checkpoint, windows=3), 35.0, LEASE_S)
    await store.finish_item(second, ItemStatus.DONE, {"language": "en"}, [create_row(3)])
    rows = await store.list_windows("j", 0)
    assert [(n, row.segments[0]["text"]) for n, row in rows] == [(0, "w0"), (1, "w1"), (2, "w2"), (3, "w3")]


async def test_a_row_keeps_what_was_dropped(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    item = await claim(store)
    dropped = DroppedText(1.0, 2.0, "Thanks for watching", "silence").to_json()
    await store.finish_item(item, ItemStatus.DONE, {}, [WindowRow([], [dropped])])
    assert (await store.list_windows("j", 0))[0][1].dropped == [dropped]


async def test_owners_take_turns_then_their_jobs_then_lines(store: JobStore) -> None:
    for id, owner in (("a1", "ann"), ("a2", "ann"), ("b1", "ben")):
        await add_batch(store, id, 3, owner)
    order = [f"{item.job}.{item.n}" for item in [await claim(store) for _ in range(9)]]
    assert order == ["a1.0", "b1.0", "a2.0", "b1.1", "a1.1", "b1.2", "a2.1", "a1.2", "a2.2"]


async def test_an_owner_may_be_left_out(store: JobStore) -> None:
    await add_batch(store, "a", 1, "ann")
    assert not await store.claim_item("w", 2.0, LEASE_S, model="tiny", excluded_owners=["ann", "ben"])
    assert await store.list_waiting_models(2.0, excluded_owners=["ben", "ann"]) == []
    assert await store.list_waiting_models(2.0) == ["tiny"]
    assert (await claim(store, excluded_owners=["ben"])).owner == "ann"


async def test_items_are_claimed_for_their_model_only(store: JobStore) -> None:
    other = NewItem("o", "other", AudioReference("f"))
    await add_batch(store, "j", [other, create_item("t")])
    assert (await claim(store)).key == "t"
    assert not await store.claim_item("w", 2.0, LEASE_S, model="tiny")
    assert (await claim(store, model="other")).key == "o"


async def test_audio_at_an_address_is_fetched_first(store: JobStore) -> None:
    await add_batch(store, "j", [NewItem("u", "tiny", AudioReference(url="https://x.example/a.mp3"), REQUEST)])
    assert not await store.claim_item("w", 2.0, LEASE_S, model="tiny")
    fetching = await claim(store, model=None)
    assert fetching.source.url == "https://x.example/a.mp3"
    await store.add_file(FileRecord("file-1", "", "fetched", "a", 3, 2.0, 99.0, hidden=True))
    await store.release_item(fetching, counts=False, source=AudioReference("file-1", fetching.source.url))
    assert await store.list_stocked_models(1) == ["tiny"]
    assert await store.list_stocked_models(2) == []
    item = await claim(store)
    assert (item.source.file, item.tries) == ("file-1", 1)
    assert not await store.delete_file("file-1"), "it is needed"
    await store.finish_item(item, ItemStatus.DONE, {})
    assert await store.take_item_file(item)
    assert await store.get_file("file-1") is None


async def test_models_and_owners_that_wait_keep_no_others_from_being_fetched(store: JobStore) -> None:
    for owner, model in (("ann", "tiny"), ("ben", "large")):
        waiting = [NewItem(key, model, AudioReference(url="https://x.example/a.mp3"), REQUEST) for key in ("1", "2")]
        await add_batch(store, owner, waiting, owner)
    fetching = await claim(store, model=None, excluded_models=["large"])
    assert (fetching.owner, fetching.model) == ("ann", "tiny")
    await store.add_file(FileRecord("file-1", "ann", "fetched", "a", 3, 2.0, 99.0, hidden=True))
    await store.release_item(fetching, counts=False, source=AudioReference("file-1", fetching.source.url))
    assert await store.list_stocked_models(1) == ["tiny"]
    assert await store.list_stocked_models(1, excluded_owners=["ann"]) == []
    assert (await claim(store, model=None, excluded_models=["tiny"])).model == "large"
    assert not await store.claim_item("a", 2.0, LEASE_S, excluded_models=["tiny", "large"])


async def test_tries_without_progress_end_an_item_and_progress_starts_anew(store: JobStore) -> None:
    await add_batch(store, "j", 2)
    for _ in range(MAX_TRIES - 1):
        await store.release_item(await claim(store))
    item = await claim(store)
    assert item.tries == MAX_TRIES
    await store.save_windows(item, [create_row(0)], WindowCheckpoint(1, 1.0), 3.0, LEASE_S)
    for _ in range(MAX_TRIES + 1):
        await store.release_item(item)
        item = await claim(store)
        if item.n:
            break
    failed = await store.get_item("j")
    assert failed
    assert failed.status is ItemStatus.FAILED
    assert "given up after 5 tries" in failed.result["message"]
    assert item.n == 1, "the next item goes on"
    job = await store.get_job("j")
    assert job
    assert (job.failed, job.open_items) == (1, 1)


async def test_items_that_wait_and_run_are_counted_by_model(store: JobStore) -> None:
    assert await store.count_open_by_model() == {}
    await add_batch(store, "j", 3)
    await store.finish_item(await claim(store), ItemStatus.DONE, {})
    await claim(store)
    await add_batch(store, "later", 2)
    await store.add_job(JobRecord("other", JobKind.RECORDING, "", "/e", 7.0), NewItem("k", "base"))
    assert await store.count_open_by_model() == {
        ("tiny", ItemStatus.QUEUED): OpenItems(3, 1.0),
        ("tiny", ItemStatus.RUNNING): OpenItems(1, 1.0),
        ("base", ItemStatus.QUEUED): OpenItems(1, 7.0),
    }


async def test_leases_that_run_out_count_as_tries(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    for number in range(MAX_TRIES):
        await claim(store, number * 100.0 + 2)
        lost = await store.requeue_lost_items(number * 100.0 + 90)
    assert lost == [("tiny", ItemStatus.FAILED)]
    item = await store.get_item("j")
    assert item
    assert item.status is ItemStatus.FAILED


async def test_what_is_given_back_without_fault_is_no_try_and_may_wait(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    await store.release_item(await claim(store), counts=False, not_before=50.0)
    assert await store.list_waiting_models(49.0) == []
    assert not await store.claim_item("w", 49.0, LEASE_S, model="tiny")
    assert await store.find_next_time(49.0) == 50.0
    assert (await claim(store, 50.0)).tries == 1


async def test_leases_are_renewed_and_ends_of_jobs_are_told(store: JobStore) -> None:
    await add_batch(store, "j", 2)
    item, other = await claim(store), await claim(store, worker="b")
    assert await store.renew_leases("a", [item.name, other.name], 30.0, LEASE_S) == []
    assert len(await store.requeue_lost_items(40.0)) == 1, "only the other worker's"
    await store.cancel_job("j", 41.0)
    assert await store.renew_leases("a", [item.name], 42.0, LEASE_S) == ["j"]


async def test_cancel_ends_what_waits_at_once_and_what_runs_through_its_owner(store: JobStore) -> None:
    await add_batch(store, "j", 3)
    item = await claim(store)
    job = await store.cancel_job("j", 5.0)
    assert job
    assert (job.status, job.open_items) == (JobStatus.CANCELLING, 1)
    assert (await store.cancel_job("j", 6.0)).times["cancelling"] == 5.0
    assert not await store.claim_item("w", 7.0, LEASE_S, model="tiny")
    assert not await store.claim_job((JobStatus.CANCELLING,), 7.0, LEASE_S), "an item runs"
    await store.finish_item(item, ItemStatus.CANCELLED, {})
    ended = await finish_all(store, "j")
    assert (ended.status, ended.open_items, ended.completed) == (JobStatus.CANCELLED, 0, 0)
    assert (await store.cancel_job("j", 200.0)).status is JobStatus.CANCELLED


async def test_a_job_that_ends_while_it_is_cancelled_ends_once(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await begin_validation(store, "j")
    written = delay_commit(store, monkeypatch)
    ending = asyncio.create_task(store.finish_job(job, JobStatus.FAILED, 2.0))
    await written.wait()
    found = await store.cancel_job("j", 3.0)
    await ending
    assert found
    assert (found.status, found.outcome, sorted(found.times)) == (JobStatus.FAILED, "", ["failed", "validating"])
    assert await store.get_job("j") == found


async def test_an_item_of_a_cancelled_job_that_is_given_back_ends(store: JobStore) -> None:
    await add_batch(store, "j", 2)
    item, lost = await claim(store), await claim(store)
    await store.cancel_job("j", 5.0)
    await store.release_item(item)
    await store.requeue_lost_items(99.0)
    assert [i.status for i in await store.list_items("j")] == [ItemStatus.CANCELLED] * 2
    assert lost.n == 1
    assert (await finish_all(store, "j")).status is JobStatus.CANCELLED


async def test_a_deadline_expires_what_waits_and_keeps_what_is_done(store: JobStore) -> None:
    await add_batch(store, "j", 3, deadline=50.0)
    done = await claim(store)
    await store.finish_item(done, ItemStatus.DONE, {})
    running = await claim(store)
    assert await store.expire_jobs(49.0) == []
    assert await store.expire_jobs(50.0) == ["j"]
    assert await store.expire_jobs(51.0) == []
    await store.finish_item(running, ItemStatus.EXPIRED, {})
    ended = await finish_all(store, "j")
    assert (ended.status, ended.completed, ended.total) == (JobStatus.EXPIRED, 1, 3)
    assert [i.status for i in await store.list_items("j")] == [ItemStatus.DONE, ItemStatus.EXPIRED, ItemStatus.EXPIRED]


async def test_validation_that_is_taken_over_begins_again(store: JobStore) -> None:
    first = await begin_validation(store, "j")
    await store.add_items(first, 0, [create_item("a")], 1.0, LEASE_S)
    assert not await store.claim_job((JobStatus.VALIDATING,), 2.0, LEASE_S)
    second = await store.claim_job((JobStatus.VALIDATING,), 40.0, LEASE_S)
    assert second
    assert await store.list_items("j") == []
    with pytest.raises(LeaseLostError):
        await store.add_items(first, 1, [create_item("b")], 40.0, LEASE_S)
    await store.add_items(second, 0, [create_item("a"), create_item("b", error={"message": "no"})], 40.0, LEASE_S)
    with pytest.raises(LeaseLostError):
        await store.start_job(first, 41.0)
    await store.start_job(second, 41.0)
    job = await store.get_job("j")
    assert job
    assert (job.total, job.failed, job.open_items) == (2, 1, 1)


async def test_a_job_that_starts_while_its_validation_is_taken_over_goes_on(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await begin_validation(store, "j")
    await store.add_items(job, 0, [create_item("a")], 1.0, LEASE_S)
    written = delay_commit(store, monkeypatch)
    starting = asyncio.create_task(store.start_job(job, 40.0))
    await written.wait()
    assert not await store.claim_job((JobStatus.VALIDATING,), 40.0, LEASE_S), "its lease is over, but it is validated"
    await starting
    assert (await claim(store, 41.0)).key == "a"


async def test_two_items_with_one_key_are_refused(store: JobStore) -> None:
    job = await begin_validation(store, "j")
    with pytest.raises(DuplicateRowError):
        await store.add_items(job, 0, [create_item("a"), create_item("a")], 1.0, LEASE_S)
    await store.finish_job(job, JobStatus.FAILED, 2.0, errors=[{"code": "duplicate_custom_id"}])
    ended = await store.get_job("j")
    assert ended
    assert (ended.status, ended.errors, ended.total) == (JobStatus.FAILED, [{"code": "duplicate_custom_id"}], 0)


async def test_a_job_that_is_cancelled_while_it_is_validated_stays_cancelled(store: JobStore) -> None:
    job = await begin_validation(store, "j")
    await store.add_items(job, 0, [create_item("a")], 1.0, LEASE_S)
    await store.cancel_job("j", 2.0)
    with pytest.raises(LeaseLostError):
        await store.add_items(job, 1, [create_item("b")], 2.0, LEASE_S)
    with pytest.raises(LeaseLostError):
        await store.finish_job(job, JobStatus.FAILED, 2.0)
    assert (await finish_all(store, "j")).status is JobStatus.CANCELLED


async def test_a_claim_is_not_renewed_once_its_work_is_over(store: JobStore) -> None:
    job = await begin_validation(store, "j")
    await store.renew_job(job, JobStatus.VALIDATING, 25.0, LEASE_S)
    assert not await store.claim_job((JobStatus.VALIDATING,), 50.0, LEASE_S), "it was renewed"
    await store.cancel_job("j", 51.0)
    with pytest.raises(LeaseLostError):
        await store.renew_job(job, JobStatus.VALIDATING, 51.0, LEASE_S)
    assert await store.claim_job((JobStatus.CANCELLING,), 51.0, LEASE_S), "it ends at once"


async def test_only_one_owner_ends_a_job(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    await store.finish_item(await claim(store), ItemStatus.DONE, {})
    first = await store.claim_job((JobStatus.IN_PROGRESS, JobStatus.FINALIZING), 5.0, LEASE_S)
    assert first
    assert first.status is JobStatus.FINALIZING
    second = await store.claim_job((JobStatus.IN_PROGRESS, JobStatus.FINALIZING), 50.0, LEASE_S)
    assert second
    with pytest.raises(LeaseLostError):
        await store.renew_job(first, first.status, 51.0, LEASE_S)
    with pytest.raises(LeaseLostError):
        await store.finish_job(first, JobStatus.COMPLETED, 51.0)
    second.output_file = "file-out"
    file = FileRecord("file-out", "", "batch_output", "x", 1, 51.0, 99.0)
    delivery = DeliveryRecord("evt", "j", "https://x.example", "{}", 51.0)
    await store.finish_job(second, JobStatus.COMPLETED, 51.0, files=[file], delivery=delivery)
    ended = await store.get_job("j")
    assert ended
    assert (ended.output_file, ended.times["completed"]) == ("file-out", 51.0)
    assert [due.id for due in await store.list_due_deliveries(52.0, LEASE_S)] == ["evt"]


async def test_deliveries_are_claimed_delayed_and_removed(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    await store.finish_item(await claim(store), ItemStatus.DONE, {})
    job = await store.claim_job((JobStatus.IN_PROGRESS,), 5.0, LEASE_S)
    assert job
    await store.finish_job(job, JobStatus.COMPLETED, 6.0, delivery=DeliveryRecord("evt", "j", "https://x", "{}", 6.0))
    (due,) = await store.list_due_deliveries(7.0, LEASE_S)
    assert (due.id, due.tries) == ("evt", 1)
    assert await store.list_due_deliveries(8.0, LEASE_S) == []
    await store.delay_delivery("evt", 20.0)
    assert (await store.list_due_deliveries(20.0, LEASE_S))[0].tries == 2
    await store.remove_delivery("evt")
    assert await store.list_due_deliveries(1e9, LEASE_S) == []


async def test_a_restart_changes_no_times_of_deliveries(store: JobStore) -> None:
    for id in ("late", "now"):
        job = await begin_validation(store, id)
        await store.finish_job(job, JobStatus.FAILED, 6.0, delivery=DeliveryRecord(id, id, "https://x", "{}", 6.0))
    assert len(await store.list_due_deliveries(7.0, LEASE_S)) == 2
    await store.delay_delivery("late", 500.0)
    await store.end_leases()
    assert await store.list_due_deliveries(36.9, LEASE_S) == []
    assert [(due.id, due.tries) for due in await store.list_due_deliveries(37.0, LEASE_S)] == [("now", 2)], "it was interrupted"
    await store.remove_delivery("now")
    assert await store.list_due_deliveries(499.9, LEASE_S) == []
    assert [(due.id, due.tries) for due in await store.list_due_deliveries(500.0, LEASE_S)] == [("late", 2)]


async def test_an_idempotency_key_gives_the_same_job_for_a_day(store: JobStore) -> None:
    def create_job(id: str, at: float, owner: str = "ann") -> JobRecord:
        return JobRecord(id, JobKind.RECORDING, owner, "/e", at, status=JobStatus.IN_PROGRESS, idempotency="once")

    assert (await store.add_job(create_job("a", 1.0), create_item("0"))).id == "a"
    assert (await store.add_job(create_job("b", 2.0), create_item("0"))).id == "a"
    assert (await store.find_idempotent("ann", "once", 2.0)).id == "a"
    assert (await store.add_job(create_job("c", 3.0, "ben"), create_item("0"))).id == "c"
    assert (await store.add_job(create_job("d", 2.0 + IDEMPOTENCY_S), create_item("0"))).id == "d"


async def test_pages_of_files_and_jobs(store: JobStore) -> None:
    for number in range(5):
        await store.add_file(
            FileRecord(f"file-{number}", "ann", "batch" if number % 2 else "user_data", "x", 1, float(number // 2))
        )
        await store.add_job(JobRecord(f"j{number}", JobKind.BATCH, "ann", "/e", float(number // 2)))
    await store.add_file(FileRecord("file-ben", "ben", "batch", "x", 7, 9.0))
    first = await store.list_files("ann", limit=2)
    rest = await store.list_files("ann", after=first[-1], limit=9)
    assert [file.id for file in first + rest] == ["file-4", "file-3", "file-2", "file-1", "file-0"]
    upwards = await store.list_files("ann", after=first[0], limit=9, ascending=True)
    assert upwards == []
    assert [f.id for f in await store.list_files("ann", limit=9, purpose="batch")] == ["file-3", "file-1"]
    jobs = await store.list_jobs("ann", limit=3)
    more = await store.list_jobs("ann", after=jobs[-1], limit=3)
    assert [job.id for job in jobs + more] == ["j4", "j3", "j2", "j1", "j0"]
    assert await store.get_file("file-ben", "ann") is None
    assert await store.find_files("ann", ["file-0", "file-ben", "nope"]) == {"file-0"}
    assert (await store.sum_bytes(), await store.sum_bytes("ann")) == (12, 5)


async def test_deleting_a_job_takes_what_belongs_to_it_alone(store: JobStore) -> None:
    own = FileRecord("file-own", "", "job", "x", 1, 1.0, hidden=True)
    item = NewItem("0", "tiny", AudioReference("file-own"), REQUEST)
    await store.add_job(JobRecord("j", JobKind.RECORDING, "", "/e", 1.0, status=JobStatus.IN_PROGRESS), item, own)
    claimed = await claim(store)
    await store.finish_item(claimed, ItemStatus.DONE, {}, [create_row(0)])
    await finish_all(store, "j", 10.0)
    assert await store.list_outdated_jobs(109.0, 100.0) == []
    assert await store.list_outdated_jobs(110.0, 100.0) == ["j"]
    assert await store.delete_job("j") == ["file-own"]
    assert await store.get_job("j") is None
    assert await store.list_windows("j", 0) == []


async def test_the_audio_of_a_text_expires_with_the_results_and_is_deleted_with_its_job(store: JobStore) -> None:
    job = await begin_validation(store, "j", endpoint=SPEECH_ENDPOINT)
    await store.add_items(job, 0, [NewItem("a", "tiny", request={SPEECH: {}, TEXT: "Hello."})], 1.0, LEASE_S)
    await store.start_job(job, 1.0)
    item = await claim(store)
    assert item.is_speech
    await store.finish_item(item, ItemStatus.DONE, {}, file=FileRecord("file-audio", "", OUTPUT_PURPOSE, "x", 1, 2.0))
    with pytest.raises(LeaseLostError):
        await store.finish_item(item, ItemStatus.DONE, {}, file=FileRecord("file-late", "", OUTPUT_PURPOSE, "x", 1, 2.0))
    assert await store.list_expired_files(1e9) == []
    ending = await store.claim_job((JobStatus.IN_PROGRESS,), 3.0, LEASE_S)
    assert ending
    ending.output_file = "file-out"
    output = FileRecord("file-out", "", OUTPUT_PURPOSE, "x", 1, 3.0, 50.0)
    await store.finish_job(ending, JobStatus.COMPLETED, 3.0, files=[output])
    assert sorted(await store.list_expired_files(50.0)) == ["file-audio", "file-out"]
    assert await store.delete_file("file-out")
    assert await store.list_outdated_jobs(49.9, 1.0) == [], "its audio was promised for so long"
    assert await store.list_outdated_jobs(50.0, 1.0) == ["j"]
    assert sorted(await store.delete_job("j")) == ["file-audio", "file-out"]
    assert await store.get_file("file-audio") is None
    assert await store.get_file("file-late") is None


@pytest.mark.parametrize(("life_s", "until"), [(500.0, 510.0), (20.0, 110.0)])
@pytest.mark.parametrize("kind", ["output_file", "error_file"])
async def test_a_job_is_kept_as_long_as_its_files(store: JobStore, kind: str, life_s: float, until: float) -> None:
    await add_batch(store, "j", 1)
    await store.finish_item(await claim(store), ItemStatus.DONE, {})
    job = await store.claim_job((JobStatus.IN_PROGRESS,), 9.0, LEASE_S)
    assert job
    setattr(job, kind, "file-out")
    await store.finish_job(
        job, JobStatus.COMPLETED, 10.0, files=[FileRecord("file-out", "", OUTPUT_PURPOSE, "x", 1, 10.0, 10.0 + life_s)]
    )
    assert await store.list_expired_files(9.9 + life_s) == []
    assert await store.list_expired_files(10.0 + life_s) == ["file-out"]
    assert await store.list_outdated_jobs(until - 0.1, 100.0) == []
    assert await store.list_outdated_jobs(until, 100.0) == ["j"]


async def test_the_recordings_of_a_job_that_ended_expire(store: JobStore) -> None:
    """Also those that nobody has claimed: their job was cancelled, or its input file has a mistake."""
    for id in ("cancelled", "invalid"):
        await store.add_file(FileRecord(f"file-{id}", "", "inline", "x", 1, 1.0, 500.0, hidden=True))
    await add_batch(store, "c", [create_item("cancelled")])
    await store.cancel_job("c", 5.0)
    assert await store.list_expired_files(10.0) == []
    await finish_all(store, "c", 10.0)
    assert await store.list_expired_files(10.0) == ["file-cancelled"]
    job = await begin_validation(store, "i")
    await store.add_items(job, 0, [create_item("invalid")], 11.0, LEASE_S)
    await store.finish_job(job, JobStatus.FAILED, 12.0)
    assert sorted(await store.list_expired_files(12.0)) == ["file-cancelled", "file-invalid"]


async def test_files_expire_unless_a_job_needs_them(store: JobStore) -> None:
    await store.add_file(FileRecord("file-k", "", "user_data", "x", 1, 1.0, 50.0))
    await add_batch(store, "j", [create_item("k")])
    await store.add_file(FileRecord("file-lines", "", "batch", "x", 1, 1.0, 50.0))
    await store.add_job(JobRecord("v", JobKind.BATCH, "", "/e", 1.0, input_file="file-lines"))
    assert await store.list_expired_files(50.0) == []
    assert not await store.delete_file("file-k")
    assert not await store.delete_file("file-lines")
    await store.finish_item(await claim(store), ItemStatus.DONE, {})
    await store.cancel_job("v", 2.0)
    assert await store.list_expired_files(49.9) == []
    assert sorted(await store.list_expired_files(50.0)) == ["file-k", "file-lines"]
    assert await store.delete_file("file-k")
    assert not await store.delete_file("file-k")


async def test_a_thousand_files_that_are_needed_hide_no_other(store: JobStore) -> None:
    items = [create_item(str(n)) for n in range(1000)]
    async with store.database.begin() as tx:
        for item in items:
            await insert_file(tx, FileRecord(item.source.file, "", "user_data", "x", 1, 1.0, 50.0))
    await add_batch(store, "j", items)
    await store.add_file(FileRecord("file-free", "", "user_data", "x", 1, 2.0, 50.0))
    assert await store.list_expired_files(50.0) == ["file-free"]


async def test_a_missing_file_may_be_elsewhere_if_it_has_a_record_that_servers_share(store: JobStore) -> None:
    await store.check_missing_file("file-deleted", 1.0)
    await store.add_file(FileRecord("file-1", "", "user_data", "x", 1, 1.0))
    with pytest.raises(FileElsewhereError, match="Is it mounted") if store.database.shared else nullcontext():
        await store.check_missing_file("file-1", 1.0)


async def test_what_needs_a_file_that_a_server_lacks_is_left_to_others(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.database, "shared", True)
    other = JobStore(store.database)
    await add_batch(store, "j", 2)
    first = await claim(store)
    await store.add_job(JobRecord("read", JobKind.BATCH, "", "/v1/audio/transcriptions", 1.0, input_file="file-lines"))
    for id in (first.source.file, "file-lines"):
        await store.add_file(FileRecord(id, "", "user_data", "x", 1, 1.0))
        with pytest.raises(FileElsewhereError):
            await store.check_missing_file(id, 10.0)
    await store.release_item(first)
    second = await claim(store, now=20.0)
    assert second.n != first.n
    assert await store.list_waiting_models(20.0) == []
    assert not await store.claim_item("a", 20.0, LEASE_S, model="tiny")
    assert not await store.claim_job((JobStatus.VALIDATING,), 20.0, LEASE_S)
    assert await other.list_waiting_models(20.0) == ["tiny"]
    assert (await claim(other, now=20.0)).n == first.n
    read = await other.claim_job((JobStatus.VALIDATING,), 20.0, LEASE_S)
    assert read
    assert read.id == "read"
    later = 10.0 + file_store.ELSEWHERE_S
    await store.requeue_lost_items(later)
    assert {(await claim(store, now=later)).n for _ in range(2)} == {first.n, second.n}, "it looks again"
    assert await store.claim_job((JobStatus.VALIDATING,), later, LEASE_S)


async def test_a_model_that_changed_begins_again(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    item = await claim(store)
    await store.save_windows(item, [create_row(0)], WindowCheckpoint(1, 5.0), 3.0, LEASE_S)
    await store.restart_item(item)
    assert (item.windows, item.checkpoint, await store.list_windows("j", 0)) == (0, None, [])
    await store.save_windows(item, [create_row(7)], WindowCheckpoint(1, 5.0), 3.0, LEASE_S)
    assert [n for n, _ in await store.list_windows("j", 0)] == [0]


async def test_seconds_are_summed(store: JobStore) -> None:
    await add_batch(store, "j", 2)
    first, second = await claim(store), await claim(store)
    first.duration_s, second.duration_s = 60.0, 30.0
    await store.finish_item(first, ItemStatus.DONE, {})
    await store.save_windows(second, [create_row(0)], WindowCheckpoint(1, 12.0), 3.0, LEASE_S)
    assert await store.sum_seconds("j") == (72.0, 90.0)
    assert await store.count_open_items("") == 1


async def test_many_claim_at_once_and_each_gets_another(store: JobStore) -> None:
    await add_batch(store, "j", 20)
    claimed = await asyncio.gather(*(claim(store, worker=str(n)) for n in range(20)))
    assert sorted(item.n for item in claimed) == list(range(20))


async def test_a_cancelled_write_leaves_no_transaction_open(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    item = await claim(store)
    for steps in range(12):
        task = asyncio.create_task(store.renew_leases("a", [item.name], 10.0 + steps, LEASE_S))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await store.finish_item(item, ItemStatus.DONE, {})
    assert (await finish_all(store, "j")).completed == 1


async def test_all_leases_end_at_the_start_of_a_server_that_is_alone(store: JobStore) -> None:
    await add_batch(store, "j", 1)
    item = await claim(store)
    await store.end_leases()
    assert len(await store.requeue_lost_items(3.0)) == 1
    with pytest.raises(LeaseLostError):
        await store.finish_item(item, ItemStatus.DONE, {})
