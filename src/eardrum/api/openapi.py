"""Describes the API: `/openapi.json` for programs and `/docs` for people, from the operations that the routes declare.

The page is plain HTML without external scripts, so it works without internet access.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from msgspec import Struct, field
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum import __version__
from eardrum.gateway.service import Service
from eardrum.languages import LANGUAGE_NAMES

JSON, TEXT, EVENTS, LINES, HTML = "application/json", "text/plain", "text/event-stream", "application/x-ndjson", "text/html"
ANY = "*/*"

STATUS_MEANINGS = {
    101: "The connection becomes a WebSocket",
    200: "OK",
    201: "The model was already on this machine",
    202: "Accepted: the work is done later",
    206: "A range of the file",
    301: "Redirect to the URL with a trailing slash",
    304: "The client has the file already",
    307: "Redirect to the web page; of `/`, without the page: to /docs",
    400: "The request is invalid, or the model does not support it; the message names the field",
    401: "The API key is missing or invalid",
    403: "The page's origin or the host name is not allowed, the key lacks the right, or the hub refuses the model",
    404: "The model, or the named object, does not exist",
    405: "The route does not support the method",
    408: "The upload stalled for `limits.stall_timeout`",
    409: "The model is not loaded, and this path does not load it; or the file or job is not in a state for this",
    413: "The body exceeds a limit",
    415: "Neither a form nor JSON, or compressed",
    416: "The file has no such range",
    429: "The model's queue is full; retry after `Retry-After` seconds",
    431: "The headers exceed the limit",
    499: "The server's operator cancelled the request",
    500: "The model failed to load or crashed, or the server failed",
    501: "Not supported by this server",
    502: "The model's upstream, or the hub, failed",
    503: "The model is busy or cannot be loaded now, or the server shuts down; retry after `Retry-After` seconds",
    504: "The model's upstream did not answer in time",
    507: "The disk is full",
}

ANY_ROUTE_ERRORS = (400, 401, 403, 431, 500)
"""Error statuses of every route."""
LOOKUP_ERRORS = (404,)
"""Error statuses of routes that look up a name."""
BODY_ERRORS = (408, 413, 503)
"""Error statuses of routes with a body."""
INFERENCE_ERRORS = (404, 408, 413, 429, 499, 502, 503, 504, 507)
"""Error statuses of routes that run a model."""
LOADING_ERRORS = (404, 429, 502, 503, 504, 507)
"""Error statuses of routes that load a model."""
WEBSOCKET_ERRORS = (404, 405, 429, 501, 502, 503, 504)
"""Error statuses of WebSocket routes."""


FieldDescriptions = Mapping[str, str | dict[str, Any]]


class ApiOperation(Struct, frozen=True, eq=False):
    """One method of one route.

    `query` maps parameters to their descriptions, and `body` fields to their descriptions or JSON schemas. A function that
    returns them is called when a client asks for the description: pydantic needs a tenth of a server's start for all forms.
    """

    method: str
    path: str
    summary: str
    kinds: tuple[str, ...] = (JSON,)
    """Media types of the response."""
    errors: tuple[int, ...] = ()
    query: Mapping[str, str] | Callable[[], Mapping[str, str]] = field(default_factory=dict)
    body: FieldDescriptions | Callable[[], FieldDescriptions] | None = None
    required: tuple[str, ...] = ()
    """Required fields of the body."""
    success: tuple[int, ...] = (200,)
    body_kinds: tuple[str, ...] = (JSON,)
    sends_text_errors: bool = False
    """Whether the route's errors are lines of text. The error of a head that cannot be read is JSON on every route."""


MODEL_FIELD = {"model": "A model of GET /v1/models, or an alias."}
CHAT_FIELDS = MODEL_FIELD | {"messages": "The conversation.", "stream": "Stream the response."}
FORCE_QUERY = {"force": "Do not wait for running requests."}
SOCKET_QUERY = {"model": "A model that supports live sessions, or an alias; empty: the default model."}


class ApiRoute(Route):
    """A route with its description. The path, with Starlette's convertors, and the methods are those of its operations."""

    def __init__(self, endpoint: Callable[..., Any], *operations: ApiOperation):
        super().__init__(operations[0].path, endpoint, methods=[operation.method.upper() for operation in operations])
        self.operations = operations


def list_operations(routes: Iterable[object]) -> list[ApiOperation]:
    """List the operations of routes, and of routers in plain ASGI. Those without descriptions have none."""
    return [operation for route in routes for operation in getattr(route, "operations", ())]


PAGES = (
    ApiOperation("get", "/docs", "Describe the API in a page for people", (HTML,)),
    ApiOperation("get", "/openapi.json", "Describe the API as an OpenAPI document"),
)


def build_routes(service: Service, operations: Sequence[ApiOperation]) -> list[BaseRoute]:
    """Build the routes of the two pages, which describe these operations and themselves."""

    async def serve_document(_: Request) -> Response:
        return JSONResponse(build_document(described))

    async def serve_page(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(_render_page(build_document(described), base, service.catalog.default.id))

    routes: list[BaseRoute] = [
        ApiRoute(serve_page, PAGES[0]),
        ApiRoute(serve_document, PAGES[1]),
    ]
    described = [*operations, *PAGES]
    return routes


def build_document(operations: Iterable[ApiOperation]) -> dict[str, Any]:
    """Build the OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Eardrum",
            "version": __version__,
            "description": "Speech to text, text to speech, and every other local model, behind one port.",
        },
        "paths": _describe_paths(operations),
        "components": {
            "schemas": {
                "ErrorInWords": {
                    "description": "The error format of Ollama's API",
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                },
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                            "properties": {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                            },
                        }
                    },
                },
            }
        },
    }


def _describe_paths(operations: Iterable[ApiOperation]) -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r":\w+}", "}", operation.path)
        paths.setdefault(path, {})[operation.method] = _describe_operation(operation, path)
    return paths


def _describe_operation(operation: ApiOperation, path: str) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in operation.kinds}
    successes = {
        str(status): {"description": STATUS_MEANINGS[status]} | ({"content": content} if status in (200, 202) else {})
        for status in operation.success
    }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _make_operation_id(operation.method, path),
        "responses": successes | _describe_errors(path, operation.errors, as_text=operation.sends_text_errors),
    }
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"\{(\w+)\}", path)
    ]
    query = operation.query() if callable(operation.query) else operation.query
    in_query = [{"name": name, "in": "query", "description": text, "schema": {"type": "string"}} for name, text in query.items()]
    if parameters := in_path + in_query:
        described["parameters"] = parameters
    if operation.body is not None:
        fields = operation.body() if callable(operation.body) else operation.body
        properties = {name: {"description": it} if isinstance(it, str) else it for name, it in fields.items()}
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        described["requestBody"] = {"content": {kind: {"schema": schema} for kind in operation.body_kinds}}
        if operation.required:
            schema["required"] = list(operation.required)
            described["requestBody"]["required"] = True
    return described


def _make_operation_id(method: str, path: str) -> str:
    """Make a unique id that is a valid function name, because client generators use it as one."""
    unversioned = path.replace("/v/", "/unversioned/")
    return "_".join([method, *re.findall(r"\w+", unversioned)])


def _describe_errors(path: str, statuses: tuple[int, ...], *, as_text: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Error"}
    if path.startswith("/api/"):
        schema = {"anyOf": [schema, {"$ref": "#/components/schemas/ErrorInWords"}]}
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if as_text:
        content = {TEXT: {"schema": {"type": "string"}}} | content
    return {
        str(status): {"description": STATUS_MEANINGS[status], "content": content}
        for status in sorted({*ANY_ROUTE_ERRORS, *statuses} - {200})
    }


STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 3rem auto; padding: 0 1.2rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.6rem; border-top: 1px solid var(--line); padding-top: 1.4rem; font-size: 1.1rem; }
code, pre { font: .88em/1.5 ui-monospace, monospace; }
pre { padding: .9rem 1rem; border: 1px solid var(--line); border-radius: 8px;
overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: 1.2rem 0; }
td, th { text-align: left; vertical-align: top;
padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); } .method { font-weight: 700; letter-spacing: .04em; }
.quiet { opacity: .7; }
"""


def _render_page(document: dict[str, Any], base: str, model: str) -> str:
    info = document["info"]
    operations = "".join(
        _render_operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    curl = f"curl {base}/v1/audio/transcriptions -F file=@speech.mp3 -F model={model}"
    python = (
        f'from openai import OpenAI\n\nclient = OpenAI(base_url="{base}/v1", api_key="none")\n'
        f'with open("speech.mp3", "rb") as file:\n'
        f'    print(client.audio.transcriptions.create(file=file, model="{model}").text)'
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Eardrum API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])}</h1><p class=quiet>{escape(info['description'])} "
        f'Version {escape(info["version"])}. The same as <a href="openapi.json">OpenAPI</a>.</p>'
        f"<pre>{escape(curl)}</pre><pre>{escape(python)}</pre>{operations}"
        f"<h2>Errors</h2><p>Every error has OpenAI's format, and its message says what to do:</p>"
        f"<pre>{escape(ERROR_EXAMPLE)}</pre>"
        f"<h2>Languages</h2><p>{escape(', '.join(f'{name} ({code})' for code, name in LANGUAGE_NAMES.items()))}</p></body></html>"
    )


ERROR_EXAMPLE = (
    '{"error": {"message": "The file has no audio track.", "type": "invalid_request_error",\n'
    '           "param": "file", "code": "invalid_audio"}}'
)


def _render_operation(method: str, path: str, operation: dict[str, Any]) -> str:
    summary = _render_prose(operation["summary"])
    html = f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2><p>{summary}.</p>'
    body = operation.get("requestBody")
    if body:
        properties = next(iter(body["content"].values()))["schema"]["properties"]
        rows = "".join(_render_row(name, field) for name, field in properties.items())
        html += f"<table><tr><th>field</th><th>meaning</th></tr>{rows}</table>"
    if parameters := operation.get("parameters"):
        rows = "".join(_render_row(one["name"], {"description": f"In the {one['in']}."} | one) for one in parameters)
        html += f"<table><tr><th>parameter</th><th>meaning</th></tr>{rows}</table>"
    answers = "".join(
        f"<tr><td>{status}</td><td>{_render_prose(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return html + f"<table><tr><th>status</th><th>meaning</th></tr>{answers}</table>"


def _render_prose(text: str) -> str:
    """Escape text, and render `code` spans."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _render_row(name: str, field: dict[str, Any]) -> str:
    choices = field.get("enum") or field.get("items", {}).get("enum")
    extra = f"<br><span class=quiet>{escape(', '.join(choices))}</span>" if choices else ""
    return f"<tr><td><code>{escape(name)}</code></td><td>{_render_prose(field['description'])}{extra}</td></tr>"
