"""Which route a path belongs to."""

from __future__ import annotations

import pytest

from eardrum.api.metrics import RouteMatcher
from eardrum.api.openapi import ApiOperation

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
