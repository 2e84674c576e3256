"""Ollama's official Python client against a running server, with a fake language model behind it."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ollama import Client, ResponseError

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.fake_chat import WORDS, fake_chat
from tests.fake_hub import FakeRepository, fake_hub
from tests.ports import find_free_port
from tests.processes import find_children
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.upstreams import FakeUpstream, fake_upstream
from tests.weights import read_moonshine_files

pytestmark = pytest.mark.slow

SPEECH = "moonshine-tiny-en:latest"
TEXT = "".join(WORDS)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city."}}


@pytest.fixture(scope="module")
def llm() -> Iterator[FakeUpstream]:
    with fake_upstream(fake_chat) as started:
        yield started


@pytest.fixture(scope="module")
def server(llm: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    port = find_free_port()
    weights = tmp_path_factory.mktemp("weights") / "Qwen3-0.6B-Q8_0.gguf"
    weights.write_bytes(b"GGUF" + bytes(1000))
    program = Path(__file__).parent / "fake_chat.py"
    models = {
        "chatty": {"proxy": llm.url, "aliases": ["gpt-local"], "metadata": {"contextLength": 4096, "family": "llama"}},
        "qwen3:0.6b": {
            "cmd": f"{sys.executable} {program} {port} -m {weights} -c 8192 --jinja",
            "proxy": f"http://127.0.0.1:{port}",
        },
    }
    config = tmp_path_factory.mktemp("ollama") / "config.yaml"
    config.write_text(json.dumps({"models": models}))
    with run_server("--config", str(config), "--set", "default_model=moonshine-tiny-en") as started:
        yield started


@pytest.fixture
def client(server: ServerUnderTest) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


def list_names(client: Client) -> set[str]:
    return {str(model.model) for model in client.list().models}


def list_loaded(client: Client) -> dict[str, datetime]:
    return {str(model.model): model.expires_at for model in client.ps().models if model.expires_at}


def test_all_models_are_listed_with_their_tag(client: Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert set(models) == {SPEECH, "chatty:latest", "qwen3:0.6b"}
    qwen, speech = models["qwen3:0.6b"], models[SPEECH]
    assert qwen.details
    assert (qwen.details.family, qwen.details.parameter_size, qwen.details.quantization_level) == ("qwen3", "0.6B", "Q8_0")
    assert qwen.size == 1004
    assert speech.size > 20_000_000
    assert qwen.modified_at > datetime.now(UTC) - timedelta(minutes=10)
    assert {len(str(model.digest)) for model in models.values()} == {64}
    assert [model.digest for model in client.list().models] == [model.digest for model in client.list().models]


@pytest.mark.parametrize("name", ["chatty", "chatty:latest", "gpt-local", "gpt-local:latest"])
def test_a_model_is_shown_by_any_of_its_names(client: Client, name: str) -> None:
    shown = client.show(name)
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "unknown"
    assert shown.modelinfo["unknown.context_length"] == 4096


def test_capabilities_are_those_of_the_command_or_the_engine(client: Client) -> None:
    assert client.show("qwen3:0.6b").capabilities == ["completion", "tools"]
    assert (client.show("qwen3:0.6b").modelinfo or {})["qwen3.context_length"] == 8192
    assert client.show("whisper-1").capabilities == ["audio"]


@pytest.mark.parametrize("name", ["chatty", "chatty:latest", "gpt-local:latest"])
def test_a_chat(client: Client, llm: FakeUpstream, name: str) -> None:
    options = {"num_predict": 100, "temperature": 0.5, "top_k": 20, "num_ctx": 2048, "stop": ["END"]}
    answer = client.chat(name, [{"role": "user", "content": "Hi"}], options=options)
    assert (answer.message.content, answer.done, answer.done_reason, answer.model) == (TEXT, True, "stop", name)
    assert (answer.prompt_eval_count, answer.eval_count) == (11, 7)
    assert answer.total_duration
    body = llm.calls[-1].json
    assert body == {
        "model": "chatty",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": False,
        "temperature": 0.5,
        "stop": ["END"],
        "top_k": 20,
        "max_tokens": 100,
    }


def test_a_chat_streams(client: Client, llm: FakeUpstream) -> None:
    chunks = list(client.chat("chatty", [{"role": "user", "content": "think"}], stream=True, think=True))
    assert [chunk.message.thinking for chunk in chunks[:2]] == ["Let me", " see."]
    assert [chunk.message.content for chunk in chunks[2:]] == [*WORDS, ""]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert (last.done_reason, last.prompt_eval_count, last.eval_count) == ("stop", 11, 7)
    assert llm.calls[-1].json["chat_template_kwargs"] == {"enable_thinking": True}
    client.chat("chatty", [{"role": "user", "content": "Hi"}], think="high")
    assert llm.calls[-1].json["reasoning_effort"] == "high"


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_answered(client: Client, llm: FakeUpstream, stream: bool) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Weather?"}]
    answer = client.chat("chatty", messages, tools=[TOOL], stream=stream)  # type: ignore[call-overload]
    chunks = list(answer) if stream else [answer]
    (call,) = next(chunk.message.tool_calls for chunk in chunks if chunk.message.tool_calls)
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Wien"})
    assert chunks[-1].done_reason == "stop"
    assert llm.calls[-1].json["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Wien"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    assert client.chat("chatty", messages).message.content == "It is sunny."
    sent = llm.calls[-1].json["messages"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Wien"}'}
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


def test_pictures_reach_the_model(client: Client, llm: FakeUpstream) -> None:
    client.chat("chatty", [{"role": "user", "content": "What is it?", "images": [PNG]}])
    text, picture = llm.calls[-1].json["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert picture == {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}}
    client.generate("chatty", "And this?", images=[PNG])
    assert llm.calls[-1].json["messages"][0]["content"][1] == picture


def test_text_is_generated(client: Client, llm: FakeUpstream) -> None:
    answer = client.generate("chatty", "Why?", system="Be brief.", format="json")
    assert (answer.response, answer.done_reason, answer.eval_count) == ('{"sky": "blue"}', "stop", 7)
    assert [message["role"] for message in llm.calls[-1].json["messages"]] == ["system", "user"]
    assert [part.response for part in client.generate("chatty", "Why?", stream=True)] == [*WORDS, ""]
    raw = client.generate("chatty", "Once", raw=True, options={"num_predict": 1})
    assert (raw.response, raw.done_reason) == ("Once and on", "length")
    assert llm.calls[-1].path == "/v1/completions"


def test_texts_are_embedded(client: Client) -> None:
    answer = client.embed("chatty", ["a", "bcd"])
    assert [list(vector) for vector in answer.embeddings] == [[1.0, 0.0, 0.5], [3.0, 1.0, 0.5]]
    assert answer.prompt_eval_count == 5
    assert list(client.embeddings("chatty", "four").embedding) == [4.0, 0.0, 0.5]
    assert client.embed("chatty", []).embeddings == []


@pytest.mark.parametrize("stream", [False, True])
def test_audio_in_the_place_of_pictures_is_transcribed(client: Client, stream: bool) -> None:
    recording = encode_speech("wav")
    answer = client.chat("whisper-1", [{"role": "user", "content": "Transcribe.", "images": [recording]}], stream=stream)  # type: ignore[call-overload]
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.message.content or "" for chunk in chunks) == SPEECH_TEXT
    assert chunks[-1].done
    assert client.generate(SPEECH, "", images=[recording]).response == SPEECH_TEXT


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (lambda c: c.chat("nobody", [{"role": "user", "content": "x"}]), 404, "model 'nobody' not found"),
        (lambda c: c.generate("nobody:7b", "x"), 404, "model 'nobody:7b' not found"),
        (lambda c: c.show("nobody"), 404, "model 'nobody' not found"),
        (lambda c: c.embed("nobody", "x"), 404, "model 'nobody' not found"),
        (lambda c: c.delete("nobody"), 404, "model 'nobody' not found"),
        (lambda c: c.copy("nobody", "somebody"), 404, "model 'nobody' not found"),
        (lambda c: c.chat("chatty", [{"role": "user", "content": "refuse"}]), 400, "exceeds the available context"),
        (lambda c: c.chat("chatty", [{"role": "user", "content": "fail"}]), 502, "answered 500: out of memory"),
        (lambda c: c.chat(SPEECH, [{"role": "user", "content": "Hello"}]), 400, "does not support chat"),
        (lambda c: c.embed(SPEECH, "Hello"), 400, "does not support embeddings"),
        (lambda c: c.delete(SPEECH), 400, "comes from the package"),
        (lambda c: c.delete("chatty"), 400, "the config: remove it there"),
        (lambda c: c.pull("no-such-model-anywhere"), 404, "no-such-model-anywhere"),
        (lambda c: c.push("chatty"), 501, "not implemented"),
        (lambda c: c.create("x", from_="chatty"), 501, "not implemented"),
        (lambda c: c.chat("chatty", [{"role": "user", "content": "x"}], keep_alive="soon"), 400, "keep_alive"),
    ],
)
def test_errors_are_raised_with_status_and_sentence(client: Client, call: object, status: int, message: str) -> None:
    with pytest.raises(ResponseError) as caught:
        call(client)
    assert caught.value.status_code == status
    assert message in caught.value.error


@pytest.mark.parametrize(("said", "message"), [("die", "in the middle of its answer"), ("break", "slot lost")])
def test_an_upstream_that_fails_in_the_middle_is_an_error_and_no_end(client: Client, said: str, message: str) -> None:
    stream = client.chat("chatty", [{"role": "user", "content": said}], stream=True)
    received = []
    with pytest.raises(ResponseError, match=message):
        received.extend(stream)
    assert [chunk.message.content for chunk in received] == WORDS[:2]


def test_a_model_is_loaded_and_unloaded_by_keep_alive(client: Client, server: ServerUnderTest) -> None:
    assert client.generate("qwen3:0.6b", "", keep_alive="1h").done_reason == "load"
    assert timedelta(minutes=59) < list_loaded(client)["qwen3:0.6b"] - datetime.now(UTC) < timedelta(minutes=61)
    client.chat("qwen3:0.6b", [{"role": "user", "content": "x"}], keep_alive=-1)
    assert list_loaded(client)["qwen3:0.6b"] - datetime.now(UTC) > timedelta(days=365 * 290)
    assert client.chat("qwen3:0.6b", [], keep_alive=0).done_reason == "unload"
    assert "qwen3:0.6b" not in list_loaded(client)
    client.chat("qwen3:0.6b", [{"role": "user", "content": "x"}], keep_alive=0)
    wait_for(lambda: "qwen3:0.6b" not in list_loaded(client))
    client.chat("qwen3:0.6b", [{"role": "user", "content": "x"}], keep_alive=2)
    assert "qwen3:0.6b" in list_loaded(client)
    wait_for(lambda: "qwen3:0.6b" not in list_loaded(client))
    assert not find_children(server.process.pid, "fake_chat.py")


def test_a_copy_is_another_name(client: Client) -> None:
    client.copy("chatty", "gpt-4o")
    assert "gpt-4o:latest" in list_names(client)
    assert client.chat("gpt-4o:latest", [{"role": "user", "content": "x"}]).message.content == TEXT
    with pytest.raises(ResponseError, match="already a name of chatty"):
        client.copy("qwen3:0.6b", "gpt-local")
    client.delete("gpt-4o")
    assert "gpt-4o:latest" not in list_names(client)


def test_a_client_that_leaves_takes_its_request_with_it(client: Client, llm: FakeUpstream) -> None:
    before = llm.given_up
    stream = client.chat("chatty", [{"role": "user", "content": "linger"}], stream=True)
    assert [next(stream).message.content for _ in range(2)] == WORDS[:2]
    stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: llm.given_up == before + 1 and not llm.in_flight)


def test_a_model_is_pulled_used_and_deleted(tmp_path: Path) -> None:
    name = "someone/moon-en"
    with (
        fake_hub(**{name: FakeRepository(read_moonshine_files())}) as hub,
        run_server("--set", f"model_dir={tmp_path}", "--set", "default_model=moonshine-tiny-en", **hub.environment) as server,
        Client(server.address) as client,
    ):
        steps = list(client.pull(f"{name}:latest", stream=True))
        assert [steps[0].status, steps[-1].status] == ["pulling manifest", "success"]
        moving = [step for step in steps if step.digest]
        assert moving[-1].completed == moving[-1].total
        assert moving[-1].total > 20_000_000
        assert re.fullmatch("sha256:[0-9a-f]{64}", str(moving[-1].digest))
        assert client.pull(name).status == "success"
        assert f"{name}:latest" in list_names(client)
        assert client.show(name).capabilities == ["audio"]
        recording = encode_speech("flac")
        assert client.chat(name, [{"role": "user", "images": [recording]}], keep_alive="10m").message.content == SPEECH_TEXT
        assert timedelta(minutes=9) < list_loaded(client)[f"{name}:latest"] - datetime.now(UTC) < timedelta(minutes=11)
        client.delete(name)
        assert f"{name}:latest" not in list_names(client) | set(list_loaded(client))
        assert not list(tmp_path.glob("models--*"))
        hub.repositories[name].damaged = True
        with pytest.raises(ResponseError, match="moon-en"):
            list(client.pull(name, stream=True))
