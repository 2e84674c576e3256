"""A gateway as they are usually written, with FastAPI and httpx: `python -m bench.fastapi_proxy PORT UPSTREAM`.

It does what ours does, in the ways the two libraries' own pages show: takes the body apart, finds the model, asks the upstream by
the name that knows, passes answers back as they come, lets other origins in, gives each request an id and a line in the log.
Forms are passed on when they are here.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

log = logging.getLogger("gateway")
DROPPED = ("host", "content-length", "connection")
MODELS = {"llm": "the-real-name"}


def create_app(upstream: str) -> FastAPI:
    """The gateway before this upstream."""
    client = httpx.AsyncClient(base_url=upstream, timeout=None, limits=httpx.Limits(max_connections=None))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])

    @app.middleware("http")
    async def identify(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        id, began = uuid.uuid4().hex, time.monotonic()
        response = await call_next(request)
        response.headers["x-request-id"] = id
        log.info("%s %s %s %s %.3f", request.method, request.url.path, response.status_code, id, time.monotonic() - began)
        return response

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("model") not in MODELS:
            raise HTTPException(404, "no such model")
        body["model"] = MODELS[body["model"]]
        headers = {name: value for name, value in request.headers.items() if name not in DROPPED}
        outgoing = client.build_request("POST", "/v1/chat/completions", json=body, headers=headers)
        answer = await client.send(outgoing, stream=True)
        back = {name: value for name, value in answer.headers.items() if name not in ("connection", "transfer-encoding")}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, back, background=BackgroundTask(answer.aclose))

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        async with request.form() as form:
            if form["model"] not in MODELS:
                raise HTTPException(404, "no such model")
            image = form["image"]
            assert isinstance(image, UploadFile)
            data = {"model": MODELS[str(form["model"])]}
            answer = await client.post("/v1/images/edits", data=data, files={"image": (image.filename, image.file)})
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uvicorn.run(create_app(sys.argv[2]), port=int(sys.argv[1]), access_log=False)
