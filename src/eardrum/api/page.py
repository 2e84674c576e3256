"""Serves the web page at `/`: the files of `eardrum/page/`, which `make page` builds from `web/`.

The page knows relative addresses only, so it works behind a proxy that adds a prefix to its paths. It loads nothing from
elsewhere and has no inline script, and its Content-Security-Policy holds the browser to that.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute

from eardrum.api.openapi import HTML, TEXT, ApiOperation, ApiRoute
from eardrum.gateway.service import Service

PAGE_FOLDER = Path(__file__).parent.parent / "page"
INDEX = "index.html"

MEDIA_TYPES = {
    ".html": HTML,
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
"""By suffix. The tables of operating systems differ, and a browser runs no script whose type is text/plain."""

POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "media-src 'self' blob:",
    "connect-src 'self'",  # WebSockets of the same host included
    "worker-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'self'",  # Home Assistant shows the page in a frame, from its own origin
))  # fmt: skip

HEADERS = {
    "cache-control": "no-cache",  # file names have no hash: a browser asks each time, and gets a 304
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",  # `/unload` and `/upstream/` look at it
    "x-content-type-options": "nosniff",
}

LLAMA_SWAP_PATH = "/ui"
"""The path of llama-swap's page, which its users have bookmarked."""

GREETING = "Ollama is running"
"""Ollama's clients check for it."""


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of `/` and of the page's files, which the setting `page` switches off."""
    names = list_page_files() if service.settings.page else ()
    return [
        ApiRoute(
            HomeEndpoint(has_page=INDEX in names).show_home,
            ApiOperation(
                "get",
                "/",
                "The web page for browsers, and a greeting for clients that check whether the server is up",
                (TEXT, HTML),
                success=(200, 304, 307),
            ),
        ),
        *(
            ApiRoute(
                PageFileEndpoint(name).show_file,
                ApiOperation("get", f"/{name}", "A file of the web page", (find_media_type(name),), success=(200, 304)),
            )
            for name in names
        ),
        *(
            ApiRoute(
                redirect_to_page,
                ApiOperation("get", path, "Redirect to the web page, for users of llama-swap", (), errors, success=(307,)),
            )
            for path, errors in ((LLAMA_SWAP_PATH, ()), (f"{LLAMA_SWAP_PATH}/{{path:path}}", (404,)))  # of a path in two lines
            if names
        ),
    ]


@cache
def list_page_files() -> Sequence[str]:
    """List the names of the page's files."""
    return tuple(sorted(path.name for path in PAGE_FOLDER.iterdir() if path.suffix in MEDIA_TYPES))


def find_media_type(name: str) -> str:
    """Return the media type of a file of the page, without its character set."""
    return MEDIA_TYPES[Path(name).suffix]


class HomeEndpoint:
    """Answers `/`: with the page for browsers, with a greeting for all other clients."""

    def __init__(self, *, has_page: bool):
        self._has_page = has_page

    async def show_home(self, request: Request) -> Response:
        """Serve the page to clients that accept HTML; without the page, redirect them to the documentation."""
        wants_page = HTML in request.headers.get("accept", "")
        if wants_page and self._has_page:
            response = await build_file_response(INDEX, request.headers)
        else:
            response = RedirectResponse("docs") if wants_page else PlainTextResponse(GREETING)
        response.headers.add_vary_header("accept")
        return response


async def redirect_to_page(request: Request) -> Response:
    """Redirect a path below `/` to `/`, by a relative address: a proxy may have added a prefix."""
    return RedirectResponse("../" * (request.scope["path"].count("/") - 1) or "./")


class PageFileEndpoint:
    """Answers with one file of the page."""

    def __init__(self, name: str):
        self._name = name

    async def show_file(self, request: Request) -> Response:
        """Serve the file."""
        return await build_file_response(self._name, request.headers)


class PageFile(Struct, frozen=True):
    """A file of the page, plain and compressed."""

    content: bytes
    compressed: bytes
    tag: str
    """Its ETag. It comes from the content: files in wheels all have one time, so an update may leave time and size alone."""


@cache
def read_page_file(name: str) -> PageFile:
    """Read and compress a file of the page."""
    content = (PAGE_FOLDER / name).read_bytes()
    return PageFile(content, gzip.compress(content, mtime=0), f'W/"{hashlib.sha256(content).hexdigest()[:20]}"')


async def build_file_response(name: str, headers: Mapping[str, str]) -> Response:
    """Build the response with a file of the page: compressed if the client takes that, and 304 if the client has it."""
    file = await asyncio.to_thread(read_page_file, name)
    sent = HEADERS | {"etag": file.tag, "vary": "accept-encoding"}
    if has_tag(headers.get("if-none-match", ""), file.tag):
        return Response(status_code=304, headers=sent)
    if "gzip" in headers.get("accept-encoding", ""):
        return Response(file.compressed, headers=sent | {"content-encoding": "gzip"}, media_type=find_media_type(name))
    return Response(file.content, headers=sent, media_type=find_media_type(name))


def has_tag(listed: str, tag: str) -> bool:
    """Whether an `if-none-match` lists an ETag. Proxies that compress turn strong tags into weak ones, so both are one."""
    return any(one.strip().removeprefix("W/") in ("*", tag.removeprefix("W/")) for one in listed.split(","))
