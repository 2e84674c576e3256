"""`/v1/files`: recordings and batches of requests that clients upload, and the results of batches."""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import openapi
from eardrum.api.asgi import Receive, Scope, Send, receive_disconnect
from eardrum.api.fields import WHOLE, Between, RequestModel, Text, describe_form
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_body import RequestBody
from eardrum.api.uploads import MultipartForm, get_media_type
from eardrum.errors import ConflictError, InvalidRequestError, NotFoundError, UnsupportedMediaTypeError
from eardrum.gateway.service import Service
from eardrum.jobs.manager import JobManager, OpenJobs, get_owner
from eardrum.jobs.records import FileRecord, create_file_id

if TYPE_CHECKING:
    from eardrum.jobs.blobs import BlobFolder

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]

MAX_FILES_LISTED = 10_000
MAX_NAME_CHARS = 500
MIN_LIFE_S, MAX_LIFE_S = 3600, 30 * 24 * 3600
"""Bounds of `expires_after`, as OpenAI's."""

BRACKETS = re.compile(r"expires_after\[(\w+)\]")


class FileForm(RequestModel):
    """The fields besides the file."""

    purpose: Purpose = Field(
        description="`batch` for a file of requests, `user_data` for recordings; other purposes have no further effect."
    )
    expires_after: Annotated[int | None, Between(MIN_LIFE_S, MAX_LIFE_S, WHOLE)] = Field(
        None, description="Seconds after which the file is deleted, sent as `expires_after[seconds]`; unset: `jobs.keep`."
    )


class FileListQuery(RequestModel):
    """The query of a list of files."""

    limit: Annotated[int, Between(1, MAX_FILES_LISTED, WHOLE)] = MAX_FILES_LISTED
    order: Literal["asc", "desc"] = "desc"
    purpose: Text = ""
    after: Text = ""


LIST_QUERY = {
    "limit": f"Most files, 1 to {MAX_FILES_LISTED:,}.",
    "order": "asc: the oldest first; desc: the newest.",
    "purpose": "Only files with this purpose.",
    "after": "Id of the last file of the previous page.",
}


def _describe_upload() -> dict[str, str | dict[str, Any]]:
    fields = describe_form(FileForm)
    return {
        "file": {"description": "The file.", "type": "string", "format": "binary"},
        "purpose": fields["purpose"],
        "expires_after[anchor]": "`created_at`, the only one.",
        "expires_after[seconds]": fields["expires_after"],
    }


def build_routes(service: Service, jobs: JobManager) -> list[BaseRoute]:
    """Build the routes of files."""
    files = FileRoutes(jobs)
    upload = ApiOperation(
        "post",
        "/v1/files",
        "Upload a recording, or a file of requests for a batch",
        errors=(*openapi.BODY_ERRORS, 415, 507),
        body=_describe_upload,
        required=("file", "purpose"),
        body_kinds=("multipart/form-data",),
    )
    listing = ApiOperation("get", "/v1/files", "List files", query=LIST_QUERY, errors=(404, 503))
    one = "/v1/files/{id}"
    return [
        ApiRoute(FileUploadEndpoint(service, jobs), upload),
        ApiRoute(files.list_files, listing),
        ApiRoute(files.show_file, ApiOperation("get", one, "Describe a file", errors=(404, 503))),
        ApiRoute(files.delete_file, ApiOperation("delete", one, "Delete a file that no job needs", errors=(404, 409, 503))),
        ApiRoute(
            files.send_content,
            ApiOperation(
                "get", f"{one}/content", "Download a file, or a range of it", (openapi.ANY,), (404, 416, 503), success=(200, 206)
            ),
        ),
    ]


class FileUploadEndpoint:
    """Takes an uploaded file. An ASGI application: the file goes to the disk as it arrives."""

    def __init__(self, service: Service, jobs: JobManager):
        self._service = service
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload.

        Raises:
            EardrumError: the form is invalid, or there is no room.
        """
        if (kind := get_media_type(scope)) != "multipart/form-data":
            raise UnsupportedMediaTypeError(f"Send multipart/form-data with the file in `file`, not {kind or 'nothing'}.")
        limits = self._service.settings.limits
        parts = await self._jobs.open()
        form = MultipartForm(scope, RequestBody(scope, receive, limits), limits)
        now = time.time()
        async with parts.blobs.open_writer() as writer:
            if not await form.read_until_file():
                parse_file_form(form.fields)
                raise InvalidRequestError("The form holds no file: send it in the field 'file'.", param="file")
            await self._jobs.check_room(parts)
            await form.read_file(writer)
            fields = parse_file_form(form.fields)
            await self._jobs.check_room(parts, writer.size)
            name = form.files[0].name[:MAX_NAME_CHARS] or "upload"
            life = fields.expires_after or self._service.settings.jobs.keep
            file = FileRecord(create_file_id(), get_owner(), fields.purpose, name, writer.size, now, now + life)
            await writer.save(file.id)
        await parts.store.add_file(file)
        await JSONResponse(describe_file(file))(scope, receive_disconnect, send)


def parse_file_form(sent: dict[str, list[str]]) -> FileForm:
    """Parse the fields beside a file.

    Raises:
        InvalidRequestError: one is missing, unknown or invalid.
    """
    plain: dict[str, Any] = {name: values[-1] for name, values in sent.items() if not BRACKETS.fullmatch(name)}
    if unknown := plain.keys() - {"purpose"}:
        raise InvalidRequestError(f"There is no field {min(unknown)[:80]!r}.", param=min(unknown))
    if sent.get("expires_after[anchor]", ["created_at"])[-1] != "created_at":
        raise InvalidRequestError("expires_after[anchor] must be created_at.", param="expires_after")
    if seconds := sent.get("expires_after[seconds]"):
        plain["expires_after"] = seconds[-1]
    return FileForm.parse(plain)


class FileRoutes:
    """Lists, describes, sends and deletes the files of the client's key."""

    def __init__(self, jobs: JobManager):
        self._jobs = jobs

    async def list_files(self, request: Request) -> Response:
        """List files, a page at a time."""
        query = FileListQuery.parse(dict(request.query_params))
        parts = await self._jobs.open()
        after = await find_file(parts, query.after) if query.after else None
        found = await parts.store.list_files(
            get_owner(), after=after, limit=query.limit + 1, ascending=query.order == "asc", purpose=query.purpose
        )
        return JSONResponse(build_page([describe_file(file) for file in found], query.limit))

    async def show_file(self, request: Request) -> Response:
        """Describe a file."""
        return JSONResponse(describe_file(await find_file(await self._jobs.open(), request.path_params["id"])))

    async def send_content(self, request: Request) -> Response:
        """Send a file's bytes."""
        parts = await self._jobs.open()
        file = await find_file(parts, request.path_params["id"])
        return BlobResponse(parts.blobs, file.id)

    async def delete_file(self, request: Request) -> Response:
        """Delete a file."""
        parts = await self._jobs.open()
        file = await find_file(parts, request.path_params["id"])
        if not await parts.store.delete_file(file.id):
            raise ConflictError(f"A job that has not ended needs the file {file.id}: cancel the job first.")
        await parts.blobs.remove(file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})


class BlobResponse(Response):
    """A response with the bytes of a file, or with a range of them."""

    def __init__(self, blobs: BlobFolder, id: str):
        super().__init__()
        self._blobs = blobs
        self._id = id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            EardrumError: the file cannot be had.
        """
        async with AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._blobs.open_copy(self._id))
            except FileNotFoundError:
                raise NotFoundError(f"The file {self._id} was deleted.", param="file") from None
            await FileResponse(path, media_type="application/octet-stream")(scope, receive, send)


async def find_file(parts: OpenJobs, id: str) -> FileRecord:
    """Find a file of the client's key.

    Raises:
        NotFoundError: there is none.
    """
    file = await parts.store.get_file(id, get_owner())
    if not file or file.hidden:
        raise NotFoundError(f"There is no file {id[:100]}.", param="file")
    return file


def describe_file(file: FileRecord) -> dict[str, Any]:
    """Describe a file as OpenAI does."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at) if file.expires_at else None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def build_page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Build a page of a list from up to one object more than it may hold."""
    shown = found[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(found) > limit}
