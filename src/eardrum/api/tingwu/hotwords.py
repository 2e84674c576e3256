"""TingWu's routes for hot words and settings: the words that its other routes expect unless a request brings its own."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from msgspec import Struct
from starlette.responses import JSONResponse

from eardrum.api import openapi, request_body
from eardrum.api.asgi import Receive, Scope, Send, receive_disconnect
from eardrum.api.fields import Hotwords, RequestModel
from eardrum.api.openapi import ApiOperation
from eardrum.errors import ConfigError, InvalidRequestError
from eardrum.gateway.service import Service
from eardrum.transcription import TranscriptionRequest, check_hotwords

HOTWORDS_PATH, CONTEXT_PATH = "/api/v1/hotwords", "/api/v1/hotwords/context"
CONFIG_PATH = "/config"

HotwordAction = Literal["set", "append", "reload"]


class HotwordsBody(RequestModel):
    """The body of requests that change a list."""

    hotwords: Hotwords = ()


BODY = {"hotwords": {"type": "array", "items": {"type": "string"}, "description": "The words."}}


class HotwordStore:
    """TingWu's two lists of words. Both mean the same here. They last as long as the server; the first begins with the config's.

    TingWu corrects text by the one list, and gives the other to the model. Here the model gets both.
    """

    def __init__(self, service: Service):
        self._service = service
        self._changed: dict[str, tuple[str, ...]] = {}
        """The lists that clients have set, by their paths."""

    @property
    def words(self) -> tuple[str, ...]:
        """All words, each once."""
        return tuple(dict.fromkeys((*self.get_list(HOTWORDS_PATH), *self.get_list(CONTEXT_PATH))))

    def get_list(self, path: str) -> tuple[str, ...]:
        """Return the words of one list."""
        configured = self._service.settings.tingwu_hotwords if path == HOTWORDS_PATH else ()
        return self._changed.get(path, configured)

    def set_list(self, path: str, words: tuple[str, ...]) -> None:
        """Replace the words of one list.

        Raises:
            InvalidRequestError: there are too many.
        """
        other = self.get_list(CONTEXT_PATH if path == HOTWORDS_PATH else HOTWORDS_PATH)
        check_hotwords(TranscriptionRequest(hotwords=(*words, *other)))
        self._changed[path] = tuple(dict.fromkeys(words))

    def restore_list(self, path: str) -> None:
        """Return to the words of the config."""
        self._changed.pop(path, None)


class HotwordsEndpoint(Struct, frozen=True):
    """Shows or changes one list."""

    service: Service
    store: HotwordStore
    path: str
    action: HotwordAction = "set"

    @property
    def operations(self) -> tuple[ApiOperation, ...]:
        """The route's operations."""
        if self.action == "reload":
            return (ApiOperation("post", f"{self.path}/reload", "Return to the hot words of the config"),)
        change = partial(ApiOperation, "post", errors=openapi.BODY_ERRORS, body=BODY, required=("hotwords",))
        if self.action == "append":
            return (change(f"{self.path}/append", "Add words that TingWu's routes expect"),)
        return (
            ApiOperation("get", self.path, "The words that TingWu's routes expect by default"),
            change(self.path, "Replace the words that TingWu's routes expect"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            InvalidRequestError: the body is no list of words, or there are too many.
        """
        if scope["method"] in ("GET", "HEAD"):
            words = self.store.get_list(self.path)
            answer: dict[str, Any] = {"code": 0, "hotwords": list(words), "count": len(words)}
        else:
            await self._change(scope, receive)
            count = len(self.store.get_list(self.path))
            answer = {"code": 0, "count": count, "message": f"There are {count} hot words."}
        await JSONResponse(answer)(scope, receive_disconnect, send)

    async def _change(self, scope: Scope, receive: Receive) -> None:
        if self.action == "reload":
            self.store.restore_list(self.path)
            return
        limits = request_body.limit_small_body(self.service.settings.limits)
        given = request_body.parse_object(await request_body.receive_body(scope, receive, limits))
        if given.get("hotwords") is None:
            raise InvalidRequestError('Send the words as JSON, as in {"hotwords": ["Norland"]}.', param="hotwords")
        before = self.store.get_list(self.path) if self.action == "append" else ()
        self.store.set_list(self.path, (*before, *HotwordsBody.parse(given).hotwords))


class ConfigEndpoint(Struct, frozen=True):
    """Shows TingWu's settings as far as there are such here. They are changed in the config file, never over HTTP."""

    service: Service
    path: str

    @property
    def operations(self) -> tuple[ApiOperation, ...]:
        """The route's operations."""
        if self.path == f"{CONFIG_PATH}/reload":
            return (ApiOperation("post", self.path, "Reload the config, and show TingWu's settings"),)
        shown = ApiOperation("get", self.path, "The server's settings that TingWu has too")
        if self.path != CONFIG_PATH:
            return (shown,)
        return (shown, ApiOperation("post", self.path, "Not supported: settings are changed in the config", success=()))

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            InvalidRequestError: it would change a setting, or the config on the disk is invalid.
        """
        if scope["method"] == "POST" and self.path == CONFIG_PATH:
            raise InvalidRequestError(f"Settings are changed in the config file; POST {CONFIG_PATH}/reload then reads it.")
        if scope["method"] == "POST":
            try:
                await self.service.reload_config()
            except ConfigError as error:
                raise InvalidRequestError(f"The new config is invalid, and the old one stays in use: {error.message}") from error
        settings, default = self.service.settings, self.service.catalog.default
        config = {
            "asr_backend": default.engine,
            "whisper_model": default.id,
            "whisper_language": settings.default_language,
            "device": settings.device,
        }
        mutable: dict[str, Any] = {"mutable_keys": []} if self.path == f"{CONFIG_PATH}/all" else {}
        await JSONResponse({"config": config, **mutable})(scope, receive_disconnect, send)


def build_endpoints(service: Service, store: HotwordStore) -> list[HotwordsEndpoint | ConfigEndpoint]:
    """Build the endpoints of all these routes."""
    actions: tuple[HotwordAction, ...] = ("set", "append", "reload")
    lists = [HotwordsEndpoint(service, store, path, action) for path in (HOTWORDS_PATH, CONTEXT_PATH) for action in actions]
    return [*lists, *(ConfigEndpoint(service, f"{CONFIG_PATH}{part}") for part in ("", "/all", "/reload"))]
