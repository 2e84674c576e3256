"""Which route a path belongs to, and what is a label."""

from __future__ import annotations

import pytest

from eardrum.api.metrics import MetricsReader, RouteMatcher
from eardrum.api.openapi import ApiOperation
from eardrum.api.request_log import RequestTracker
from eardrum.config import Settings
from eardrum.gateway.service import Service
from eardrum.jobs.records import ItemStatus, OpenItems

OPERATIONS = [
    ApiOperation("get", "/health", ""),
    ApiOperation("delete", "/api/ps/{name:path}", ""),
    ApiOperation("get", "/v1/models/{model}", ""),
    ApiOperation("get", "/upstream/{model}/{path:path}", ""),
]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/health", "/health"),
        ("/health/", "other"),
        ("/api/ps/owner/name", "/api/ps/{name}"),
        ("/api/ps/", "other"),
        ("/v1/models/tiny", "/v1/models/{model}"),
        ("/v1/models/owner/name", "other"),
        ("/upstream/llama/v1/x", "/upstream/{model}/{path}"),
        ("/wp-admin.php", "other"),
        ("/healthX", "other"),
    ],
)
def test_a_path_belongs_to_the_documented_route(path: str, route: str) -> None:
    assert RouteMatcher(OPERATIONS)(path) == route


def test_items_of_models_that_are_not_here_have_one_label() -> None:
    here = "moonshine-tiny-en"
    waiting = {(name, ItemStatus.QUEUED): OpenItems(count, 1.0) for name, count in ((here, 1), ("x/one", 2), ("x/two", 4))}
    families = {one.name: one for one in MetricsReader(Service(Settings()), RequestTracker(), {}, True, waiting).collect()}
    queue = {one.labels["model"]: one.value for one in families["eardrum_job_queue"].samples if one.labels["state"] == "waiting"}
    assert {name: count for name, count in queue.items() if count} == {here: 1, "unknown": 6}
    assert not any("/" in one.labels["model"] for one in families["eardrum_job_oldest_seconds"].samples)
