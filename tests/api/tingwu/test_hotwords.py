"""TingWu's hot words: lists of the server, and what its other routes make of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from aiohttp import web

from eardrum.api.tingwu.params import TingWuForm, parse_form
from eardrum.transcription import MAX_HOTWORDS, Capabilities
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.recordings import encode_speech
from tests.upstreams import UpstreamCall, fake_upstream

WORDS = "/api/v1/hotwords"


@pytest.fixture
def gateway() -> Iterator[GatewayUnderTest]:
    with run_gateway(tingwu_hotwords=("Norland",)) as started:
        yield started


def send(gateway: GatewayUnderTest, path: str, **request: Any) -> requests.Response:
    return requests.post(f"{gateway.url}{path}", timeout=20, **request)


def get_words(gateway: GatewayUnderTest, path: str = WORDS) -> list[str]:
    body = requests.get(f"{gateway.url}{path}", timeout=20).json()
    assert body == {"code": 0, "hotwords": body["hotwords"], "count": len(body["hotwords"])}
    words: list[str] = body["hotwords"]
    return words


def test_a_list_is_replaced_extended_and_restored(gateway: GatewayUnderTest) -> None:
    assert get_words(gateway) == ["Norland"]
    answer = send(gateway, WORDS, json={"hotwords": ["Dashwood", " 人工智能 ", "Dashwood"]})
    assert answer.json() == {"code": 0, "count": 2, "message": "There are 2 hot words."}
    assert get_words(gateway) == ["Dashwood", "人工智能"]
    assert send(gateway, f"{WORDS}/append", json={"hotwords": ["Barton", "Dashwood"]}).json()["count"] == 3
    assert get_words(gateway) == ["Dashwood", "人工智能", "Barton"]
    assert send(gateway, f"{WORDS}/context", json={"hotwords": "Willoughby"}).json()["count"] == 1
    assert send(gateway, f"{WORDS}/reload").json()["count"] == 1
    assert (get_words(gateway), get_words(gateway, f"{WORDS}/context")) == (["Norland"], ["Willoughby"])
    assert send(gateway, f"{WORDS}/context/reload").json()["count"] == 0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"hotwords": null}', b'{"hotwords": 7}', b'{"hotwords": [7]}', b'{"hotwords": ["\\ud800"]}']
)
def test_what_is_no_list_of_words_changes_nothing(gateway: GatewayUnderTest, body: bytes) -> None:
    answer = send(gateway, WORDS, data=body)
    assert (answer.status_code, answer.json()["detail"]) == (400, answer.json()["error"]["message"])
    assert get_words(gateway) == ["Norland"]


def test_both_lists_together_hold_as_many_words_as_a_request_may(gateway: GatewayUnderTest) -> None:
    many = [f"word{number}" for number in range(MAX_HOTWORDS - 1)]
    assert send(gateway, f"{WORDS}/context", json={"hotwords": many}).status_code == 200
    assert send(gateway, f"{WORDS}/append", json={"hotwords": ["one"]}).status_code == 400
    assert get_words(gateway) == ["Norland"]


def test_a_form_without_words_gets_those_of_the_server() -> None:
    words = ("Norland", "Dashwood")
    for fields, wanted in (({}, words), ({"hotwords": ["Barton"]}, ("Barton",)), ({"apply_hotword": ["false"]}, ())):
        params = parse_form(TingWuForm, fields, words)
        assert params.request.hotwords == wanted
        assert params.list_ignored(Capabilities()) == (["hotwords"] if "hotwords" in fields else []), "only what was sent"


async def answer_text(_: UpstreamCall, __: web.Request) -> web.Response:
    return web.json_response({"text": "Norland."})


def test_the_model_gets_the_words() -> None:
    with fake_upstream(answer_text) as upstream, run_gateway(models={"whisper": {"proxy": upstream.url}}) as gateway:
        send(gateway, WORDS, json={"hotwords": ["Norland", "Mrs. Dashwood"]})
        send(gateway, f"{WORDS}/context", json={"hotwords": ["Barton"]})
        for own in ({}, {"hotwords": "Willoughby"}):
            answer = send(gateway, "/api/v1/transcribe", data=own, files={"file": ("a.mp3", encode_speech("mp3"))})
            assert answer.json()["text"] == "Norland."
        assert [call.get_value("hotwords") for call in upstream.calls] == ["Norland, Mrs. Dashwood, Barton", "Willoughby"]


def test_settings_are_shown_and_not_changed(gateway: GatewayUnderTest) -> None:
    shown = requests.get(f"{gateway.url}/config", timeout=20).json()["config"]
    assert (shown["asr_backend"], shown["whisper_model"]) == ("moonshine", "moonshine-tiny-en")
    assert requests.get(f"{gateway.url}/config/all", timeout=20).json() == {"config": shown, "mutable_keys": []}
    refused = send(gateway, "/config", json={"updates": {"device": "cuda"}})
    assert (refused.status_code, "config file" in refused.json()["detail"]) == (400, True)
    foreign = requests.post(f"{gateway.url}/config/reload", headers={"origin": "https://evil.example"}, timeout=20)
    assert foreign.status_code == 403
