"""`/metrics` of a real server, as Prometheus reads it."""

from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import encode_speech

pytestmark = pytest.mark.slow

MODEL = "moonshine-tiny-en"
SPEECH_SECONDS = 17.94
ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "deploy" / "monitoring"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: ServerUnderTest, accept: str = "") -> requests.Response:
    return requests.get(f"{server.address}/metrics", headers={"accept": accept} if accept else {}, timeout=20)


def read_samples(server: ServerUnderTest) -> Samples:
    families = text_string_to_metric_families(scrape(server).text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def get_value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), math.nan)


@pytest.fixture(scope="module")
def scraped() -> str:
    """The metrics after real traffic, a failed request, a load, an unload and a job."""
    with run_server("--ttl", "300") as server:
        check_numbers(server)
        requests.post(f"{server.address}/api/jobs", files={"file": encode_speech("wav")}, timeout=60).raise_for_status()
        requests.post(f"{server.address}/api/ps/{MODEL}", timeout=60).raise_for_status()
        return scrape(server).text


def check_numbers(server: ServerUnderTest) -> None:
    fresh = read_samples(server)
    assert get_value(fresh, "whisper_transcription_requests_total", model=MODEL, status="success") == 0, "rate() needs the zero"
    assert get_value(fresh, "whisper_model_loaded", model=MODEL) == 0
    audio = encode_speech("wav")
    for _ in range(3):
        assert server.post_audio(audio).status_code == 200
    assert server.post_audio(b"not audio").status_code == 400
    for number in range(1000):
        if number % 100 == 0:  # a thousand names in ten requests: each is a label nobody may create
            assert server.post_audio(audio, model=f"unknown-{number}").status_code == 404
        requests.get(f"{server.address}/nothing/{number}", timeout=10)
    after = read_samples(server)
    assert get_value(after, "whisper_transcription_requests_total", model=MODEL, status="success") == 3
    assert get_value(after, "whisper_transcription_requests_total", model=MODEL, status="error") == 1
    assert get_value(after, "whisper_transcription_duration_seconds_count", model=MODEL) == 3
    seconds = get_value(after, "whisper_audio_duration_seconds_sum", model=MODEL) / 3
    assert seconds == pytest.approx(SPEECH_SECONDS, abs=0.1)
    assert get_value(after, "whisper_model_loaded", model=MODEL) == 1
    assert get_value(after, "whisper_model_load_time_seconds", model=MODEL) > 0.01
    assert get_value(after, "eardrum_model_wait_seconds_count", model=MODEL) >= 3
    loading = get_value(after, "whisper_model_load_time_seconds", model=MODEL)
    assert get_value(after, "eardrum_model_wait_seconds_sum", model=MODEL) >= loading, "the first request waited for the load"
    assert 250 < get_value(after, "whisper_model_ttl_remaining_seconds", model=MODEL) <= 300
    assert get_value(after, "whisper_active_requests", model=MODEL) == 0
    assert get_value(after, "eardrum_model_loads_total", model=MODEL, result="success") == 1
    assert get_value(after, "eardrum_model_memory_bytes", model=MODEL, pool="cpu") > 20e6
    assert get_value(after, "eardrum_http_requests_total", route="/v1/audio/transcriptions", code="200") == 3
    assert get_value(after, "eardrum_http_requests_total", route="other", code="404") == 1000
    assert get_value(after, "eardrum_windows_total", model=MODEL) == 9
    assert 3 <= get_value(after, "eardrum_batches_total", model=MODEL) <= 9
    assert get_value(after, "process_resident_memory_bytes") > 30e6
    assert not any("unknown-" in value or "nothing" in value for _, labels in after for _, value in labels)
    requests.delete(f"{server.address}/api/ps/{MODEL}", timeout=20).raise_for_status()
    gone = read_samples(server)
    assert get_value(gone, "whisper_model_loaded", model=MODEL) == 0
    assert get_value(gone, "eardrum_model_unloads_total", model=MODEL, reason="hand") == 1
    assert math.isnan(get_value(gone, "whisper_model_ttl_remaining_seconds", model=MODEL))


def test_types_are_those_of_the_field(scraped: str) -> None:
    types = {family.name: family.type for family in text_string_to_metric_families(scraped)}
    assert {name: kind for name, kind in types.items() if name.startswith("whisper_")} == {
        "whisper_transcription_requests": "counter",
        "whisper_transcription_duration_seconds": "histogram",
        "whisper_audio_duration_seconds": "histogram",
        "whisper_model_loaded": "gauge",
        "whisper_model_load_time_seconds": "gauge",
        "whisper_model_ttl_remaining_seconds": "gauge",
        "whisper_active_requests": "gauge",
    }


def test_dashboard_and_alerts_use_metrics_that_exist(scraped: str) -> None:
    """A misspelt name would be an empty panel, and an alert that never fires."""
    known = {sample.name for family in text_string_to_metric_families(scraped) for sample in family.samples}
    known |= {f"{family.name}_bucket" for family in text_string_to_metric_families(scraped) if family.type == "histogram"}
    dashboard = json.loads((DASHBOARD / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    used = {name for text in expressions for name in re.findall(r"\b(?:eardrum|whisper|process)_\w+", text)}
    used |= set(re.findall(r"\b(?:eardrum|whisper|process)_\w+", (DASHBOARD / "alerts.yaml").read_text()))
    assert len(used) > 15
    assert used <= known


def test_the_guide_has_every_metric(scraped: str) -> None:
    families = text_string_to_metric_families(scraped)
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    guide = (ROOT / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")
    assert sorted(name for name in names if not name.startswith("process_") and f"`{name}`" not in guide) == []


def test_openmetrics_is_served_to_a_client_that_asks_for_it(server: ServerUnderTest) -> None:
    answer = scrape(server, "application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert scrape(server).headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_can_be_switched_off() -> None:
    with run_server("--no-metrics") as server:
        assert scrape(server).status_code == 404


def test_a_client_that_leaves_is_counted_as_cancelled() -> None:
    part = b"--x\r\ncontent-disposition: form-data; name="
    form = part + b'"model"\r\n\r\nwhisper-1\r\n' + part + b'"file"; filename="a.wav"\r\n\r\n' + encode_speech("wav")
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    with run_server() as server:
        with socket.create_connection(server.host) as connection:
            connection.sendall(head + b"content-length: 9000000\r\n\r\n" + form)
            wait_for(lambda: get_value(read_samples(server), "whisper_model_loaded", model=MODEL) == 1)
        labels = {"model": MODEL, "status": "cancelled"}
        wait_for(lambda: get_value(read_samples(server), "whisper_transcription_requests_total", **labels) == 1)
