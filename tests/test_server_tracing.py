"""The traces of a real server and its model's process, as a collector gets them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from eardrum import tracing
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import encode_pcm, encode_speech, load_speech

MODEL = "moonshine-tiny-en"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@dataclass
class ReceivedSpan:
    """A span, and the service that sent it."""

    service: str
    span: Span

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def seconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e9

    @property
    def attributes(self) -> dict[str, object]:
        return {item.key: getattr(item.value, item.value.WhichOneof("value") or "") for item in self.span.attributes}


class TraceCollector(ThreadingHTTPServer):
    """Receives traces by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ExportHandler)
        self.spans: list[ReceivedSpan] = []

    @property
    def environment(self) -> dict[str, str]:
        return QUICK | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}"}

    def find_trace(self, name: str, *names: str, trace: str = "") -> dict[str, ReceivedSpan]:
        """The spans of one trace by service and name, once these are there."""
        found: dict[str, ReceivedSpan] = {}

        def has_arrived() -> bool:
            found.clear()
            found.update({f"{s.service} {s.span.name}": s for s in self.spans if not trace or s.span.trace_id.hex() == trace})
            return {name, *names} <= found.keys()

        wait_for(has_arrived)
        return found


class ExportHandler(BaseHTTPRequestHandler):
    """Takes one export."""

    server: TraceCollector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        export = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for sent in export.resource_spans:
            (service,) = (item.value.string_value for item in sent.resource.attributes if item.key == "service.name")
            self.server.spans += [ReceivedSpan(service, span) for scope in sent.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collect_traces() -> Iterator[TraceCollector]:
    with TraceCollector() as collector:
        serving = Thread(target=collector.serve_forever)
        serving.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            serving.join()


def transcribe(server: ServerUnderTest, audio: bytes, **headers: str) -> requests.Response:
    return requests.post(f"{server.address}/v1/audio/transcriptions", files={"file": ("a", audio)}, headers=headers, timeout=120)


@pytest.mark.slow
def test_one_trace_leads_from_the_client_to_the_engine() -> None:
    with collect_traces() as collector, run_server(**collector.environment) as server:
        requests.get(f"{server.address}/health", timeout=20)
        id = transcribe(server, encode_speech("wav"), traceparent=f"00-{TRACE}-{PARENT}-01").headers["x-request-id"]
        spans = collector.find_trace(
            *("eardrum POST /v1/audio/transcriptions", "eardrum queue", "eardrum load", "eardrum-runner transcribe"),
            *("eardrum-runner queue", "eardrum-runner decode"),
            trace=TRACE,
        )
        request, runner = spans["eardrum POST /v1/audio/transcriptions"], spans["eardrum-runner transcribe"]
        queue, load = spans["eardrum queue"], spans["eardrum load"]
        assert len(spans) == 6
        assert [request.parent, queue.parent, load.parent, runner.parent] == [PARENT, request.id, queue.id, request.id]
        assert request.span.kind == runner.span.kind == Span.SPAN_KIND_SERVER
        decode = spans["eardrum-runner decode"]
        assert decode.parent == spans["eardrum-runner queue"].parent == runner.id
        assert 0 < decode.seconds < runner.seconds < request.seconds
        assert 0 < load.seconds <= queue.seconds < request.seconds
        assert {span.attributes["eardrum.request.id"] for span in spans.values()} == {id}
        assert decode.attributes["eardrum.windows"] == 3
        assert request.attributes["http.response.status_code"] == 200
        assert request.attributes["http.route"] == request.attributes["url.path"] == "/v1/audio/transcriptions"
        assert request.attributes["eardrum.model"] == MODEL

        assert transcribe(server, b"no audio").status_code == 400
        wait_for(lambda: any(span.attributes.get("http.response.status_code") == 400 for span in collector.spans))
        (failed,) = (span for span in collector.spans if span.attributes.get("http.response.status_code") == 400)
        assert failed.span.trace_id.hex() != TRACE
        assert not failed.parent
        assert not any("health" in str(span.attributes.get("url.path")) for span in collector.spans)


@pytest.mark.slow
def test_a_server_behind_another_is_part_of_the_trace() -> None:
    with (
        collect_traces() as collector,
        run_server(OTEL_SERVICE_NAME="behind", **collector.environment) as behind,
        run_server(
            "--set",
            f"models.far.proxy={behind.address}",
            "--set",
            f"models.far.use_model_name={MODEL}",
            OTEL_SERVICE_NAME="front",
            **collector.environment,
        ) as front,
    ):
        answer = front.post_audio(encode_speech("wav"), model="far")
        assert answer.status_code == 200, answer.text
        spans = collector.find_trace("front POST", "behind POST /v1/audio/transcriptions", "behind decode")
        assert spans["behind POST /v1/audio/transcriptions"].parent == spans["front POST"].id
        assert spans["front POST"].span.kind == Span.SPAN_KIND_CLIENT
        ids = {span.attributes["eardrum.request.id"] for span in spans.values()}
        assert ids == {answer.headers["x-request-id"]}


@pytest.mark.slow
async def test_an_utterance_for_home_assistant_is_a_trace() -> None:
    with collect_traces() as collector, run_server("--wyoming", "--wyoming-port", "0", **collector.environment) as server:
        found = re.search(r"Home Assistant: (\S+) port (\d+)", server.log)
        assert found
        async with AsyncTcpClient(found[1], int(found[2])) as client:
            await client.write_event(AudioStart(16000, 2, 1).event())
            await client.write_event(AudioChunk(16000, 2, 1, encode_pcm(load_speech())).event())
            await client.write_event(AudioStop().event())
            while (event := await client.read_event()) and not Transcript.is_type(event.type):
                pass
        spans = collector.find_trace("eardrum wyoming transcribe", "eardrum queue", "eardrum-runner live")
        whole = spans["eardrum wyoming transcribe"]
        assert spans["eardrum queue"].parent == spans["eardrum-runner live"].parent == whole.id
        assert whole.attributes["eardrum.model"] == MODEL
        assert whole.attributes["eardrum.audio.duration"] == pytest.approx(17.94, abs=0.1)
        server.wait_for_log(f"request={whole.attributes['eardrum.request.id']}")


@pytest.mark.slow
def test_a_collector_that_is_gone_disturbs_nothing() -> None:
    with run_server(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **QUICK) as server:
        assert transcribe(server, encode_speech("wav")).status_code == 200
        ending = time.monotonic()
    assert time.monotonic() - ending < 50


@pytest.mark.slow
def test_nothing_is_imported_for_traces_that_nobody_wants() -> None:
    program = (
        "import sys, eardrum.server.lifecycle, eardrum.runner.app; from eardrum import tracing; tracing.start_tracing('x');"
        "assert not tracing.is_tracing(); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_a_variable_that_the_library_refuses_costs_the_traces_and_not_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    tracing.start_tracing("eardrum")
    assert not tracing.is_tracing()
    assert "No traces are sent, because an OTEL_ variable has a wrong value" in caplog.text
