"""OpenTelemetry traces, sent by OTLP over HTTP, of requests from the socket to the engine.

They are on in a process where `start_tracing` found OTEL_EXPORTER_OTLP_ENDPOINT. Otherwise no library is imported, and every
function here returns at once. The gateway and the runners are separate services; `traceparent` connects their spans.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from eardrum import __version__
from eardrum.request_ids import get_request_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACE_HEADERS = ("traceparent", "tracestate")
"""Headers of W3C Trace Context."""
FLUSH_S = 2.0
"""Seconds that the last spans have at the end of a process: a collector that does not answer must not hold it up."""

SpanKind = Literal["SERVER", "CLIENT", "INTERNAL"]
AttributeValue = str | int | float | bool

_tracer: Tracer | None = None
_current: ContextVar[TraceSpan | None] = ContextVar("trace_span", default=None)


def is_tracing() -> bool:
    """Whether this process sends traces."""
    return _tracer is not None


def start_tracing(service: str) -> None:
    """Start to send traces if the environment names a collector. The OTEL_ variables have their usual meanings."""
    global _tracer  # noqa: PLW0603 -- once per process
    if not any(os.environ.get(name) for name in ENDPOINT_VARIABLES):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("No traces are sent, because %s is missing: run `pip install 'eardrum[otel]'`.", error.name)
        return
    names = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service, "service.version": __version__}
    try:
        provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        log.warning("No traces are sent, because an OTEL_ variable has a wrong value: %s", error)
        return
    _tracer = provider.get_tracer("eardrum", __version__)

    def send_last_spans() -> None:
        sending = Thread(target=provider.shutdown, name="otel-shutdown", daemon=True)
        sending.start()
        sending.join(FLUSH_S)

    atexit.register(send_last_spans)


class TraceSpan:
    """A span, from `start_span` to `end`."""

    __slots__ = ("_span",)

    def __init__(self, span: Span):
        self._span = span

    def set_name(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def mark_failed(self, error_type: str) -> None:
        """Mark it as failed, by a status or a kind of error: messages may quote what clients sent."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)

    def add_child(self, name: str, start: float, end: float, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Add a span that is over. Times are in Unix seconds."""
        if child := start_span(name, parent=self, attributes=attributes, start=start):
            child.end(end)

    def build_headers(self) -> dict[str, str]:
        """Build the headers that make another server's spans part of the trace."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(self._span))
        return headers

    def end(self, at: float | None = None) -> None:
        """End it, now or at a Unix time."""
        self._span.end(None if at is None else int(at * 1e9))


def start_span(
    name: str,
    kind: SpanKind = "INTERNAL",
    *,
    parent: TraceSpan | None = None,
    headers: Mapping[str, str] | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    start: float | None = None,
) -> TraceSpan | None:
    """Start a span; None while no traces are sent. It does not become the current one.

    Args:
        name: low in variety: no ids, no words of clients.
        kind: its role in OpenTelemetry.
        parent: the span that it belongs to; by default the current one.
        headers: those of a request that may bring the parent along.
        attributes: its first attributes.
        start: Unix time; by default now.
    """
    if _tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind as Kind
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = parent or _current.get()
    # The empty context: OpenTelemetry's own current span has no part in this.
    context = TraceContextTextMapPropagator().extract(headers or {}, Context())
    if headers is None and parent:
        context = set_span_in_context(parent._span, context)
    span = _tracer.start_span(name, context, Kind[kind], attributes, start_time=None if start is None else int(start * 1e9))
    if id := get_request_id():
        span.set_attribute("eardrum.request.id", id)
    return TraceSpan(span)


def set_current_span(span: TraceSpan | None) -> None:
    """Make a span the parent of those that this task starts from now on."""
    _current.set(span)


def build_trace_headers() -> dict[str, str]:
    """Build the headers for a request to another server; empty while no traces are sent."""
    span = _current.get()
    return span.build_headers() if span else {}


class SpanScope:
    """A context with a span of the current task. It yields None while no traces are sent."""

    __slots__ = ("_attributes", "_headers", "_kind", "_name", "_outer", "_span")

    def __init__(
        self,
        name: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self._name = name
        self._kind: SpanKind = kind
        self._attributes = attributes
        self._headers = headers
        self._span: TraceSpan | None = None
        self._outer: TraceSpan | None = None

    def __enter__(self) -> TraceSpan | None:
        if _tracer is not None:
            self._outer = _current.get()
            self._span = start_span(self._name, self._kind, headers=self._headers, attributes=self._attributes)
            _current.set(self._span)
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if span := self._span:
            if error:
                span.mark_failed(get_error_type(error))
            span.end()
            _current.set(self._outer)


def get_error_type(error: BaseException) -> str:
    """Return the kind of an error, for the attribute `error.type`."""
    return type(error).__name__


def to_unix_time(monotonic: float) -> float:
    """Convert a time of `time.monotonic` to Unix time."""
    return time.time() - (time.monotonic() - monotonic)
