"""A gateway as they are usually written, with FastAPI and httpx: `python -m bench.fastapi_proxy PORT UPSTREAM`.

It takes the body apart, finds the model, and asks the upstream; answers are passed back as they come, forms when they are here.
One line per request goes into the log, as with ours.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

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
    uvicorn.run(create_app(sys.argv[2]), port=int(sys.argv[1]))
