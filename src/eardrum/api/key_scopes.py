"""The right that each route asks of an API key.

A route that is not in this table asks for `manage`, so a new one is closed to limited keys until it gets a scope.
"""

from __future__ import annotations

from functools import lru_cache

from eardrum.api.page import LLAMA_SWAP_PATH, list_page_files
from eardrum.config.api_keys import KeyScope

PUBLIC_PATHS = frozenset((
    *("/", LLAMA_SWAP_PATH, "/health", "/wol-health", "/favicon.ico", "/docs", "/openapi.json", "/api/keys/current"),
    *(f"/{name}" for name in list_page_files()),
))  # fmt: skip
"""Health checks, documentation, the files of the web page, and the rights of a key: these need no key."""

PUBLIC_FOLDERS = (f"{LLAMA_SWAP_PATH}/",)
"""Beginnings of paths that need no key either: they redirect to the web page."""

PUBLIC_LISTS = frozenset(("/v1/audio/voices", "/v1/audio/models"))
"""Lists that need no key, as Open WebUI sends none for them. GET and HEAD alone."""

JOB_PATHS = ("/v1/files", "/v1/batches", "/api/jobs")
"""Paths that use no model at once. Only new jobs count against a key's limits, and their audio once it is transcribed."""

TRANSCRIBE_PATHS = (
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime", "/ws/realtime"),
    *("/asr", "/detect-language", "/status"),
    *("/api/v1/asr", "/api/v1/transcribe", "/api/v1/trans", "/api/v1/result"),
    *JOB_PATHS,
)
SPEAK_PATHS = ("/v1/audio/speech", "/v1/audio/voices", "/v1/audio/models")
CHAT_PATHS = (
    *(
        "/v1/chat",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/reranking",
        "/v1/images",
    ),
    *("/rerank", "/reranking", "/infill", "/completion", "/sdapi", "/v", "/audioapi", "/props"),
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
)
READ_MODELS_PATHS = ("/v1/models", "/models", "/api/tags", "/api/v1/backend", "/v1/registry", "/api/version")
LOG_PATHS = ("/logs", "/api/events", "/api/metrics")

SCOPES_BY_PATH = {
    **dict.fromkeys(TRANSCRIBE_PATHS, KeyScope.TRANSCRIBE),
    **dict.fromkeys(SPEAK_PATHS, KeyScope.SPEAK),
    **dict.fromkeys(CHAT_PATHS, KeyScope.CHAT),
    **dict.fromkeys(LOG_PATHS, KeyScope.LOGS),
    "/metrics": KeyScope.METRICS,
    "/api/show": KeyScope.MODELS,
}
"""The scope of a path and of all paths below it."""

READ_SCOPES_BY_PATH = dict.fromkeys((*READ_MODELS_PATHS, "/api/ps", "/running", "/api/profiles"), KeyScope.MODELS)
"""The same for GET and HEAD alone: other methods change something."""

USE_SCOPES = (KeyScope.TRANSCRIBE, KeyScope.SPEAK, KeyScope.CHAT)
"""Scopes of routes that use a model: their requests count against a key's limits."""

UNCOUNTED_PATHS = frozenset(("/api/v1/result", "/status"))
"""Routes of these scopes that use no model: clients ask them again and again, or before they begin."""


def counts_as_use(method: str, path: str) -> bool:
    """Whether a request for a route that uses a model counts against a key's limits of requests."""
    if path.startswith(JOB_PATHS):
        return path in ("/v1/batches", "/api/jobs") and method == "POST"
    return path not in UNCOUNTED_PATHS


def find_scope(method: str, path: str) -> KeyScope | None:
    """Return the scope that a request needs; None if it needs no key."""
    if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS):
        return None
    reads = method in ("GET", "HEAD")
    if reads and path in PUBLIC_LISTS:
        return None
    while path:
        scope = SCOPES_BY_PATH.get(path) or (READ_SCOPES_BY_PATH.get(path) if reads else None)
        if scope:
            return scope
        path = path.rpartition("/")[0]
    return KeyScope.MANAGE


def find_need(method: str, path: str) -> tuple[KeyScope | None, bool]:
    """Return the scope that a request needs, and whether it counts against a key's limits of requests."""
    scope = find_scope(method, path)
    return scope, scope in USE_SCOPES and counts_as_use(method, path)


MAX_ROUTE_CHARS = 200
"""Longest path whose needs are remembered: clients choose paths, and longer ones must not fill the memory."""

recall_need = lru_cache(maxsize=512)(find_need)
"""The same from memory: most requests are for a few paths."""
