"""`/metrics` for Prometheus: the server's numbers and the state of its models, read at each scrape.

The names `whisper_...` are those of agent-cli's server, so its dashboards work unchanged. Labels hold only names that the
server knows: ids of models, documented routes, statuses and reasons. A client's words never become a label.

prometheus_client is imported with the first scrape: many servers are never scraped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, product
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eardrum import __version__
from eardrum.api.openapi import TEXT, ApiOperation, ApiRoute
from eardrum.api.request_log import OTHER_ROUTE, RequestTracker
from eardrum.gateway.metrics import CANCELLED, ERROR, REJECTED, SUCCESS, ValueHistogram
from eardrum.gateway.models.inventory import ADDRESS, UNKNOWN_LABEL
from eardrum.gateway.scheduler import ModelState, UnloadReason
from eardrum.gateway.service import ProcessStatus, Service
from eardrum.jobs.manager import JobManager
from eardrum.jobs.records import ItemStatus, OpenItems, WebhookResult

if TYPE_CHECKING:
    from prometheus_client import Metric

METRICS_PATH = "/metrics"

JOB_QUEUE_STATES = {ItemStatus.QUEUED: "waiting", ItemStatus.RUNNING: "running"}
JOB_END_STATES = (ItemStatus.DONE, ItemStatus.FAILED, ItemStatus.CANCELLED, ItemStatus.EXPIRED)

LOADED_STATES = (ModelState.READY, ModelState.DRAINING)

MemoryByModel = Mapping[str, Mapping[str, float]]
"""Bytes of each model's process, by model and pool."""


def build_routes(service: Service, activity: RequestTracker, jobs: JobManager) -> list[BaseRoute]:
    """Build the route `/metrics`, unless the settings switch it off."""
    if not service.settings.metrics:
        return []

    async def show_metrics(request: Request) -> Response:
        memory = await service.measure_memory()
        families = MetricsReader(service, activity, memory, jobs.is_open, await jobs.count_open_items())
        await asyncio.to_thread(import_prometheus)
        collected = list(families.collect())
        body, media_type = await asyncio.to_thread(encode_metrics, collected, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})

    return [ApiRoute(show_metrics, ApiOperation("get", METRICS_PATH, "Metrics in the text format of Prometheus", (TEXT,)))]


def import_prometheus() -> None:
    """Import prometheus_client, which takes so long that it must not hold the event loop."""
    import prometheus_client.exposition  # noqa: F401


def encode_metrics(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """Encode metrics in the format that the client accepts, and add those of the gateway's process. Return its media type."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_CollectedFamilies(families))
    ProcessCollector(registry=registry)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _CollectedFamilies:
    """A collector of metrics that were read before."""

    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._families


class RouteMatcher:
    """Finds the documented route of a path: `/api/ps/{name}` for `/api/ps/tiny`."""

    def __init__(self, operations: Iterable[ApiOperation]):
        self._fixed: set[str] = set()
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for path in dict.fromkeys(operation.path for operation in operations):
            if "{" in path:
                self._patterns.append((_compile_path(path), re.sub(r":\w+}", "}", path)))
            else:
                self._fixed.add(path)

    def __call__(self, path: str) -> str:
        """Return the route as the API's documentation shows it; `OTHER_ROUTE` if there is none."""
        if path in self._fixed:
            return path
        return next((shown for pattern, shown in self._patterns if pattern.fullmatch(path)), OTHER_ROUTE)


def _compile_path(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{\w+(:path)?\}", path)
    return re.compile(
        "".join(re.escape(part or "") if n % 2 == 0 else (".+" if part else "[^/]+") for n, part in enumerate(parts))
    )


class MetricsReader:
    """Reads the numbers and the state as Prometheus's metric families."""

    def __init__(
        self,
        service: Service,
        activity: RequestTracker,
        memory: MemoryByModel,
        has_jobs: bool,
        open_items: Mapping[tuple[str, ItemStatus], OpenItems] | None,
    ):
        self._service = service
        self._activity = activity
        self._memory = memory
        self._has_jobs = has_jobs
        self._open_items = open_items
        self._numbers = service.metrics
        self._speech_models = [model.id for model in service.catalog if model.is_speech_model]
        self._voice_models = [model.id for model in service.catalog if model.is_voice_model and not model.is_external]
        self._running = service.list_processes()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        yield from self._collect_transcriptions()
        yield from self._collect_speech()
        yield from self._collect_models()
        yield from self._collect_requests()
        yield from self._collect_live()
        if self._has_jobs:
            yield from self._collect_jobs()

    def _collect_transcriptions(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        numbers = self._numbers
        counts = {(model, status): 0 for model in self._speech_models for status in (SUCCESS, ERROR, REJECTED, CANCELLED)}
        requests = CounterMetricFamily(
            "whisper_transcription_requests",
            "Transcriptions of recordings, by outcome. rejected: the server or the model was too busy.",
            labels=("model", "status"),
        )
        for labels, count in (counts | numbers.transcriptions).items():
            requests.add_metric(labels, count)
        yield requests
        yield _build_histogram(
            "whisper_transcription_duration_seconds", "From the first byte of a request to its transcript.", numbers.durations
        )
        yield _build_histogram("whisper_audio_duration_seconds", "Length of the transcribed recordings.", numbers.audio)
        yield _build_histogram(
            "eardrum_first_text_seconds", "From the first byte of a request to its first text.", numbers.first_texts
        )
        yield _build_histogram(
            "eardrum_queue_seconds", "Longest wait of one of a request's windows for its turn at the engine.", numbers.queue_waits
        )
        yield _build_counter("eardrum_decode_seconds", "Time that engines spent decoding.", numbers.decode_seconds)
        yield _build_counter("eardrum_windows", "Decoded windows.", numbers.windows)
        yield _build_counter(
            "eardrum_batches", "Decoded batches; eardrum_windows_total divided by it is the mean batch size.", numbers.batches
        )

    def _collect_speech(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        numbers = self._numbers
        counts = {(model, status): 0 for model in self._voice_models for status in (SUCCESS, ERROR, REJECTED, CANCELLED)}
        requests = CounterMetricFamily("eardrum_speech_requests", "Texts to speak, by outcome.", labels=("model", "status"))
        for labels, count in (counts | numbers.speeches).items():
            requests.add_metric(labels, count)
        yield requests
        yield _build_histogram("eardrum_first_audio_seconds", "From a text to the first audio of it.", numbers.first_audios)
        yield _build_counter("eardrum_speech_audio_seconds", "Synthesized audio.", numbers.speech_audio)
        yield _build_counter("eardrum_speech_characters", "Characters that were spoken.", numbers.speech_characters)
        yield _build_counter("eardrum_synthesis_seconds", "Time that engines spent on synthesis.", numbers.synthesis_seconds)

    def _collect_models(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, InfoMetricFamily

        service, running = self._service, {status.model.id: status for status in self._running}
        yield InfoMetricFamily("eardrum_build", "The server's version.", {"version": __version__})
        yield _build_gauge(
            "whisper_model_loaded",
            "Whether the model is loaded: 1 or 0.",
            {
                id: float(id in running and running[id].state in LOADED_STATES)
                for id in (*self._speech_models, *self._voice_models, *running)
            },
        )
        yield _build_histogram(
            "eardrum_model_wait_seconds",
            "Wait of a request for its model: other models' turns, unloads and the load. 0 if the model was ready.",
            self._numbers.model_waits,
        )
        yield _build_gauge("whisper_model_load_time_seconds", "Time that the last load took.", self._numbers.load_seconds)
        yield _build_gauge(
            "whisper_model_ttl_remaining_seconds",
            "Time until the model is unloaded without another request. No sample while it works, or if it stays loaded.",
            {id: status.ttl_remaining for id, status in running.items() if status.ttl_remaining is not None},
        )
        yield _build_gauge(
            "whisper_active_requests", "Requests that the model serves.", self._count_running(_count_active, service)
        )
        yield _build_gauge(
            "eardrum_waiting_requests",
            "Requests that wait for the model.",
            {model.id: waiting for model in service.catalog if (waiting := service.count_waiting(model)) or model.id in running},
        )
        loads = CounterMetricFamily("eardrum_model_loads", "Loads of models, by result.", labels=("model", "result"))
        unloads = CounterMetricFamily("eardrum_model_unloads", "Unloaded models, by reason.", labels=("model", "reason"))
        crashes = CounterMetricFamily("eardrum_model_crashes", "Processes of models that ended unplanned.", labels=("model",))
        ended, loadable = (
            service.unload_history.counts,
            [model.id for model in service.catalog if model.engine != ADDRESS and not model.is_replicated],
        )
        for id in dict.fromkeys((*loadable, *self._numbers.loads, *(id for id, _ in ended))):
            loads.add_metric((id, SUCCESS), self._numbers.loads[id])  # zeros too: rate() does not see a counter's first sample
            loads.add_metric((id, ERROR), ended[id, UnloadReason.FAILED])
            crashes.add_metric((id,), ended[id, UnloadReason.CRASH])
        for (id, reason), count in ended.items():
            if reason is not UnloadReason.FAILED:
                unloads.add_metric((id, str(reason)), count)
        yield from (loads, unloads, crashes)
        yield self._build_memory()
        yield from self._collect_replicas()

    def _collect_replicas(self) -> Iterator[Metric]:
        """Yield the families about replicas, which few servers have."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        if not any(status.replicas for status in self._running):
            return
        from eardrum.gateway.upstreams.replicas import ReplicaState

        states = GaugeMetricFamily("eardrum_replicas", "Replicas of the model, by state.", labels=("model", "state"))
        requests = GaugeMetricFamily(
            "eardrum_replica_requests", "Requests and live sessions that the replica serves.", labels=("model", "replica")
        )
        moved = CounterMetricFamily(
            "eardrum_replica_moved_requests",
            "Requests that the replica did not finish, and that another one continued.",
            labels=("model", "replica"),
        )
        for status in self._running:
            for state in ReplicaState if status.replicas else ():
                states.add_metric((status.model.id, state), sum(replica.state is state for replica in status.replicas))
            for replica in (one for one in status.replicas if one.address):
                requests.add_metric((status.model.id, replica.address), replica.requests)
                moved.add_metric((status.model.id, replica.address), replica.moved)
        yield from (states, requests, moved)

    def _count_running(self, count: Callable[[Service, ProcessStatus], float], service: Service) -> dict[str, float]:
        return {status.model.id: count(service, status) for status in self._running}

    def _build_memory(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily("eardrum_model_memory_bytes", "Memory of the model's processes.", labels=("model", "pool"))
        for id, pools in self._memory.items():
            for pool, size in pools.items():
                family.add_metric((id, pool), size)
        return family

    def _collect_requests(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        responses = CounterMetricFamily(
            "eardrum_http_requests",
            "Requests by route and status; 499: the client disconnected before the answer.",
            labels=("route", "code"),
        )
        for (route, code), count in self._activity.responses.items():
            responses.add_metric((route, str(code)), count)
        yield responses
        if self._service.api_keys:
            requests = CounterMetricFamily(
                "eardrum_key_requests", "Requests to models, by the name of the API key.", labels=("key",)
            )
            refused = CounterMetricFamily("eardrum_key_refused", "Requests that a limit of the API key refused.", labels=("key",))
            audio = CounterMetricFamily("eardrum_key_audio_seconds", "Transcribed audio, by API key.", labels=("key",))
            for usage in self._service.api_keys:
                requests.add_metric((usage.name,), usage.requests)
                refused.add_metric((usage.name,), usage.refused)
                audio.add_metric((usage.name,), usage.audio_s)
            yield from (requests, refused, audio)

    def _collect_live(self) -> Iterator[Metric]:
        numbers, registry = self._numbers, self._service.live_sessions
        yield _build_gauge(
            "eardrum_live_sessions", "Open live sessions.", {id: registry.count_sessions(id) for id in self._speech_models}
        )
        yield _build_counter("eardrum_live_sessions_started", "Live sessions that have begun.", numbers.live_sessions)
        yield _build_counter("eardrum_live_audio_seconds", "Audio of live sessions that have ended.", numbers.live_audio)
        yield _build_histogram(
            "eardrum_live_lag_seconds",
            "Audio that arrived between the end of an utterance and its final text.",
            numbers.live_lags,
        )

    def _collect_jobs(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        models = (*self._speech_models, *self._voice_models)
        if self._open_items is not None:
            queue = GaugeMetricFamily(
                "eardrum_job_queue", "Recordings and texts of jobs that wait and run.", labels=("model", "state")
            )
            now = time.time()
            found = {(model, state): OpenItems(0, now) for model in models for state in JOB_QUEUE_STATES}
            for (model, state), items in self._open_items.items():
                label = model if self._service.catalog.has_name(model) else UNKNOWN_LABEL
                others = found.get((label, state), OpenItems(0, now))
                found[label, state] = OpenItems(others.count + items.count, min(others.oldest_at, items.oldest_at))
            for (model, state), items in found.items():
                queue.add_metric((model, JOB_QUEUE_STATES[state]), items.count)
            yield queue
            yield _build_gauge(
                "eardrum_job_oldest_seconds",
                "Age of the oldest job with recordings or texts that wait.",
                {model: max(0.0, now - items.oldest_at) for (model, state), items in found.items() if state is ItemStatus.QUEUED},
            )
        ended = CounterMetricFamily(
            "eardrum_job_recordings", "Recordings and texts of jobs that have ended.", labels=("model", "status")
        )
        for labels, count in (dict.fromkeys(product(models, JOB_END_STATES), 0) | self._numbers.job_recordings).items():
            ended.add_metric(labels, count)
        yield ended
        yield _build_counter(
            "eardrum_job_audio_seconds", "Finished audio of jobs.", dict.fromkeys(models, 0.0) | self._numbers.job_audio
        )
        webhooks = CounterMetricFamily("eardrum_job_webhooks", "Attempts to deliver webhooks, by result.", labels=("result",))
        for result in WebhookResult:
            webhooks.add_metric((result,), self._numbers.job_webhooks[result])
        yield webhooks


def _count_active(service: Service, status: ProcessStatus) -> float:
    return status.requests - service.count_waiting(status.model)


def _build_counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=("model",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


def _build_gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


def _build_histogram(name: str, text: str, histograms: Mapping[str, ValueHistogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=("model",))
    for model, histogram in histograms.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        family.add_metric((model,), list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
    return family
