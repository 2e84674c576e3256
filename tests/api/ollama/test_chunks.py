"""What upstreams stream, as Ollama's chunks."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.api.ollama import responses
from eardrum.api.ollama.upstream import ChunkDecoder, ResponseChunk, describe_upstream_error
from eardrum.errors import UpstreamError


def build_delta(reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def build_call(arguments: str, index: int | None = 0, **more: str) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": more.pop("name")} if "name" in more else {})
    return ({"index": index} if index is not None else {}) | {"function": function} | more


def feed_chunks(*events: Any) -> tuple[ChunkDecoder, ResponseChunk]:
    chunks, whole = ChunkDecoder(began=0.0, sent=1.0), ResponseChunk()
    for number, event in enumerate(events):
        whole.add(chunks.feed(event, now=2.0 + number))
    return chunks, whole


def test_content_and_thinking_under_either_name() -> None:
    _, whole = feed_chunks(
        build_delta(role="assistant", content=None),
        build_delta(reasoning_content="a"),
        build_delta(reasoning="b"),
        build_delta(content="c"),
        build_delta("stop"),
    )
    assert whole.as_chat() == {"message": {"role": "assistant", "content": "c", "thinking": "ab"}}
    assert whole.as_generate() == {"response": "c", "thinking": "ab"}


def test_a_whole_answer_is_read_like_a_stream() -> None:
    chunks, whole = feed_chunks(
        {"choices": [{"message": {"content": "Hi", "tool_calls": [build_call('{"a": 1}', None, name="f")]}}]}, None
    )
    assert whole.content == "Hi"
    assert chunks.is_complete
    assert chunks.build_tool_calls().tool_calls == [{"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]
    assert feed_chunks({"choices": [{"text": "plain", "finish_reason": "stop"}]})[1].content == "plain"


def test_what_infill_says_has_no_choices() -> None:
    chunks, whole = feed_chunks({"content": "a", "stop": False}, {"content": "b", "stop": True, "stop_type": "limit"})
    assert whole.content == "ab"
    assert (chunks.is_complete, chunks.build_last(9.0)["done_reason"]) == (True, "length")


def test_fragments_of_several_tool_calls_become_objects() -> None:
    chunks, whole = feed_chunks(
        build_delta(tool_calls=[build_call("", 0, id="x", name="f"), build_call("{", 1, id="y", name="g")]),
        build_delta(tool_calls=[build_call('{"a"', 0)]),
        build_delta(tool_calls=[build_call("}", 1)]),
        build_delta(tool_calls=[build_call(': "ü"}', 0)]),
        build_delta("tool_calls"),
    )
    assert not whole
    assert chunks.build_tool_calls().tool_calls == [
        {"id": "x", "function": {"index": 0, "name": "f", "arguments": {"a": "ü"}}},
        {"id": "y", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    assert chunks.build_last(9.0)["done_reason"] == "stop"


def test_a_tool_call_that_was_cut_off_is_none() -> None:
    chunks, _ = feed_chunks(
        build_delta(tool_calls=[build_call('{"a": 1}', 0, name="f"), build_call('{"a": ', 1, name="g")]), build_delta("length")
    )
    assert [made["function"]["name"] for made in chunks.build_tool_calls().tool_calls] == ["f"]
    assert chunks.build_last(9.0)["done_reason"] == "length"


@pytest.mark.parametrize("arguments", ["{", "[1]", "3", '"x"', "None"])
def test_arguments_that_are_no_object_are_the_upstreams_mistake(arguments: str) -> None:
    chunks, _ = feed_chunks(build_delta("tool_calls", tool_calls=[build_call(arguments, 0, name="f")]))
    with pytest.raises(UpstreamError, match="called f with"):
        chunks.build_tool_calls()


def test_figures_come_from_usage_and_the_clock() -> None:
    chunks, _ = feed_chunks(
        build_delta(content="a"), build_delta("stop"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    )
    assert chunks.build_last(now=6.5) == {
        "done": True,
        "done_reason": "stop",
        "total_duration": 6_500_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 1_000_000_000,
        "eval_count": 4,
        "eval_duration": 4_500_000_000,
    }


def test_figures_of_llama_server_are_better() -> None:
    timings = {"prompt_n": 5, "prompt_ms": 10.5, "predicted_n": 6, "predicted_ms": 20}
    chunks, _ = feed_chunks(build_delta(content="a"), build_delta("stop") | {"timings": timings})
    last = chunks.build_last(now=6.5)
    assert (last["prompt_eval_count"], last["prompt_eval_duration"]) == (5, 10_500_000)
    assert (last["eval_count"], last["eval_duration"]) == (6, 20_000_000)


def test_what_is_not_known_is_left_out() -> None:
    last = feed_chunks(build_delta(content="a"), None)[0].build_last(now=2.0)
    assert "eval_count" not in last
    assert "eval_duration" not in last


def test_probabilities_pass() -> None:
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.1}], "id": 4}
    event = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [token]}}]}
    assert feed_chunks(event)[1].as_generate()["logprobs"] == [{name: token[name] for name in list(token)[:4]}]


def test_an_end_without_a_reason_is_none() -> None:
    assert not feed_chunks(build_delta(content="a"))[0].is_complete
    assert feed_chunks(build_delta(content="a"), None)[0].is_complete


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("broken", "broken"),
        ({"message": "too long", "code": 400}, "too long"),
        ({"error": "inner"}, "inner"),
        ({"detail": "no such route"}, "no such route"),
        ({"odd": 1}, '{"odd": 1}'),
        ([1], "[1]"),
    ],
)
def test_errors_are_worded_whatever_their_shape(error: Any, words: str) -> None:
    assert describe_upstream_error(error) == words
    with pytest.raises(UpstreamError) as caught:
        feed_chunks({"error": error})
    assert caught.value.message == words


@pytest.mark.parametrize("event", [[], "x", 3])
def test_what_is_no_event_is_refused(event: Any) -> None:
    with pytest.raises(UpstreamError, match="an invalid event"):
        feed_chunks(event)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": [1], "tool_calls": [None, {"function": None}], "reasoning": 4}, "logprobs": []}]},
        {"usage": [], "timings": 3, "choices": {}},
    ],
)
def test_odd_events_add_nothing(event: Any) -> None:
    assert not feed_chunks(event)[1]


def test_a_status_that_is_not_kept_keeps_its_pause() -> None:
    for status in (404, 405, 500, 503):
        assert responses.build_error_response(responses.make_upstream_error("m", status, "no", 2.5)).headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("code", "status"), [(400, 400), (429, 429), (503, 503), (500, 502), (7, 502), ("rate_limit_exceeded", 502)]
)
def test_a_status_in_an_event_is_the_answers_if_that_has_not_begun(code: Any, status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        feed_chunks({"error": {"message": "m", "code": code}})
    assert responses.build_error_response(caught.value).status_code == status
