"""The records of the job store: files, jobs, their items and deliveries of webhooks. Plain data. Times are Unix times."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from eardrum.errors import JobCancelledError, JobExpiredError, RunnerCrashedError
from eardrum.transcription import Priority, TranscriptionRequest, WindowCheckpoint


class JobKind(StrEnum):
    """Kinds of jobs."""

    BATCH = "batch"
    """Lines of a file, in OpenAI's format."""
    RECORDING = "recording"


class JobStatus(StrEnum):
    """States of a job: those of OpenAI's batches."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


FINAL_STATUSES = (JobStatus.FAILED, JobStatus.COMPLETED, JobStatus.EXPIRED, JobStatus.CANCELLED)
"""States that nothing follows."""


class ItemStatus(StrEnum):
    """States of an item, which is one recording, or one text to speak, of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    """An owner has claimed it: to transcribe it, to speak it, or to fetch its audio."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN_STATUSES = (ItemStatus.QUEUED, ItemStatus.RUNNING)
"""States that others follow."""


class WebhookResult(StrEnum):
    """How an attempt to deliver a webhook has ended."""

    DELIVERED = "delivered"
    DELAYED = "delayed"
    """It failed, and there will be another one."""
    GIVEN_UP = "given_up"
    """There will be none: it was the last one, or the address refuses it."""


TURNS = "speaker_turns"
"""Key of the turns of speakers in an item's result."""

SPEECH, TEXT = "speech", "text"
"""Keys of an item's request to speak: the parameters, and the text."""

SPEECH_ENDPOINT = "/v1/audio/speech"
"""The endpoint of jobs whose items are texts; the audio of each is a separate file."""

OUTPUT_PURPOSE = "batch_output"
"""The purpose of files that jobs write."""


@dataclass(slots=True)
class FileRecord:
    """A file on the server: uploaded, or written by a job."""

    id: str
    owner: str
    purpose: str
    name: str
    bytes: int
    created_at: float
    expires_at: float | None = None
    hidden: bool = False
    """Whether it belongs to one item alone, and goes with it."""


@dataclass(slots=True)
class JobRecord:
    """A job. `body` holds the client's words: metadata, completion window, address of the webhook."""

    id: str
    kind: JobKind
    owner: str
    """Digest of the API key that made it; empty without keys."""
    endpoint: str
    created_at: float
    input_file: str = ""
    output_file: str = ""
    error_file: str = ""
    status: JobStatus = JobStatus.VALIDATING
    outcome: str = ""
    """`cancelled` or `expired` as soon as it is certain that the job will end so."""
    body: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    """When the job entered each state."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Faults of the input file."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    open_items: int = 0
    deadline: float | None = None
    """When the items that have not begun expire."""
    expires_at: float | None = None
    """When the job is deleted with its results; None: `jobs.keep` after its end, but not before the files that it has written."""
    idempotency: str | None = None
    epoch: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL_STATUSES


class AudioReference(Struct, frozen=True):
    """The place of an item's audio: a file here, or an address from which it is fetched first."""

    file: str = ""
    url: str = ""
    name: str = ""
    """The client's name for it."""


@dataclass(slots=True)
class NewItem:
    """An item that is to be added to a job. With an `error` it has failed already."""

    key: str
    """The client's name of it, unique in the job."""
    model: str = ""
    source: AudioReference = field(default_factory=AudioReference)
    request: dict[str, Any] = field(default_factory=dict)
    """The whole transcription request as JSON, with the server's defaults. A later attempt reads nothing else."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The client's fields, for the format of the answer."""
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class ItemRecord:
    """An item of a job. Code that writes to it must know its `epoch`, which grows with each claim."""

    job: str
    n: int
    key: str
    status: ItemStatus
    model: str
    source: AudioReference
    request: dict[str, Any]
    fields: dict[str, Any]
    recipe: str
    """Digest of the model's files and options that decoded the windows so far."""
    epoch: int
    tries: int
    """Claims since the last progress."""
    windows: int
    """Finished windows, each of which is a row."""
    until_s: float
    duration_s: float
    """Seconds of audio; 0 before they are known."""
    checkpoint: WindowCheckpoint | None
    result: dict[str, Any]
    """The summary of the transcript, or the error."""
    owner: str = ""
    """The job's."""

    @property
    def name(self) -> tuple[str, int]:
        """The item's identity."""
        return self.job, self.n

    @property
    def is_speech(self) -> bool:
        """Whether the item is a text to speak, and no recording."""
        return SPEECH in self.request

    def build_request(self) -> TranscriptionRequest:
        """Build the request of the next attempt, which continues after the last finished window."""
        resume = self.checkpoint.to_json() if self.checkpoint else None
        return TranscriptionRequest.from_json({**self.request, "priority": Priority.BULK, "checkpoints": True, "resume": resume})


class OpenItems(Struct, frozen=True):
    """Items of a model that wait, or that run: their number, and when the oldest of their jobs was created."""

    count: int
    oldest_at: float


class WindowRow(Struct):
    """A finished window: its segments, and what was dropped in it, as JSON."""

    segments: list[dict[str, Any]]
    dropped: list[dict[str, Any]] = []

    def to_text(self) -> str:
        """The row as text for the store."""
        return dump_json(asdict(self))


@dataclass(slots=True)
class DeliveryRecord:
    """A webhook that is to be delivered."""

    id: str
    """The same at every attempt: receivers recognise repetitions by it."""
    job: str
    url: str
    body: str
    created_at: float
    tries: int = 0


def dump_json(value: Any) -> str:
    """Write JSON compactly."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def create_file_id() -> str:
    """Create the id of a file: 128 random bits."""
    return f"file-{secrets.token_hex(16)}"


def create_job_id(kind: JobKind) -> str:
    """Create the id of a job: 128 random bits."""
    return f"{'batch' if kind is JobKind.BATCH else 'job'}_{secrets.token_hex(16)}"


def build_end_error(item: ItemRecord) -> dict[str, Any]:
    """Build the error of an item that ended without a result, as JSON."""
    match item.status:
        case ItemStatus.CANCELLED:
            return JobCancelledError("The job was cancelled before this recording was transcribed.").to_json()
        case ItemStatus.EXPIRED:
            return JobExpiredError("The job's time was over before this recording was transcribed.").to_json()
    return item.result


def build_exhausted_error(tries: int) -> dict[str, Any]:
    """Build the error of an item that was tried too often, as JSON."""
    return RunnerCrashedError(
        f"The recording was given up after {tries} tries, each of which ended without a result: the model's process died, or the "
        "server did. See the log of the server."
    ).to_json()
