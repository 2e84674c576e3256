"""Attempts at one claimed item: a text to speak, or a recording, whose windows are saved in groups.

Another attempt at a recording continues after the last group.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from eardrum import __version__
from eardrum.concurrency import drop_error, run_until_first
from eardrum.errors import CancelledRequestError, InvalidRequestError
from eardrum.gateway.metrics import SpeechTimer
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.speaker_labels import label_segments
from eardrum.gateway.spool import AudioSource, StoredFile
from eardrum.gateway.upstreams import Upstream
from eardrum.jobs.blobs import BlobFolder
from eardrum.jobs.records import (
    OUTPUT_PURPOSE,
    SPEECH,
    TEXT,
    TURNS,
    FileRecord,
    ItemRecord,
    ItemStatus,
    WindowRow,
    create_file_id,
)
from eardrum.jobs.store import JobStore
from eardrum.speakers import SpeakerTurns
from eardrum.speech import SpeechRequest, SpeechSummary
from eardrum.transcription import (
    AudioOpened,
    DroppedText,
    Segment,
    Transcript,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)

LOT_WINDOWS, LOT_S = 10, 2.0
"""Finished windows are saved once there are so many, or so many seconds after the first of them: a server that is killed loses
no more than these."""

LEASE_S = 30.0
"""An item whose owner has not renewed its claim for so long is claimed by another one."""

SHUTDOWN, LOST = "shutdown", "lost"
"""Reasons to stop an item before the end of its job: the server stops; another owner has the item."""

RESTARTED = "The model was changed while this recording was being transcribed, so it was transcribed again from the start."


class ItemRun:
    """One attempt at an item, which holds its lease until the attempt ends or is stopped."""

    def __init__(self, item: ItemRecord, store: JobStore):
        self.item = item
        self.stopped = asyncio.Event()
        self.stop_reason = ""
        self.on_progress: Callable[[], None] = lambda: None
        """Called when the model has done some of the work."""
        self.on_transcribed: Callable[[], None] = lambda: None
        """Called when the model has done all of the work, and the attempt continues without it."""
        self.on_audio: Callable[[float], None] = lambda _: None
        """Called with the time in the audio, in seconds, up to which it is finished and saved."""
        self._store = store

    def stop(self, reason: str) -> None:
        """End the attempt, for the state in which its job ends, or another reason."""
        self.stop_reason = self.stop_reason or reason
        self.stopped.set()

    @asynccontextmanager
    async def open_audio(self, blobs: BlobFolder) -> AsyncIterator[None]:
        """Have the recording on this machine for the block, in which the attempt is made. A text has none."""
        yield

    def _make_stop_error(self) -> CancelledRequestError:
        return CancelledRequestError(f"The attempt was stopped: {self.stop_reason}.")

    async def save(self, *, all: bool = False) -> None:
        """Save the finished part, if there is enough of it or all is wanted, for another attempt to continue after it.

        Raises:
            LeaseLostError: another owner has the item.
        """


class RecordingRun(ItemRun):
    """One attempt at the recording of an item."""

    def __init__(self, item: ItemRecord, store: JobStore, on_saved: Callable[[str], None] = lambda _: None):
        super().__init__(item, store)
        self.summary: TranscriptionSummary | None = None
        """The summary, once the attempt has succeeded."""
        self.turns: SpeakerTurns | None = None
        """Who speaks when, if that was asked."""
        self.warnings: list[str] = []
        self.rows: list[WindowRow] = []
        """Finished windows that are not saved yet."""
        self._on_saved = on_saved
        self._audio: AudioSource
        self._saving = asyncio.Lock()
        self._checkpoint: WindowCheckpoint | None = None
        self._oldest = 0.0
        """When the first of the rows came, on the monotonic clock."""

    @asynccontextmanager
    async def open_audio(self, blobs: BlobFolder) -> AsyncIterator[None]:
        """Have the recording on this machine for the block. If it has to be fetched, `stop` ends that.

        Raises:
            CancelledRequestError: the attempt was stopped.
            InvalidRequestError: the recording was deleted.
            FileElsewhereError: it is not on this server.
            EardrumError: it cannot be fetched.
        """
        id = self.item.source.file
        paths: list[Path] = []
        async with AsyncExitStack() as stack:

            async def fetch() -> None:
                paths.append(await stack.enter_async_context(blobs.open_copy(id)))

            try:
                await run_until_first(fetch(), self.stopped.wait())
            except FileNotFoundError:
                await self._store.check_missing_file(id, time.time())
                raise InvalidRequestError(f"The audio {id} was deleted before it was transcribed.", param="file") from None
            if not paths:
                raise self._make_stop_error()
            self._audio = StoredFile(paths[0])
            yield

    async def attempt(self, upstream: Upstream, service: Service, model: Model, blobs: BlobFolder) -> None:
        """Transcribe what is left, until the end or until `stop`, in a block of `open_audio`.

        Raises:
            CancelledRequestError: the attempt was stopped.
            EardrumError: the attempt failed.
            LeaseLostError: another owner has the item.
        """
        recipe = compute_recipe(model)
        if self.item.windows and self.item.recipe != recipe:
            await self._store.restart_item(self.item)
            self.warnings.append(RESTARTED)
        self.item.recipe = recipe
        request = service.prepare_request(model, self.item.build_request())
        if model.is_external:
            request = replace(request, extra=tuple((name, value) for name, value in self.item.request.get("upstream", ())))
        with service.metrics.measure_transcription(model.id) as timer:
            await run_until_first(self._run(upstream, service, request), self.stopped.wait())
            if not self.summary:
                raise self._make_stop_error()
            self.summary.model = model.id
            timer.record_summary(self.summary)

    async def _run(self, upstream: Upstream, service: Service, request: TranscriptionRequest) -> None:
        summary = await self._consume(upstream, request)
        if summary and request.speakers:
            self.on_transcribed()  # the speakers' model may need the memory
            self.turns = await service.find_turns(request, self._audio)
        self.summary = summary

    async def finish(self) -> None:
        """End the item of an attempt that has succeeded.

        Raises:
            LeaseLostError: another owner has the item.
        """
        assert self.summary
        result = self.summary.to_json() | ({TURNS: self.turns.to_json()} if self.turns else {})
        async with self._saving:  # the windows that are being saved come first
            await self._store.finish_item(self.item, ItemStatus.DONE, result, self.rows)
        self.on_audio(self.summary.duration)

    async def _consume(self, upstream: Upstream, request: TranscriptionRequest) -> TranscriptionSummary | None:
        segments: list[dict[str, Any]] = []
        async with aclosing(upstream.transcribe(request, self._audio)) as events:
            async for event in events:
                if isinstance(event, AudioOpened):
                    self.item.duration_s = event.duration or 0.0
                elif isinstance(event, Segment):
                    segments.append(event.to_json())
                elif isinstance(event, WindowCheckpoint):
                    self._add_row(WindowRow(segments, [dropped.to_json() for dropped in event.dropped]), event)
                    segments = []
                    self.on_progress()
                    await self.save()
                elif isinstance(event, TranscriptionSummary):
                    if segments or (event.dropped and not self._checkpoint):
                        self._add_row(WindowRow(segments, [dropped.to_json() for dropped in event.dropped]), None)
                    self.item.duration_s = event.duration
                    return replace(event, dropped=[], warnings=[*self.warnings, *event.warnings])
        return None

    def _add_row(self, row: WindowRow, checkpoint: WindowCheckpoint | None) -> None:
        self._oldest = self._oldest if self.rows else time.monotonic()
        self.rows.append(row)
        self._checkpoint = replace(checkpoint, dropped=()) if checkpoint else None

    async def save(self, *, all: bool = False) -> None:
        """Save the finished windows, if they are enough for a group or all are wanted. It continues if its caller is cancelled:
        else it would be unknown whether they are saved.

        Raises:
            LeaseLostError: another owner has the item.
        """
        saving = asyncio.ensure_future(self._save(all=all))
        saving.add_done_callback(drop_error)  # the caller may have been cancelled
        await asyncio.shield(saving)

    async def _save(self, *, all: bool) -> None:
        async with self._saving:
            is_due = len(self.rows) >= LOT_WINDOWS or time.monotonic() - self._oldest >= LOT_S
            is_due = is_due or self.item.tries > 1  # the attempt before had no progress, and this one may be as short
            if not self.rows or not self._checkpoint or self.summary or not (all or is_due):
                return
            rows, checkpoint = list(self.rows), self._checkpoint
            await self._store.save_windows(self.item, rows, checkpoint, time.time(), LEASE_S)
            del self.rows[: len(rows)]  # not before: a store that is busy gets them again
            self.on_audio(checkpoint.until)
            self._on_saved(self.item.job)


class SpeechRun(ItemRun):
    """One attempt at speaking the text of an item. Nothing is kept of one that did not reach the end."""

    def __init__(self, item: ItemRecord, store: JobStore):
        super().__init__(item, store)
        self.summary: SpeechSummary | None = None
        """The summary, once the attempt has succeeded."""
        self._file: FileRecord | None = None
        """The audio, once it is on the disk."""

    async def attempt(self, upstream: Upstream, service: Service, model: Model, blobs: BlobFolder) -> None:
        """Speak the text, until the end or until `stop`.

        Raises:
            CancelledRequestError: the attempt was stopped.
            EardrumError: the attempt failed.
        """
        with service.metrics.measure_speech(model.id) as timer:
            await run_until_first(self._run(upstream, blobs, timer), self.stopped.wait())
            if not self.summary:
                raise self._make_stop_error()
            timer.record_summary(self.summary)

    async def _run(self, upstream: Upstream, blobs: BlobFolder, timer: SpeechTimer) -> None:
        request = SpeechRequest.from_json(self.item.request[SPEECH])
        summary: SpeechSummary | None = None
        async with blobs.open_writer() as writer:
            async with aclosing(upstream.speak(request, self.item.request[TEXT])) as events:
                async for event in events:
                    if isinstance(event, bytes):
                        timer.record_audio()
                        await writer.write(event)
                        self.on_progress()
                    elif isinstance(event, SpeechSummary):
                        summary = event
            name = f"{self.item.job}_{self.item.n}.{request.format}"
            file = FileRecord(create_file_id(), self.item.owner, OUTPUT_PURPOSE, name, writer.size, time.time())
            await writer.save(file.id)
        self._file, self.summary = file, summary

    async def finish(self) -> None:
        """End the item of an attempt that has succeeded, and record its audio. The file expires once its job has ended.

        Raises:
            LeaseLostError: another owner has the item.
        """
        assert self.summary
        assert self._file
        self.item.duration_s = self.summary.duration
        result = {**self.summary.to_json(), "file": self._file.id, "bytes": self._file.bytes}
        await self._store.finish_item(self.item, ItemStatus.DONE, result, file=self._file)
        self.on_audio(self.summary.duration)


def compute_recipe(model: Model) -> str:
    """Compute a digest of everything that decides a model's texts, as far as it is known here."""
    parts = {
        "version": __version__,
        "id": model.id,
        "engine": model.engine,
        "source": str(model.source or ""),
        "changed": model.created,
        "options": model.options,
        "python": model.python,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


async def load_transcript(store: JobStore, item: ItemRecord) -> Transcript:
    """Load the transcript of an item, as far as it is finished."""
    segments: list[Segment] = []
    dropped: list[DroppedText] = []
    after = -1
    while rows := await store.list_windows(item.job, item.n, after=after):
        for _, row in rows:
            segments += [Segment.from_json(segment) for segment in row.segments]
            dropped += [DroppedText.from_json(text) for text in row.dropped]
        after = rows[-1][0]
    if item.status is ItemStatus.DONE:
        summary = TranscriptionSummary.from_json(item.result)
        if TURNS in item.result:
            turns = SpeakerTurns.from_json(item.result[TURNS])
            segments = await asyncio.to_thread(label_segments, segments, turns.turns, {})
    else:
        summary = TranscriptionSummary(language=_find_language(item), duration=item.until_s, model=item.model)
    return Transcript(segments, replace(summary, dropped=dropped))


def _find_language(item: ItemRecord) -> str:
    spoken = dict(item.checkpoint.spoken) if item.checkpoint else {}
    return str(item.request.get("language") or max(spoken, key=spoken.__getitem__, default=""))
