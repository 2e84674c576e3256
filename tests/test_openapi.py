"""The description of the API: whole, valid, and true."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
from starlette.applications import Starlette
from starlette.routing import Route

from eardrum.api.docs import description
from eardrum.api.forward.routes import GOT, POSTED
from eardrum.api.realtime import rest
from eardrum.api.realtime.routes import TALKING
from eardrum.app import Front, create_app
from eardrum.config import Settings
from eardrum.gateway.service import Service
from tests.conftest import RunningServer, running

CASES = int(os.environ.get("EARDRUM_OPENAPI_CASES", "5"))
"""Requests for each operation. 140 are 10,000 in all."""

MODEL = "moonshine-tiny-en"

ENDLESS = ("/logs/stream", "/logs/stream/{name}", "/api/events")
SOCKETS = ("/v1/audio/transcriptions/stream", "/ws/realtime", "/v1/realtime")
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")

DOCUMENT = description()
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


def unnamed(path: str) -> str:
    """A path whose parameters have no names."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def served() -> set[tuple[str, str]]:
    """Every route there is."""
    front = create_app(Service(Settings()))._app
    assert isinstance(front, Front)
    others = front._others
    assert isinstance(others, Starlette)
    found: set[tuple[str, str]] = set()
    for route in others.routes:
        assert isinstance(route, Route)
        methods = {method.lower() for method in route.methods or ()} - ({"head"} if "GET" in (route.methods or ()) else set())
        found |= {(method, route.path) for method in methods}
    found |= {("post", path) for path in (*POSTED, *rest.ANSWERS, *TALKING)}
    found |= {("get", path) for path in (*GOT, *SOCKETS)}
    found |= {(method, "/upstream/{name}/{path}") for method in METHODS}
    return found - {("post", "/v1/realtime")}


def test_every_route_is_described_and_no_other() -> None:
    described = {(method, unnamed(path)) for method, path in OPERATIONS}
    there = {(method, unnamed(path)) for method, path in served()}
    assert described == there


def test_the_description_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(json.loads(json.dumps(DOCUMENT)))


def test_every_operation_says_what_it_takes_and_answers() -> None:
    for method, path in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        assert {"400", "401", "403", "431", "500"} <= operation["responses"].keys(), path
        taken = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"]
        assert taken == re.findall(r"\{(\w+)\}", path), path
        if method == "post" and path in POSTED:
            assert "requestBody" in operation, path
    identifiers = [DOCUMENT["paths"][path][method]["operationId"] for method, path in OPERATIONS]
    assert len(set(identifiers)) == len(identifiers)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("--set", "limits.stall_seconds=5", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") as running_server:
        yield running_server


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_gets_an_answer_that_is_not_described(server: RunningServer, method: str, path: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    if path in ENDLESS:
        pytest.skip("an answer without end")
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method.upper()]

    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and len(repr(case.body)) % 2 and "model" in case.body:
            case.body["model"] = MODEL  # the ways past the first refusal
        check(case.call(base_url=server.address, timeout=60), DOCUMENT["paths"][path][method], method)

    bounded = hypothesis.settings(
        max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    bounded(hypothesis.given(case=operation.as_strategy())(ask))()
    for body in (b"", b"\x00\xff", b"[]", b'{"model": 1}', b'{"model": "\\ud800"}', b"[" * 5000):
        for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
            answer = requests.request(
                method, f"{server.address}{path}", data=body, headers={"content-type": kind}, timeout=60, allow_redirects=False
            )
            check(answer, DOCUMENT["paths"][path][method], method)


def check(answer: requests.Response, operation: dict[str, Any], method: str) -> None:
    """The status is described, an error has the shape of errors, and no fault is the server's."""
    said = f"{answer.request.method} {answer.request.url} {answer.request.body!r:.300}: {answer.status_code} {answer.text[:300]}"
    assert str(answer.status_code) in operation["responses"], said
    assert answer.status_code != 500, said
    if answer.status_code >= 400 and method != "head":
        error = answer.json()["error"]
        assert isinstance(error, str) or {"message", "type", "param", "code"} <= error.keys(), said
