"""Works on the jobs of a store: claims items for models that can take them, and validates, ends and deletes jobs.

A model is leased before an item is claimed for it. So an item that waits for a model is not claimed, and another server on the
same store may claim it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from eardrum.concurrency import run_in_background, run_until_first
from eardrum.errors import (
    BusyError,
    ConfigError,
    EardrumError,
    FetchFailedError,
    FileElsewhereError,
    ModelCoolingError,
    ModelNotFoundError,
    ModelUnloadedError,
    NoReplicaError,
    RunnerCrashedError,
    RunnerUnavailableError,
    ShuttingDownError,
    StorageFullError,
    UnauthorizedError,
    UpstreamDiedError,
    UpstreamUnreachableError,
)
from eardrum.gateway.key_usage import CURRENT_KEY, AudioMeter, check_model_allowed
from eardrum.gateway.models.inventory import UNKNOWN_LABEL, Model
from eardrum.gateway.processes.crashes import CrashSuspicion
from eardrum.gateway.processes.supervisor import ModelLease
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.remote_audio import AudioFetcher
from eardrum.jobs.batch_files import BatchValidator, write_output
from eardrum.jobs.blobs import BlobFolder
from eardrum.jobs.feed import JobFeed
from eardrum.jobs.items import LEASE_S, LOST, SHUTDOWN, RecordingRun, SpeechRun
from eardrum.jobs.line_format import BatchLineFormat
from eardrum.jobs.records import (
    OPEN_STATUSES,
    AudioReference,
    FileRecord,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
    create_file_id,
)
from eardrum.jobs.store import MAX_TRIES, JobStore, LeaseLostError
from eardrum.jobs.webhooks import WebhookSender, build_delivery
from eardrum.request_ids import set_request_id

log = logging.getLogger(__name__)

SAVE_S = 1.0
"""Seconds after which the finished windows of what runs are saved, if they are due."""
RENEW_S = 5.0
"""Seconds after which leases are renewed."""
POLL_S, SHARED_POLL_S = 15.0, 2.0
"""Longest time between looks at the store; at a shared one, since another server may have added to it, or died."""
SWEEP_S = 60.0
SWEEPS_TO_ORPHANS = 60
"""Files without a record are looked for at one sweep of so many."""
MAX_PAUSE_S = 60.0
HOLD_S = 30.0
"""Longest time that a recording that was fetched from a bucket waits for its model; after it, the recording is released."""
MAX_CRASHES_ALONE = 3
"""Crashes that prove that a recording causes them: those while the process served no other. A client's request is given up after
two crashes, if it was alone at one. One may be an accident, and no client waits for a recording of a job."""
MAX_FETCHED = 8
"""Recordings of a model that were fetched from their addresses and wait on disk."""
MAX_FETCHES = 4
"""Recordings that are being fetched: a slow address must not keep all others waiting."""

TRANSIENT_ERRORS = (
    *(BusyError, ModelCoolingError, ModelUnloadedError, ShuttingDownError, StorageFullError, UpstreamUnreachableError),
    *(NoReplicaError, RunnerUnavailableError),  # no runner has taken the recording
    ConfigError,  # the bucket of the recordings refuses the server
)
"""Errors that say nothing about the recording: an attempt that ended so is no try."""


INTERRUPTIBLE = ("validate", "finish", "webhooks", "sweep")
"""Tasks that a shutdown cancels: the next server does their work again."""


class JobWorker:
    """The worker of one server."""

    def __init__(
        self, service: Service, store: JobStore, blobs: BlobFolder, line_format: BatchLineFormat, feed: JobFeed, name: str
    ):
        self._service = service
        self._settings = service.settings.jobs
        self._store = store
        self._blobs = blobs
        self._line_format = line_format
        self._feed = feed
        self._name = name
        self._sender = WebhookSender(store, service.metrics.job_webhooks)
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: dict[str, set[asyncio.Task[None]]] = defaultdict(set)
        """Running tasks by what they do; slots by their model."""
        self._running: set[RecordingRun | SpeechRun] = set()
        self._suspicions: dict[tuple[str, int], CrashSuspicion] = {}
        """The crashes of items that were present at one."""
        self._waiting: set[asyncio.Task[object]] = set()
        """Slots that wait for their model, and have no item."""
        self._poll_s = SHARED_POLL_S if store.database.shared else POLL_S
        self._sweeps = 0
        self._sweep_at = 0.0

    def wake(self) -> None:
        """Look at the store now: something was added to it."""
        self._wake.set()

    def stop_job(self, id: str, reason: str) -> None:
        """Stop the items of a job that run here."""
        for run in self._running:
            if run.item.job == id:
                run.stop(reason)

    def begin_shutdown(self) -> None:
        """Give back all items, with what is finished of them."""
        self._closing.set()
        self._wake.set()
        for run in self._running:
            run.stop(SHUTDOWN)
        interruptible = [task for kind, group in self._tasks.items() for task in group if kind in INTERRUPTIBLE]
        for task in (*interruptible, *self._waiting):
            task.cancel()

    async def run(self) -> None:
        """Work until the shutdown, and until everything is given back."""
        renewing = asyncio.create_task(self._renew_leases())
        try:
            while not self._closing.is_set():
                self._wake.clear()
                pause = await self._start_due_work()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
            if tasks := [task for group in self._tasks.values() for task in group]:
                await asyncio.wait(tasks)
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _start_due_work(self) -> float:
        """Start everything that is due; returns the seconds until something else is."""
        now = time.time()
        try:
            for name, status in await self._store.requeue_lost_items(now):
                if status not in OPEN_STATUSES:
                    self._count_end(name, status)
            for id in await self._store.expire_jobs(now):
                self.stop_job(id, ItemStatus.EXPIRED)
            await self._start_job_tasks(now)
            await self._start_slots(now)
            if len(self._tasks.get("fetch", ())) < MAX_FETCHES:
                self._start("fetch", self._fetch_audio())
            self._start_single("webhooks", self._sender.send_due(self._settings))
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_S
                self._start_single("sweep", self._sweep())
            next_at = await self._store.find_next_time(now)
        except EardrumError as error:
            log.error("The store of jobs cannot be used now: %s", error.message)
            return self._poll_s
        except Exception:
            log.exception("Work on the jobs could not be started.")
            return self._poll_s
        return min(self._poll_s, max(0.1, next_at - time.time())) if next_at else self._poll_s

    async def _start_job_tasks(self, now: float) -> None:
        while job := await self._store.claim_job((JobStatus.VALIDATING,), now, LEASE_S):
            self._start("validate", self._validate(job))
        ready = (JobStatus.IN_PROGRESS, JobStatus.FINALIZING, JobStatus.CANCELLING)
        while job := await self._store.claim_job(ready, now, LEASE_S):
            self._start("finish", self._finish(job))

    async def _start_slots(self, now: float) -> None:
        for model in await self._store.list_waiting_models(now, excluded_owners=self._list_paused_owners()):
            for _ in range(self._count_free_slots(model)):
                self._start(f"slot {model}", self._run_slot(model))

    def _count_free_slots(self, model: str) -> int:
        """Return how many more items of a model may be worked on now.

        Each replica that takes work adds `jobs.max_concurrency`, as long as clients have half of the requests that the model may
        hold for themselves. On Ray it is as many as keep the replicas, and one more, so that Ray starts another one.
        """
        slots = one = self._settings.max_concurrency
        for status in self._service.list_processes():
            if status.model.id == model and status.replicas:
                from eardrum.gateway.upstreams.replicas import ReplicaState

                ready = sum(replica.state is ReplicaState.READY for replica in status.replicas)
                every = one * ready
                if status.model.runs_on_ray and status.model.entry:
                    every = max(one, status.model.entry.replicas.target_requests) * ready + 1
                most = status.model.scheduling.max_requests
                slots = max(one, min(every, most // 2) if most else every)
        return slots - len(self._tasks.get(f"slot {model}", ()))

    def _start(self, kind: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[kind].add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks[kind].discard(task)
            if not self._tasks[kind]:
                del self._tasks[kind]
            if not task.cancelled():
                _log_failure(task.exception())

        task.add_done_callback(end)

    def _start_single(self, kind: str, work: Coroutine[None, None, None]) -> None:
        """Start the work, unless some of this kind runs."""
        if self._tasks.get(kind):
            work.close()
        else:
            self._start(kind, work)

    async def _renew_leases(self) -> None:
        """Save the finished windows of what runs, and renew its leases, every now and then."""
        renew_at = 0.0
        while True:
            await asyncio.sleep(SAVE_S)
            try:
                for run in list(self._running):
                    try:
                        await run.save()
                    except LeaseLostError:
                        run.stop(LOST)
                if self._running and time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + RENEW_S
                    names = [run.item.name for run in self._running]
                    for id in await self._store.renew_leases(self._name, names, time.time(), LEASE_S):
                        job = await self._store.get_job(id)
                        self.stop_job(id, job.outcome if job and job.outcome else LOST)
            except EardrumError as error:
                log.error("The store of jobs cannot be used now: %s", error.message)
            except Exception:
                log.exception("The leases of jobs could not be renewed.")

    # Items

    def _list_paused_owners(self) -> list[str]:
        """List the owners whose keys have used up their audio for now."""
        return [usage.settings.digest.hex() for usage in self._service.api_keys if usage.find_audio_wait()]

    async def _claim(self, model: str | None, *, excluded_models: Sequence[str] = ()) -> ItemRecord | None:
        if self._closing.is_set():
            return None
        owners = self._list_paused_owners()
        return await self._store.claim_item(
            self._name, time.time(), LEASE_S, model=model, excluded_owners=owners, excluded_models=excluded_models
        )

    async def _run_slot(self, name: str) -> None:
        """Transcribe the items of one model, one after another, until none waits."""
        while not self._closing.is_set():
            CURRENT_KEY.set(None)  # that of the item before, or of the request that opened the store
            try:
                model = await self._service.ensure_fetched(self._service.catalog.find_model(name))
                if not await self._serve_next(name, model):
                    return
            except ModelNotFoundError as error:
                await self._fail_items(name, error)
                return
            except EardrumError as error:  # the model cannot be had, whatever the recording
                longest = MAX_PAUSE_S if isinstance(error, FileElsewhereError) else MAX_PAUSE_S / 4  # others claim it meanwhile
                pause = min(error.retry_after or longest, MAX_PAUSE_S)
                log.warning("The jobs of %s are paused for %.0f s: %s", name, pause, error.message)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                self._wake.set()
                return

    async def _fail_items(self, name: str, error: EardrumError) -> None:
        """Fail all items of a model that does not exist any more."""
        while item := await self._claim(name):
            await self._store.finish_item(item, ItemStatus.FAILED, error.to_json())
            await self._end_item(item, ItemStatus.FAILED)

    async def _serve_next(self, name: str, model: Model) -> bool:
        """Transcribe the next item, if one waits for the model.

        Raises:
            EardrumError: the model cannot be used.
        """
        suspicion = CrashSuspicion(MAX_CRASHES_ALONE, min_crashes_alone=MAX_CRASHES_ALONE)
        run: RecordingRun | SpeechRun | None = None
        error: EardrumError | None = None
        try:
            try:
                async with self._hold(model, suspicion) as lease:
                    if not (item := await self._claim(name)):
                        return False
                    run = self._begin_run(item)
                    if not (is_later := self._needs_own_lease(item)):
                        async with run.open_audio(self._blobs):
                            await self._attempt(run, lease, model)
                if is_later:
                    suspicion = self._suspicions.get(item.name, suspicion)
                    await self._attempt_later(run, model, suspicion)
            except EardrumError as caught:
                error = caught
                if run is None:
                    raise
            except LeaseLostError:
                assert run
                run.stop(LOST)
            assert run is not None
            if suspicion.crashes:
                self._suspicions[run.item.name] = suspicion
            await self._settle(run, error, suspicion)
        finally:
            if run is not None:  # whatever happened: its lease must not be renewed any longer
                self._running.discard(run)
        if isinstance(error, TRANSIENT_ERRORS) and not run.stop_reason:
            raise error  # the next recording would fare no better now
        return True

    def _needs_own_lease(self, item: ItemRecord) -> bool:
        """Whether the lease under which the item was claimed is not the one for its attempt.

        A recording in a bucket is fetched while nothing is leased. One that a process died of is served alone.
        """
        return item.name in self._suspicions or (self._blobs.is_remote and not item.is_speech)

    async def _attempt_later(self, run: RecordingRun | SpeechRun, model: Model, suspicion: CrashSuspicion) -> None:
        """Fetch the audio of a claimed item, and attempt the item under a lease of its own.

        Raises:
            BusyError: the model cannot be had soon.
        """
        within_s = None if run.item.name in self._suspicions else HOLD_S
        async with run.open_audio(self._blobs):
            try:
                async with asyncio.timeout(within_s) as limit, self._service.lease_model(model, suspicion) as lease:
                    limit.reschedule(None)
                    await self._attempt(run, lease, model)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise BusyError(f"{model.id} is busy with other requests.", retry_after=1.0) from None

    def _begin_run(self, item: ItemRecord) -> RecordingRun | SpeechRun:
        run = SpeechRun(item, self._store) if item.is_speech else RecordingRun(item, self._store, self._feed.publish)
        self._running.add(run)
        if self._closing.is_set():
            run.stop(SHUTDOWN)
        return run

    @asynccontextmanager
    async def _hold(self, model: Model, suspicion: CrashSuspicion) -> AsyncIterator[ModelLease]:
        """Lease a model. A shutdown cancels the wait for it."""
        task = asyncio.current_task()
        assert task
        self._waiting.add(task)
        try:
            async with self._service.lease_model(model, suspicion) as lease:
                self._waiting.discard(task)
                if model.is_replicated and self._count_free_slots(model.id) > 0:
                    self.wake()  # how many replicas there are is known once the model is loaded
                yield lease
        finally:
            self._waiting.discard(task)

    async def _attempt(self, run: RecordingRun | SpeechRun, lease: ModelLease, model: Model) -> None:
        """Work on an item as its job's key would."""
        item = run.item
        set_request_id(f"{item.job}/{item.n}")
        usage = self._service.api_keys.find_owner(item.owner)
        CURRENT_KEY.set(usage)
        run.on_progress = lease.confirm_progress  # else a long recording would be blamed for crashes hours apart
        run.on_transcribed = lease.mark_idle
        run.on_audio = partial(self._count_audio, item.model, AudioMeter(charged_s=item.until_s))
        if item.owner and not usage:
            raise UnauthorizedError("The API key of this job is no longer in the server's config.")
        check_model_allowed(model.id, model.aliases)
        await run.attempt(lease.upstream, self._service, model, self._blobs)

    def _count_audio(self, model: str, meter: AudioMeter, until_s: float) -> None:
        """Charge finished audio to the key of its job, and count it."""
        self._service.metrics.job_audio[model] += meter.charge_until(until_s)

    async def _settle(self, run: RecordingRun | SpeechRun, error: EardrumError | None, suspicion: CrashSuspicion) -> None:
        """Write down how an attempt has ended."""
        item = run.item
        status = ItemStatus.FAILED
        try:
            if run.summary:
                await run.finish()
                status = ItemStatus.DONE
            elif run.stop_reason == LOST:
                return
            else:
                await run.save(all=True)
                if run.stop_reason in (ItemStatus.CANCELLED, ItemStatus.EXPIRED):
                    status = ItemStatus(run.stop_reason)
                    await self._store.finish_item(item, status, {})
                elif run.stop_reason == SHUTDOWN:
                    await self._store.release_item(item, counts=False)
                    return
                else:
                    assert error
                    if not await self._settle_failure(item, error, is_proven=suspicion.is_proven):
                        return
        except LeaseLostError:
            log.info("Another server took over item %d of job %s.", item.n, item.job)
            return
        await self._end_item(item, status)

    async def _settle_failure(self, item: ItemRecord, error: EardrumError, *, is_proven: bool) -> bool:
        """Let a failed item be tried again, or end it; returns whether it has ended."""
        now = time.time()
        if isinstance(error, TRANSIENT_ERRORS) and not isinstance(error, FileElsewhereError):  # which may be nowhere
            await self._store.release_item(item, counts=False, not_before=now + (error.retry_after or 5.0))
            return False
        is_crash = isinstance(error, RunnerCrashedError) and not isinstance(error, UpstreamDiedError)
        is_fatal = error.status < 500 or item.tries >= MAX_TRIES or (is_crash and is_proven)
        if not is_fatal:
            log.warning("Item %d of job %s is tried again: %s", item.n, item.job, error.message)
            pause = 0.0 if is_crash else min(2.0**item.tries, MAX_PAUSE_S)
            await self._store.release_item(item, not_before=now + pause)
            return False
        log.warning("Item %d of job %s failed: %s", item.n, item.job, error.message)
        await self._store.finish_item(item, ItemStatus.FAILED, error.to_json())
        return True

    async def _end_item(self, item: ItemRecord, status: ItemStatus) -> None:
        """Count an item that has ended, and clean up after it."""
        self._count_end(item.model, status)
        self._suspicions.pop(item.name, None)
        if await self._store.take_item_file(item):
            await self._blobs.remove(item.source.file)
        self._feed.publish(item.job)
        self.wake()

    def _count_end(self, name: str, status: ItemStatus) -> None:
        """Count an item that has ended, under the label of its model."""
        known = self._service.catalog.has_name(name)  # without a search for it on the disk
        self._service.metrics.job_recordings[name if known else UNKNOWN_LABEL, status] += 1

    # Audio at addresses

    async def _fetch_audio(self) -> None:
        """Fetch the audio of items that have an address instead of a file, ahead of their turn but not by much.

        Items that cannot begin now, as their model or their owner has to wait, keep no others from being fetched.
        """
        while not self._closing.is_set():
            stocked = await self._store.list_stocked_models(MAX_FETCHED, excluded_owners=self._list_paused_owners())
            if not (item := await self._claim(None, excluded_models=stocked)):
                return
            if not await self._fetch_item(item):
                return

    async def _fetch_item(self, item: ItemRecord) -> bool:
        """Fetch the audio of a claimed item; returns whether others may be fetched now."""
        now = time.time()
        file = FileRecord(create_file_id(), item.owner, "fetched", item.source.url[:200], 0, now, hidden=True)
        run = self._begin_run(item)
        try:
            await run_until_first(self._download(item, file), run.stopped.wait())
            if not file.bytes and run.stopped.is_set():
                await self._store.release_item(item, counts=False)
                return True
            await self._store.add_file(file)
            source = AudioReference(file.id, item.source.url, item.source.name)
            await self._store.release_item(item, counts=False, source=source)
        except EardrumError as error:
            await self._settle_fetch_failure(item, error)
            if isinstance(error, TRANSIENT_ERRORS):
                return False  # the next one would fare no better now
        finally:
            self._running.discard(run)
        self.wake()
        return True

    async def _download(self, item: ItemRecord, file: FileRecord) -> None:
        async with self._blobs.open_writer() as writer:
            await AudioFetcher(self._service.settings.limits).fetch_into(item.source.url, writer)
            await writer.save(file.id)
        file.expires_at = file.created_at + self._settings.keep
        file.bytes = writer.size

    async def _settle_fetch_failure(self, item: ItemRecord, error: EardrumError) -> None:
        if isinstance(error, FetchFailedError) and item.tries < MAX_TRIES:
            await self._store.release_item(item, not_before=time.time() + min(2.0**item.tries, MAX_PAUSE_S))
        elif await self._settle_failure(item, error, is_proven=False):
            await self._end_item(item, ItemStatus.FAILED)

    # Jobs

    @asynccontextmanager
    async def _keep_claim(self, job: JobRecord) -> AsyncIterator[None]:
        """Renew the claim of a job for the block. A bucket may need more than the time of a lease for one file of a batch."""
        status = job.status

        async def renew() -> None:
            with suppress(LeaseLostError):  # what the block writes is void then
                while True:
                    await asyncio.sleep(RENEW_S)
                    with suppress(EardrumError):
                        await self._store.renew_job(job, status, time.time(), LEASE_S)

        async with run_in_background(renew()):
            yield

    async def _validate(self, job: JobRecord) -> None:
        async with self._keep_claim(job):
            await self._validate_claimed(job)
        self._feed.publish(job.id)
        self.wake()

    async def _validate_claimed(self, job: JobRecord) -> None:
        usage = self._service.api_keys.find_owner(job.owner)
        CURRENT_KEY.set(usage)
        settings = self._settings
        validator = BatchValidator(
            self._store,
            self._blobs,
            self._line_format,
            settings.max_items,
            self._service.settings.limits.json_bytes,
            settings.keep,
            max_open=usage.settings.max_job_items if usage else None,
        )
        if faults := await validator.validate(job):
            delivery = build_delivery(job, JobStatus.FAILED, time.time())
            await self._store.finish_job(job, JobStatus.FAILED, time.time(), errors=faults, delivery=delivery)
        else:
            await self._store.start_job(job, time.time())

    async def _finish(self, job: JobRecord) -> None:
        """End a job whose items have ended."""
        async with self._keep_claim(job):
            await self._finish_claimed(job)
        self._feed.publish(job.id)
        self.wake()

    async def _finish_claimed(self, job: JobRecord) -> None:
        status = JobStatus(job.outcome) if job.outcome else JobStatus.COMPLETED
        files: list[FileRecord] = []
        if job.kind is JobKind.BATCH:
            files = await write_output(self._store, self._blobs, self._line_format, job, self._settings.keep)
        elif item := await self._store.get_item(job.id):
            status = JobStatus.FAILED if item.status is ItemStatus.FAILED else status
            status = JobStatus.COMPLETED if item.status is ItemStatus.DONE else status
        now = time.time()
        await self._store.finish_job(job, status, now, files=files, delivery=build_delivery(job, status, now))
        log.info("Job %s has ended: %s, %d of %d recordings.", job.id, status, job.completed, job.total)

    async def _sweep(self) -> None:
        """Delete what is not kept any longer."""
        now = time.time()
        for id in await self._store.list_outdated_jobs(now, self._settings.keep):
            for file in await self._store.delete_job(id):
                await self._blobs.remove(file)
        for file in await self._store.list_expired_files(now):
            if await self._store.delete_file(file):
                await self._blobs.remove(file)
        self._sweeps += 1
        if self._sweeps % SWEEPS_TO_ORPHANS == 1:
            await self._blobs.remove_orphans(await self._store.list_file_ids())


def _log_failure(error: BaseException | None) -> None:
    """Log how a task has failed. Its work is done again: at once, or when its lease is over."""
    match error:
        case None:
            pass
        case LeaseLostError():
            log.info("A job was cancelled, or another server took it over.")
        case EardrumError():
            log.error("Work on the jobs failed, and is repeated later: %s", error.message)
        case _:
            log.error("Work on the jobs failed.", exc_info=error)
