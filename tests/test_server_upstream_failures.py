"""Servers behind models that die, clients that leave, uploads that are large: what becomes of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from aiohttp import web

from tests import upstreams
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port
from tests.processes import find_children
from tests.recordings import ROOT, SPEECH_TEXT, encode_speech
from tests.test_server_uploads import FILE, build_field, open_wire
from tests.transcripts import remove_logprobs
from tests.upstreams import UpstreamCall, fake_upstream

pytestmark = pytest.mark.slow

WHISPER = str(ROOT / "tests" / "programs" / "fake_whisper_server.py")


@contextmanager
def run_server_with(folder: Path, **models: dict) -> Iterator[ServerUnderTest]:
    """A gateway with these models, which do not exclude each other."""
    config = folder / "config.yaml"
    groups = {"all": {"swap": False, "members": list(models)}}
    config.write_text(json.dumps({"models": models, "groups": groups}))
    with run_server("--config", str(config), PYTHONPATH=f"{ROOT}:{ROOT / 'src'}") as server:
        yield server


def test_fields_that_only_the_server_knows_reach_it(tmp_path: Path) -> None:
    audio = encode_speech("ogg")
    with fake_upstream(upstreams.fake_whisper_server) as fake:
        models = {"far": {"proxy": fake.url, "use_model_name": "large-v3"}}
        with run_server_with(tmp_path, **models) as server:
            form = {"beam_size": "7", "vad_filter": "true", "hotwords": "Elinor", "stream_options[x]": "1"}
            answer = server.post_audio(encode_speech("wav"), model="far", prompt="Hm.", **form)
            assert answer.status_code == 200, answer.text
            assert "x-eardrum-ignored" not in answer.headers
            assert answer.headers["x-eardrum-model"] == "far"
            (call,) = fake.calls
            assert {name: call.get_value(name) for name in form} == form
            assert (call.get_value("model"), call.get_value("prompt")) == ("large-v3", "Hm.")
            own = server.post_audio(audio, model="moonshine-tiny-en", **form)
            assert own.headers["x-eardrum-ignored"] == "keywords, beam_size, stream_options, vad_filter"


def test_a_field_after_the_file_is_asked_for_too(tmp_path: Path) -> None:
    with fake_upstream(upstreams.fake_whisper_server) as fake, run_server_with(tmp_path, far={"proxy": fake.url}) as server:
        with open_wire(server) as client:
            client.send_bytes(
                build_field("model", "far") + FILE + encode_speech("wav") + b"\r\n" + build_field("beam_size", "3") + b"--x--\r\n"
            )
            client.end_body()
            assert b"200 OK" in client.receive_until(b"wood")
        assert fake.calls[-1].get_value("beam_size") == "3"


def test_a_server_that_is_killed_at_work_is_started_again_and_asked_once_more(tmp_path: Path) -> None:
    port = find_free_port()
    command = shlex.join([sys.executable, WHISPER, "--port", str(port), "--slow", "2"])
    kept = [f"TMPDIR={tmp_path}"]  # what is killed leaves its files behind, but not among the gateway's
    model = {"cmd": command, "proxy": f"http://127.0.0.1:{port}", "env": kept}
    with run_server_with(tmp_path, whisper=model) as server, ThreadPoolExecutor(1) as pool:
        for fields in ({"response_format": "json"}, {"stream": "true"}):
            answer = pool.submit(server.post_audio, encode_speech("mp3"), model="whisper", **fields)
            wait_for(lambda: _get_state(server, "whisper") == "busy", 60)
            (child,) = find_children(server.process.pid, Path(WHISPER).name)
            child.kill()
            assert SPEECH_TEXT in answer.result().text
            server.wait_for_log("SIGKILL")


def _get_state(server: ServerUnderTest, model: str) -> str:
    """The state, and whether it is at work: a slow fake is for long enough."""
    (row,) = [row for row in requests.get(f"{server.address}/health", timeout=10).json()["models"] if row["id"] == model]
    return "busy" if row["state"] == "ready" and row["requests"] else row["state"]


async def fake_dying_stream(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that dies after the first words."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"type": "transcript.text.delta", "delta": "And then"}\n\n')
    assert request.transport
    request.transport.close()
    return response


def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    with fake_upstream(fake_dying_stream) as fake, run_server_with(tmp_path, far={"proxy": fake.url}) as server:
        answer = server.post_audio(encode_speech("wav"), model="far", stream="true")
        delta, error = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert delta == {"type": "transcript.text.delta", "delta": "And then"}
        assert error["error"]["code"] == "upstream_died"
        assert fake.url in error["error"]["message"]
        assert len(fake.calls) == 1, "what has been said is not said again"


def test_a_server_that_broke_off_is_asked_once_more(tmp_path: Path) -> None:
    def dying_once() -> upstreams.Answer:
        calls = []

        async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
            calls.append(call)
            return await (upstreams.fake_dying if len(calls) == 1 else upstreams.fake_whisper_server)(call, request)

        return answer

    with fake_upstream(dying_once()) as fake, run_server_with(tmp_path, far={"proxy": fake.url}) as server:
        assert server.post_audio(encode_speech("wav"), model="far").json()["text"] == "And Mr. Dashwood."
        assert len(fake.calls) == 2


def test_our_own_model_stands_in_for_a_server_that_fails(tmp_path: Path) -> None:
    with fake_upstream(upstreams.fake_html_error) as fake:
        far = {"proxy": fake.url, "fallback": ["moonshine-tiny-en"]}
        with run_server_with(tmp_path, far=far) as server:
            answer = server.post_audio(encode_speech("mp3"), model="far", beam_size="7")
            assert (answer.json()["text"], answer.headers["x-eardrum-model"]) == (SPEECH_TEXT, "moonshine-tiny-en")
            assert answer.headers["x-eardrum-ignored"] == "beam_size"


def test_a_client_that_leaves_takes_its_request_with_it(tmp_path: Path) -> None:
    with fake_upstream(upstreams.fake_hanging) as fake, run_server_with(tmp_path, far={"proxy": fake.url}) as server:
        with open_wire(server) as client:
            client.send_bytes(build_field("model", "far") + FILE + encode_speech("mp3") + b"\r\n--x--\r\n")
            client.end_body()
            wait_for(lambda: fake.in_flight)
        wait_for(lambda: fake.given_up == 1)


@contextmanager
def run_counting_program() -> Iterator[str]:
    """A program that counts what it is sent and keeps none of it; its address."""
    child = subprocess.Popen([sys.executable, "-c", COUNT], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()


COUNT = """
import asyncio
from aiohttp import web

async def count(request):
    size = 0
    while chunk := await request.content.readany():
        size += len(chunk)
    return web.json_response({"text": str(size)})

async def main():
    app = web.Application()
    app.router.add_post("/{path:.*}", count)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_large_upload_passes_through(tmp_path: Path) -> None:
    """Its memory stays as it is: 300 MB come in at full speed, and the server behind takes them as they come."""
    megabyte = bytes(1 << 20)
    with run_counting_program() as url, run_server_with(tmp_path, far={"proxy": url}) as server:
        assert server.post_audio(encode_speech("wav"), model="far").status_code == 200
        before = psutil.Process(server.process.pid).memory_info().rss
        most = 0
        with open_wire(server) as client:
            client.send_bytes(build_field("model", "far") + FILE + b"ID3" + megabyte)
            for _ in range(299):
                client.send_bytes(megabyte)
                most = max(most, psutil.Process(server.process.pid).memory_info().rss)
            client.send_bytes(b"\r\n--x--\r\n")
            client.end_body()
            received = client.receive_until(b"}")
        assert b"200 OK" in received
        (size,) = [int(word) for word in received.replace(b'"', b" ").split() if word.isdigit() and int(word) > 300_000_000]
        assert 300 << 20 < size < (300 << 20) + 2000
        assert most - before <= 16 << 20, f"{(most - before) >> 20} MiB more"


@pytest.fixture(scope="module")
def chained_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A gateway whose model is that of another Eardrum."""
    with (
        run_server() as far,
        run_server_with(tmp_path_factory.mktemp("ours"), far={"proxy": far.address, "use_model_name": "whisper-1"}) as near,
    ):
        yield near


def test_another_eardrum_behind_a_model(chained_server: ServerUnderTest) -> None:
    audio = encode_speech("webm")
    near = chained_server.post_audio(audio, model="far", response_format="verbose_json").text
    own = chained_server.post_audio(audio, model="moonshine-tiny-en", response_format="verbose_json").text
    assert remove_logprobs(near) == remove_logprobs(own), "nothing is lost on the way"
    assert near.count("logprob") == own.count("logprob") > 0
    stream = chained_server.post_audio(audio, model="far", stream="true").text
    own_stream = chained_server.post_audio(audio, model="moonshine-tiny-en", stream="true").text
    assert '"start"' in own_stream.partition("transcript.text.done")[0]
    assert stream.replace('"far"', '"moonshine-tiny-en"') == own_stream


def test_a_refusal_of_another_eardrum(chained_server: ServerUnderTest) -> None:
    answer = chained_server.post_audio(encode_speech("wav"), model="far", language="de")
    assert answer.status_code == 400
    assert "does not support German (de), only English (en)" in answer.json()["error"]["message"]
