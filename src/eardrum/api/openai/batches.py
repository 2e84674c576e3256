"""`/v1/batches`: many recordings, or texts to speak, as one job, in the shapes of OpenAI's Batch API."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import openapi, request_body
from eardrum.api.asgi import Scope, get_header
from eardrum.api.fields import WHOLE, Between, RequestModel, Text
from eardrum.api.openai.batch_lines import ENDPOINTS
from eardrum.api.openai.files import MAX_LIFE_S, MIN_LIFE_S, build_page, find_file
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.config.api_keys import KeyScope
from eardrum.errors import InsufficientScopeError, InvalidRequestError, NotFoundError
from eardrum.gateway.key_usage import CURRENT_KEY
from eardrum.gateway.service import Service
from eardrum.jobs.manager import JobManager, OpenJobs, get_owner
from eardrum.jobs.records import SPEECH_ENDPOINT, JobKind, JobRecord, JobStatus, create_job_id
from eardrum.units import parse_seconds

MAX_LISTED, DEFAULT_LISTED = 100, 20
MAX_PAIRS, MAX_PAIR_KEY, MAX_PAIR_VALUE = 16, 64, 512
"""Limits of metadata, as OpenAI's."""
MIN_WINDOW_S, MAX_WINDOW_S = 3600.0, 30 * 24 * 3600.0
IDEMPOTENCY_HEADER = b"idempotency-key"
MAX_IDEMPOTENCY_CHARS = 255


def _check_window(window: str) -> str:
    if not MIN_WINDOW_S <= parse_seconds(window) <= MAX_WINDOW_S:
        raise ValueError("a time from 1h to 30d")
    return window


def _check_metadata(pairs: dict[str, str]) -> dict[str, str]:
    if len(pairs) > MAX_PAIRS or any(len(key) > MAX_PAIR_KEY or len(value) > MAX_PAIR_VALUE for key, value in pairs.items()):
        raise ValueError(
            f"an object of at most {MAX_PAIRS} texts, with names of {MAX_PAIR_KEY} and values of {MAX_PAIR_VALUE} characters"
        )
    return pairs


Metadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]


class ExpiresAfter(RequestModel):
    """The expiry of a file."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Between(MIN_LIFE_S, MAX_LIFE_S, WHOLE)]


class BatchRequest(RequestModel):
    """The body of a new batch."""

    input_file_id: str = Field(description="Id of a file of requests, one JSON object a line.")
    endpoint: Literal[ENDPOINTS] = Field(description="The URL of all lines.")  # type: ignore[valid-type]
    completion_window: Annotated[str, AfterValidator(_check_window)] = Field(
        "24h", description="Time after which recordings that have not begun expire, 1h to 30d."
    )
    metadata: Metadata | None = Field(None, description="Up to 16 names and values of your own.")
    output_expires_after: ExpiresAfter | None = Field(None, description="When the result files are deleted.")
    webhook_url: Text = Field("", description="Address that gets a webhook when the batch has ended.")


class BatchListQuery(RequestModel):
    """The query of a list of batches."""

    limit: Annotated[int, Between(1, MAX_LISTED, WHOLE)] = DEFAULT_LISTED
    after: Text = ""


LIST_QUERY = {"limit": f"Most batches, 1 to {MAX_LISTED}.", "after": "Id of the last batch of the previous page."}


def build_routes(service: Service, jobs: JobManager) -> list[BaseRoute]:
    """Build the routes of batches."""
    batches = BatchRoutes(service, jobs)
    create = ApiOperation(
        "post",
        "/v1/batches",
        "Transcribe many recordings, or speak many texts, at the lowest priority",
        errors=(*openapi.BODY_ERRORS, 404, 429, 507),
        body={name: field.description or "" for name, field in BatchRequest.model_fields.items()},
        required=("input_file_id", "endpoint"),
    )
    return [
        ApiRoute(batches.create, create),
        ApiRoute(batches.list_batches, ApiOperation("get", "/v1/batches", "List batches", query=LIST_QUERY, errors=(404, 503))),
        ApiRoute(batches.show, ApiOperation("get", "/v1/batches/{id}", "Describe a batch", errors=(404, 503))),
        ApiRoute(batches.cancel, ApiOperation("post", "/v1/batches/{id}/cancel", "Cancel a batch", errors=(404, 503))),
    ]


class BatchRoutes:
    """Creates, lists, describes and cancels the batches of the client's key."""

    def __init__(self, service: Service, jobs: JobManager):
        self._service = service
        self._jobs = jobs

    async def create(self, request: Request) -> Response:
        """Create a batch. Its file is read afterwards."""
        limits = request_body.limit_small_body(self._service.settings.limits)
        body = await request_body.receive_body(request.scope, request.receive, limits)
        wanted = BatchRequest.parse(request_body.parse_object(body))
        _check_scope(wanted.endpoint)
        parts = await self._jobs.open()
        if earlier := await find_repeated(parts, request.scope):
            return JSONResponse(describe_batch(earlier))
        file = await find_file(parts, wanted.input_file_id)
        if file.purpose != "batch":
            raise InvalidRequestError(f"The file {file.id} has the purpose {file.purpose}, not batch.", param="input_file_id")
        if wanted.webhook_url:
            self._jobs.check_webhook(wanted.webhook_url)
        await self._jobs.check_room(parts)
        await self._jobs.check_items(parts)
        now = time.time()
        job = JobRecord(
            create_job_id(JobKind.BATCH),
            JobKind.BATCH,
            get_owner(),
            wanted.endpoint,
            now,
            input_file=file.id,
            body=wanted.model_dump(mode="json", exclude_unset=True),
            deadline=now + parse_seconds(wanted.completion_window),
            idempotency=read_idempotency_key(request.scope),
        )
        if wanted.output_expires_after:
            job.body["output_expires_after"] = wanted.output_expires_after.seconds
        job = await parts.store.add_job(job)
        parts.worker.wake()
        return JSONResponse(describe_batch(job))

    async def list_batches(self, request: Request) -> Response:
        """List batches, the newest first."""
        query = BatchListQuery.parse(dict(request.query_params))
        parts = await self._jobs.open()
        after = await find_job(parts, query.after, JobKind.BATCH) if query.after else None
        found = await parts.store.list_jobs(get_owner(), kind=JobKind.BATCH, after=after, limit=query.limit + 1)
        return JSONResponse(build_page([describe_batch(job) for job in found], query.limit))

    async def show(self, request: Request) -> Response:
        """Describe a batch."""
        return JSONResponse(describe_batch(await self._find(request)))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch. One that has ended stays as it is."""
        parts = await self._jobs.open()
        return JSONResponse(describe_batch(await parts.cancel_job(await self._find(request))))

    async def _find(self, request: Request) -> JobRecord:
        return await find_job(await self._jobs.open(), request.path_params["id"], JobKind.BATCH)


def _check_scope(endpoint: str) -> None:
    """Check that the client's key has the right to use the endpoint: the route itself asks for `transcribe` alone.

    Raises:
        InsufficientScopeError: it has not.
    """
    usage = CURRENT_KEY.get()
    if usage and endpoint == SPEECH_ENDPOINT and KeyScope.SPEAK not in usage.settings.scopes:
        raise InsufficientScopeError(f"{usage.name} lacks the scope `{KeyScope.SPEAK}`, which batches of {endpoint} need.")


async def find_job(parts: OpenJobs, id: str, kind: JobKind | None = None) -> JobRecord:
    """Find a job of the client's key.

    Raises:
        NotFoundError: there is none.
    """
    job = await parts.store.get_job(id, get_owner())
    if not job or kind not in (None, job.kind):
        raise NotFoundError(f"There is no {kind or 'job'} {id[:100]}.")
    return job


def read_idempotency_key(scope: Scope) -> str | None:
    """Return the client's key of a request that it may repeat.

    Raises:
        InvalidRequestError: it is too long.
    """
    key = get_header(scope, IDEMPOTENCY_HEADER)
    if len(key) > MAX_IDEMPOTENCY_CHARS:
        raise InvalidRequestError(f"Idempotency-Key may have {MAX_IDEMPOTENCY_CHARS} characters.")
    return key or None


async def find_repeated(parts: OpenJobs, scope: Scope) -> JobRecord | None:
    """Find the job of an earlier request with the same `Idempotency-Key`.

    Raises:
        InvalidRequestError: the key is too long.
    """
    key = read_idempotency_key(scope)
    return await parts.store.find_idempotent(get_owner(), key, time.time()) if key else None


def describe_batch(job: JobRecord) -> dict[str, Any]:
    """Describe a batch as OpenAI does."""
    later = [status for status in JobStatus if status is not JobStatus.VALIDATING]
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "errors": {"object": "list", "data": job.errors} if job.errors else None,
        "input_file_id": job.input_file,
        "completion_window": job.body.get("completion_window", "24h"),
        "status": job.status,
        "output_file_id": job.output_file or None,
        "error_file_id": job.error_file or None,
        "created_at": int(job.created_at),
        "expires_at": int(job.deadline) if job.deadline else None,
        **{f"{status}_at": int(job.times[status]) if status in job.times else None for status in later},
        "request_counts": {"total": job.total, "completed": job.completed, "failed": job.failed},
        "metadata": job.body.get("metadata"),
    }
