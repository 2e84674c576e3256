"""`/api/jobs`: one recording as a durable job, with its progress and its result in any format. Batches are listed, too."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from eardrum.api import openapi, request_body
from eardrum.api.asgi import (
    Receive,
    Scope,
    Send,
    build_stream_headers,
    encode_event,
    get_header,
    has_query_flag,
    receive_disconnect,
)
from eardrum.api.fields import WHOLE, Between, RequestModel, Text, describe_form, parse_json_text
from eardrum.api.openai import responses
from eardrum.api.openai.batch_lines import TASKS, URL_PREFIXES, fill_item, parse_item_params, pop_audio, resolve_item
from eardrum.api.openai.batches import Metadata, describe_batch, find_job, find_repeated, read_idempotency_key
from eardrum.api.openai.files import MAX_LIFE_S, MAX_NAME_CHARS, MIN_LIFE_S, build_page, find_file
from eardrum.api.openai.params import TranscriptionForm, flatten_json
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_body import RequestBody
from eardrum.api.uploads import FormFields, MultipartForm, get_media_type
from eardrum.errors import ConflictError, InvalidRequestError, UnsupportedMediaTypeError, error_from_json
from eardrum.gateway.service import Service
from eardrum.jobs.manager import JobManager, OpenJobs, get_owner
from eardrum.jobs.records import (
    FINAL_STATUSES,
    OPEN_STATUSES,
    AudioReference,
    FileRecord,
    ItemRecord,
    ItemStatus,
    JobKind,
    JobRecord,
    JobStatus,
    NewItem,
    WindowRow,
    build_end_error,
    create_file_id,
    create_job_id,
)

MAX_WAIT_S = 300
MAX_LISTED, DEFAULT_LISTED = 1000, 100
HEARTBEAT_S = 15.0
"""Seconds after which a silent stream says that it is still there."""

DEADLINE_S = 30 * 24 * 3600.0
"""Seconds after which a recording that could not begin expires."""

TASK_ENDPOINTS = {str(task): endpoint for endpoint, task in TASKS.items()}


class JobFields(RequestModel):
    """The fields of a job besides those of a transcription."""

    task: Annotated[str, Field(pattern="^(transcribe|translate)$")] = Field("transcribe", description="transcribe, or translate.")
    metadata: Metadata | None = Field(None, description="Up to 16 names and values of your own, as JSON.")
    webhook_url: Text = Field("", description="Address that gets a webhook when the job has ended.")
    expires_after: Annotated[int | None, Between(MIN_LIFE_S, MAX_LIFE_S, WHOLE)] = Field(
        None, description="Seconds after which the job and its result are deleted; unset: `jobs.keep` after its end."
    )


class JobListQuery(RequestModel):
    """The query of a list of jobs."""

    limit: Annotated[int, Between(1, MAX_LISTED, WHOLE)] = DEFAULT_LISTED
    after: Text = ""


class WaitQuery(RequestModel):
    """The query of a request that may wait for the end of a job."""

    wait: Annotated[float, Between(0, MAX_WAIT_S)] = 0.0


LIST_QUERY = {"limit": f"Most jobs, 1 to {MAX_LISTED:,}.", "after": "Id of the last job of the previous page."}


def _describe_job() -> dict[str, str | dict[str, Any]]:
    file = {
        "description": "The recording. In JSON: the id of a file of /v1/files, or an address in `file_url`.",
        "type": "string",
        "format": "binary",
    }
    fields = {name: field for name, field in describe_form(TranscriptionForm).items() if name != "stream"}
    return {"file": file, **fields, **describe_form(JobFields)}


def build_routes(service: Service, jobs: JobManager) -> list[BaseRoute]:
    """Build the routes of jobs."""
    routes = JobRoutes(service, jobs)
    create = ApiOperation(
        "post",
        "/api/jobs",
        "Transcribe a recording at the lowest priority, as a job that survives restarts of the server",
        errors=(*openapi.BODY_ERRORS, 404, 415, 429, 507),
        body=_describe_job,
        required=("file",),
        body_kinds=("multipart/form-data",),
        success=(202,),
    )
    one, found = "/api/jobs/{id}", (404, 503)
    wait = {"wait": f"Wait until the job has ended, for at most this many seconds: 0 to {MAX_WAIT_S}."}
    result = {
        "response_format": "A format other than the job's.",
        "partial": "Return the finished part while the job runs.",
    }
    kinds = (openapi.JSON, openapi.TEXT)
    return [
        ApiRoute(JobEndpoint(service, jobs), create),
        ApiRoute(routes.list_jobs, ApiOperation("get", "/api/jobs", "List jobs and batches", query=LIST_QUERY, errors=found)),
        ApiRoute(routes.show, ApiOperation("get", one, "Describe a job, with its progress", query=wait, errors=found)),
        ApiRoute(routes.delete, ApiOperation("delete", one, "Delete an ended job with its result", errors=(*found, 409))),
        ApiRoute(routes.cancel, ApiOperation("post", f"{one}/cancel", "Cancel a job", errors=found)),
        ApiRoute(
            routes.follow,
            ApiOperation("get", f"{one}/events", "Follow a job: its progress, and segments", (openapi.EVENTS,), errors=found),
        ),
        ApiRoute(
            routes.send_result,
            ApiOperation(
                "get", f"{one}/result", "The transcript", kinds, (*found, 408, 409, 413, 499, 502, 504, 507), query=result
            ),
        ),
    ]


class JobEndpoint:
    """Takes a recording as a job. An ASGI application: an upload goes to the disk as it arrives."""

    def __init__(self, service: Service, jobs: JobManager):
        self._service = service
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            EardrumError: the request is invalid, or there is no room.
        """
        kind = get_media_type(scope)
        if kind not in ("application/json", "multipart/form-data"):
            raise UnsupportedMediaTypeError(f"Send multipart/form-data or JSON, not {kind or 'a body without a type'}.")
        parts = await self._jobs.open()
        if job := await find_repeated(parts, scope):
            body = RequestBody(scope, receive, self._service.settings.limits)
            while await body.read() is not None:
                pass
        else:
            await self._jobs.check_items(parts)
            await self._jobs.check_room(parts)
            create = self._create_from_json if kind == "application/json" else self._create_from_form
            job = await create(parts, scope, receive)
            parts.worker.wake()
        item = await parts.store.get_item(job.id)
        answer = JSONResponse(describe_job(job, item), 202, {"location": f"/api/jobs/{job.id}"})
        await answer(scope, receive_disconnect, send)

    async def _create_from_json(self, parts: OpenJobs, scope: Scope, receive: Receive) -> JobRecord:
        limits = request_body.limit_small_body(self._service.settings.limits)
        given = request_body.parse_object(await request_body.receive_body(scope, receive, limits))
        _, place = pop_audio(given)
        if place.startswith(URL_PREFIXES):
            source = AudioReference(url=place)
        else:
            source = AudioReference(file=(file := await find_file(parts, place)).id, name=file.name)
        own = {name: given.pop(name) for name in JobFields.model_fields if name in given}
        wanted = JobFields.parse({name: value for name, value in own.items() if value is not None})
        item = self._build_item(wanted, flatten_json(given, limits), "")
        item.source = source
        resolve_item(item, self._service)
        return await self._add(parts, scope, wanted, item)

    async def _create_from_form(self, parts: OpenJobs, scope: Scope, receive: Receive) -> JobRecord:
        limits = self._service.settings.limits
        form = MultipartForm(scope, RequestBody(scope, receive, limits), limits)
        has_file = await form.read_until_file()
        content_type = form.files[0].content_type if has_file else ""
        resolve_item(self._build_item(*_split_fields(form.fields), content_type), self._service)  # before the upload
        if not has_file:
            raise InvalidRequestError("The form holds no file: send the audio in the field 'file'.", param="file")
        async with parts.blobs.open_writer() as writer:
            await form.read_file(writer)
            wanted, fields = _split_fields(form.fields)
            item = self._build_item(wanted, fields, content_type)
            resolve_item(item, self._service)
            if not writer.size:
                raise InvalidRequestError("The file is empty.", param="file")
            await self._jobs.check_items(parts)  # again: others may have been added while this one was sent
            await self._jobs.check_room(parts, writer.size)
            file = FileRecord(
                create_file_id(), get_owner(), "job", form.files[0].name[:MAX_NAME_CHARS], writer.size, time.time(), hidden=True
            )
            item.source = AudioReference(file=file.id, name=file.name)
            await writer.save(file.id)
        return await self._add(parts, scope, wanted, item, file)

    def _build_item(self, wanted: JobFields, fields: FormFields, content_type: str) -> NewItem:
        if wanted.webhook_url:
            self._jobs.check_webhook(wanted.webhook_url)
        item = NewItem("0")
        fill_item(item, fields, TASKS[TASK_ENDPOINTS[wanted.task]], content_type, self._service)
        return item

    async def _add(
        self, parts: OpenJobs, scope: Scope, wanted: JobFields, item: NewItem, file: FileRecord | None = None
    ) -> JobRecord:
        now = time.time()
        job = JobRecord(
            create_job_id(JobKind.RECORDING),
            JobKind.RECORDING,
            get_owner(),
            TASK_ENDPOINTS[wanted.task],
            now,
            status=JobStatus.IN_PROGRESS,
            body=wanted.model_dump(mode="json", exclude_unset=True),
            deadline=now + DEADLINE_S,
            expires_at=now + wanted.expires_after if wanted.expires_after else None,
            idempotency=read_idempotency_key(scope),
        )
        added = await parts.store.add_job(job, item, file)
        if file and added.id != job.id:  # another request with the same key was first
            await parts.blobs.remove(file.id)
        return added


def _split_fields(sent: FormFields) -> tuple[JobFields, FormFields]:
    """Split a form's fields into those of the job and those of the transcription.

    Raises:
        InvalidRequestError: one of the job's is invalid.
    """
    own: dict[str, Any] = {name: sent[name][-1] for name in JobFields.model_fields if sent.get(name, [""])[-1].strip()}
    if "metadata" in own:
        try:
            own["metadata"] = parse_json_text(own["metadata"])
        except ValueError as error:
            raise InvalidRequestError(f"metadata must be JSON: {error}.", param="metadata") from None
    return JobFields.parse(own), {name: values for name, values in sent.items() if name not in JobFields.model_fields}


class JobRoutes:
    """Lists, describes, follows, cancels and deletes the jobs of the client's key, and sends their results."""

    def __init__(self, service: Service, jobs: JobManager):
        self._service = service
        self._jobs = jobs

    async def list_jobs(self, request: Request) -> Response:
        """List jobs and batches, the newest first."""
        query = JobListQuery.parse(dict(request.query_params))
        parts = await self._jobs.open()
        after = await find_job(parts, query.after) if query.after else None
        found = await parts.store.list_jobs(get_owner(), after=after, limit=query.limit + 1)
        return JSONResponse(build_page([await self._describe(parts, job) for job in found], query.limit))

    async def show(self, request: Request) -> Response:
        """Describe a job; with `wait`, once it has ended."""
        query = WaitQuery.parse(dict(request.query_params))
        parts = await self._jobs.open()
        until = time.monotonic() + query.wait
        with parts.feed.subscribe(request.path_params["id"]) as changes:
            while True:
                changes.clear()
                job = await self._find(request, parts)
                left = until - time.monotonic()
                if job.has_ended or left <= 0 or parts.feed.closed:
                    return JSONResponse(await self._describe(parts, job))
                await changes.wait(left)

    async def cancel(self, request: Request) -> Response:
        """Cancel a job. One that has ended stays as it is."""
        parts = await self._jobs.open()
        return JSONResponse(await self._describe(parts, await parts.cancel_job(await self._find(request, parts))))

    async def delete(self, request: Request) -> Response:
        """Delete a job that has ended."""
        parts = await self._jobs.open()
        job = await self._find(request, parts)
        if not job.has_ended:
            raise ConflictError(f"The job {job.id} has not ended: cancel it first.")
        await parts.delete_job(job)
        return JSONResponse({"id": job.id, "object": "job", "deleted": True})

    async def follow(self, request: Request) -> Response:
        """Send a job's progress and segments as events, from the window after `Last-Event-ID` on."""
        parts = await self._jobs.open()
        job = await self._find(request, parts)
        last = get_header(request.scope, b"last-event-id")
        response = StreamingResponse(self._stream_events(parts, job, int(last) if last.isdecimal() and len(last) < 10 else -1))
        response.raw_headers = build_stream_headers(responses.EVENT_STREAM)
        return response

    async def _stream_events(self, parts: OpenJobs, job: JobRecord, last: int) -> AsyncIterator[bytes]:
        sent: dict[str, Any] = {}
        with parts.feed.subscribe(job.id) as changes:
            while True:
                changes.clear()
                current = await parts.store.get_job(job.id)
                if not current:
                    return
                if job.kind is JobKind.RECORDING:
                    while rows := await parts.store.list_windows(job.id, 0, after=last, limit=100):
                        yield b"".join(_encode_row(number, row) for number, row in rows)
                        last = rows[-1][0]
                state = await self._describe(parts, current)
                if current.has_ended:
                    yield encode_event(json.dumps(state), event="done")
                    return
                if state != sent:
                    sent = state
                    yield encode_event(json.dumps({"status": state["status"], **state["progress"]}), event="progress")
                else:
                    yield b": still here\n\n"
                if parts.feed.closed:
                    return
                await changes.wait(HEARTBEAT_S)

    async def send_result(self, request: Request) -> Response:
        """Send the transcript of a recording, whole or, with `partial`, as far as it is finished."""
        parts = await self._jobs.open()
        job = await self._find(request, parts)
        item = await parts.store.get_item(job.id)
        if job.kind is not JobKind.RECORDING or not item:
            raise ConflictError(
                f"{job.id} is a batch: its results are in the file {job.output_file or 'that it writes at its end'}."
            )
        is_partial = item.status is not ItemStatus.DONE
        if is_partial and not has_query_flag(request.scope, "partial"):
            if job.has_ended:
                raise error_from_json(build_end_error(item))
            raise ConflictError(f"The job {job.id} has not ended. `?partial=true` gives the part that is finished.")
        changes = {name: request.query_params.getlist(name) for name in request.query_params if name != "partial"}
        params = parse_item_params(item, TASKS[job.endpoint], self._service, changes)
        transcript = await parts.load_transcript(item)
        response = await responses.build_response_in_thread(transcript, params)
        responses.add_track_headers(response, transcript.summary)
        response.headers["x-eardrum-partial"] = str(is_partial).lower()
        return response

    async def _find(self, request: Request, parts: OpenJobs) -> JobRecord:
        return await find_job(parts, request.path_params["id"])

    async def _describe(self, parts: OpenJobs, job: JobRecord) -> dict[str, Any]:
        if job.kind is JobKind.RECORDING:
            return describe_job(job, await parts.store.get_item(job.id))
        done, whole = await parts.store.sum_seconds(job.id)
        progress = {"seconds": round(done, 3), "of_seconds": round(whole, 3) or None}
        return {**describe_batch(job), "object": "job", "kind": job.kind, "progress": progress}


def describe_job(job: JobRecord, item: ItemRecord | None) -> dict[str, Any]:
    """Describe the job of one recording."""
    status: str = job.status
    if job.status is JobStatus.IN_PROGRESS and item and item.status is ItemStatus.QUEUED and not item.windows:
        status = "queued"
    has_error = item and item.status not in (*OPEN_STATUSES, ItemStatus.DONE)
    error = responses.build_error_body(error_from_json(build_end_error(item)))["error"] if item and has_error else None
    done = item.duration_s if item and item.status is ItemStatus.DONE else item.until_s if item else 0.0
    ended = [at for name, at in job.times.items() if name in FINAL_STATUSES]
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "status": status,
        "created_at": int(job.created_at),
        "ended_at": int(ended[0]) if ended else None,
        "expires_at": int(job.expires_at) if job.expires_at else None,
        "model": item.model if item else None,
        "file": item.source.name or item.source.url or item.source.file if item else None,
        "progress": {
            "seconds": round(done, 3),
            "of_seconds": round(item.duration_s, 3) or None if item else None,
            "windows": item.windows if item else 0,
        },
        "error": error,
        "metadata": job.body.get("metadata"),
    }


def _encode_row(number: int, row: WindowRow) -> bytes:
    segments = [{"start": s["start"], "end": s["end"], "text": s["text"].strip()} for s in row.segments]
    return f"id: {number}\n".encode() + encode_event(json.dumps({"segments": segments}), event="segments")
