"""The forwarded routes: those that name a model in body or query, as in llama-swap, and `/upstream/{model}/{path}`.

Raw ASGI, because bytes pass through here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from html import escape
from typing import Any, NoReturn
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode

from starlette.responses import HTMLResponse

from eardrum import bounded_json
from eardrum.api import json_body
from eardrum.api.asgi import ASGIApp, Receive, Scope, Send, get_header
from eardrum.api.proxy import upstream_headers
from eardrum.api.proxy.http import ErrorBodyBuilder, ProxyAttempt, ProxyExchange
from eardrum.api.proxy.multipart import ForwardedForm
from eardrum.api.proxy.websocket import relay_websocket
from eardrum.api.request_log import get_record
from eardrum.api.uploads import RequestBody
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
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.gateway.spool import START_BYTES
from eardrum.gateway.upstreams import filters
from eardrum.gateway.upstreams.external import BodyStream, OutgoingRequest

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
"""Routes that name the model in their body, and the upstream's path for each."""

GET_ROUTES = ("/v1/audio/voices", "/sdapi/v1/loras", "/props")
"""Routes that name it in the query."""

WEBSOCKET_ROUTES = ("/v1/realtime",)
"""Routes for WebSockets only, which name it there too. On the others one may be opened as well."""

ENCODE_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

URLENCODED = "application/x-www-form-urlencoded"

SpeechHandler = Callable[[Model, dict[str, Any], Scope, Receive, Send], Awaitable[None]]
"""Answers a request whose body has been read and whose model is one of our own runners."""


class ProxyRoutes:
    """The endpoints. `own` are routes that our own models have as well, by path."""

    def __init__(self, service: Service, worded: ErrorBodyBuilder, *, own: dict[str, SpeechHandler] | None = None):
        self._service = service
        self._limits = service.settings.limits
        self._build_error = worded
        self._speech_handlers = own or {}

    def route(self, scope: Scope) -> ASGIApp | None:
        """What serves this request, if it is for one of these routes."""
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._handle_websocket if path in POST_ROUTES or path in GET_ROUTES or path in WEBSOCKET_ROUTES else None
        method = scope["method"]
        if method == "POST" and path in POST_ROUTES:
            return self._handle_post
        if method == "GET" and path in GET_ROUTES:
            return self._handle_get
        return self._reject_method if path in POST_ROUTES or path in GET_ROUTES else None

    async def _handle_post(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (encoding := get_header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
            raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it as it is.")
        kind = get_header(scope, b"content-type").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            await self._handle_form(scope, receive, send)
        elif not kind or kind == URLENCODED or kind.endswith(("/json", "+json")):
            await self._handle_text(kind, scope, receive, send)
        else:
            raise UnsupportedMediaTypeError(f"Send application/json or multipart/form-data, not {kind}.")

    async def _handle_text(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A body that is read whole: JSON, whatever it is declared as, or a form without files."""
        data = await json_body.read_body(scope, json_body.open_body(scope, receive, self._limits), self._limits)
        if kind == URLENCODED and not data.lstrip().startswith(b"{"):
            await self._handle_urlencoded(data, scope, receive, send)
            return
        body = _parse_body(data)
        name = body.get("model") or _get_query_model(scope)
        model, meant = self._resolve_model(name)
        if not model.is_external:
            await self._answer_speech(model, body, scope, receive, send)
            return
        tries = [self._prepare_json_attempt(model, meant, name, body, data, scope)]
        for spelled, other in list_fallbacks(self._service.catalog, model):
            if other.is_external:
                tries.append(self._prepare_json_attempt(other, spelled, name, body, data, scope))
        await ProxyExchange(self._service, self._build_error, scope, receive, send).run_with_fallbacks(tries)

    def _prepare_json_attempt(
        self, model: Model, meant: str, name: object, body: dict[str, Any], data: bytes, scope: Scope
    ) -> ProxyAttempt:
        """A body in JSON for one model, asked for as `meant`."""

        def prepare() -> tuple[OutgoingRequest, bool]:
            assert model.entry
            renamed = body if body.get("model", meant) == meant else {**body, "model": meant}
            changed = filters.apply_filters(renamed, model.entry, meant)
            loading = scope["path"] == CHAT_PATH and changed.get("stream") is True and self._reports_loading(model)
            sent = data if changed is body else _encode_body(changed)
            return self._build_request(model, _get_new_name(model, meant, name), scope, sent), loading

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

        await ProxyExchange(self._service, self._build_error, scope, receive, send).run_with_fallbacks(
            self._prepare_attempts(model, new, request)
        )

    async def _handle_form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A form with files, passed on while it comes in."""
        body = RequestBody(scope, receive, self._limits)
        with self._service.create_spool() as spool:
            form = ForwardedForm(scope, body, self._limits, spool)
            model, new = self._resolve_external(await form.read_until_model() or _get_query_model(scope), scope)
            await form.read_beginning()
            exchange = ProxyExchange(self._service, self._build_error, scope, receive, send, received=body.received)
            await exchange.run_with_fallbacks(
                self._prepare_attempts(
                    model, new, lambda model, new: self._build_request(model, new, scope, form.build_stream(new))
                )
            )

    async def _handle_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, new = self._resolve_external(_get_query_model(scope), scope)
        tries = self._prepare_attempts(model, new, lambda model, new: self._build_request(model, new, scope, None))
        await ProxyExchange(self._service, self._build_error, scope, receive, send).run_with_fallbacks(tries)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, new = self._resolve_external(_get_query_model(scope), scope)
        path = POST_ROUTES.get(scope["path"], scope["path"])
        await relay_websocket(self._service, model, f"{path}{_build_query(new, scope)}", scope, receive, send)

    async def _reject_method(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        takes = " and ".join(name for name, paths in (("POST", POST_ROUTES), ("GET", GET_ROUTES)) if scope["path"] in paths)
        raise MethodNotAllowedError(f"{scope['path']} takes {takes}, not {scope['method']}.")

    async def _answer_speech(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """A request for one of our own models."""
        answer = self._speech_handlers.get(scope["path"])
        if not answer:
            self._refuse(model, scope)
        await answer(model, body, scope, receive, send)

    def _resolve_model(self, name: object) -> tuple[Model, str]:
        """The model the client asks for, and the name it asks by once profile and selectors have had their say.

        Raises:
            InvalidRequestError: it names none.
            ModelNotFoundError: there is none of that name.
        """
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequestError("Say which model is meant, in the field `model`; GET /v1/models lists them.", param="model")
        meant = self._service.resolve_name(name.strip())
        return self._service.catalog.find_model(meant), meant

    def _resolve_external(self, name: object, scope: Scope) -> tuple[Model, str]:
        """The model, and the name for it that takes the place of the client's; empty if that stays."""
        model, meant = self._resolve_model(name)
        if not model.is_external:
            self._refuse(model, scope)
        return model, _get_new_name(model, meant, name)

    def _refuse(self, model: Model, scope: Scope) -> NoReturn:
        able = [
            "/v1/audio/transcriptions",
            *(["/v1/audio/translations"] if model.capabilities.translate else []),
            *self._speech_handlers,
        ]
        raise UnsupportedFeatureError(
            f"{model.id} is a speech model of the engine {model.engine}: it serves {', '.join(able)}, not {scope['path']}.",
            param="model",
        )

    def _build_request(self, model: Model, new: str, scope: Scope, body: bytes | BodyStream | None) -> OutgoingRequest:
        raw = scope["path"] if body is None else POST_ROUTES[scope["path"]]
        return upstream_headers.build_request(self._service, model, scope, f"{raw}{_build_query(new, scope)}", body)

    def _prepare_attempts(self, model: Model, new: str, request: Callable[[Model, str], OutgoingRequest]) -> list[ProxyAttempt]:
        """The model and its fallbacks, each with another name for it where it gets one."""
        others = [(other, _get_new_name(other, spelled, None)) for spelled, other in list_fallbacks(self._service.catalog, model)]
        foreign = [(one, name) for one, name in ((model, new), *others) if one.is_external]
        return [ProxyAttempt(one, partial(lambda one, name: (request(one, name), False), one, name)) for one, name in foreign]

    def _reports_loading(self, model: Model) -> bool:
        assert model.entry
        wanted = model.entry.sendLoadingState
        return self._service.settings.sendLoadingState if wanted is None else wanted


def _parse_body(data: bytes) -> dict[str, Any]:
    try:
        body = bounded_json.parse_json(data)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequestError('The body must be a JSON object, as in {"model": ...}.')
    return body


def _encode_body(body: dict[str, Any]) -> bytes:
    try:
        return ENCODE_JSON(body).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body holds a number that JSON does not have.") from None


def _get_query_model(scope: Scope) -> str:
    query = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("model", [""])[-1] if query else ""


def _get_new_name(model: Model, meant: str, asked: object) -> str:
    assert model.entry
    return model.entry.useModelName or ("" if meant == asked else meant)


def _build_query(name: str, scope: Scope) -> str:
    """The query for the upstream, with another name for the model if it gets one."""
    query: str = scope["query_string"].decode("latin-1")
    if not query:
        return ""
    if name and "model=" in query:
        fields = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(key, name if key == "model" else value) for key, value in fields])
    return f"?{query}"


PASSTHROUGH_PREFIX = "/upstream/"
MAX_NAME_PARTS = 8
"""Parts of a path that may belong to the model's name."""


class PassthroughRoute:
    """The route, for any method and for WebSockets. `is_led_here` says of a request that a page of elsewhere may be behind it."""

    def __init__(self, service: Service, worded: ErrorBodyBuilder, is_led_here: Callable[[Scope], bool] = lambda _: False):
        self._service = service
        self._build_error = worded
        self._is_led_here = is_led_here
        self._ignored = [LinearRegex(pattern) for pattern in service.settings.upstream.ignorePaths]

    def route(self, scope: Scope) -> ASGIApp | None:
        """What serves this request, if it is for this route."""
        return self if f"{scope['path']}/".startswith(PASSTHROUGH_PREFIX) else None

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
                f"{model.id} is run by the engine {model.engine} and has no pages of its own.", param="model"
            )
        query = scope["query_string"].decode("latin-1")
        query = f"?{query}" if query else ""
        if not path:
            await _redirect(scope, send, f"{scope['raw_path'].decode('latin-1')}/{query}")
            return
        if self._service.get_state(model) is not ModelState.READY and any(pattern.matches(path) for pattern in self._ignored):
            raise NotReadyError(f"{model.id} is not loaded, and {path} does not load it (upstream.ignorePaths).", param="model")
        if scope["type"] == "websocket":
            await relay_websocket(self._service, model, f"{path}{query}", scope, receive, send)
            return
        if self._service.get_state(model) is not ModelState.READY and self._is_led_here(scope):
            await _ask_first(model, scope, receive, send)
            return
        await self._pass_request(model, f"{path}{query}", scope, receive, send)

    async def _pass_request(self, model: Model, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        announced = get_header(scope, b"content-length")
        if announced in ("", "0") and not get_header(scope, b"transfer-encoding"):
            request = upstream_headers.build_request(self._service, model, scope, path, b"" if announced else None)
            await ProxyExchange(self._service, self._build_error, scope, receive, send).run(model, request)
            return
        body = RequestBody(scope, receive, self._service.settings.limits)
        first = await _read_beginning(body)
        stream = BodyStream(_iterate_chunks(first, body), int(announced) if announced.isdigit() else None)
        request = upstream_headers.build_request(self._service, model, scope, path, stream)
        await ProxyExchange(self._service, self._build_error, scope, receive, send, received=body.received).run(model, request)

    def _find_target(self, path: str) -> tuple[Model, str]:
        """The model with the longest name that begins the path, and the path behind it; that is empty if no slash follows."""
        parts = path.split("/")
        if not parts[0]:
            models = ", ".join(model.id for model in self._service.catalog if model.is_external) or "none here"
            raise NotFoundError(
                f"Say whose server is meant: {PASSTHROUGH_PREFIX}MODEL/ and then the path there. "
                f"Models with a server of their own: {models}."
            )
        for count in range(min(len(parts), MAX_NAME_PARTS), 0, -1):
            if model := self._service.find_named(unquote("/".join(parts[:count]))):
                return model, "".join(f"/{part}" for part in parts[count:])
        return self._service.catalog.find_model(unquote(parts[0])), "".join(f"/{part}" for part in parts[1:])


async def _read_beginning(body: RequestBody) -> bytes:
    """So much of it that a model may be kept waiting for the rest."""
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


async def _redirect(scope: Scope, send: Send, to: str) -> None:
    """To the same with a slash, which links on the page need to be right. A body is to be sent again there."""
    status = 301 if scope["method"] in ("GET", "HEAD") else 308
    headers = [(b"location", to.encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _ask_first(model: Model, scope: Scope, receive: Receive, send: Send) -> None:
    """Have a person say that the model is to be loaded, in a click on a page of ours; of that the browser says where it was.

    Raises:
        ForbiddenError: it is no page that the browser wants, so nobody would see the question.
    """
    why = f"{model.id} is not loaded, and a page of elsewhere may have led here, which may not load it"
    if scope["method"] != "GET" or "text/html" not in get_header(scope, b"accept"):
        raise ForbiddenError(
            f"{why}: open {PASSTHROUGH_PREFIX}{model.id}/ first, or name that page's origin under `origins` in the config."
        )
    get_record(scope).note = why
    page = QUESTION.format(model=escape(model.id))
    await HTMLResponse(page, 403, headers=ALONE)(scope, receive, send)


QUESTION = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{model}</title></head>
<body><p>{model} is not loaded. Another page may have led you here, so this takes a click:</p>
<p><a href="">Load {model} and open its page</a></p></body></html>
"""
"""The link is to the address where it is shown, however that is written."""

ALONE = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # no other page may have it clicked unseen
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
}
