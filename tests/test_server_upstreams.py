"""A server whose models are other servers: what a client sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import upstreams
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.test_server_uploads import END, FILE, build_field, open_wire
from tests.upstreams import KEY, fake_upstream

pytestmark = pytest.mark.slow


@contextmanager
def run_server_with(folder: Path, url: str, **model: object) -> Iterator[ServerUnderTest]:
    """A server with one model in its config, `cloud`; the key is in its environment."""
    options = {"url": f"{url}/v1", "key_env": "FAKE_CLOUD_KEY", "retries": 0}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"models": {"cloud": {"engine": "openai_api", "options": options, **model}}}))
    with run_server("--config", str(config), FAKE_CLOUD_KEY=KEY) as server:
        yield server
        assert KEY not in server.log


def test_every_format_of_an_upstream_that_only_knows_text(tmp_path: Path) -> None:
    audio = encode_speech("webm")
    with fake_upstream(upstreams.fake_json_only) as fake, run_server_with(tmp_path, fake.url) as server:
        assert fake.calls == []
        srt = server.post_audio(audio, model="cloud", response_format="srt").text
        assert srt.startswith("1\n00:00:00,2")
        assert srt.count("\nGuten Tag.\n") == 3, "one for each stretch of speech"
        shaped = server.post_audio(audio, model="cloud", response_format="srt", max_line_width="5", max_line_count="1").text
        assert shaped.count("\nGuten\n") == shaped.count("\nTag.\n") == 3
        verbose = server.post_audio(audio, model="cloud", response_format="verbose_json").json()
        assert (verbose["language"], len(verbose["segments"])) == ("german", 3)
        stream = server.post_audio(audio, model="cloud", stream="true").text
        assert stream.count("event: transcript.text.delta") == 3
        assert '"text": "Guten Tag. Guten Tag. Guten Tag."' in stream
        assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in fake.calls)


def test_an_upstreams_failure_reaches_the_client(tmp_path: Path) -> None:
    with fake_upstream(upstreams.fake_html_error) as fake, run_server_with(tmp_path, fake.url) as server:
        answer = server.post_audio(encode_speech("mp3"), model="cloud")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (502, "upstream_failed")
        assert fake.url.removeprefix("http://") in error["message"]
        assert "502 Bad Gateway" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1


def test_a_local_model_answers_when_the_upstream_fails(tmp_path: Path) -> None:
    fallback = {"fallback": ["moonshine-tiny-en"]}
    with fake_upstream(upstreams.fake_dying) as fake, run_server_with(tmp_path, fake.url, **fallback) as server:
        answer = server.post_audio(encode_speech("mp3"), model="cloud")
        assert (answer.status_code, answer.json()["text"]) == (200, SPEECH_TEXT)
        assert fake.calls


def test_a_client_that_leaves_takes_its_requests_with_it(tmp_path: Path) -> None:
    with fake_upstream(upstreams.fake_hanging) as fake, run_server_with(tmp_path, fake.url) as server:
        with open_wire(server) as client:
            client.send_bytes(build_field("model", "cloud") + FILE + encode_speech("mp3") + END)
            client.end_body()
            wait_for(lambda: fake.in_flight == 3)
        wait_for(lambda: not fake.in_flight)
        assert fake.given_up == len(fake.calls) == 3
