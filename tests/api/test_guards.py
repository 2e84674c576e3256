"""Guards that are not asked about a path have nothing to say about it."""

from __future__ import annotations

import itertools

from eardrum.api.asgi import Scope
from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.config import load_settings
from eardrum.gateway.service import Service
from eardrum.server.app import RequestDispatcher, create_app

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
ODD_HEADERS = (
    {},
    {b"origin": b"https://evil.example"},
    {b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"no-cors"},
    {b"host": b"evil.example", b"access-control-request-method": b"POST", b"origin": b"null"},
    {b"authorization": b"Bearer wrong"},
)


async def test_a_guard_refuses_nothing_on_paths_that_do_not_concern_it() -> None:
    settings = ["pull_missing=true", "api_keys=[sk-one]"]
    for given in ([], settings[:1], settings):
        dispatcher = create_app(Service(load_settings(environment={}, assignments=given)))._app
        assert isinstance(dispatcher, RequestDispatcher)
        left_out = [
            (path, guard)
            for path, routers in dispatcher._http_routers.items()
            for guard in dispatcher._guards
            if guard not in routers
        ]
        assert {path for path, _ in left_out} >= {"/v1/chat/completions", "/v1/embeddings"}
        for (path, guard), method, headers in itertools.product(left_out, METHODS, ODD_HEADERS):
            scope: Scope = {"type": "http", "method": method, "path": path, "headers": list(headers.items())}
            scope["eardrum.record"] = record = RequestRecord("x", scope, RequestTracker())
            assert guard.route(scope) is None, (guard, path, method, headers)
            assert not record.cors_headers
