"""The forwarded routes: those with a model in body or query, as in llama-swap, and `/upstream/{model}/{path}`.

Raw ASGI, because bodies are streamed through.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from html import escape
from typing import Any, NoReturn, Protocol
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode

from starlette.responses import HTMLResponse, Response

from eardrum.api import openapi, request_body
from eardrum.api.asgi import ASGIApp, ErrorBodyBuilder, Receive, Scope, Send, get_header
from eardrum.api.openapi import ApiOperation
from eardrum.api.proxy import upstream_headers
from eardrum.api.proxy.http import ProxyAttempt, ProxyExchange
from eardrum.api.proxy.multipart import ForwardedForm
from eardrum.api.proxy.websocket import relay_websocket
from eardrum.api.request_body import RequestBody
from eardrum.api.request_log import get_record
from eardrum.config.api_keys import KeyScope
from eardrum.config.linear_regex import LinearRegex
from eardrum.errors import (
    ForbiddenError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    UnsupportedFeatureError,
    UnsupportedMediaTypeError,
)
from eardrum.gateway.fallback import list_fallbacks
from eardrum.gateway.key_usage import CURRENT_KEY
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.gateway.spool import START_BYTES
from eardrum.gateway.upstreams import filters
from eardrum.gateway.upstreams.http_client import BodyStream, OutgoingRequest

CHAT_PATH = "/v1/chat/completions"

POST_ROUTES = {
    **{
        path: path
        for path in (
            *(CHAT_PATH, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"),
            *("/v1/rerank", "/v1/reranking", "/rerank", "/reranking", "/infill", "/completion"),
            *("/v1/audio/speech", "/v1/audio/voices", "/v1/images/generations", "/v1/images/edits"),
            *("/sdapi/v1/txt2img", "/sdapi/v1/img2img"),
        )
    },
    **{
        f"/v{path}": path  # for upstreams whose API has no version in its paths
        for path in (
            *("/chat/completions", "/completions", "/responses", "/messages", "/messages/count_tokens", "/embeddings"),
            *("/rerank", "/reranking"),
        )
    },
    "/audioapi/v1/tasks/run": "/v1/tasks/run",
}
"""Routes with the model in the body, and the upstream's path of each."""

GET_ROUTES = ("/v1/audio/voices", "/sdapi/v1/loras", "/props")
"""Routes with the model in the query."""

WEBSOCKET_ROUTES = ("/v1/realtime",)
"""Routes for WebSockets only, with the model in the query. The other routes accept WebSockets too."""

ENCODE_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

URLENCODED = "application/x-www-form-urlencoded"

SPEECH_PATH, VOICES_PATH = "/v1/audio/speech", "/v1/audio/voices"


class SpeechHandler(Protocol):
    """Answers a path for the models of this server, and prepares the requests that are forwarded."""

    operation: ApiOperation

    def choose_model_name(self, body: dict[str, Any]) -> object:
        """Return the name of the model that a body means."""

    def adapt_body(self, model: Model, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body as another server needs it; `body` itself if it stays."""

    async def __call__(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for a model of this server. The body has been read."""


VoiceLister = Callable[[Model | None], Response]
"""Builds the list of voices of a model, or of all."""


def describe_forwarding(method: str, path: str) -> ApiOperation:
    """Describe a route that is only forwarded. Such a request may get any status from its upstream."""
    summary, errors = "Forwarded to the model's upstream", (*openapi.INFERENCE_ERRORS, 405)
    if method == "get":
        return ApiOperation("get", path, summary, (openapi.ANY,), errors, query=openapi.MODEL_FIELD)
    kinds = (openapi.JSON, "multipart/form-data")
    return ApiOperation("post", path, summary, (openapi.ANY,), (*errors, 415), body=openapi.MODEL_FIELD, body_kinds=kinds)


class ProxyRoutes:
    """Routes that name a model. `speech_handlers` serve the paths that models of this server support as well."""

    paths = frozenset((*POST_ROUTES, *GET_ROUTES, *WEBSOCKET_ROUTES))

    def __init__(
        self,
        service: Service,
        build_error_body: ErrorBodyBuilder,
        *,
        speech_handlers: dict[str, SpeechHandler] | None = None,
        list_voices: tuple[ApiOperation, VoiceLister] | None = None,
    ):
        self._service = service
        self._limits = service.settings.limits
        self._build_error_body = build_error_body
        self._speech_handlers = speech_handlers or {}
        self._list_voices = list_voices[1] if list_voices else None
        described = {("post", path): handler.operation for path, handler in self._speech_handlers.items()}
        if list_voices:
            described["get", VOICES_PATH] = list_voices[0]
        routes = [*(("post", path) for path in POST_ROUTES), *(("get", path) for path in GET_ROUTES)]
        self.operations = tuple(described.get(route) or describe_forwarding(*route) for route in routes)

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the handler of a request for one of the paths, or None for a path that is only forwarded as a WebSocket."""
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._handle_websocket
        method = scope["method"]
        if method == "POST" and path in POST_ROUTES:
            return self._handle_post
        if method == "GET" and path in GET_ROUTES:
            return self._handle_get
        return self._reject_method if path in POST_ROUTES or path in GET_ROUTES else None

    def _handle_post(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[None, None, None]:
        if (encoding := get_header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
            raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it uncompressed.")
        kind = get_header(scope, b"content-type").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return self._handle_form(scope, receive, send)
        if not kind or kind == URLENCODED or kind.endswith(("/json", "+json")):
            return self._handle_text(kind, scope, receive, send)
        raise UnsupportedMediaTypeError(f"Send application/json or multipart/form-data, not {kind}.")

    async def _handle_text(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a body that is read whole: JSON, with any content type, or a form without files."""
        data = await request_body.receive_body(scope, receive, self._limits)
        if kind == URLENCODED and not data.lstrip().startswith(b"{"):
            await self._handle_urlencoded(data, scope, receive, send)
            return
        body = _parse_body(data)
        handler = self._speech_handlers.get(scope["path"])
        name = (handler.choose_model_name(body) if handler else body.get("model")) or _get_query_model(scope)
        model, resolved_name = self._resolve_model(name)
        if not model.is_external:
            await self._answer_speech(model, body, scope, receive, send)
            return
        attempts = [self._prepare_json_attempt(model, resolved_name, name, body, data, scope)]
        for alias, other in list_fallbacks(self._service.catalog, model):
            if other.is_external:
                attempts.append(self._prepare_json_attempt(other, alias, name, body, data, scope))
        await ProxyExchange(self._service, self._build_error_body, scope, receive, send).run_with_fallbacks(attempts)

    def _prepare_json_attempt(
        self, model: Model, resolved_name: str, name: object, body: dict[str, Any], data: bytes, scope: Scope
    ) -> ProxyAttempt:
        """Prepare a JSON request for one model, under the name `resolved_name`."""

        def prepare() -> tuple[OutgoingRequest, bool]:
            assert model.entry
            renamed = body if body.get("model", resolved_name) == resolved_name else {**body, "model": resolved_name}
            if handler := self._speech_handlers.get(scope["path"]):
                renamed = handler.adapt_body(model, renamed)
            changed = filters.apply_filters(renamed, model.entry, resolved_name)
            loading = scope["path"] == CHAT_PATH and changed.get("stream") is True and self._reports_loading(model)
            sent = data if changed is body else _encode_body(changed)
            return self._build_request(model, _get_new_name(model, resolved_name, name), scope, sent), loading

        return ProxyAttempt(model, prepare)

    async def _handle_urlencoded(self, data: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fields = parse_qsl(data.decode("latin-1"), keep_blank_values=True, max_num_fields=self._limits.fields)
        except ValueError:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields (limits.fields).") from None
        model, new = self._resolve_external(dict(fields).get("model") or _get_query_model(scope), scope)

        def request(model: Model, new: str) -> OutgoingRequest:
            renamed = [(key, new if new and key == "model" else value) for key, value in fields]
            return self._build_request(model, new, scope, urlencode(renamed).encode() if new else data)

        await ProxyExchange(self._service, self._build_error_body, scope, receive, send).run_with_fallbacks(
            self._prepare_attempts(model, new, request)
        )

    async def _handle_form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a form with files while it arrives."""
        body = RequestBody(scope, receive, self._limits)
        with self._service.create_spool() as spool:
            form = ForwardedForm(scope, body, self._limits, spool)
            model, new = self._resolve_external(await form.read_until_model() or _get_query_model(scope), scope)
            await form.read_beginning()
            exchange = ProxyExchange(self._service, self._build_error_body, scope, receive, send, received=body.received)
            await exchange.run_with_fallbacks(
                self._prepare_attempts(
                    model, new, lambda model, new: self._build_request(model, new, scope, form.build_stream(new))
                )
            )

    async def _handle_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _get_query_model(scope)
        if self._list_voices and scope["path"] == VOICES_PATH:
            model = self._resolve_model(name)[0] if name else None
            if not (model and model.is_external and self._may_ask_for_voices()):
                await self._list_voices(model)(scope, receive, send)
                return
        model, new = self._resolve_external(name, scope)
        attempts = self._prepare_attempts(model, new, lambda model, new: self._build_request(model, new, scope, None))
        await ProxyExchange(self._service, self._build_error_body, scope, receive, send).run_with_fallbacks(attempts)

    def _may_ask_for_voices(self) -> bool:
        """Whether another server may be asked for its voices: that loads a model. Where there are keys, it takes one that may
        speak, although the list itself needs none."""
        usage = CURRENT_KEY.get()
        may_speak = usage and KeyScope.SPEAK in usage.settings.scopes and not usage.settings.has_expired
        return not self._service.api_keys or bool(may_speak)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, new = self._resolve_external(_get_query_model(scope), scope)
        path = POST_ROUTES.get(scope["path"], scope["path"])
        await relay_websocket(self._service, model, f"{path}{_build_query(new, scope)}", scope, receive, send)

    async def _reject_method(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        methods = [name for name, paths in (("POST", POST_ROUTES), ("GET", GET_ROUTES)) if scope["path"] in paths]
        raise MethodNotAllowedError(f"{scope['path']} takes {' and '.join(methods)}, not {scope['method']}.", allow=methods)

    async def _answer_speech(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a local speech model."""
        answer = self._speech_handlers.get(scope["path"])
        if not answer or (model.is_voice_model != (scope["path"] == SPEECH_PATH)):
            self._refuse(model, scope)
        await answer(model, body, scope, receive, send)

    def _resolve_model(self, name: object) -> tuple[Model, str]:
        """Return the requested model, and its name after the active profile and selectors were applied.

        Raises:
            InvalidRequestError: the request names no model.
            ModelNotFoundError: no model has this name.
        """
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequestError("Name a model in the field `model`; GET /v1/models lists them.", param="model")
        resolved_name = self._service.resolve_name(name.strip())
        return self._service.catalog.find_model(resolved_name), resolved_name

    def _resolve_external(self, name: object, scope: Scope) -> tuple[Model, str]:
        """Return the model, and the name that replaces the client's; empty if the client's stays."""
        model, resolved_name = self._resolve_model(name)
        if not model.is_external:
            self._refuse(model, scope)
        return model, _get_new_name(model, resolved_name, name)

    def _refuse(self, model: Model, scope: Scope) -> NoReturn:
        if model.is_voice_model:
            raise UnsupportedFeatureError(
                f"{model.id} turns text into speech: it serves {SPEECH_PATH}, not {scope['path']}.", param="model"
            )
        paths = [
            "/v1/audio/transcriptions",
            *(["/v1/audio/translations"] if model.capabilities.translate else []),
            *(path for path in self._speech_handlers if path != SPEECH_PATH),
        ]
        raise UnsupportedFeatureError(
            f"{model.id} is a speech model of the engine {model.engine}: it serves {', '.join(paths)}, not {scope['path']}.",
            param="model",
        )

    def _build_request(self, model: Model, new: str, scope: Scope, body: bytes | BodyStream | None) -> OutgoingRequest:
        raw = scope["path"] if body is None else POST_ROUTES[scope["path"]]
        return upstream_headers.build_request(self._service, model, scope, f"{raw}{_build_query(new, scope)}", body)

    def _prepare_attempts(self, model: Model, new: str, request: Callable[[Model, str], OutgoingRequest]) -> list[ProxyAttempt]:
        """Prepare attempts with the model and its fallbacks, each under its own name."""
        others = [(other, _get_new_name(other, alias, None)) for alias, other in list_fallbacks(self._service.catalog, model)]
        external = [(one, name) for one, name in ((model, new), *others) if one.is_external]
        return [ProxyAttempt(one, partial(lambda one, name: (request(one, name), False), one, name)) for one, name in external]

    def _reports_loading(self, model: Model) -> bool:
        assert model.entry
        configured = model.entry.send_loading_state
        return self._service.settings.send_loading_state if configured is None else configured


def _parse_body(data: bytes) -> dict[str, Any]:
    body = request_body.parse_json_body(data)
    if not isinstance(body, dict):
        raise InvalidRequestError('The body must be a JSON object, as in {"model": ...}.')
    return body


def _encode_body(body: dict[str, Any]) -> bytes:
    try:
        return ENCODE_JSON(body).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body holds NaN or an infinite number, which JSON does not have.") from None


def _get_query_model(scope: Scope) -> str:
    query = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("model", [""])[-1] if query else ""


def _get_new_name(model: Model, resolved_name: str, requested_name: object) -> str:
    assert model.entry
    return model.entry.use_model_name or ("" if resolved_name == requested_name else resolved_name)


def _build_query(name: str, scope: Scope) -> str:
    """Build the query for the upstream, with another model name unless `name` is empty."""
    query: str = scope["query_string"].decode("latin-1")
    if not query:
        return ""
    if name and "model=" in query:
        fields = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(key, name if key == "model" else value) for key, value in fields])
    return f"?{query}"


PASSTHROUGH_PREFIX = "/upstream/"
MAX_NAME_PARTS = 8
"""Maximum parts of a path that are tried as a model's name."""


class PassthroughRoute:
    """`/upstream/{model}/{path}`, for any method and for WebSockets.

    `is_foreign_navigation` detects requests that a link or frame on a foreign page may have caused.
    """

    paths = (PASSTHROUGH_PREFIX.rstrip("/"), PASSTHROUGH_PREFIX)
    operations = tuple(
        ApiOperation(
            method,
            "/upstream/{name}/{path}",
            "Any path of the model's upstream, including pages and WebSockets",
            (openapi.ANY,),
            (*openapi.INFERENCE_ERRORS, 409),
            success=(101, 200, 301) if method == "get" else (200,),
        )
        for method in ("get", "post", "put", "patch", "delete", "head", "options")
    )

    def __init__(
        self,
        service: Service,
        build_error_body: ErrorBodyBuilder,
        is_foreign_navigation: Callable[[Scope], bool] = lambda _: False,
    ):
        self._service = service
        self._build_error_body = build_error_body
        self._is_foreign_navigation = is_foreign_navigation
        self._ignored = [LinearRegex(pattern) for pattern in service.settings.upstream.ignore_paths]

    def route(self, scope: Scope) -> ASGIApp:
        """Return the handler of a request for one of the paths."""
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ModelNotFoundError: no model's name begins the path.
            NotFoundError: there is none in it.
            NotReadyError: it is for a file of a page, and the model is not up.
            ForbiddenError: the model is not up, and a page of elsewhere would have it loaded.
        """
        model, path = self._find_target(scope["raw_path"].decode("latin-1")[len(PASSTHROUGH_PREFIX) :])
        if not model.is_external:
            raise UnsupportedFeatureError(
                f"{model.id} is run by the engine {model.engine}, which has no HTTP server.", param="model"
            )
        query = scope["query_string"].decode("latin-1")
        query = f"?{query}" if query else ""
        if not path:
            await _redirect(scope, send, f"{scope['raw_path'].decode('latin-1')}/{query}")
            return
        if self._service.get_state(model) is not ModelState.READY and any(pattern.matches(path) for pattern in self._ignored):
            raise NotReadyError(f"{model.id} is not loaded, and {path} does not load it (upstream.ignore_paths).", param="model")
        if scope["type"] == "websocket":
            await relay_websocket(self._service, model, f"{path}{query}", scope, receive, send)
            return
        if self._service.get_state(model) is not ModelState.READY and self._is_foreign_navigation(scope):
            await _request_click(model, scope, receive, send)
            return
        await self._pass_request(model, f"{path}{query}", scope, receive, send)

    async def _pass_request(self, model: Model, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        length = get_header(scope, b"content-length")
        if length in ("", "0") and not get_header(scope, b"transfer-encoding"):
            request = upstream_headers.build_request(self._service, model, scope, path, b"" if length else None)
            await ProxyExchange(self._service, self._build_error_body, scope, receive, send).run(model, request)
            return
        body = RequestBody(scope, receive, self._service.settings.limits)
        first = await _read_beginning(body)
        stream = BodyStream(_iterate_chunks(first, body), int(length) if length.isdigit() else None)
        request = upstream_headers.build_request(self._service, model, scope, path, stream)
        await ProxyExchange(self._service, self._build_error_body, scope, receive, send, received=body.received).run(
            model, request
        )

    def _find_target(self, path: str) -> tuple[Model, str]:
        """Return the model whose name is the longest prefix of the path, and the rest of the path; empty without a slash."""
        parts = path.split("/")
        if not parts[0]:
            models = ", ".join(model.id for model in self._service.catalog.list_visible() if model.is_external) or "none"
            raise NotFoundError(f"The path names no model: use {PASSTHROUGH_PREFIX}MODEL/PATH. Models with a server: {models}.")
        for count in range(min(len(parts), MAX_NAME_PARTS), 0, -1):
            if model := self._service.find_named(unquote("/".join(parts[:count]))):
                return model, "".join(f"/{part}" for part in parts[count:])
        return self._service.catalog.find_model(unquote(parts[0])), "".join(f"/{part}" for part in parts[1:])


async def _read_beginning(body: RequestBody) -> bytes:
    """Read as much as must have arrived before the request takes a slot at a model."""
    first = bytearray()
    while len(first) < START_BYTES and (chunk := await body.read()) is not None:
        first += chunk
    return bytes(first)


async def _iterate_chunks(first: bytes, body: RequestBody) -> AsyncIterator[bytes]:
    if first:
        yield first
    while (chunk := await body.read()) is not None:
        if chunk:
            yield chunk


async def _redirect(scope: Scope, send: Send, location: str) -> None:
    """Redirect to the URL with a trailing slash, which relative links on the page need. 308 makes clients repeat the body."""
    status = 301 if scope["method"] in ("GET", "HEAD") else 308
    headers = [(b"location", location.encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _request_click(model: Model, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a page whose link loads the model. A click on it proves that a person requested it: the browser then sends
    this server as the origin.

    Raises:
        ForbiddenError: the request is not for a page, so no person would see the link.
    """
    reason = f"{model.id} is not loaded, and this request may come from a page of another site, which may not load it"
    if scope["method"] != "GET" or "text/html" not in get_header(scope, b"accept"):
        raise ForbiddenError(
            f"{reason}: open {PASSTHROUGH_PREFIX}{model.id}/ first, or add that page's origin to `origins` in the config."
        )
    get_record(scope).note = reason
    page = CLICK_PAGE.format(model=escape(model.id))
    await HTMLResponse(page, 403, headers=ISOLATED_HEADERS)(scope, receive, send)


CLICK_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{model}</title></head>
<body><p>{model} is not loaded. Another page may have led you here, so this takes a click:</p>
<p><a href="">Load {model} and open its page</a></p></body></html>
"""
"""The empty link leads to the page's own URL, in its original spelling."""

ISOLATED_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # prevents clickjacking
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
}
