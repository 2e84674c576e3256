"""What a forwarded request costs, counted in calls of Python functions: a machine's load does not change them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from bench.keys import GUARDED, OPEN, count_calls
from tests.upstreams import UpstreamCall, fake_upstream

MAX_CALLS = 225
MAX_CALLS_OF_KEYS = 10


async def answer(_: UpstreamCall, __: web.Request) -> web.Response:
    return web.json_response({"choices": []})


async def test_a_request_passes_through_few_calls_and_a_key_adds_few() -> None:
    with fake_upstream(answer) as upstream:
        models: dict[str, Any] = {"models": {"llm": {"proxy": upstream.url, "use_model_name": "the-real-name"}}}
        plain = await count_calls(models | OPEN)
        guarded = await count_calls(models | GUARDED)
    assert plain <= MAX_CALLS
    assert 0 < guarded - plain <= MAX_CALLS_OF_KEYS
