"""What the API offers, for machines (`/openapi.json`) and for people (`/docs`), from one description.

The page is plain HTML made here: it works without a network, which a page that loads scripts does not.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum import __version__
from eardrum.gateway.service import Service
from eardrum.languages import NAMES
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

JSON, TEXT, EVENTS, LINES = "application/json", "text/plain", "text/event-stream", "application/x-ndjson"

MANAGEMENT = (
    ("get", "/running", "Models that are not stopped, with their commands and addresses", JSON),
    ("get", "/api/ps", "Models whose processes run", JSON),
    ("post", "/api/reload", "Read the config again; models that it does not change serve on", JSON),
    ("post", "/api/models/load/{model}", "Load a model and wait until it serves", TEXT),
    ("post", "/api/models/unload/{model}", "Unload a model when it has finished what it has begun", TEXT),
    ("post", "/api/models/unload", "Unload all models; `GET /unload` does the same for programs, `POST /unload` for all", JSON),
    ("get", "/logs", "What the server said last; `/logs/upstream` all models, `/logs/{model}` one", TEXT),
    ("get", "/logs/stream", "The same and what comes, without end; `?no-history` only what comes", TEXT),
    ("get", "/api/events", "What changes: states, logs, requests in progress, the active profile", EVENTS),
    ("get", "/api/profiles", "Profiles of the config, and which is active", JSON),
    ("put", "/api/profiles/active", 'Choose a profile, `{"name": "..."}`, or none, `{"name": null}`', JSON),
    ("get", "/api/metrics/activity", "The last requests for models: `model`, `limit`, `page`, `order`", JSON),
    ("post", "/api/inflight/{id}/cancel", "End a request in progress, by its `x-request-id`", JSON),
    ("get", "/api/version", "The version of Ollama whose API this is, and our own", JSON),
)
"""What is for whoever runs the server: method, path, what it does, content type."""

REALTIME = (
    ("get", "/v1/audio/transcriptions/stream", "A WebSocket: audio in, text while somebody speaks; docs/live.md", JSON),
    ("get", "/ws/realtime", "The same in TingWu's messages", JSON),
    (
        "get",
        "/v1/realtime",
        "A WebSocket with `?intent=transcription`: text while somebody speaks, in OpenAI's Realtime API",
        JSON,
    ),
    ("post", "/v1/realtime/client_secrets", "A key for such a WebSocket that expires, for pages in browsers", JSON),
    ("post", "/v1/realtime/transcription_sessions", "The same in the shape of the API's beta", JSON),
)
"""Live speech."""

OLLAMA = (
    ("get", "/api/tags", "Models, for Ollama's clients", JSON),
    ("post", "/api/show", "One model, for Ollama's clients", JSON),
    ("post", "/api/chat", "A chat in Ollama's shape, or the transcript of the recordings in `images`", LINES),
    ("post", "/api/generate", "The same for a prompt", LINES),
    ("post", "/api/embed", "Vectors in Ollama's shape", JSON),
    ("post", "/api/pull", "Fetch a model, in Ollama's shape", LINES),
    ("delete", "/api/delete", "Delete a model that was fetched", JSON),
    ("post", "/api/copy", "Give a model another name until the server ends", JSON),
)
"""Ollama's API; docs/api.md has the rest."""


def routes(service: Service) -> list[BaseRoute]:
    """The two pages."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(description())

    async def page(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(_page(description(), base, service.catalog.default.id))

    return [Route("/openapi.json", openapi), Route("/docs", page)]


def description() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Eardrum",
            "version": __version__,
            "description": "Speech to text behind one port, in OpenAI's protocol.",
        },
        "paths": {
            "/v1/audio/transcriptions": {"post": _audio("Turn speech into text", list(AUDIO_FIELDS))},
            "/v1/audio/translations": {
                "post": _audio("Turn speech into English text, with models that translate", list(AUDIO_FIELDS))
            },
            **{path: {method: _get(summary, kind)} for method, path, summary, kind in REALTIME},
            "/v1/models": {"get": _get("Models, what each can do and whether it is loaded")},
            "/v1/models/{id}": {
                "get": _get("One model, by id or alias; ids may contain slashes")
                | {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]}
            },
            "/health": {"get": _get("Whether the server is up, and the state of each model")},
            **{path: {method: _get(summary, kind)} for method, path, summary, kind in (*MANAGEMENT, *OLLAMA)},
        },
        "components": {
            "schemas": {
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
                }
            }
        },
    }


def _audio(summary: str, names: list[str]) -> dict[str, Any]:
    properties = {name: {"description": AUDIO_FIELDS[name][0]} | AUDIO_FIELDS[name][1] for name in names}
    form = {"type": "object", "required": ["file"], "properties": properties}
    answers: dict[str, Any] = {"application/json": {}, "text/plain": {}, "text/event-stream": {}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "The transcript in the chosen format", "content": answers},
            "400": _error("A field or the audio is wrong, or the model cannot do what is asked"),
            "404": _error("No such model"),
            "413": _error("The upload is larger than the limit"),
            "503": _error("The model's queue is full; `Retry-After` says when to come back"),
        },
    }


def _get(summary: str, kind: str = JSON) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": {kind: {}}}}}


def _error(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
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


def _page(document: dict[str, Any], base: str, model: str) -> str:
    info = document["info"]
    operations = "".join(
        _operation(method, path, operation)
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
        f"<h2>Languages</h2><p>{escape(', '.join(f'{name} ({code})' for code, name in NAMES.items()))}</p></body></html>"
    )


ERROR_EXAMPLE = (
    '{"error": {"message": "The file has no audio track.", "type": "invalid_request_error",\n'
    '           "param": "file", "code": "invalid_audio"}}'
)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    html = (
        f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2><p>{_prose(operation["summary"])}.</p>'
    )
    body = operation.get("requestBody")
    if body:
        properties = body["content"]["multipart/form-data"]["schema"]["properties"]
        rows = "".join(_row(name, field) for name, field in properties.items())
        html += f"<table><tr><th>field</th><th>meaning</th></tr>{rows}</table>"
    answers = "".join(
        f"<tr><td>{status}</td><td>{_prose(answer['description'])}</td></tr>" for status, answer in operation["responses"].items()
    )
    return html + f"<table><tr><th>status</th><th>meaning</th></tr>{answers}</table>"


def _prose(text: str) -> str:
    """Escaped text with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _row(name: str, field: dict[str, Any]) -> str:
    choices = field.get("enum") or field.get("items", {}).get("enum")
    extra = f"<br><span class=quiet>{escape(', '.join(choices))}</span>" if choices else ""
    return f"<tr><td><code>{escape(name)}</code></td><td>{_prose(field['description'])}{extra}</td></tr>"
