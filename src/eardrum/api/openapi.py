"""Describes the API: `/openapi.json` for machines and `/docs` for people, from one table of operations.

The page is plain HTML rendered here, so it works without a network; a page that loads scripts does not.
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
        "The recording: wav, mp3, m4a, flac, ogg, opus, webm, mp4 and more, recognised by content. "
        "Headerless s16le mono 16 kHz when its content type is audio/pcm.",
        {"type": "string", "format": "binary"},
    ),
    "model": ("A model of GET /v1/models or an alias; empty takes the default.", {"type": "string"}),
    "language": (
        "ISO 639 code, locale or English name; empty lets the model decide.",
        {"type": "string", "examples": ["en", "de-AT"]},
    ),
    "response_format": (
        "Shape of the answer.",
        {"type": "string", "enum": ["json", "text", "srt", "verbose_json", "vtt"], "default": "json"},
    ),
    "stream": ("Send segments as server-sent events while they are decoded.", {"type": "boolean", "default": False}),
    "timestamp_granularities[]": (
        "Times wanted in verbose_json.",
        {"type": "array", "items": {"type": "string", "enum": ["word", "segment"]}},
    ),
    "include[]": (
        "`logprobs`: tokens with their probabilities, in json.",
        {"type": "array", "items": {"type": "string", "enum": ["logprobs"]}},
    ),
    "prompt": ("Text that nudges the model, where it can take one.", {"type": "string"}),
    "keywords[]": ("Words to expect, where the model can take them.", {"type": "array", "items": {"type": "string"}}),
    "subtitles": (
        "srt and vtt: `broadcast` gives cues two lines of 42, 5/6 to 7 seconds; the fields below win over it. 0 is no limit.",
        {"type": "string", "enum": list(PRESETS)},
    ),
    "max_line_width": ("srt and vtt: columns of a line.", {"type": "integer", "minimum": 0}),
    "max_line_count": ("srt and vtt: lines of a cue.", {"type": "integer", "minimum": 0}),
    "max_words_per_line": ("srt and vtt: words of a line; alone it makes a cue of each.", {"type": "integer", "minimum": 0}),
    "highlight_words": ("srt and vtt: underline each word while it is said.", {"type": "boolean"}),
    "min_duration": ("srt and vtt: seconds a cue stays at least, if there is room.", {"type": "number", "minimum": 0}),
    "max_duration": ("srt and vtt: seconds a cue stays at most.", {"type": "number", "minimum": 0}),
    "min_gap": ("srt and vtt: seconds between cues.", {"type": "number", "minimum": 0}),
    "max_characters_per_second": ("srt and vtt: cues stay longer, to be read so fast.", {"type": "number", "minimum": 0}),
    "multilingual": ("Each window is in a language of its own, where the model finds languages out.", {"type": "boolean"}),
    "temperature": ("Sampling temperature, where the model has one.", {"type": "number", "minimum": 0, "maximum": 1}),
    "audio_track": (
        "Which of several audio tracks to hear, counted from 1; else the default one, or the first with sound.",
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
    101: "It is a WebSocket from now on",
    200: "OK",
    301: "The same with a slash at its end",
    307: "To the page for people, for browsers",
    400: "The request makes no sense, or the model cannot do what is asked; the message says which part",
    401: "The server has keys, and none of them was shown",
    403: "A page or a name that this server does not answer",
    404: "No such model, or nothing of this name",
    405: "This route is asked in another way",
    408: "Nothing arrived for `limits.stall_seconds` in the middle of the upload",
    409: "The model is not up, and this path does not load it",
    413: "The body is larger than the limit",
    415: "Neither a form nor JSON, or compressed",
    429: "The model holds as many requests as it may; `Retry-After` says when to come back",
    431: "The headers are too long",
    499: "Whoever runs the server cancelled the request",
    500: "The model could not be loaded or has died, or the server failed",
    501: "This server does not do that",
    502: "The server behind the model, or the hub, failed",
    503: "The model is full or cannot be loaded just now, or the server shuts down; `Retry-After` says when to come back",
    504: "The server behind the model did not answer in time",
    507: "There is no room on the disk",
}
"""What each status means."""

ANY_ROUTE_ERRORS = (400, 401, 403, 431, 500)
"""Statuses of errors that any route may answer with."""
LOOKUP_ERRORS = (404,)
"""Those of a route that names something."""
BODY_ERRORS = (408, 413, 503)
"""Those of a route with a body."""
INFERENCE_ERRORS = (404, 408, 413, 429, 499, 502, 503, 504, 507)
"""Those of a route that has a model work."""
LOADING_ERRORS = (404, 429, 502, 503, 504, 507)
"""Those of a route that loads a model."""
WEBSOCKET_ERRORS = (404, 405, 429, 501, 502, 503, 504)
"""Those of a WebSocket that is not let in."""


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One method of one route. `query` and `body` are names of parameters and fields, with what they mean."""

    method: str
    path: str
    summary: str
    kinds: tuple[str, ...] = (JSON,)
    """Media types of the answer."""
    errors: tuple[int, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] | None = None
    required: tuple[str, ...] = ()
    """Fields that the body must have."""
    success: tuple[int, ...] = (200,)
    body_kinds: tuple[str, ...] = (JSON,)


FORCE_QUERY = {"force": "With it, models do not finish what they have begun."}
MODEL_FIELD = {"model": "A model of GET /v1/models, or an alias."}
CHAT_FIELDS = MODEL_FIELD | {"messages": "What was said.", "stream": "Whether the answer comes in pieces."}
PROMPT_FIELDS = MODEL_FIELD | {"prompt": "The text to go on with.", "stream": "Whether the answer comes in pieces."}
INPUT_FIELDS = MODEL_FIELD | {"input": "What is asked about."}
SOCKET_QUERY = {"model": "A model that has live sessions, or an alias; else the default one."}

OPERATIONS = (
    ApiOperation("get", "/v1/models", "Models, what each can do and whether it is loaded"),
    ApiOperation("get", "/models", "The same, where llama-swap has it"),
    ApiOperation("get", "/v1/models/{id}", "One model, by id or alias; ids may contain slashes", errors=LOOKUP_ERRORS),
    ApiOperation("get", "/health", "Whether the server is up, and the state of each model"),
    ApiOperation("get", "/", "Says that the server is there", (TEXT,), success=(200, 307)),
    ApiOperation("get", "/docs", "This page", (HTML,)),
    ApiOperation("get", "/openapi.json", "This page for machines"),
    ApiOperation("get", "/wol-health", "`OK`", (TEXT,)),
    # Live speech.
    ApiOperation(
        "get",
        "/v1/audio/transcriptions/stream",
        "A WebSocket: audio in, text while somebody speaks; docs/reference/live.md",
        errors=WEBSOCKET_ERRORS,
        query=SOCKET_QUERY,
        success=(101,),
    ),
    ApiOperation(
        "get", "/ws/realtime", "The same in TingWu's messages", errors=WEBSOCKET_ERRORS, query=SOCKET_QUERY, success=(101,)
    ),
    ApiOperation(
        "get",
        "/v1/realtime",
        "A WebSocket: text while somebody speaks, in OpenAI's Realtime API",
        errors=WEBSOCKET_ERRORS,
        query=SOCKET_QUERY | {"intent": "`transcription`.", "rate": "Samples a second of the audio."},
        success=(101,),
    ),
    ApiOperation(
        "post",
        "/v1/realtime/client_secrets",
        "A key for such a WebSocket that expires, for pages in browsers",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"session": "How the sessions begin.", "expires_after": "When the key expires: `anchor`, `seconds`."},
    ),
    ApiOperation(
        "post",
        "/v1/realtime/transcription_sessions",
        "The same in the shape of the API's beta",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={
            "input_audio_format": "How the audio is coded.",
            "input_audio_transcription": "`model`, `language`, `prompt`.",
            "turn_detection": "Who says when an utterance ends.",
        },
    ),
    *(
        ApiOperation("post", path, "Not offered: this server transcribes and does not talk", errors=(501,), success=())
        for path in ("/v1/realtime/calls", "/v1/realtime/sessions", "/v1/realtime/translations/client_secrets")
    ),
    # Whoever runs the server.
    ApiOperation("get", "/running", "Models that are not stopped, with their commands and addresses"),
    ApiOperation("get", "/api/ps", "Models whose processes run"),
    ApiOperation("post", "/api/ps/{name}", "Load a model and wait until it serves", errors=LOADING_ERRORS),
    ApiOperation(
        "delete",
        "/api/ps/{name}",
        "Unload a model when it has finished what it has begun",
        errors=LOADING_ERRORS,
        query=FORCE_QUERY,
    ),
    ApiOperation("post", "/api/pull/{name}", "Fetch a model: a line for each step", (LINES,), (404, 502, 503, 507)),
    ApiOperation("get", "/api/v1/backend", "What runs a model, and what that can do", errors=LOOKUP_ERRORS, query=MODEL_FIELD),
    ApiOperation("post", "/api/reload", "Read the config again; models that it does not change serve on"),
    ApiOperation("post", "/api/models/load/{name}", "Load a model and wait until it serves", (TEXT,), LOADING_ERRORS),
    ApiOperation(
        "post",
        "/api/models/unload/{name}",
        "Unload a model when it has finished what it has begun",
        (TEXT,),
        LOADING_ERRORS,
        query=FORCE_QUERY,
    ),
    ApiOperation("post", "/api/models/unload", "Unload all models", query=FORCE_QUERY),
    ApiOperation("get", "/unload", "The same, for programs and not for pages", (TEXT,), query=FORCE_QUERY),
    ApiOperation("post", "/unload", "The same", (TEXT,), query=FORCE_QUERY),
    ApiOperation("get", "/logs", "What the server said last", (TEXT,)),
    ApiOperation("get", "/logs/{name}", "The same of all models (`upstream`), or of one", (TEXT,), LOOKUP_ERRORS),
    ApiOperation("get", "/logs/stream", "What the server says, without end", (TEXT,), query={"no-history": "Only what comes."}),
    ApiOperation(
        "get",
        "/logs/stream/{name}",
        "The same of all models (`upstream`), or of one",
        (TEXT,),
        LOOKUP_ERRORS,
        query={"no-history": "Only what comes."},
    ),
    ApiOperation("get", "/api/events", "What changes: states, logs, requests in progress, the active profile", (EVENTS,)),
    ApiOperation("get", "/api/profiles", "Profiles of the config, and which is active"),
    ApiOperation(
        "put",
        "/api/profiles/active",
        "Choose a profile, or none",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"name": "The profile; null for none."},
        required=("name",),
    ),
    ApiOperation(
        "get",
        "/api/metrics/activity",
        "The last requests for models",
        query={
            "model": "Only those for this one.",
            "limit": "How many a page has, up to 999.",
            "page": "Which page, from 1.",
            "order": "`desc` or `asc`.",
        },
    ),
    ApiOperation("post", "/api/inflight/{id}/cancel", "End a request in progress, by its `x-request-id`", errors=LOOKUP_ERRORS),
    # Ollama's API; docs/reference/api.md has the rest.
    ApiOperation("get", "/api/version", "The version of Ollama whose API this is, and our own"),
    ApiOperation("get", "/api/tags", "Models, for Ollama's clients"),
    ApiOperation(
        "post",
        "/api/show",
        "One model, for Ollama's clients",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body=MODEL_FIELD,
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/chat",
        "A chat in Ollama's shape, or the transcript of the recordings in `images`",
        (LINES, JSON),
        INFERENCE_ERRORS,
        body=CHAT_FIELDS,
        required=("model",),
    ),
    ApiOperation(
        "post", "/api/generate", "The same for a prompt", (LINES, JSON), INFERENCE_ERRORS, body=PROMPT_FIELDS, required=("model",)
    ),
    ApiOperation(
        "post", "/api/embed", "Vectors in Ollama's shape", errors=INFERENCE_ERRORS, body=INPUT_FIELDS, required=("model",)
    ),
    ApiOperation(
        "post",
        "/api/embeddings",
        "One vector in Ollama's older shape",
        errors=INFERENCE_ERRORS,
        body=MODEL_FIELD | {"prompt": "The text."},
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/pull",
        "Fetch a model, in Ollama's shape",
        (LINES, JSON),
        (404, *BODY_ERRORS, 502, 507),
        body={"model": "Which, as `eardrum pull` takes it.", "stream": "Whether a line is said for each step."},
        required=("model",),
    ),
    ApiOperation(
        "delete",
        "/api/delete",
        "Delete a model that was fetched",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"model": "Which."},
        required=("model",),
    ),
    ApiOperation(
        "post",
        "/api/copy",
        "Give a model another name until the server ends",
        errors=LOOKUP_ERRORS + BODY_ERRORS,
        body={"source": "The model.", "destination": "Its other name."},
        required=("source", "destination"),
    ),
    *(
        ApiOperation(method, path, "Not offered: models come from the hub, a folder or the config", errors=(501,), success=())
        for method, path in (
            ("post", "/api/create"),
            ("post", "/api/push"),
            ("post", "/api/blobs/{digest}"),
            ("head", "/api/blobs/{digest}"),
        )
    ),
    # Models that other servers serve.
    *(
        ApiOperation(
            "post",
            path,
            "Passed on to the server of the model" + (", which may be one that hears" if path == CHAT_PATH else ""),
            (ANY,),
            (*INFERENCE_ERRORS, 405, 415),
            body=CHAT_FIELDS if path == CHAT_PATH else MODEL_FIELD,
            body_kinds=(JSON, "multipart/form-data"),
        )
        for path in POST_ROUTES
    ),
    *(
        ApiOperation("get", path, "Passed on to the server of the model", (ANY,), (*INFERENCE_ERRORS, 405), query=MODEL_FIELD)
        for path in GET_ROUTES
    ),
    *(
        ApiOperation(
            method,
            "/upstream/{name}/{path}",
            "Anything that the model's server has, pages and WebSockets included",
            (ANY,),
            (*INFERENCE_ERRORS, 409),
            success=(101, 200, 301) if method == "get" else (200,),
        )
        for method in ("get", "post", "put", "patch", "delete", "head", "options")
    ),
)
"""Every route but those that take audio in forms; what is forwarded may also answer with any status of the server behind."""


def build_routes(service: Service) -> list[BaseRoute]:
    """The two pages."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(build_document())

    async def page(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(_render_page(build_document(), base, service.catalog.default.id))

    return [Route("/openapi.json", openapi), Route("/docs", page)]


def build_document() -> dict[str, Any]:
    """The OpenAPI document."""
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
                    "description": "What Ollama's clients read",
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
    answers: dict[str, Any] = {"application/json": {}, "text/plain": {}, "text/event-stream": {}}
    return {
        "summary": summary,
        "operationId": _make_operation_id("post", path),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "The transcript in the chosen format", "content": answers},
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
    """Unique and without what names of functions cannot have: programs that make clients name them so."""
    named = path.replace("/v/", "/unversioned/")
    return "_".join([method, *re.findall(r"\w+", named)])


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
        f"<h2>Errors</h2><p>Every error has OpenAI's shape, with a sentence that says what to do:</p>"
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
    """Escaped text with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _render_row(name: str, field: dict[str, Any]) -> str:
    choices = field.get("enum") or field.get("items", {}).get("enum")
    extra = f"<br><span class=quiet>{escape(', '.join(choices))}</span>" if choices else ""
    return f"<tr><td><code>{escape(name)}</code></td><td>{_render_prose(field['description'])}{extra}</td></tr>"
