"""Describes the API: `/openapi.json` for programs and `/docs` for people, from one table of operations.

The page is plain HTML without external scripts, so it works without internet access.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum import __version__
from eardrum.api.proxy.routes import CHAT_PATH, GET_ROUTES, POST_ROUTES
from eardrum.gateway.service import Service
from eardrum.languages import LANGUAGE_NAMES
from eardrum.subtitles import PRESETS

AUDIO_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "file": (
        "The recording: wav, mp3, m4a, flac, ogg, opus, webm, mp4 and more, detected from the content. "
        "With the content type audio/pcm: raw 16-bit little-endian samples, mono, 16 kHz.",
        {"type": "string", "format": "binary"},
    ),
    "model": ("A model of GET /v1/models or an alias; empty: the default model.", {"type": "string"}),
    "language": (
        "ISO 639 code, locale or English name; empty: the model detects it.",
        {"type": "string", "examples": ["en", "de-AT"]},
    ),
    "response_format": (
        "Format of the response.",
        {"type": "string", "enum": ["json", "text", "srt", "verbose_json", "vtt"], "default": "json"},
    ),
    "stream": ("Stream segments as server-sent events while they are decoded.", {"type": "boolean", "default": False}),
    "timestamp_granularities[]": (
        "Timestamps in verbose_json.",
        {"type": "array", "items": {"type": "string", "enum": ["word", "segment"]}},
    ),
    "include[]": (
        "`logprobs`: tokens with their probabilities, in json.",
        {"type": "array", "items": {"type": "string", "enum": ["logprobs"]}},
    ),
    "prompt": ("Text that guides the model, if it supports a prompt.", {"type": "string"}),
    "keywords[]": ("Words to expect, if the model supports them.", {"type": "array", "items": {"type": "string"}}),
    "subtitles": (
        "srt and vtt: `broadcast` gives two lines of 42 columns, 5/6 to 7 seconds. The fields below override it; 0: no limit.",
        {"type": "string", "enum": list(PRESETS)},
    ),
    "max_line_width": ("srt and vtt: maximum columns per line.", {"type": "integer", "minimum": 0}),
    "max_line_count": ("srt and vtt: maximum lines per cue.", {"type": "integer", "minimum": 0}),
    "max_words_per_line": (
        "srt and vtt: maximum words per line; without other rules, each line is a cue.",
        {"type": "integer", "minimum": 0},
    ),
    "highlight_words": ("srt and vtt: underline each word while it is spoken.", {"type": "boolean"}),
    "min_duration": ("srt and vtt: minimum seconds of a cue, if there is room.", {"type": "number", "minimum": 0}),
    "max_duration": ("srt and vtt: maximum seconds of a cue.", {"type": "number", "minimum": 0}),
    "min_gap": ("srt and vtt: minimum seconds between cues.", {"type": "number", "minimum": 0}),
    "max_characters_per_second": (
        "srt and vtt: maximum reading speed; cues stay longer to keep it.",
        {"type": "number", "minimum": 0},
    ),
    "multilingual": ("Detect the language of each window, if the model detects languages.", {"type": "boolean"}),
    "temperature": ("Sampling temperature, if the model supports it.", {"type": "number", "minimum": 0, "maximum": 1}),
    "audio_track": (
        "Number of the audio track, counted from 1; empty: the default track, or the first with sound.",
        {"type": "integer", "minimum": 1},
    ),
    "chunking_strategy": (
        "`auto`, or server_vad with threshold, silence_duration_ms, prefix_padding_ms.",
        {"type": "string", "default": "auto"},
    ),
}

JSON, TEXT, EVENTS, LINES, HTML = "application/json", "text/plain", "text/event-stream", "application/x-ndjson", "text/html"
ANY = "*/*"

STATUS_MEANINGS = {
    101: "The connection becomes a WebSocket",
    200: "OK",
    301: "Redirect to the URL with a trailing slash",
    307: "Redirect to /docs, for browsers",
    400: "The request is invalid, or the model does not support it; the message names the field",
    401: "The API key is missing or invalid",
    403: "The page's origin or the host name is not allowed",
    404: "The model, or the named object, does not exist",
    405: "The route does not support the method",
    408: "The upload stalled for `limits.stall_seconds`",
    409: "The model is not loaded, and this path does not load it",
    413: "The body exceeds a limit",
    415: "Neither a form nor JSON, or compressed",
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


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One method of one route. `query` and `body` map parameters and fields to their descriptions."""

    method: str
    path: str
    summary: str
    kinds: tuple[str, ...] = (JSON,)
    """Media types of the response."""
    errors: tuple[int, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] | None = None
    required: tuple[str, ...] = ()
    """Required fields of the body."""
    success: tuple[int, ...] = (200,)
    body_kinds: tuple[str, ...] = (JSON,)


FORCE_QUERY = {"force": "Do not wait for running requests."}
MODEL_FIELD = {"model": "A model of GET /v1/models, or an alias."}
CHAT_FIELDS = MODEL_FIELD | {"messages": "The conversation.", "stream": "Stream the response."}
PROMPT_FIELDS = MODEL_FIELD | {"prompt": "The text to continue.", "stream": "Stream the response."}
INPUT_FIELDS = MODEL_FIELD | {"input": "The text to embed, or several texts."}
SOCKET_QUERY = {"model": "A model that supports live sessions, or an alias; empty: the default model."}

OPERATIONS = (
    ApiOperation("get", "/v1/models", "List models, their capabilities and whether they are loaded"),
    ApiOperation("get", "/models", "The same as /v1/models, at llama-swap's path"),
    ApiOperation("get", "/v1/models/{id}", "Describe a model, by id or alias; ids may contain slashes", errors=LOOKUP_ERRORS),
    ApiOperation("get", "/health", "The server's health, and the state of each model"),
    ApiOperation("get", "/", "A greeting for clients that check whether the server is up", (TEXT,), success=(200, 307)),
    ApiOperation("get", "/docs", "This page", (HTML,)),
    ApiOperation("get", "/openapi.json", "This page as an OpenAPI document"),
    ApiOperation("get", "/wol-health", "`OK`", (TEXT,)),
    # Live speech.
    ApiOperation(
        "get",
        "/v1/audio/transcriptions/stream",
        "A WebSocket for live transcription: audio in, text out; see docs/reference/live.md",
        errors=WEBSOCKET_ERRORS,
        query=SOCKET_QUERY,
        success=(101,),
    ),
    ApiOperation(
        "get", "/ws/realtime", "The same with TingWu's messages", errors=WEBSOCKET_ERRORS, query=SOCKET_QUERY, success=(101,)
    ),
    ApiOperation(
        "get",
        "/v1/realtime",
        "A WebSocket for live transcription in OpenAI's Realtime API",
        errors=WEBSOCKET_ERRORS,
        query=SOCKET_QUERY | {"intent": "`transcription`.", "rate": "Sample rate of the audio in Hz."},
        success=(101,),
    ),
    ApiOperation(
        "post",
        "/v1/realtime/client_secrets",
        "Create a key for such a WebSocket that expires, for web pages",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={
            "session": "The initial configuration of the sessions.",
            "expires_after": "When the key expires: `anchor`, `seconds`.",
        },
    ),
    ApiOperation(
        "post",
        "/v1/realtime/transcription_sessions",
        "The same in the format of the API's beta",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={
            "input_audio_format": "The audio's encoding.",
            "input_audio_transcription": "`model`, `language`, `prompt`.",
            "turn_detection": "How the end of an utterance is detected.",
        },
    ),
    *(
        ApiOperation("post", path, "Not supported: this server transcribes, and does not speak", errors=(501,), success=())
        for path in ("/v1/realtime/calls", "/v1/realtime/sessions", "/v1/realtime/translations/client_secrets")
    ),
    # Administration.
    ApiOperation("get", "/running", "List the models that are not stopped, with their commands and addresses"),
    ApiOperation("get", "/api/ps", "List the loaded models"),
    ApiOperation("post", "/api/ps/{name}", "Load a model and wait until it is ready", errors=LOADING_ERRORS),
    ApiOperation(
        "delete",
        "/api/ps/{name}",
        "Unload a model after its running requests",
        errors=LOADING_ERRORS,
        query=FORCE_QUERY,
    ),
    ApiOperation("post", "/api/pull/{name}", "Download a model; streams a line per step", (LINES,), (404, 502, 503, 507)),
    ApiOperation(
        "get", "/api/v1/backend", "Describe a model's engine and its capabilities", errors=LOOKUP_ERRORS, query=MODEL_FIELD
    ),
    ApiOperation("post", "/api/reload", "Reload the config; unchanged models keep running"),
    ApiOperation("post", "/api/models/load/{name}", "Load a model and wait until it is ready", (TEXT,), LOADING_ERRORS),
    ApiOperation(
        "post",
        "/api/models/unload/{name}",
        "Unload a model after its running requests",
        (TEXT,),
        LOADING_ERRORS,
        query=FORCE_QUERY,
    ),
    ApiOperation("post", "/api/models/unload", "Unload all models", query=FORCE_QUERY),
    ApiOperation("get", "/unload", "The same, for programs; web pages are refused", (TEXT,), query=FORCE_QUERY),
    ApiOperation("post", "/unload", "Unload all models", (TEXT,), query=FORCE_QUERY),
    ApiOperation("get", "/logs", "The latest lines of the server's log", (TEXT,)),
    ApiOperation(
        "get", "/logs/{name}", "The latest lines of the logs of all models (`upstream`), or of one", (TEXT,), LOOKUP_ERRORS
    ),
    ApiOperation("get", "/logs/stream", "Stream the server's log", (TEXT,), query={"no-history": "Only new lines."}),
    ApiOperation(
        "get",
        "/logs/stream/{name}",
        "Stream the logs of all models (`upstream`), or of one",
        (TEXT,),
        LOOKUP_ERRORS,
        query={"no-history": "Only new lines."},
    ),
    ApiOperation("get", "/api/events", "Stream changes: states, logs, requests in progress, the active profile", (EVENTS,)),
    ApiOperation("get", "/api/profiles", "List the config's profiles, and the active one"),
    ApiOperation(
        "put",
        "/api/profiles/active",
        "Activate a profile, or none",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"name": "The profile; null for none."},
        required=("name",),
    ),
    ApiOperation(
        "get",
        "/api/metrics/activity",
        "List the latest requests for models",
        query={
            "model": "Only requests for this model.",
            "limit": "Requests per page, up to 999.",
            "page": "Number of the page, from 1.",
            "order": "`desc` or `asc`.",
        },
    ),
    ApiOperation(
        "post", "/api/inflight/{id}/cancel", "Cancel a request in progress, by its `x-request-id`", errors=LOOKUP_ERRORS
    ),
    # Ollama's API; docs/reference/api.md has the rest.
    ApiOperation("get", "/api/version", "The version of Ollama's API, and Eardrum's own"),
    ApiOperation("get", "/api/tags", "List models, for Ollama's clients"),
    ApiOperation(
        "post",
        "/api/show",
        "Describe a model, for Ollama's clients",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body=MODEL_FIELD,
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/chat",
        "A chat in Ollama's format, or the transcript of the recordings in `images`",
        (LINES, JSON),
        INFERENCE_ERRORS,
        body=CHAT_FIELDS,
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/generate",
        "A completion in Ollama's format, or the transcript of the recordings in `images`",
        (LINES, JSON),
        INFERENCE_ERRORS,
        body=PROMPT_FIELDS,
        required=("model",),
    ),
    ApiOperation(
        "post", "/api/embed", "Embeddings in Ollama's format", errors=INFERENCE_ERRORS, body=INPUT_FIELDS, required=("model",)
    ),
    ApiOperation(
        "post",
        "/api/embeddings",
        "One embedding in Ollama's older format",
        errors=INFERENCE_ERRORS,
        body=MODEL_FIELD | {"prompt": "The text."},
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/pull",
        "Download a model, in Ollama's format",
        (LINES, JSON),
        (404, *BODY_ERRORS, 502, 507),
        body={"model": "A name, as for `eardrum pull`.", "stream": "Stream a line per step."},
        required=("model",),
    ),
    ApiOperation(
        "delete",
        "/api/delete",
        "Delete a downloaded model",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body=MODEL_FIELD,
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/copy",
        "Give a model another name until the server stops",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"source": "The model.", "destination": "Its other name."},
        required=("source", "destination"),
    ),
    *(
        ApiOperation(method, path, "Not supported: models come from the hub, a folder or the config", errors=(501,), success=())
        for method, path in (
            ("post", "/api/create"),
            ("post", "/api/push"),
            ("post", "/api/blobs/{digest}"),
            ("head", "/api/blobs/{digest}"),
        )
    ),
    # External models.
    *(
        ApiOperation(
            "post",
            path,
            "Forwarded to the model's upstream" + ("; speech models answer with a transcript" if path == CHAT_PATH else ""),
            (ANY,),
            (*INFERENCE_ERRORS, 405, 415),
            body=CHAT_FIELDS if path == CHAT_PATH else MODEL_FIELD,
            body_kinds=(JSON, "multipart/form-data"),
        )
        for path in POST_ROUTES
    ),
    *(
        ApiOperation("get", path, "Forwarded to the model's upstream", (ANY,), (*INFERENCE_ERRORS, 405), query=MODEL_FIELD)
        for path in GET_ROUTES
    ),
    *(
        ApiOperation(
            method,
            "/upstream/{name}/{path}",
            "Any path of the model's upstream, including pages and WebSockets",
            (ANY,),
            (*INFERENCE_ERRORS, 409),
            success=(101, 200, 301) if method == "get" else (200,),
        )
        for method in ("get", "post", "put", "patch", "delete", "head", "options")
    ),
)
"""All routes except those that take audio in forms. A forwarded request may get any status from its upstream."""


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of the two pages."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(build_document())

    async def page(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(_render_page(build_document(), base, service.catalog.default.id))

    return [Route("/openapi.json", openapi), Route("/docs", page)]


def build_document() -> dict[str, Any]:
    """Build the OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Eardrum",
            "version": __version__,
            "description": "Speech to text behind one port, in OpenAI's protocol.",
        },
        "paths": {
            "/v1/audio/transcriptions": {
                "post": _describe_audio_operation("/v1/audio/transcriptions", "Turn speech into text", list(AUDIO_FIELDS))
            },
            "/v1/audio/translations": {
                "post": _describe_audio_operation(
                    "/v1/audio/translations", "Turn speech into English text, with models that translate", list(AUDIO_FIELDS)
                )
            },
            **_describe_paths(),
        },
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


def _describe_audio_operation(path: str, summary: str, names: list[str]) -> dict[str, Any]:
    properties = {name: {"description": AUDIO_FIELDS[name][0]} | AUDIO_FIELDS[name][1] for name in names}
    form = {"type": "object", "required": ["file"], "properties": properties}
    content: dict[str, Any] = {"application/json": {}, "text/plain": {}, "text/event-stream": {}}
    return {
        "summary": summary,
        "operationId": _make_operation_id("post", path),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "The transcript in the chosen format", "content": content},
            **_describe_errors(path, (*INFERENCE_ERRORS, 415)),
        },
    }


def _describe_paths() -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe_operation(operation)
    return paths


def _describe_operation(operation: ApiOperation) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in operation.kinds}
    successes = {
        str(status): {"description": STATUS_MEANINGS[status]} | ({"content": content} if status == 200 else {})
        for status in operation.success
    }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _make_operation_id(operation.method, operation.path),
        "responses": successes | _describe_errors(operation.path, operation.errors),
    }
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    in_query = [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}} for name, text in operation.query.items()
    ]
    if parameters := in_path + in_query:
        described["parameters"] = parameters
    if operation.body is not None:
        schema: dict[str, Any] = {"type": "object", "properties": {n: {"description": t} for n, t in operation.body.items()}}
        if operation.required:
            schema["required"] = list(operation.required)
        described["requestBody"] = {"content": {kind: {"schema": schema} for kind in operation.body_kinds}}
    return described


def _make_operation_id(method: str, path: str) -> str:
    """Make a unique id that is a valid function name, because client generators use it as one."""
    unversioned = path.replace("/v/", "/unversioned/")
    return "_".join([method, *re.findall(r"\w+", unversioned)])


def _describe_errors(path: str, statuses: tuple[int, ...]) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Error"}
    if path.startswith("/api/"):
        schema = {"anyOf": [schema, {"$ref": "#/components/schemas/ErrorInWords"}]}
    content = {"application/json": {"schema": schema}}
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
        f'Version {escape(info["version"])}. The same as <a href="/openapi.json">OpenAPI</a>.</p>'
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
