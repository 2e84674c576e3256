"""Ollama's requests as what goes to the upstream."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from eardrum.api.ollama import common_fields, requests
from eardrum.api.ollama.requests import ServerFeatures
from eardrum.errors import InvalidRequestError

LOCAL, CLOUD = ServerFeatures(), ServerFeatures(local=False)
HI = {"role": "user", "content": "Hi"}
PNG = base64.b64encode(b"\x89PNG\r\n" + bytes(9)).decode()
WAV = base64.b64encode(b"RIFF\x00\x00\x00\x00WAVEfmt ").decode()


def build_upstream_chat(*, server: ServerFeatures = LOCAL, **wish: Any) -> dict[str, Any]:
    return requests.map_chat({"messages": [HI], "stream": False} | wish, "m", server).body


def test_a_stream_is_the_default_and_asks_for_usage() -> None:
    body = requests.map_chat({"messages": [HI]}, "m", LOCAL).body
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in build_upstream_chat()


@pytest.mark.parametrize(
    ("options", "sent", "ignored"),
    [
        ({"num_predict": 5}, {"max_tokens": 5}, ()),
        ({"num_predict": -1}, {}, ()),
        ({"num_predict": 10.0}, {"max_tokens": 10}, ()),
        ({"num_predict": 10.7, "seed": 42.0, "top_k": 40.0}, {"max_tokens": 10, "seed": 42, "top_k": 40}, ()),
        ({"num_predict": -1.0, "temperature": 1, "stop": "x"}, {"temperature": 1, "stop": "x"}, ()),
        ({"num_predict": 0}, {}, ()),
        ({"temperature": 0, "seed": 3, "top_p": None}, {"temperature": 0, "seed": 3}, ()),
        ({"num_ctx": 8192, "num_gpu": 1, "odd": 2}, {}, ("num_ctx", "num_gpu", "odd")),
        ({"mirostat_tau": 5.0, "repeat_last_n": 64}, {"mirostat_tau": 5.0, "repeat_last_n": 64}, ()),
        (None, {}, ()),
    ],
)
def test_options(options: Any, sent: dict[str, Any], ignored: tuple[str, ...]) -> None:
    ask = requests.map_chat({"messages": [HI], "stream": False, "options": options}, "m", LOCAL)
    assert ask.body == {"model": "m", "messages": [HI], "stream": False} | sent
    assert ask.ignored == ignored


def test_clouds_get_nothing_that_openai_does_not_have() -> None:
    ask = requests.map_chat({"messages": [HI], "stream": False, "options": {"top_k": 4}, "think": True}, "m", CLOUD)
    assert ask.body == {"model": "m", "messages": [HI], "stream": False}
    assert ask.ignored == ("top_k",)
    assert build_upstream_chat(server=CLOUD, think="max")["reasoning_effort"] == "high"


def test_thinking() -> None:
    assert build_upstream_chat(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert build_upstream_chat(think="low")["reasoning_effort"] == "low"
    assert "chat_template_kwargs" not in build_upstream_chat()


def test_formats() -> None:
    schema = {"type": "object"}
    assert build_upstream_chat(format="json")["response_format"] == {"type": "json_object"}
    assert build_upstream_chat(format=schema)["response_format"]["json_schema"]["schema"] == schema
    assert build_upstream_chat(format=schema)["response_format"]["schema"] == schema
    assert "response_format" not in build_upstream_chat(format="")


def test_probabilities() -> None:
    assert build_upstream_chat(logprobs=True, top_logprobs=3) | {"logprobs": True, "top_logprobs": 3} == build_upstream_chat(
        logprobs=True, top_logprobs=3
    )
    assert "logprobs" not in build_upstream_chat(logprobs=False)


def test_pictures_and_audio_become_parts() -> None:
    message = HI | {"images": [PNG, f"data:image/png;base64,{PNG}", WAV]}
    text, first, second, audio = build_upstream_chat(messages=[message])["messages"][0]["content"]
    assert text == {"type": "text", "text": "Hi"}
    assert first == second == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert audio == {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}
    flac = base64.b64encode(b"fLaC" + bytes(9)).decode()
    (part,) = build_upstream_chat(messages=[{"role": "user", "images": [flac]}])["messages"][0]["content"]
    assert part == {"type": "audio_url", "audio_url": {"url": f"data:audio/flac;base64,{flac}"}}


def test_replies_of_tools_find_their_calls() -> None:
    def called(name: str, **more: str) -> dict[str, Any]:
        return more | {"function": {"name": name, "arguments": {"x": name}}}

    history = [
        HI,
        {"role": "assistant", "tool_calls": [called("f"), called("g"), called("g", id="own"), called("h")]},
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "tool_call_id": "own", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "tool_name": "unheard", "content": "4"},
        {"role": "tool", "tool_name": "alone", "content": "5"},
    ]
    sent = build_upstream_chat(messages=history)["messages"]
    ids = [call["id"] for call in sent[1]["tool_calls"]]
    assert len(set(ids)) == 4
    f, g, own, h = ids
    assert [message["tool_call_id"] for message in sent[2:6]] == [g, own, f, h]
    assert sent[6]["tool_call_id"] not in ids
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"x": "f"}'


def test_thoughts_of_before_go_along() -> None:
    assert (
        build_upstream_chat(messages=[{"role": "assistant", "content": "a", "thinking": "b"}])["messages"][0]["reasoning_content"]
        == "b"
    )


def test_a_prompt_is_a_chat_unless_it_is_raw() -> None:
    ask = requests.map_generate({"prompt": "p", "system": "s", "stream": False}, "m", LOCAL)
    assert ask.path == "/v1/chat/completions"
    assert ask.body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    raw = requests.map_generate({"prompt": "p", "raw": True, "stream": False}, "m", LOCAL)
    assert (raw.path, raw.body) == ("/v1/completions", {"model": "m", "prompt": "p", "stream": False})
    assert requests.map_generate({"prompt": "p", "suffix": "s"}, "m", LOCAL).body["suffix"] == "s"


def test_probabilities_of_raw_text_are_a_number() -> None:
    wish = {"prompt": "p", "raw": True, "logprobs": True}
    assert requests.map_generate(wish, "m", LOCAL).body["logprobs"] == 1
    body = requests.map_generate(wish | {"top_logprobs": 3}, "m", LOCAL).body
    assert (body["logprobs"], "top_logprobs" in body) == (3, False)


def test_a_suffix_goes_where_it_is_understood() -> None:
    wish = {"prompt": "def f(", "suffix": "return x", "stream": False}
    ask = requests.map_generate(wish, "m", ServerFeatures(infills=True))
    assert (ask.path, ask.body) == (
        "/infill",
        {"model": "m", "input_prefix": "def f(", "input_suffix": "return x", "stream": False},
    )
    assert requests.map_generate(wish, "m", LOCAL).path == "/v1/completions"


def test_embeddings() -> None:
    ask = requests.map_embed({"input": "a", "dimensions": 4}, "m")
    assert ask
    assert ask.body == {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": 4}
    assert [requests.map_embed({"input": nothing}, "m") for nothing in ("", [], None)] == [None] * 3


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"messages": "x"}, "messages must be a list"),
        ({"messages": ["x"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": 1}]}, r"messages\[0\].role"),
        ({"options": {"num_predict": "10"}}, 'option "num_predict" must be of type integer'),
        ({"options": {"seed": True}}, 'option "seed" must be of type integer'),
        ({"options": {"num_predict": float("inf")}}, "must be of type integer"),
        ({"options": {"temperature": "warm"}}, 'option "temperature" must be of type float32'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content must be a string"),
        ({"messages": [HI | {"images": "x"}]}, "list of base64"),
        ({"messages": [HI | {"images": ["###"]}]}, r"messages\[0\].images\[0\]: illegal base64"),
        ({"messages": [HI | {"images": [""]}]}, "is empty"),
        ({"messages": [HI | {"images": [3]}]}, "must be a base64 string"),
        ({"messages": [HI | {"images": ["aGVsbG8="]}]}, "neither an image nor audio"),
        ({"messages": [HI | {"tool_calls": [{}]}]}, r"messages\[0\].tool_calls\[0\].function is required"),
        ({"messages": [HI | {"tool_calls": {"a": 1}}]}, "tool_calls must be a list"),
        ({"options": [1]}, "options must be an object"),
        ({"think": 3}, "think must be"),
        ({"think": "hard"}, "think must be"),
        ({"format": "xml"}, "format must be"),
        ({"stream": "yes"}, "stream must be"),
        ({"tools": {}, "stream": 1}, "stream must be"),
        ({"tools": ["x"]}, r"tools\[0\] must be an object"),
        ({"tools": "x"}, "tools must be a list of objects"),
    ],
)
def test_what_is_not_of_ollamas_shape_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        build_upstream_chat(**wish)


@pytest.mark.parametrize("wish", [{"template": "{{ .Prompt }}", "prompt": "x"}, {"prompt": 3}, {"raw": True, "images": [PNG]}])
def test_prompts_that_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        requests.map_generate(wish, "m", LOCAL)


@pytest.mark.parametrize("given", [3, {"a": 1}, [1], [["a"]]])
def test_inputs_of_other_types_are_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="invalid input type"):
        requests.map_embed({"input": given}, "m")


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "developer", "control", "function", "ipython"])
def test_who_may_speak_is_for_the_template_to_say(role: str) -> None:
    assert build_upstream_chat(messages=[{"role": role, "content": "x"}])["messages"][0]["role"] == role


SYSTEM, PROMPT = {"role": "system", "content": "s"}, {"role": "user", "content": "p"}


def test_a_prompt_with_a_context_goes_on_from_there() -> None:
    first = requests.map_generate({"prompt": "Wer bist du?", "system": "s"}, "m", ServerFeatures())
    assert first.turns == (("system", "s"), ("user", "Wer bist du?"))
    numbers = json.loads(json.dumps(common_fields.pack_context((*first.turns, ("assistant", "Ich bin blü. 🎤")))))
    assert all(0 <= number < 1 << 31 for number in numbers)
    said = [{"role": "user", "content": "Wer bist du?"}, {"role": "assistant", "content": "Ich bin blü. 🎤"}]
    second = requests.map_generate({"prompt": "p", "context": numbers}, "m", ServerFeatures())
    assert second.body["messages"] == [SYSTEM, *said, PROMPT]
    other = requests.map_generate({"prompt": "p", "system": "t", "context": numbers}, "m", ServerFeatures())
    assert other.body["messages"] == [{"role": "system", "content": "t"}, *said, PROMPT]
    assert (second.ignored, other.turns[0] if other.turns else ()) == ((), ("system", "t"))


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 2, 3],
        [common_fields.CONTEXT_MARK],
        [common_fields.CONTEXT_MARK, 5],
        [common_fields.CONTEXT_MARK, 10**9, 1],
        [common_fields.CONTEXT_MARK, -1, 1],
        [common_fields.CONTEXT_MARK, 3, 1 << 40],
        common_fields.pack_context((("user", "x"),))[:-1],
        [*common_fields.pack_context((("user", "x"),)), 1],
        [common_fields.CONTEXT_MARK, 9, *(int.from_bytes(zlib.compress(b"7")[at : at + 3], "big") for at in (0, 3, 6))],
    ],
)
def test_a_context_of_another_server_is_named_and_passed_over(numbers: list[int]) -> None:
    ask = requests.map_generate({"prompt": "p", "context": numbers}, "m", ServerFeatures())
    assert (ask.body["messages"], ask.ignored) == ([PROMPT], ("context",))


def test_a_context_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = common_fields.pack_context((("user", "x" * 100_000),))
    assert len(numbers) < 1000
    assert common_fields.unpack_context(numbers) == (("user", "x" * 100_000),)
    monkeypatch.setattr(common_fields, "MAX_CONTEXT_BYTES", 50_000)
    assert common_fields.unpack_context(numbers) is None


@pytest.mark.parametrize("wish", [{"context": 3}, {"context": ["a"]}, {"context": [1.5]}, {"raw": True, "context": [1]}])
def test_what_is_no_context_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="context"):
        requests.map_generate({"prompt": "p"} | wish, "m", ServerFeatures())
