"""Failures in words, and trying again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest
from aiohttp import web

from eardrum.engines.shared import openai_http as client_module
from eardrum.errors import UpstreamError, UpstreamTimeoutError
from tests import upstreams
from tests.engines.openai_requests import create_window, get_failure, open_engine, transcribe_with
from tests.ports import find_free_port
from tests.upstreams import KEY, Answer, UpstreamCall, fake_upstream


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts a hundred times as short."""
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.005)


@pytest.mark.parametrize(
    ("answer", "options", "says"),
    [
        (upstreams.fake_openai, {"key": KEY + "x"}, r"401: Incorrect API key provided: Bearer \*\*\*\. .*the option key\."),
        (upstreams.fake_openai, {}, "401.* requires a key: set `key_env`"),
        (upstreams.fake_vllm_chat, {}, "404: Not Found.* url, path and model.* /v1/audio/transcriptions"),
        (upstreams.fake_error_with_status_200, {}, "Invalid or unsupported audio file"),
        (upstreams.fake_fastapi_refusal, {}, "422: body.model: Field required"),
        (upstreams.fake_html, {}, r"text/html.* that is no transcript in JSON: a page titled 'My router'\. Check"),
        (upstreams.fake_html, {"via": "chat_audio_url"}, "text/html.* that is no chat completion.*via"),
        (upstreams.fake_html_error, {}, "502: a page titled '502 Bad Gateway'"),
        (upstreams.fake_dying, {}, "broke off in the middle"),
        (upstreams.fake_saying({"result": "?"}), {}, "application/json.* that is no transcript in JSON"),
        (upstreams.fake_saying(["?"]), {}, "that is no transcript"),
        (upstreams.fake_saying({"choices": []}), {"via": "chat_audio_url"}, "no chat completion"),
        (upstreams.fake_saying("Nope. " * 500, status=418), {}, r"418: (Nope\. ){49}.{6}…\."),
    ],
)
def test_failures_are_worded(answer: Answer, options: dict, says: str) -> None:
    error = get_failure(answer, **options)
    assert (type(error), error.status, error.code) == (UpstreamError, 502, "upstream_failed")
    assert re.search(says, error.message), error.message


def test_a_key_that_the_upstream_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake_echo(call: UpstreamCall, _: web.Request) -> web.Response:
        return upstreams.build_error(403, "x" * 295 + call.headers["authorization"] + call.headers["x-token"])

    monkeypatch.setenv("FAKE_CLOUD_KEY", f" {KEY}\n")
    error = get_failure(fake_echo, key_env="FAKE_CLOUD_KEY", headers={"X-Token": "another-secret"})
    assert "the environment variable FAKE_CLOUD_KEY (option key_env)" in error.message
    assert "sk-" not in error.message, "not even a part of it"
    assert "another" not in error.message


def test_a_redirect_is_not_followed() -> None:
    async def fake_redirect(_: UpstreamCall, request: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect("https://elsewhere.example/v1")

    error = get_failure(fake_redirect, key=KEY)
    assert "308" in error.message
    assert "https://elsewhere.example/v1" in error.message


def test_an_upstream_that_is_not_there() -> None:
    address = f"http://127.0.0.1:{find_free_port()}"
    with open_engine(address) as loaded, pytest.raises(UpstreamError, match=r"127.0.0.1:\d+ cannot be reached: .*Is it running"):
        loaded.transcribe([create_window()])
    with (
        open_engine("http://nowhere.invalid") as loaded,
        pytest.raises(UpstreamError, match=r"nowhere\.invalid:80 cannot be found"),
    ):
        loaded.transcribe([create_window()])


def test_an_upstream_without_tls() -> None:
    with fake_upstream(upstreams.fake_openai) as fake:
        url = fake.url.replace("http:", "https:")
        with open_engine(url, retries=3) as loaded, pytest.raises(UpstreamError, match="cannot be reached safely") as caught:
            loaded.transcribe([create_window()])
    assert caught.value.retry_after is None


def test_an_upstream_that_hangs() -> None:
    error = get_failure(upstreams.fake_hanging, timeout_seconds=0.3, retries=5)
    assert (type(error), error.status, error.code) == (UpstreamTimeoutError, 504, "upstream_timeout")
    assert "0.3 s (option timeout_seconds)" in error.message


def test_a_busy_upstream_is_asked_again(short_waits: None) -> None:
    refusals = [upstreams.build_busy, lambda: upstreams.build_busy(503)]
    with transcribe_with(upstreams.fake_after(refusals, upstreams.fake_whisper_server), retries=2) as (fake, (hearing,)):
        assert hearing.segments
        first, *others = [(call.fields, call.file) for call in fake.calls]
        assert others == [first, first]


def test_a_broken_answer_is_asked_for_again(short_waits: None) -> None:
    calls = 0

    async def fake_stumbling(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return await (upstreams.fake_dying if calls == 1 else upstreams.fake_whisper_server)(call, request)

    with transcribe_with(fake_stumbling, retries=1) as (fake, (hearing,)):
        assert hearing.segments[0].text == "And Mr. Dashwood."
        assert len(fake.calls) == 2


@pytest.mark.parametrize("header", [{"retry_after": "0.3"}, {"retry_after_ms": "300", "retry_after": "50"}])
def test_the_upstream_says_when_to_come_back(short_waits: None, header: dict[str, str]) -> None:
    began = time.monotonic()
    answer = upstreams.fake_after([lambda: upstreams.build_busy(**header)], upstreams.fake_whisper_server)
    with transcribe_with(answer, retries=1) as (_, (hearing,)):
        assert hearing.segments
    assert 0.3 <= time.monotonic() - began < 40


@pytest.mark.parametrize(
    ("refusal", "after"),
    [
        (lambda: upstreams.build_busy(retry_after="90"), 90),
        (lambda: upstreams.build_busy(retry_after=formatdate(time.time() + 90, usegmt=True)), pytest.approx(89, abs=2)),
        (lambda: upstreams.build_busy(400), None),
        (lambda: upstreams.build_busy(500, x_should_retry="false"), None),
        (lambda: web.json_response({"error": {"code": "insufficient_quota", "message": "Pay."}}, status=429), None),
    ],
)
def test_what_waiting_does_not_mend_soon_is_told_at_once(refusal: Callable[[], web.Response], after: float | None) -> None:
    with (
        fake_upstream(upstreams.fake_after([refusal] * 9, upstreams.fake_openai)) as fake,
        open_engine(fake.url, retries=5) as loaded,
    ):
        with pytest.raises(UpstreamError) as caught:
            loaded.transcribe([create_window(times=False)])
        assert len(fake.calls) == 1
    assert caught.value.retry_after == after


def test_a_client_is_told_when_to_come_back_after_the_last_attempt(short_waits: None) -> None:
    with (
        fake_upstream(upstreams.fake_after([upstreams.build_busy] * 9, upstreams.fake_openai)) as fake,
        open_engine(fake.url, retries=2) as loaded,
    ):
        with pytest.raises(UpstreamError, match="429: Rate limit reached") as caught:
            loaded.transcribe([create_window()])
        assert len(fake.calls) == 3
    assert caught.value.retry_after > 0


def test_the_query_of_the_address_stays() -> None:
    with (
        fake_upstream(upstreams.fake_whisper_server) as fake,
        open_engine("", url=f"{fake.url}/deployments/w?api-version=7") as loaded,
    ):
        loaded.transcribe([create_window()])
        assert fake.calls[0].path == "/deployments/w/audio/transcriptions?api-version=7"


@pytest.mark.parametrize(("path", "target"), [("/", "/v1"), ("inference", "/v1/inference"), ("/a/b/", "/v1/a/b/")])
def test_a_path_of_its_own(path: str, target: str) -> None:
    with transcribe_with(upstreams.fake_whisper_server, path=path) as (fake, _):
        assert fake.calls[0].path == target


def test_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_upstream(upstreams.fake_whisper_server) as fake_proxy:
        monkeypatch.setenv("http_proxy", fake_proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with open_engine("http://far.invalid") as loaded:
            assert loaded.transcribe([create_window()])[0].segments
            assert fake_proxy.calls[0].path == "http://far.invalid/v1/audio/transcriptions"
        with transcribe_with(upstreams.fake_whisper_server) as (fake, _):
            assert len(fake.calls) == len(fake_proxy.calls) == 1
    with open_engine("http://far.invalid") as loaded, pytest.raises(UpstreamError, match="through the proxy"):
        loaded.transcribe([create_window()])
