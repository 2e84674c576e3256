"""Routes of models that other servers serve, as llama-swap has them. Raw ASGI: bytes go through here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn
from urllib.parse import parse_qs, parse_qsl, urlencode

from eardrum import json_text
from eardrum.api import json_body
from eardrum.api.asgi import App, Receive, Scope, Send, header
from eardrum.api.forward import outgoing
from eardrum.api.forward.broken import Worded
from eardrum.api.forward.exchange import Exchange, Try
from eardrum.api.forward.form import Form
from eardrum.api.forward.socket import relay
from eardrum.api.multipart import Body
from eardrum.errors import InvalidRequestError, MethodNotAllowedError, UnsupportedFeatureError, UnsupportedMediaTypeError
from eardrum.gateway.attempts import stand_ins
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams import filters
from eardrum.gateway.upstreams.foreign import Outgoing, Stream

CHAT = "/v1/chat/completions"

POSTED = {
    **{
        path: path
        for path in (
            *(CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"),
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

GOT = ("/v1/audio/voices", "/sdapi/v1/loras", "/props")
"""Routes that name it in the query."""

SOCKETS = ("/v1/realtime",)
"""Routes for WebSockets only, which name it there too. On the others one may be opened as well."""

ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

URLENCODED = "application/x-www-form-urlencoded"

Speech = Callable[[Model, dict[str, Any], Scope, Receive, Send], Awaitable[None]]
"""Answers a request whose body has been read and whose model is one of our own runners."""


class Forward:
    """The endpoints. `own` are routes that our own models have as well, by path."""

    def __init__(self, service: Service, worded: Worded, *, own: dict[str, Speech] | None = None):
        self._service = service
        self._limits = service.settings.limits
        self._worded = worded
        self._own = own or {}

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for one of these routes."""
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._socket if path in POSTED or path in GOT or path in SOCKETS else None
        method = scope["method"]
        if method == "POST" and path in POSTED:
            return self._posted
        if method == "GET" and path in GOT:
            return self._got
        return self._not_allowed if path in POSTED or path in GOT else None

    async def _posted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (encoding := header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
            raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it as it is.")
        kind = header(scope, b"content-type").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            await self._form(scope, receive, send)
        elif not kind or kind == URLENCODED or kind.endswith(("/json", "+json")):
            await self._text(kind, scope, receive, send)
        else:
            raise UnsupportedMediaTypeError(f"Send application/json or multipart/form-data, not {kind}.")

    async def _text(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A body that is read whole: JSON, whatever it is declared as, or a form without files."""
        data = await json_body.received(scope, json_body.opened(scope, receive, self._limits), self._limits)
        if kind == URLENCODED and not data.lstrip().startswith(b"{"):
            await self._urlencoded(data, scope, receive, send)
            return
        body = _parsed(data)
        name = body.get("model") or _in_query(scope)
        model, meant = self._named(name)
        if not model.foreign:
            await self._spoken(model, body, scope, receive, send)
            return
        tries = [self._chat_try(model, meant, name, body, data, scope)]
        for spelled, other in stand_ins(self._service.catalog, model):
            if other.foreign:
                tries.append(self._chat_try(other, spelled, name, body, data, scope))
        await Exchange(self._service, self._worded, scope, receive, send).run_first(tries)

    def _chat_try(self, model: Model, meant: str, name: object, body: dict[str, Any], data: bytes, scope: Scope) -> Try:
        """A body in JSON for one model, asked for as `meant`."""

        def prepare() -> tuple[Outgoing, bool]:
            assert model.entry
            renamed = body if body.get("model", meant) == meant else {**body, "model": meant}
            changed = filters.apply(renamed, model.entry, meant)
            loading = scope["path"] == CHAT and changed.get("stream") is True and self._tells_loading(model)
            sent = data if changed is body else _dumped(changed)
            return self._outgoing(model, _new_name(model, meant, name), scope, sent), loading

        return Try(model, prepare)

    async def _urlencoded(self, data: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fields = parse_qsl(data.decode("latin-1"), keep_blank_values=True, max_num_fields=self._limits.fields)
        except ValueError:
            raise InvalidRequestError(f"The form has more than {self._limits.fields} fields (limits.fields).") from None
        model, new = self._foreign(dict(fields).get("model") or _in_query(scope), scope)

        def request(model: Model, new: str) -> Outgoing:
            renamed = [(key, new if new and key == "model" else value) for key, value in fields]
            return self._outgoing(model, new, scope, urlencode(renamed).encode() if new else data)

        await Exchange(self._service, self._worded, scope, receive, send).run_first(self._tries(model, new, request))

    async def _form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A form with files, passed on while it comes in."""
        body = Body(scope, receive, self._limits)
        with self._service.spool() as spool:
            form = Form(scope, body, self._limits, spool)
            model, new = self._foreign(await form.until_model() or _in_query(scope), scope)
            await form.begun()
            exchange = Exchange(self._service, self._worded, scope, receive, send, received=body.received)
            await exchange.run_first(
                self._tries(model, new, lambda model, new: self._outgoing(model, new, scope, form.sent_on(new)))
            )

    async def _got(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, new = self._foreign(_in_query(scope), scope)
        tries = self._tries(model, new, lambda model, new: self._outgoing(model, new, scope, None))
        await Exchange(self._service, self._worded, scope, receive, send).run_first(tries)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, new = self._foreign(_in_query(scope), scope)
        path = POSTED.get(scope["path"], scope["path"])
        await relay(self._service, model, f"{path}{_query(new, scope)}", scope, receive, send)

    async def _not_allowed(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        takes = " and ".join(name for name, paths in (("POST", POSTED), ("GET", GOT)) if scope["path"] in paths)
        raise MethodNotAllowedError(f"{scope['path']} takes {takes}, not {scope['method']}.")

    async def _spoken(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """A request for one of our own models."""
        answer = self._own.get(scope["path"])
        if not answer:
            self._refuse(model, scope)
        await answer(model, body, scope, receive, send)

    def _named(self, name: object) -> tuple[Model, str]:
        """The model the client asks for, and the name it asks by once profile and selectors have had their say.

        Raises:
            InvalidRequestError: it names none.
            ModelNotFoundError: there is none of that name.
        """
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequestError("Say which model is meant, in the field `model`; GET /v1/models lists them.", param="model")
        meant = self._service.meant(name.strip())
        return self._service.catalog.find(meant), meant

    def _foreign(self, name: object, scope: Scope) -> tuple[Model, str]:
        """The model, and the name for it that takes the place of the client's; empty if that stays."""
        model, meant = self._named(name)
        if not model.foreign:
            self._refuse(model, scope)
        return model, _new_name(model, meant, name)

    def _refuse(self, model: Model, scope: Scope) -> NoReturn:
        able = ["/v1/audio/transcriptions", *(["/v1/audio/translations"] if model.capabilities.translate else []), *self._own]
        raise UnsupportedFeatureError(
            f"{model.id} is a speech model of the engine {model.engine}: it serves {', '.join(able)}, not {scope['path']}.",
            param="model",
        )

    def _outgoing(self, model: Model, new: str, scope: Scope, body: bytes | Stream | None) -> Outgoing:
        raw = scope["path"] if body is None else POSTED[scope["path"]]
        return outgoing.request(self._service, model, scope, f"{raw}{_query(new, scope)}", body)

    def _tries(self, model: Model, new: str, request: Callable[[Model, str], Outgoing]) -> list[Try]:
        """The model and its fallbacks, each with another name for it where it gets one."""
        others = [(other, _new_name(other, spelled, None)) for spelled, other in stand_ins(self._service.catalog, model)]
        foreign = [(one, name) for one, name in ((model, new), *others) if one.foreign]
        return [Try(one, partial(lambda one, name: (request(one, name), False), one, name)) for one, name in foreign]

    def _tells_loading(self, model: Model) -> bool:
        assert model.entry
        wanted = model.entry.sendLoadingState
        return self._service.settings.sendLoadingState if wanted is None else wanted


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        body = json_text.parsed(data)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequestError('The body must be a JSON object, as in {"model": ...}.')
    return body


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return ENCODE(body).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body holds a number that JSON does not have.") from None


def _in_query(scope: Scope) -> str:
    query = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("model", [""])[-1] if query else ""


def _new_name(model: Model, meant: str, asked: object) -> str:
    assert model.entry
    return model.entry.useModelName or ("" if meant == asked else meant)


def _query(name: str, scope: Scope) -> str:
    """The query for the upstream, with another name for the model if it gets one."""
    query: str = scope["query_string"].decode("latin-1")
    if not query:
        return ""
    if name and "model=" in query:
        fields = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(key, name if key == "model" else value) for key, value in fields])
    return f"?{query}"
