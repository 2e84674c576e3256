"""Whatever JSON comes, from clients or from upstreams, is taken or refused, and never breaks anything."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eardrum.api.ollama import common_fields, inference, requests
from eardrum.api.ollama.requests import ServerFeatures
from eardrum.api.ollama.upstream import ChunkDecoder
from eardrum.errors import EardrumError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def build_objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, each as it should be or anything."""
    return st.fixed_dictionaries({}, optional={name: fitting | ANYTHING for name, fitting in fields.items()})


CALL = build_objects(id=st.text(), index=st.integers(), function=build_objects(name=st.text(), arguments=ANYTHING))
MESSAGE = build_objects(
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.text(),
    thinking=st.text(),
    images=st.lists(st.sampled_from(["UklGRgAAAABXQVZF", "iVBORw0KGgo=", "x", "/9j/", "//s="])),
    tool_calls=st.lists(CALL, max_size=2),
    tool_name=st.text(),
)
WISH = build_objects(
    messages=st.lists(MESSAGE | ANYTHING, max_size=3),
    prompt=st.text(),
    input=st.lists(st.text(), max_size=2),
    suffix=st.text(),
    raw=st.booleans(),
    stream=st.booleans(),
    options=build_objects(num_predict=st.integers(), temperature=st.floats(), top_k=ANYTHING),
    tools=st.lists(build_objects(type=st.just("function"), function=build_objects(name=st.text()))),
    format=st.just("json"),
    think=st.booleans(),
    logprobs=st.booleans(),
    keep_alive=st.integers(),
    context=st.lists(st.integers(0, 1 << 24), max_size=5).map(lambda numbers: [0xEA2D01, 3 * len(numbers), *numbers]),
)
TOKENS = build_objects(content=st.lists(build_objects(token=st.text(), logprob=st.floats()), max_size=2))
CHOICE = build_objects(
    delta=build_objects(content=st.text(), reasoning=st.text(), tool_calls=st.lists(CALL, max_size=2)),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
    logprobs=TOKENS,
    text=st.text(),
)
EVENT = build_objects(
    choices=st.lists(CHOICE, max_size=2),
    usage=build_objects(prompt_tokens=st.integers(), completion_tokens=st.integers()),
    timings=build_objects(prompt_ms=st.floats(), predicted_n=st.integers()),
)


@given(WISH, st.booleans())
def test_of_clients(wish: dict[str, Any], local: bool) -> None:
    for mapping in (requests.map_chat, requests.map_generate):
        with suppress(EardrumError):
            json.dumps(mapping(wish, "m", ServerFeatures(local, infills=not local)).body)
    with suppress(EardrumError):
        requests.map_embed(wish, "m")
    with suppress(EardrumError):
        inference.decode_recordings(wish)
    with suppress(EardrumError):
        assert common_fields.parse_keep_alive(wish.get("keep_alive"), 0.0) >= 0


@given(st.lists(EVENT | ANYTHING, max_size=4))
def test_of_upstreams(events: list[Any]) -> None:
    chunks = ChunkDecoder(began=0.0, sent=0.0)
    with suppress(EardrumError):
        for event in events:
            json.dumps(chunks.feed(event, now=1.0).as_chat())
        json.dumps(chunks.build_tool_calls().as_chat())
        assert chunks.build_last(now=2.0)["done"]
