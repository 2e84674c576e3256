"""Input files of batches: long, large and wrong ones, in bounded memory."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from eardrum.api.openai.batch_lines import OpenAIBatchLines
from eardrum.config import Settings
from eardrum.errors import FileElsewhereError, error_from_json
from eardrum.gateway.models.inventory import EMBEDDED_VOICE_ID
from eardrum.gateway.service import Service
from eardrum.jobs import file_store
from eardrum.jobs.batch_files import BatchValidator
from eardrum.jobs.blobs import BlobFolder
from eardrum.jobs.database import SqliteDatabase
from eardrum.jobs.records import (
    SPEECH,
    SPEECH_ENDPOINT,
    FileRecord,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
)
from eardrum.jobs.store import MAX_TRIES, JobStore
from eardrum.speech import SpeechRequest

ENDPOINT = "/v1/audio/transcriptions"
MODELS: Any = {"upstream": {"proxy": "http://127.0.0.1:9"}}


class Validation:
    """A store with one file of audio, and validators of input files."""

    def __init__(self, store: JobStore, blobs: BlobFolder):
        self.store = store
        self.blobs = blobs
        self.count = 0

    async def validate(
        self, text: bytes, *, endpoint: str = ENDPOINT, max_items: int = 50_000, max_line: int = 1 << 20
    ) -> list[dict[str, Any]]:
        self.count += 1
        async with self.blobs.open_writer() as writer:
            await writer.write(text)
            await writer.save(f"file-{self.count}")
        job = JobRecord(f"j{self.count}", JobKind.BATCH, "", endpoint, 1.0, input_file=f"file-{self.count}")
        await self.store.add_job(job)
        return await self.validate_next(1.0, max_items, max_line)

    async def validate_next(self, now: float, max_items: int = 9, max_line: int = 1 << 20) -> list[dict[str, Any]]:
        """Claim the oldest job and validate it."""
        claimed = await self.store.claim_job((JobStatus.VALIDATING,), now, 30.0)
        assert claimed
        line_format = OpenAIBatchLines(Service(Settings(models=MODELS, default_model="upstream")))
        return await BatchValidator(self.store, self.blobs, line_format, max_items, max_line, 100.0).validate(claimed)

    async def list_items(self) -> list[ItemRecord]:
        return await self.store.list_items(f"j{self.count}", limit=100_000)


@pytest.fixture
async def validation(tmp_path: Path) -> Any:
    store, blobs = JobStore(SqliteDatabase(tmp_path / "s")), BlobFolder(tmp_path / "files", 0)
    blobs.create()
    await store.open()
    await store.add_file(FileRecord("file-audio", "", "user_data", "a.wav", 1, 1.0))
    yield Validation(store, blobs)
    await store.close()


def build_line(key: str, **body: Any) -> bytes:
    return json.dumps({"custom_id": key, "url": ENDPOINT, "body": {"file": "file-audio", **body}}).encode() + b"\n"


async def test_lines_become_items_with_whole_requests(validation: Validation) -> None:
    text = build_line("a", language="German", prompt="x") + b"\n  \n" + build_line("b", model="upstream", response_format="srt")
    assert await validation.validate(text) == []
    first, second = await validation.list_items()
    assert (first.key, first.model, first.source.file) == ("a", "upstream", "file-audio")
    assert (first.request["language"], first.request["prompt"], first.request["times"]) == ("de", "x", True)
    assert second.fields == {"model": ["upstream"], "response_format": ["srt"]}


async def test_texts_to_speak_become_items_with_a_model_and_its_voice(validation: Validation) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "plain": {"input": "Hello.", "voice": "alloy", "speed": 2, "response_format": "wav"},
        "model": {"input": "Hello.", "model": EMBEDDED_VOICE_ID},
        "empty": {"input": " "},
        "voice": {"input": "Hello.", "voice": "nobody", "model": EMBEDDED_VOICE_ID},
        "listens": {"input": "Hello.", "model": "moonshine-tiny-en"},
        "elsewhere": {"input": "Hello.", "model": "upstream"},
        "format": {"input": "Hello.", "response_format": "midi"},
        "stream": {"input": "Hello.", "stream_format": "sse"},
        "script": {"input": "Добрый день."},
    }
    lines = [json.dumps({"custom_id": key, "url": SPEECH_ENDPOINT, "body": body}) for key, body in bodies.items()]
    assert await validation.validate("\n".join(lines).encode(), endpoint=SPEECH_ENDPOINT) == []
    found = {item.key: item for item in await validation.list_items()}
    request = SpeechRequest.from_json(found["plain"].request[SPEECH])
    assert (request.speed, request.format, request.streamed, request.bulk) == (2.0, "wav", False, True)
    assert {found[key].model for key in ("plain", "model")} == {EMBEDDED_VOICE_ID}
    errors = {key: error_from_json(item.result).code for key, item in found.items() if item.status is ItemStatus.FAILED}
    assert errors == {
        "empty": "empty_text",
        "voice": "invalid_value",
        "listens": "unsupported_feature",
        "elsewhere": "unsupported_feature",
        "format": "invalid_value",
        "stream": "unsupported_feature",
        "script": "unspeakable_text",
    }


async def test_audio_in_a_line_becomes_a_file(validation: Validation) -> None:
    audio = f"data:audio/wav;base64,{base64.b64encode(b'RIFF').decode()}"
    text = json.dumps({"custom_id": "a", "body": {"file_url": audio}}).encode()
    assert await validation.validate(text) == []
    (item,) = await validation.list_items()
    assert validation.blobs.find_path(item.source.file).read_bytes() == b"RIFF"
    assert "data:" not in json.dumps([item.request, item.fields])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"file": "file-nope"}, "NotFoundError"),
        ({"file": ["x"]}, "InvalidRequestError"),
        ({"file": "file-audio", "file_url": "https://x.example/"}, "InvalidRequestError"),
        ({"file": ""}, "InvalidRequestError"),
        ({"file_url": "data:audio/wav;base64,###"}, "InvalidRequestError"),
        ({"file_url": "data:audio/wav,abc"}, "InvalidRequestError"),
        ({"file_url": "https://x.example/a.wav"}, "InvalidRequestError"),
        ({"file": "file-audio", "stream": True}, "UnsupportedFeatureError"),
        ({"file": "file-audio", "model": "nope"}, "ModelNotFoundError"),
        ({"file": "file-audio", "temperature": "hot"}, "InvalidRequestError"),
    ],
)
async def test_a_mistake_in_a_body_is_that_items_alone(validation: Validation, body: dict[str, Any], code: str) -> None:
    text = json.dumps({"custom_id": "bad", "body": body}).encode() + b"\n" + build_line("good")
    assert await validation.validate(text) == []
    bad, good = await validation.list_items()
    assert (bad.status, bad.result["error"], good.status) == ("failed", code, "queued")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[1]", "JSON object"),
        (b"[" * 100_000, "nested|JSON"),
        (b'{"custom_id": 1, "body": {}}', "custom_id"),
        (b'{"custom_id": "\\ud800", "body": {}}', "surrogate"),
        (b'{"custom_id": "a\\u0000", "body": {}}', "U+0000"),
        (b'{"custom_id": "a", "body": {"file": "f", "model": "\\u0000"}}', "U+0000"),
        (build_line("x" * 600), "512 characters"),
        (b'{"custom_id": "a", "method": "GET", "body": {}}', "method must be POST"),
        (build_line("a", prompt="x" * 2_000_000), "longer than 1,048,576 bytes"),
    ],
)
async def test_a_line_that_is_no_request_fails_the_file(validation: Validation, text: bytes, says: str) -> None:
    faults = await validation.validate(build_line("first") + text)
    assert [fault["line"] for fault in faults] == [2]
    assert any(part in faults[0]["message"] for part in says.split("|"))


async def test_lines_that_another_server_may_have_are_looked_for_again(
    validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "ELSEWHERE_S", -time.time())
    await validation.store.add_job(JobRecord("j", JobKind.BATCH, "", ENDPOINT, 1.0, input_file="file-lines"))
    validation.store.database.shared = True
    await validation.store.add_file(FileRecord("file-lines", "", "batch", "x", 1, 1.0))
    for number in range(1, MAX_TRIES):
        with pytest.raises(FileElsewhereError, match="file-lines is missing on this server"):
            await validation.validate_next(number * 100.0)
    (fault,) = await validation.validate_next(MAX_TRIES * 100.0)
    assert fault["code"] == "file_not_found"
    assert "missing on this server" in fault["message"]


async def test_lines_that_were_deleted_fail_at_once(validation: Validation) -> None:
    await validation.store.add_job(JobRecord("j", JobKind.BATCH, "", ENDPOINT, 1.0, input_file="file-lines"))
    validation.store.database.shared = True
    (fault,) = await validation.validate_next(1.0)
    assert (fault["code"], fault["message"]) == ("file_not_found", "The file file-lines was deleted.")


async def test_faults_are_counted_up_to_a_hundred(validation: Validation) -> None:
    faults = await validation.validate(b"nonsense\n" * 5000)
    assert len(faults) == 100


async def test_too_many_lines_are_refused(validation: Validation) -> None:
    faults = await validation.validate(b"".join(build_line(str(n)) for n in range(12)), max_items=10)
    assert (faults[0]["code"], faults[0]["line"]) == ("too_many_tasks", 11)


async def test_a_line_of_10_mb_is_read_past(validation: Validation) -> None:
    text = b'{"custom_id": "' + b"x" * (10 << 20) + b'"}\n' + build_line("a")
    faults = await validation.validate(text)
    assert [(fault["code"], fault["line"]) for fault in faults] == [("line_too_long", 1)]


@pytest.mark.slow
@pytest.mark.endurance
async def test_50_000_lines_are_validated(validation: Validation) -> None:
    text = b"".join(build_line(f"request-{n}") for n in range(50_000))
    assert await validation.validate(text) == []
    assert len(await validation.list_items()) == 50_000


@pytest.mark.slow
async def test_many_lines_need_little_memory(validation: Validation) -> None:
    text = b"".join(build_line(f"request-{n}", prompt="x" * 3000) for n in range(1500))
    tracemalloc.start()
    assert await validation.validate(text) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(text), "no more than a lot at a time"
