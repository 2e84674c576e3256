"""The description of the API: whole, valid, and true."""

from __future__ import annotations

import json
import operator
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import hypothesis
import openapi_spec_validator
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode
from starlette.applications import Starlette
from starlette.routing import Route

from eardrum.api.openapi import build_document, list_operations
from eardrum.api.proxy.routes import GET_ROUTES, POST_ROUTES
from eardrum.api.realtime import client_secrets
from eardrum.api.realtime.routes import CONVERSATION_PATHS
from eardrum.config import Settings
from eardrum.gateway.service import Service
from eardrum.server.app import RequestDispatcher, create_app
from tests.conftest import ServerUnderTest, run_server
from tests.ports import find_free_port
from tests.recordings import create_tone, encode

WANTED = int(os.environ.get("EARDRUM_OPENAPI_CASES", "0"))
"""Generated requests to send in all; `make test-openapi` sends 10,000. Without it each operation gets a few."""

FEW = 3
"""Of each kind for an operation, where nothing is wanted."""

MODEL, FOREIGN = "moonshine-tiny-en", "anything"
FAKE_ANYTHING = Path(__file__).parent / "programs" / "fake_anything.py"

# Answers without end: their status is looked at, and the connection closed.
ENDLESS = ("/logs/stream", "/logs/stream/{name}", "/api/events")
SOCKETS = ("/v1/audio/transcriptions/stream", "/ws/realtime", "/v1/realtime")
RECORDING = encode(create_tone(0.5), "wav")
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")

DISPATCHER = create_app(Service(Settings()))._app
assert isinstance(DISPATCHER, RequestDispatcher)
assert isinstance(DISPATCHER.fallback_app, Starlette)
ROUTES, EDGES = DISPATCHER.fallback_app.routes, DISPATCHER.edges
"""Those that Starlette serves, and those in plain ASGI."""

DOCUMENT = build_document(list_operations([*ROUTES, *EDGES]))
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


def remove_parameter_names(path: str) -> str:
    """A path whose parameters have no names."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def list_routes() -> set[tuple[str, str]]:
    """Every route there is."""
    found: set[tuple[str, str]] = set()
    for route in ROUTES:
        assert isinstance(route, Route)
        methods = {method.lower() for method in route.methods or ()} - ({"head"} if "GET" in (route.methods or ()) else set())
        found |= {(method, route.path) for method in methods}
    found |= {("post", path) for path in (*POST_ROUTES, *client_secrets.PATHS, *CONVERSATION_PATHS)}
    found |= {("get", path) for path in (*GET_ROUTES, *SOCKETS)}
    found |= {(method, "/upstream/{name}/{path}") for method in METHODS}
    return found - {("post", "/v1/realtime")}


def test_every_described_path_of_an_edge_is_sent_to_it() -> None:
    for edge in EDGES:
        paths = {operation.path.replace("{name}/{path}", "") for operation in list_operations([edge])}
        assert paths
        assert paths <= set(edge.paths)


def test_every_route_is_described_and_no_other() -> None:
    described = {(method, remove_parameter_names(path)) for method, path in OPERATIONS}
    there = {(method, remove_parameter_names(path)) for method, path in list_routes()}
    assert described == there


@pytest.mark.slow
def test_the_description_is_valid() -> None:
    text = json.dumps(DOCUMENT)
    openapi_spec_validator.validate(json.loads(text))
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', text):  # the validator follows none outside of its own places
        reduce(operator.getitem, reference.split("/"), DOCUMENT)


def test_every_operation_says_what_it_takes_and_answers() -> None:
    for method, path in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        assert {"400", "401", "403", "431", "500"} <= operation["responses"].keys(), path
        taken = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"]
        assert taken == re.findall(r"\{(\w+)\}", path), path
        if method == "post" and path in POST_ROUTES:
            assert "requestBody" in operation, path
    identifiers = [DOCUMENT["paths"][path][method]["operationId"] for method, path in OPERATIONS]
    assert len(set(identifiers)) == len(identifiers)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    port = str(find_free_port())
    foreign = {"cmd": shlex.join([sys.executable, str(FAKE_ANYTHING), port]), "proxy": f"http://127.0.0.1:{port}"}
    settings = ("--set", "limits.stall_timeout=5", "--set", f"models={json.dumps({FOREIGN: foreign})}")
    with run_server(*settings, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") as running_server:
        yield running_server


SENT: Counter[str] = Counter()
"""Generated requests that were answered, by operation."""


def has_variants(method: str, path: str) -> bool:
    """Whether there is more than one request for an operation."""
    operation = DOCUMENT["paths"][path][method]
    return bool(operation.get("parameters") or operation.get("requestBody"))


def has_invalid(method: str, path: str) -> bool:
    """Whether a request for an operation can be invalid: as a name in a path every text will do."""
    operation = DOCUMENT["paths"][path][method]
    return "requestBody" in operation or any(one["in"] != "path" for one in operation.get("parameters", ()))


def count_cases() -> int:
    """How many valid ones, and as many invalid ones, an operation gets; a tenth more, since there may be fewer, as of a flag."""
    kinds = sum(1 + has_invalid(*operation) for operation in OPERATIONS if has_variants(*operation))
    return FEW if not WANTED else -(-WANTED * 11 // 10 // kinds)


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_gets_an_answer_that_is_not_described(server: ServerUnderTest, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method.upper()]
    described = DOCUMENT["paths"][path][method]
    bounded = hypothesis.settings(
        max_examples=count_cases(),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],  # what fails is as plain when it is not the smallest that does
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with requests.Session() as session:
        session.trust_env = False

        def ask(case: schemathesis.Case) -> None:
            improve_case(case)
            request = case.as_transport_kwargs(base_url=server.address)
            with session.request(**request, timeout=60, allow_redirects=False, stream=path in ENDLESS) as answer:
                check_answer(answer, described, method)
            SENT[f"{method} {path}"] += 1

        bounded(hypothesis.given(case=operation.as_strategy(GenerationMode.POSITIVE))(ask))()
        if has_invalid(method, path):
            bounded(hypothesis.given(case=operation.as_strategy(GenerationMode.NEGATIVE))(ask))()
        for body in (b"", b"\x00\xff", b"[]", b'{"model": 1}', b'{"model": "\\ud800"}', b"[" * 5000):
            for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
                with session.request(
                    method,
                    f"{server.address}{path}",
                    data=body,
                    headers={"content-type": kind},
                    timeout=60,
                    allow_redirects=False,
                    stream=path in ENDLESS,
                ) as answer:
                    check_answer(answer, described, method)


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.skipif(not WANTED, reason="so many are wanted in `make test-openapi` only, where one process sends all")
def test_as_many_requests_were_sent_as_wanted() -> None:
    assert sum(SENT.values()) >= WANTED, SENT
    assert len(SENT) == len(OPERATIONS), "an operation was not asked"


def improve_case(case: schemathesis.Case) -> None:
    """Let some of the cases name a model that there is, and send a recording: the others are refused for these."""
    size = len(repr(case.body))
    known = {1: MODEL, 3: FOREIGN}
    for named in (case.body, case.query):
        if isinstance(named, dict) and "model" in named and len(repr(named)) % 4 in known:
            named["model"] = known[len(repr(named)) % 4]
    is_form = case.media_type == "multipart/form-data"
    for name in ("file", "audio_file"):
        if is_form and isinstance(case.body, dict) and name in case.body and size % 3 == 0:
            case.body[name] = RECORDING  # type: ignore[assignment]
    place = len(repr(case.path_parameters)) % 8
    if "name" in case.path_parameters and place in known:
        case.path_parameters["name"] = known[place]


def check_answer(answer: requests.Response, operation: dict[str, Any], method: str) -> None:
    """The status is described, an error has the shape of errors, and no fault is the server's."""
    asked = f"{answer.request.method} {answer.request.url} {answer.request.body!r:.300}"
    assert str(answer.status_code) in operation["responses"], f"{asked}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code != 500, f"{asked}: {answer.text[:300]}"
    described = operation["responses"][str(answer.status_code)].get("content", {})
    if answer.headers.get("content-type", "").startswith("text/plain") and answer.status_code >= 400:
        assert "text/plain" in described, f"{asked}: {answer.text[:300]}"
        assert answer.text.startswith("Error: "), f"{asked}: {answer.text[:300]}"
    elif answer.status_code >= 400 and method != "head":
        error = answer.json()["error"]
        assert isinstance(error, str) or {"message", "type", "param", "code"} <= error.keys(), f"{asked}: {error}"
