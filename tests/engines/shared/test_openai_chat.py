"""Speech models behind a chat."""

from __future__ import annotations

import base64

import pytest

from eardrum.engines.shared.openai_http import encode_clip
from tests import upstreams
from tests.engines.openai_requests import SPAN, create_window, transcribe_with


@pytest.mark.parametrize("via", ["chat_audio_url", "chat_input_audio"])
def test_what_is_asked_goes_into_the_chat(via: str) -> None:
    wanted = create_window(language="de", prompt="At Norland.", hotwords=("Elinor",))
    options = {"model": "asr", "fields": {"max_tokens": 400, "temperature": 1}, "instruction": "Write down what is said."}
    with transcribe_with(upstreams.fake_vllm_chat, wanted, via=via, **options) as (fake, _):
        (call,) = fake.calls
    system, user = call.json.pop("messages")
    assert call.json == {"model": "asr", "max_tokens": 400, "temperature": 0.0}
    assert system == {"role": "system", "content": "The language is German.\nAt Norland.\nElinor"}
    audio, text = user["content"]
    assert (user["role"], text) == ("user", {"type": "text", "text": "Write down what is said."})
    assert audio["type"] == via.removeprefix("chat_")
    if via == "chat_audio_url":
        head, _, data = audio["audio_url"]["url"].partition(",")
        assert head == "data:audio/wav;base64"
    else:
        data = audio["input_audio"]["data"]
        assert audio["input_audio"]["format"] == "wav"
    assert base64.b64decode(data) == encode_clip(wanted.audio, "wav").data


def test_a_chat_about_nothing_known_is_the_audio_alone() -> None:
    with transcribe_with(upstreams.fake_vllm_chat, via="chat_audio_url") as (fake, _):
        (message,) = fake.calls[0].json["messages"]
        assert [part["type"] for part in message["content"]] == ["audio_url"]


def test_vllms_chat_answer() -> None:
    with transcribe_with(upstreams.fake_vllm_chat, via="chat_audio_url") as (_, (hearing,)):
        (segment,) = hearing.segments
        assert (segment.text, (segment.start, segment.end), hearing.language) == ("Guten Tag.", SPAN, "de")


@pytest.mark.parametrize(
    ("content", "text", "language"),
    [
        ("language English<asr_text>Hello.", "Hello.", "en"),
        ("language Chinese,English<asr_text>你好 hello", "你好 hello", "zh"),
        ("language None<asr_text>", "", "fr"),
        ("<|zh|><|NEUTRAL|><|Speech|><|withitn|>你好。", "你好。", "zh"),
        ("<|startoftranscript|><|de|><|transcribe|> Guten Tag.<|endoftext|>", "Guten Tag.", "de"),
        ("  The language English<br>is hard. ", "The language English<br>is hard.", "fr"),
        (None, "", "fr"),
        ("", "", "fr"),
        ([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}], "Hello.", "fr"),
    ],
)
def test_what_models_put_around_the_text(content: object, text: str, language: str) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    with transcribe_with(upstreams.fake_saying(body), create_window(language="fr"), via="chat_input_audio") as (_, (hearing,)):
        assert [segment.text for segment in hearing.segments] == ([text] if text else [])
        assert hearing.language == language
