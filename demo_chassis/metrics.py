"""What a service counts, as Prometheus reads it at GET /metrics, and its spans, if somebody wants them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response
from opentelemetry import propagate, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from demo_chassis.health import OK, Health, Seen
from demo_chassis.limits import UNCOUNTED
from rmq_txn.telemetry import Telemetry

SPANS: Final = "DEMO_SPANS"


class Metrics:
    """
    Metrics and spans of one process. Thread-safe; made once, beside nothing else that collects.

    Args:
        service: its name, on each span.
        spans: a file that gets one line of JSON for each span that ends; None: no spans are made.

    Attributes:
        telemetry: for the helper of the service.
        tracer: for spans of its own.
    """

    def __init__(self, service: str, spans: Path | None) -> None:
        resource = Resource({"service.name": service})
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(True, scope_info_enabled=False, registry=self._registry)
        meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meters.get_meter("demo").create_observable_gauge(
            "demo.health", [self._observe], description="1: what GET /health asks about is well"
        )
        tracers = _tracers(resource, spans)
        self.tracer = tracers.get_tracer("demo")
        self.telemetry = Telemetry(tracers, meters)
        self._lock = threading.Lock()
        self._seen: Seen | None = None

    @classmethod
    def from_environment(cls, service: str, environment: Mapping[str, str]) -> Metrics:
        """Write spans to the file that DEMO_SPANS names, if it is set."""
        path = environment.get(SPANS, "")
        return cls(service, Path(path) if path else None)

    def text(self, seen: Seen) -> bytes:
        """Return all metrics in Prometheus' text format, with what GET /health would say now."""
        with self._lock:  # the reader hands one collection to whoever asks
            self._seen = seen
            return generate_latest(self._registry)

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        if self._seen is not None:
            parts = {
                "state": self._seen.state == "running",
                "registered": self._seen.registered == OK,
                "broker": self._seen.broker == OK,
                "database": self._seen.database == OK,
            }
            for part, well in parts.items():
                yield Observation(well, {"part": part})


def create_router(metrics: Metrics, health: Health) -> APIRouter:
    """Make the route that Prometheus asks."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def show_metrics() -> Response:
        seen = await health.look()
        return Response(await asyncio.to_thread(metrics.text, seen), media_type=CONTENT_TYPE_LATEST)

    return router


class RequestSpans:
    """A span for each request but those of probes: the root of a trace, or the child of the caller's."""

    def __init__(self, app: ASGIApp, tracer: trace.Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"], context=propagate.extract(headers), kind=trace.SpanKind.SERVER
        ) as span:
            await self._app(scope, receive, send)
            if (route := scope.get("route")) is not None:  # a path that somebody invents is no name
                span.update_name(f"{scope['method']} {route.path}")


def _tracers(resource: Resource, spans: Path | None) -> trace.TracerProvider:
    if spans is None:
        return trace.NoOpTracerProvider()
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans.parent.mkdir(parents=True, exist_ok=True)
    file = spans.open("a", encoding="utf-8")  # for as long as the process lives
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=_line)))
    return tracers


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"
