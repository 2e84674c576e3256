"""Managing a running server as llama-swap is managed: what runs, logs, events, profiles, requests in progress."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import requests
import yaml

from tests.commands import run_eardrum, start_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port
from tests.recordings import SPEECH_TEXT, create_silence, encode_announcements, encode_pcm, encode_speech
from tests.test_server_uploads import END, FILE, build_field, open_wire

pytestmark = pytest.mark.slow

M = "moonshine-tiny-en"

STOP_S = 9
"""Less than the server grants requests in progress: who ends sooner has waited for none."""

WEB = """
import http.server, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        print("asked for", self.path, flush=True)
print("serving", sys.argv[1], flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
"""A program that serves HTTP and nothing else."""


def build_command(folder: Path, **settings: Any) -> dict[str, Any]:
    """A model that is a command."""
    (folder / "web.py").write_text(WEB)
    port = find_free_port()
    return {"cmd": f"{sys.executable} {folder / 'web.py'} {port}", "proxy": f"http://127.0.0.1:{port}", **settings}


@contextmanager
def run_configured(folder: Path, *arguments: str, **settings: Any) -> Iterator[ServerUnderTest]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    with run_server("--config", str(file), *arguments) as server:
        yield server


def get_json(server: ServerUnderTest, path: str) -> Any:
    return requests.get(f"{server.address}{path}", timeout=20).json()


def post_json(server: ServerUnderTest, path: str) -> requests.Response:
    return requests.post(f"{server.address}{path}", timeout=60)


class FollowedStream:
    """A stream that is read in the background, as a client reads it."""

    def __init__(self, server: ServerUnderTest, path: str, headers: dict[str, str] | None = None):
        self.text = ""
        self.ended = False
        self.broken = False
        self._response = requests.get(f"{server.address}{path}", headers=headers, stream=True, timeout=60)
        self.headers = self._response.headers
        self._thread = threading.Thread(target=self._read_stream, daemon=True)
        self._thread.start()

    def _read_stream(self) -> None:
        try:
            for chunk in self._response.iter_content(None):
                self.text += chunk.decode()
        except (requests.RequestException, OSError, ValueError, AttributeError):
            self.broken = True
        self.ended = True

    def __enter__(self) -> FollowedStream:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._response.close()

    def list_events(self) -> list[dict[str, Any]]:
        whole = self.text[: self.text.rfind("\n\n") + 2] if "\n\n" in self.text else ""
        messages = [json.loads(line.removeprefix("data:")) for line in whole.splitlines() if line.startswith("data:")]
        return [{"type": message["type"], "data": json.loads(message["data"])} for message in messages]

    def list_data(self, kind: str) -> list[Any]:
        return [event["data"] for event in self.list_events() if event["type"] == kind]


def test_models_are_shown_loaded_and_unloaded(tmp_path: Path) -> None:
    site = build_command(tmp_path, aliases=["site/of:mine"], name="The web", description="It serves.", ttl=77)
    with run_configured(tmp_path, models={"web": site}) as server:
        assert get_json(server, "/running") == {"running": []}
        loaded = post_json(server, "/api/models/load/site/of:mine")
        assert (loaded.status_code, loaded.text) == (200, "OK")
        assert get_json(server, "/running") == {
            "running": [
                {
                    "model": "web",
                    "state": "ready",
                    "cmd": site["cmd"],
                    "proxy": site["proxy"],
                    "ttl": 77,
                    "name": "The web",
                    "description": "It serves.",
                }
            ]
        }
        (shown,) = get_json(server, "/api/ps")["models"]
        process = psutil.Process(shown["pid"])
        assert (shown["engine"], shown["state"]) == ("command", "ready")
        unloaded = post_json(server, "/api/models/unload/site/of:mine")
        assert (unloaded.status_code, unloaded.text) == (200, "OK")
        assert not process.is_running()
        assert get_json(server, "/running") == {"running": []}
        for path in ("load/nobody", "unload/nobody"):
            refused = post_json(server, f"/api/models/{path}")
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "model_not_found"


def test_all_models_are_unloaded_at_once(tmp_path: Path) -> None:
    with run_configured(tmp_path, models={"web": build_command(tmp_path)}) as server:
        for method, path, answer in (("GET", "/unload", "OK"), ("POST", "/api/models/unload", '{"msg":"ok"}')):
            for model in ("web", M):
                post_json(server, f"/api/models/load/{model}")
            assert [model["model"] for model in get_json(server, "/running")["running"]] == [M, "web"]
            for _ in range(2):  # nothing runs the second time, which is fine
                done = requests.request(method, f"{server.address}{path}", timeout=60)
                assert (done.status_code, done.text) == (200, answer)
                assert get_json(server, "/running") == {"running": []}
        assert not server.list_runners()


def test_a_model_that_does_not_start_is_said_to_whoever_loads_it(tmp_path: Path) -> None:
    program = 'print("no such weights"); raise SystemExit(3)'
    broken = {"cmd": f"{sys.executable} -c '{program}'", "proxy": "http://127.0.0.1:1"}
    with run_configured(tmp_path, models={"broken": broken, "web": build_command(tmp_path)}, default_model="web") as server:
        refused = post_json(server, "/api/models/load/broken")
        assert refused.status_code == 500
        assert "exit code 3" in refused.json()["error"]["message"]
        assert requests.get(f"{server.address}/logs/broken", timeout=10).text == "no such weights\n"
        assert get_json(server, "/running") == {"running": []}
        assert post_json(server, "/api/models/load/web").status_code == 200


def test_logs_are_told_and_followed(tmp_path: Path) -> None:
    with run_configured(tmp_path, models={"web": build_command(tmp_path)}) as server:
        with (
            FollowedStream(server, f"/logs/stream/{M}") as model,
            FollowedStream(server, "/logs/stream/upstream?no-history") as all_models,
        ):
            assert model.headers["content-type"].startswith("text/plain")
            server.post_audio(encode_speech("flac"), model=M)
            wait_for(lambda: M in all_models.text)
            wait_for(lambda: model.text)
            assert model.text in requests.get(f"{server.address}/logs/{M}", timeout=10).text
            assert all_models.text.startswith(f"{M}: {model.text.splitlines()[0]}")
        history = requests.get(f"{server.address}/logs", timeout=10)
        assert history.headers["content-type"].startswith("text/plain")
        assert "POST /v1/audio/transcriptions 200" in history.text
        assert f"{M} ready after" in history.text
        with FollowedStream(server, "/logs/stream") as old, FollowedStream(server, "/logs/stream/proxy?no-history") as new:
            wait_for(lambda: "POST /v1/audio/transcriptions 200" in old.text)
            requests.get(f"{server.address}/v1/models?marked", timeout=10)
            wait_for(lambda: "GET /v1/models 200" in new.text)
            assert "POST /v1/audio" not in new.text
        assert requests.get(f"{server.address}/logs/stream/nobody", timeout=10).status_code == 404
        assert requests.head(f"{server.address}/logs/stream", timeout=10).status_code == 200


def test_what_a_command_says_is_in_its_log(tmp_path: Path) -> None:
    with (
        run_configured(tmp_path, models={"web": build_command(tmp_path)}) as server,
        FollowedStream(server, "/logs/stream/web") as following,
    ):
        post_json(server, "/api/models/load/web")
        wait_for(lambda: "asked for /health" in following.text)
        assert following.text.startswith("serving")
        post_json(server, "/api/models/unload/web")
        post_json(server, "/api/models/load/web")
        wait_for(lambda: following.text.count("serving") == 2)
        assert following.text in requests.get(f"{server.address}/logs/web", timeout=10).text


def test_a_model_is_unloaded_by_force(tmp_path: Path) -> None:
    with run_configured(tmp_path, "--set", "shutdown_timeout=1") as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post_audio, encode_announcements(600), model=M)
        wait_for(lambda: get_json(server, "/health")["models"][0]["requests"])
        wait_for(lambda: get_json(server, "/health")["models"][0]["state"] == "ready")
        assert post_json(server, f"/api/models/unload/{M}?force").text == "OK"
        assert get_json(server, "/running") == {"running": []}
        assert answer.result().status_code == 503


def test_what_the_page_on_llama_swap_calls_missing_is(server: ServerUnderTest) -> None:
    page = (Path(__file__).parent.parent / "docs" / "guides" / "llama-swap.md").read_text(encoding="utf-8")
    table = page.split("## Missing features")[1].split("## ")[0]
    rows = [
        row.split("|")[1:3] for row in table.splitlines() if row.startswith("| ") and "404" in row and "`page: false`" not in row
    ]
    paths = [path for routes, _ in rows for path in re.findall(r"`(?:GET )?(/[\w/]+)", routes) if path != "/logs"]
    assert {"/api/captures/ID", "/upstream"} <= set(paths)
    statuses = {path: requests.get(server.address + path, timeout=10).status_code for path in paths}
    assert statuses == dict.fromkeys(paths, 404)
    assert get_json(server, "/health")["status"] == "ok"
    assert requests.get(f"{server.address}/wol-health", timeout=10).text == "OK"


def find_state(statuses: list[dict[str, Any]], model: str) -> str:
    return next(str(status["state"]) for status in statuses if status["id"] == model)


def test_events_tell_how_things_are_and_what_changes(tmp_path: Path) -> None:
    profiles = {"day": {"description": "By day", "pins": {"whisper-1": M}}}
    with (
        run_configured(tmp_path, models={M: {}, "web": build_command(tmp_path)}, profiles=profiles) as server,
        FollowedStream(server, "/api/events") as following,
    ):
        assert following.headers["content-type"].startswith("text/event-stream")
        wait_for(lambda: following.list_data("inflight"))
        first = following.list_events()
        assert [event["type"] for event in first[:4]] == ["logData", "modelStatus", "profileChanged", "inflight"]
        assert first[0]["data"]["source"] == "proxy"
        assert [find_state(first[1]["data"], id) for id in (M, "web")] == ["stopped", "stopped"]
        assert first[1]["data"][1].keys() >= {"id", "name", "description", "state", "unlisted", "peerID"}
        assert first[2]["data"] == {"active": None}
        assert first[3]["data"] == {"operation": "snapshot", "requests": []}

        post_json(server, "/api/models/load/web")
        wait_for(lambda: find_state(following.list_data("modelStatus")[-1], "web") == "ready")
        post_json(server, "/api/models/unload/web")
        wait_for(lambda: find_state(following.list_data("modelStatus")[-1], "web") == "stopped")
        states = [find_state(statuses, "web") for statuses in following.list_data("modelStatus")]
        assert [state for state, before in zip(states, [None, *states], strict=False) if state != before] == [
            "stopped",
            "starting",
            "ready",
            "stopping",
            "stopped",
        ]

        requests.put(f"{server.address}/api/profiles/active", json={"name": "day"}, timeout=10)
        wait_for(lambda: following.list_data("profileChanged")[-1] == {"active": "day"})

        server.post_audio(encode_speech("flac"), model="whisper-1")
        wait_for(lambda: following.list_data("activity") == [{"id": 1}])
        upsert, *_, remove = following.list_data("inflight")[1:]
        assert upsert["operation"] == "upsert"
        assert upsert["request"].keys() >= {"id", "timestamp", "model", "req_path", "method", "req_headers", "remote_ip"}
        assert (upsert["request"]["model"], upsert["request"]["req_path"]) == (M, "/v1/audio/transcriptions")
        assert remove == {"operation": "remove", "id": upsert["request"]["id"]}
        assert any(log["source"] == "upstream" and M in log["data"] for log in following.list_data("logData"))


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions/stream", "/v1/realtime?intent=transcription", "/ws/realtime"])
def test_a_follower_outlives_websockets_and_sees_no_key_of_theirs(tmp_path: Path, path: str) -> None:
    key, queried = "sk-the-key-of-this-server", "sk-the-key-in-the-query"
    header = {"authorization": f"Bearer {key}"}
    with (
        run_configured(tmp_path, api_keys=[key]) as server,
        FollowedStream(server, "/api/events", header) as before,
    ):
        wait_for(lambda: before.list_data("inflight"))

        async def talk() -> None:
            url = f"{server.address}{path}{'&' if '?' in path else '?'}model={M}"
            if "stream" not in path:  # which refuses what it does not know
                url += f"&api_key={queried}"
            protocols = ("realtime", f"openai-insecure-api-key.{key}")
            async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=protocols) as socket:
                if "intent" in path:
                    audio = base64.b64encode(encode_pcm(create_silence(1))).decode()
                    await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
                else:
                    await socket.send_bytes(encode_pcm(create_silence(1)))
                await asyncio.to_thread(wait_for, lambda: len(before.list_data("inflight")) > 1)
                with FollowedStream(server, "/api/events", header) as during:
                    await asyncio.to_thread(wait_for, lambda: during.list_data("inflight"))
                    (told,) = during.list_data("inflight")[0]["requests"]
                    assert (told["method"], told["req_path"]) == ("GET", path.partition("?")[0])
                    assert told["req_headers"]["sec-websocket-protocol"] == "realtime, [redacted]"
                    assert not during.ended

        asyncio.run(talk())
        wait_for(lambda: before.list_data("activity") == [{"id": 1}])
        assert not before.ended
        for page in ("/logs", "/logs/upstream", "/api/metrics/activity"):
            before.text += requests.get(f"{server.address}{page}", headers=header, timeout=20).text
        assert key not in before.text + server.log
        assert queried not in before.text + server.log


def test_profiles_change_what_names_mean(tmp_path: Path) -> None:
    profiles = {"day": {"description": "By day", "pins": {"fast": M, "web": ""}}, "night": {"pins": {"x": "web"}}}
    with run_configured(tmp_path, models={M: {}, "web": build_command(tmp_path)}, profiles=profiles) as server:
        assert get_json(server, "/api/profiles") == {
            "active": None,
            "profiles": [
                {"id": "day", "description": "By day", "pins": {"fast": M, "web": ""}},
                {"id": "night", "description": "", "pins": {"x": "web"}},
            ],
        }

        def activate(body: str) -> requests.Response:
            return requests.put(f"{server.address}/api/profiles/active", data=body, timeout=10)

        assert server.post_audio(encode_speech("flac"), model="fast").status_code == 404
        assert activate('{"name": "day"}').json() == {"active": "day"}
        assert server.post_audio(encode_speech("flac"), model="fast").json()["text"] == SPEECH_TEXT
        refused = post_json(server, "/api/models/load/web")
        assert refused.status_code == 404
        assert "profile day" in refused.json()["error"]["message"]
        for body, status in (('{"name": "noon"}', 404), ("{}", 400), ("day", 400), ('{"name": 1}', 400), ("[]", 400)):
            assert activate(body).status_code == status, body
        assert get_json(server, "/api/profiles")["active"] == "day"
        assert activate('{"name": null}').json() == {"active": None}
        assert post_json(server, "/api/models/load/web").status_code == 200


def test_a_selector_takes_the_model_that_is_warm(tmp_path: Path) -> None:
    selectors = {"any": {"strategy": "warm", "targets": ["web", M]}}
    with run_configured(tmp_path, models={M: {}, "web": build_command(tmp_path)}, selectors=selectors) as server:
        post_json(server, f"/api/models/load/{M}")
        answer = server.post_audio(encode_speech("flac"), model="any")
        assert (answer.json()["text"], answer.headers["x-eardrum-model"]) == (SPEECH_TEXT, M)
        assert [model["model"] for model in get_json(server, "/running")["running"]] == [M]
        (listed,) = [model for model in get_json(server, "/v1/models")["data"] if model["id"] == "any"]
        assert (listed["meta"]["llamaswap"]["type"], listed["status"]) == ("selector", {"value": "loaded"})


def test_a_selector_spills_over_to_the_next_model(tmp_path: Path) -> None:
    folder = str(files("moonshine_voice") / "assets" / "tiny-en")
    models = {name: {"engine": "moonshine", "source": folder} for name in ("a", "b")}
    selectors = {"both": {"strategy": "spillover", "targets": ["a", "b"], "settings": {"spillover": 2}}}
    groups = {"both": {"swap": False, "members": ["a", "b"]}}
    audio = encode_speech("mp3")
    with run_configured(tmp_path, models=models, selectors=selectors, groups=groups) as server, ExitStack() as uploads:

        def find_answering_model() -> str:
            return server.post_audio(audio, model="both").headers["x-eardrum-model"]

        assert find_answering_model() == "a"
        clients = [uploads.enter_context(open_wire(server)) for _ in range(2)]
        for held, client in enumerate(clients, 1):  # a model is held from the first bytes of a recording on
            client.send_bytes(build_field("model", "both") + FILE + audio[:20_000])
            wait_for(lambda held=held: get_requests(server) == {"a": held, "b": 0})
        assert [find_answering_model() for _ in range(2)] == ["b", "b"]
        for client in clients:
            client.send_bytes(audio[20_000:] + END)
            client.end_body()
            client.receive_until(b"x-eardrum-model: a\r\n")
        wait_for(lambda: get_requests(server) == {"a": 0, "b": 0})
        assert find_answering_model() == "a"


def get_requests(server: ServerUnderTest) -> dict[str, int]:
    """The requests that the models a and b hold."""
    return {model["id"]: model["requests"] for model in get_json(server, "/health")["models"] if model["id"] in ("a", "b")}


def test_a_request_is_cancelled_by_whoever_runs_the_server(tmp_path: Path) -> None:
    long = encode_announcements(600)
    with run_configured(tmp_path) as server, FollowedStream(server, "/api/events") as following:

        def in_progress() -> list[str]:
            updates = following.list_data("inflight")
            return [update["request"]["id"] for update in updates if update["operation"] == "upsert"]

        answers: list[requests.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.post_audio(long, model=M)))
        asking.start()
        wait_for(in_progress)
        cancelled = post_json(server, f"/api/inflight/{in_progress()[-1]}/cancel")
        assert (cancelled.status_code, cancelled.json()) == (200, {"msg": "ok"})
        asking.join(60)
        assert answers[0].status_code == 499
        assert answers[0].json()["error"]["code"] == "cancelled"
        assert answers[0].headers["x-request-id"] == in_progress()[-1]
        wait_for(lambda: get_json(server, "/health")["models"][0]["requests"] == 0)

        broken: list[str] = []

        def stream() -> None:
            try:
                with requests.post(
                    f"{server.address}/v1/audio/transcriptions",
                    data={"model": M, "stream": "true"},
                    files={"file": long},
                    stream=True,
                    timeout=60,
                ) as response:
                    for _ in response.iter_content(None):
                        pass
                broken.append("")
            except requests.RequestException as error:
                broken.append(str(error))

        before = len(set(in_progress()))
        asking = threading.Thread(target=stream)
        asking.start()
        wait_for(
            lambda: len(set(in_progress())) > before and following.list_data("inflight")[-1].get("request", {}).get("resp_bytes")
        )
        assert post_json(server, f"/api/inflight/{in_progress()[-1]}/cancel").status_code == 200
        asking.join(60)
        assert broken != [""], "a broken stream has a clean end"
        assert post_json(server, "/api/inflight/req_x/cancel").status_code == 404
        assert "Traceback" not in server.log

        page = get_json(server, "/api/metrics/activity?limit=1")
        assert (page["page"], page["limit"], page["total"], page["total_pages"]) == (1, 1, 2, 2)
        (row,) = page["data"]
        assert (row["id"], row["model"], row["resp_status_code"]) == (2, M, 200)
        (row,) = get_json(server, "/api/metrics/activity?order=asc&limit=1")["data"]
        assert (row["id"], row["resp_status_code"]) == (1, 499)
        assert row["error_msg"]
        assert get_json(server, "/api/metrics/activity?model=x")["data"] == []
        for query in ("limit=0", "limit=1000", "page=x", "order=up"):
            assert requests.get(f"{server.address}/api/metrics/activity?{query}", timeout=10).status_code == 400, query


def test_models_are_preloaded_one_after_another(tmp_path: Path) -> None:
    broken = {"cmd": f"{sys.executable} -c 'raise SystemExit(3)'", "proxy": "http://127.0.0.1:1"}
    preload = [" broken ", "site", "nobody", "", M]
    models = {"broken": broken, "web": build_command(tmp_path, aliases=["site"]), M: {}}
    with run_configured(tmp_path, models=models, default_model=M, hooks={"on_startup": {"preload": preload}}) as server:
        wait_for(lambda: {model["model"] for model in get_json(server, "/running")["running"]} == {"web", M})
        wait_for(lambda: [m["state"] for m in get_json(server, "/running")["running"]] == ["ready", "ready"])
        server.wait_for_log(f"Preloading {M}")
        order = [
            server.log.index(text) for text in ("Preloading broken", "Preloading web", "nobody is skipped", f"Preloading {M}")
        ]
        assert order == sorted(order)
        assert re.search(r"Preloading broken failed: .*exit code 3", server.log)


def test_a_server_that_is_stopped_while_it_preloads_ends_soon(tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text("import time; time.sleep(600)")
    never = {"cmd": f"{sys.executable} {tmp_path / 'never.py'}", "proxy": "http://127.0.0.1:1"}
    with run_configured(
        tmp_path, models={"never": never, M: {}}, default_model=M, hooks={"on_startup": {"preload": ["never", M]}}
    ) as server:
        wait_for(lambda: psutil.Process(server.process.pid).children())
        assert [(m["model"], m["state"]) for m in get_json(server, "/running")["running"]] == [("never", "starting")]
        server.process.terminate()
        server.process.wait(STOP_S)
        assert f"Preloading {M}" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize("path", ["/logs/stream", "/logs/stream/upstream", "/api/events"])
def test_streams_end_with_the_server(path: str, tmp_path: Path) -> None:
    with run_configured(tmp_path) as server, FollowedStream(server, path) as following:
        if "upstream" not in path:
            wait_for(lambda: following.text)
        server.process.terminate()
        server.process.wait(STOP_S)
        wait_for(lambda: following.ended)
        assert not following.broken, "it was cut off"
        assert "Traceback" not in server.log


def open_stream(server: ServerUnderTest, path: str) -> socket.socket:
    """A client with small buffers that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect(server.host)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def print_lines(server: ServerUnderTest, lines: int) -> None:
    """Have a model print lines of some length; the server's own are short."""
    with requests.Session() as session:
        for number in range(lines):
            session.get(f"{server.address}/upstream/web/{number:04}{'x' * 4000}", timeout=10)


def measure_memory(server: ServerUnderTest) -> int:
    found: int = psutil.Process(server.process.pid).memory_info().rss
    return found


@pytest.mark.parametrize("path", ["/logs/stream/upstream", "/api/events"])
def test_who_never_reads_is_hung_up_on_and_costs_little(path: str, tmp_path: Path) -> None:
    with run_configured(tmp_path, "--set", "limits.stall_timeout=2", models={"web": build_command(tmp_path)}) as server:
        print_lines(server, 50)
        before = measure_memory(server)
        clients = [open_stream(server, path) for _ in range(20)]
        connections = psutil.Process(server.process.pid)
        wait_for(lambda: len([c for c in connections.net_connections() if c.status == "ESTABLISHED"]) >= 20)
        print_lines(server, 1500)
        assert measure_memory(server) - before < 40 << 20
        wait_for(lambda: server.log.count("The client read nothing") == 20, 60)
        wait_for(lambda: not [c for c in connections.net_connections() if c.status == "ESTABLISHED"])
        for client in clients:
            client.close()
        assert "Traceback" not in server.log


def test_who_never_reads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with run_configured(tmp_path, models={"web": build_command(tmp_path)}) as server:
        print_lines(server, 50)
        clients = [open_stream(server, path) for path in ("/logs/stream/upstream", "/api/events") for _ in range(3)]
        print_lines(server, 1500)
        server.process.terminate()
        server.process.wait(STOP_S)
        for client in clients:
            client.close()
        assert "Traceback" not in server.log


def test_who_hangs_up_is_forgotten(tmp_path: Path) -> None:
    with run_configured(tmp_path) as server:
        for path in ("/logs/stream", "/api/events") * 10:
            client = open_stream(server, path)
            client.recv(1000)
            client.close()
        wait_for(lambda: server.log.count("GET /logs/stream 200") + server.log.count("GET /api/events 200") == 20)
        assert "Traceback" not in server.log


def test_health_says_that_the_default_model_has_failed(tmp_path: Path) -> None:
    broken = tmp_path / "broken-en"
    broken.mkdir()
    for file in ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"):
        (broken / file).write_bytes(b"nothing")
    with run_configured(tmp_path, models={"mine": {"source": str(broken)}}) as server:
        assert (get_json(server, "/health")["status"], get_json(server, "/health")["default_model"]) == ("ok", "mine")
        assert server.post_audio(encode_speech("wav")).status_code == 500
        health = get_json(server, "/health")
        assert health["status"] == "degraded"
        assert "mine" in health["reason"]
        assert {model["id"]: model.get("reason") for model in health["models"]}["mine"] == "failed"
        (gone,) = get_json(server, "/api/ps")["gone"]
        assert (gone["id"], gone["reason"]) == ("mine", "failed")
        assert server.post_audio(encode_speech("wav"), model=M).status_code == 200
        assert get_json(server, "/health")["status"] == "degraded"


def test_the_commands(tmp_path: Path) -> None:
    def eardrum(server: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_eardrum(*arguments, "--server", server)

    with run_configured(tmp_path, models={"web": build_command(tmp_path, aliases=["site"])}) as server:
        assert eardrum(server.address, "load", "site").stdout == "Loaded web.\n"
        assert eardrum(server.address, "load", M).stdout == f"Loaded {M}.\n"
        table = eardrum(server.address, "ps").stdout.splitlines()
        assert table[0].split()[:3] == ["model", "engine", "state"]
        assert sorted(line.split()[:3] for line in table[1:]) == [[M, "moonshine", "ready"], ["web", "command", "ready"]]
        assert all(re.search(r"ready +0 +(-|cpu, int8) +[1-9]\d* MB +\d+", line) for line in table[1:]), table
        assert f"{M} ready after" in eardrum(server.address, "logs").stdout
        assert eardrum(server.address, "logs", M).returncode == 0
        assert eardrum(server.address, "stop", "site").stdout == "Unloaded web.\n"
        assert eardrum(server.address, "stop", "--all").stdout == "Unloaded all models.\n"
        assert get_json(server, "/running") == {"running": []}
        none, *gone = eardrum(server.address, "ps").stdout.splitlines()
        assert none == "No model is loaded."
        assert sorted(line.partition(" was unloaded ")[0] for line in gone) == [M, "web"]
        assert all(line.endswith(" ago: on request.") for line in gone)
        (entry, _) = sorted(get_json(server, "/api/ps")["gone"], key=lambda entry: str(entry["id"]))
        assert (entry["id"], entry["reason"], entry["for"]) == (M, "hand", None)
        assert {model["id"]: model.get("reason") for model in get_json(server, "/health")["models"]}["web"] == "hand"
        for arguments in (("stop",), ("stop", "web", "--all")):
            refused = eardrum(server.address, *arguments)
            assert (refused.returncode, refused.stderr) == (1, "eardrum: Name one model, or use --all.\n")
        unknown = eardrum(server.address, "logs", "nobody")
        assert unknown.returncode == 1
        assert "There is no model 'nobody'" in unknown.stderr
        following = start_eardrum(
            *("logs", "-f", "--server", server.address), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert following.stdout
        assert "default model" in following.stdout.readline()
        interrupted = start_eardrum("logs", "-f", "upstream", "--server", server.address, stderr=subprocess.PIPE)
        wait_for(lambda: len(psutil.Process(server.process.pid).net_connections()) >= 3)
        interrupted.send_signal(signal.SIGINT)
        assert (interrupted.communicate(timeout=60)[1], interrupted.returncode) == (b"", 0)
        server.process.terminate()
        assert "POST /api/models/unload 200" in following.stdout.read()
        assert following.stderr
        assert (following.wait(60), following.stderr.read()) == (0, "")
        following.stdout.close()
        following.stderr.close()
    for refusable in (["load", "x"], ["logs", "-f"], ["ps"]):
        refused = eardrum(server.address, *refusable)
        assert refused.returncode == 1
        assert "is `eardrum serve` running there?" in refused.stderr


def test_the_commands_show_a_key(tmp_path: Path) -> None:
    with run_configured(tmp_path, api_keys=["sk-1"]) as server:
        refused = run_eardrum("ps", "--server", server.address)
        assert refused.returncode == 1
        assert "key" in refused.stderr
        shown = run_eardrum("ps", "--server", server.address, "--key", "sk-1", check=True)
        assert shown.stdout == "No model is loaded.\n"
