"""Debian's Prometheus scrapes a server, and evaluates every expression of the dashboard and of the alerts."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from websockets.sync.client import connect

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port
from tests.recordings import SAMPLE, create_silence, encode_pcm, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.prometheus, pytest.mark.timeout(600)]

MONITORING = Path(__file__).parent.parent / "deploy" / "monitoring"
SCRAPE_S = 0.5
ROUNDS = 3
"""A rate needs an increase between two scrapes: events in several rounds, with scrapes between them."""

VARIABLES = {"$__rate_interval": "10m", "$instance": ".*"}
"""Grafana fills these in. The interval holds the whole test, also on a busy machine."""

PIECE = 3200


def find_program(name: str) -> str:
    program = shutil.which(name)
    assert program, f"{name} is not installed: `make test-metrics` fetches Debian's package"
    return program


@dataclass
class PrometheusUnderTest:
    """A running Prometheus."""

    address: str

    def ask(self, path: str, **query: str) -> Any:
        """Ask the API; an expression that it cannot evaluate fails the test."""
        answer = requests.get(f"{self.address}/api/v1/{path}", params=query, timeout=20).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def evaluate(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now: labels and values, without those that are not a number."""
        found = [(one["metric"], float(one["value"][1])) for one in self.ask("query", query=expression)["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def list_alerts(self) -> dict[str, dict[str, Any]]:
        """The alert rules by their names."""
        return {rule["name"]: rule for group in self.ask("rules")["groups"] for rule in group["rules"]}


@contextmanager
def run_prometheus(server: ServerUnderTest, folder: Path) -> Iterator[PrometheusUnderTest]:
    """A Prometheus with the configuration of `deploy/monitoring`, quickened, that scrapes this server."""
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": f"{int(SCRAPE_S * 1000)}ms", "evaluation_interval": "500ms"}
    settings["rule_files"] = [str(MONITORING / name) for name in settings["rule_files"]]
    (job,) = settings["scrape_configs"]
    assert job["job_name"] == "eardrum"
    job["static_configs"] = [{"targets": ["{}:{}".format(*server.host)]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    port = find_free_port()
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([find_program("prometheus"), *options], stdout=log, stderr=subprocess.STDOUT)
    started = PrometheusUnderTest(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: is_ready(started) or process.poll() is not None, 60)
        assert process.poll() is None, (folder / "log").read_text()
        yield started
    finally:
        process.terminate()
        process.wait(60)


def is_ready(prometheus: PrometheusUnderTest) -> bool:
    try:
        return requests.get(f"{prometheus.address}/-/ready", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def speak_live(server: ServerUnderTest) -> None:
    """A live session with one utterance."""
    audio = encode_pcm(load_speech())[: 7 * 32_000] + encode_pcm(create_silence(1))
    with connect(f"ws{server.address.removeprefix('http')}/v1/audio/transcriptions/stream") as socket:
        for start in range(0, len(audio), PIECE):
            socket.send(audio[start : start + PIECE])
        socket.send('{"type": "finish"}')
        heard = [json.loads(message) for message in socket]
    assert any(message["type"] == "final" and message["text"] for message in heard)


def run_job(server: ServerUnderTest, audio: bytes) -> str:
    """A job whose webhook is refused; returns its last state."""
    fields = {"webhook_url": f"{server.address}/nowhere"}
    sent = requests.post(f"{server.address}/api/jobs", data=fields, files={"file": ("a", audio)}, timeout=60)
    assert sent.status_code == 202, sent.text
    return str(requests.get(f"{server.address}/api/jobs/{sent.json()['id']}?wait=60", timeout=80).json()["status"])


def cause_traffic(server: ServerUnderTest) -> None:
    """Every kind of event that the dashboard shows: texts, errors, live speech, jobs, loads, unloads, crashes."""
    for _ in range(2):
        assert server.post_audio(SAMPLE.read_bytes()).status_code == 200
    assert server.post_audio(b"not audio").status_code == 400
    assert server.post_audio(SAMPLE.read_bytes(), model="broken").status_code in (500, 503)  # the second soon after the first
    speak_live(server)
    assert run_job(server, SAMPLE.read_bytes()) == "completed"
    assert run_job(server, b"not audio") == "failed"
    (runner,) = server.list_runners()
    runner.kill()
    assert server.post_audio(SAMPLE.read_bytes()).status_code == 200
    assert requests.delete(f"{server.address}/api/ps/whisper-1", timeout=30).status_code == 200
    assert server.post_audio(SAMPLE.read_bytes()).status_code == 200


def list_dashboard_expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for variable, value in VARIABLES.items():
        found = [text.replace(variable, value) for text in found]
    return found


def test_the_dashboard_shows_and_the_alerts_see_what_happens(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"):
        (broken / name).write_bytes(b"no model")
    models = f"models={{broken: {{source: {broken}, engine: moonshine}}}}"
    secret = base64.b64encode(bytes(32)).decode()
    jobs = {"dir": str(tmp_path / "jobs"), "webhook_secret": f"whsec_{secret}", "webhook_hosts": ["127.0.0.1"]}
    options = ("--set", models, "--set", "default_model=moonshine-tiny-en", "--ttl", "300", "--set", f"jobs={json.dumps(jobs)}")
    with run_server(*options) as server, run_prometheus(server, tmp_path) as prometheus:
        check_metrics_format(server)
        wait_for(lambda: prometheus.evaluate('up{job="eardrum"} == 1'))
        for _ in range(ROUNDS):
            cause_traffic(server)
            time.sleep(3 * SCRAPE_S)
        expressions = list_dashboard_expressions()
        assert len(expressions) > 15
        assert not [text for text in expressions if not prometheus.evaluate(text)], "panels without data"
        check_values(prometheus)
        alerts = prometheus.list_alerts()
        assert len(alerts) >= 6
        wait_for(lambda: all(rule["health"] == "ok" for rule in prometheus.list_alerts().values()))
        for name in ("EardrumModelCrashes", "EardrumModelFailsToLoad", "EardrumJobsFail", "EardrumJobWebhooksFail"):
            wait_for(lambda name=name: prometheus.list_alerts()[name]["state"] == "firing")
        for name in ("EardrumDown", "EardrumJobsStandStill", "EardrumJobsLate"):
            assert alerts[name]["state"] == "inactive"
        server.process.terminate()
        server.process.wait(60)
        wait_for(lambda: prometheus.list_alerts()["EardrumDown"]["state"] == "pending")


def check_metrics_format(server: ServerUnderTest) -> None:
    scraped = requests.get(f"{server.address}/metrics", timeout=20).text
    for arguments, given in ((["check", "metrics"], scraped), (["check", "rules", str(MONITORING / "alerts.yaml")], "")):
        done = subprocess.run(
            [find_program("promtool"), *arguments], input=given, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def check_values(prometheus: PrometheusUnderTest) -> None:
    """The samples in Prometheus count the requests that were made."""
    ((_, served),) = prometheus.evaluate('whisper_transcription_requests_total{status="success", model="moonshine-tiny-en"}')
    assert served == 5 * ROUNDS, "an attempt at the recording of a job counts, too"
    ((_, refused),) = prometheus.evaluate('eardrum_job_webhooks_total{result="given_up"}')
    assert refused == 2 * ROUNDS
    ((_, crashes),) = prometheus.evaluate('eardrum_model_crashes_total{model="moonshine-tiny-en"}')
    assert crashes == ROUNDS
    ((_, failed),) = prometheus.evaluate('eardrum_model_loads_total{result="error", model="broken"}')
    assert failed >= 1
    ((_, length),) = prometheus.evaluate("sum(whisper_audio_duration_seconds_sum) / sum(whisper_audio_duration_seconds_count)")
    assert length == pytest.approx(17.94, abs=0.2)
