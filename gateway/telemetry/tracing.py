"""OpenTelemetry: a span for each result that has a traceparent.

This module is imported only if the setting `tracing` is on. It gets results that have an origin, after they
are written. OpenTelemetry's own variables say where spans go and how many are sampled
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …).
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import __version__
from ..messages import TRACEPARENT, Origin
from .latency import MAX_LATENCY

SERVICE_NAME: Final = "webflow-gateway"

LAST_SPANS: Final = 2.0
"""Seconds for the last spans when the node stops; an unreachable collector must not hold it up."""

GIVING_UP: Final = 1.0
"""Seconds for the exporter to end after that. One that awaits a collector's answer goes on in its thread."""


class Tracing:
    """Makes spans from publishing to the browser's socket; `Latency` calls it."""

    def __init__(self, node: str, exporter: SpanExporter | None = None) -> None:
        """`node` is this node's name. Without an `exporter`, OTLP over HTTP."""
        self._extract = TraceContextTextMapPropagator().extract
        # `close` ends it; it must not wait for a collector when the process exits.
        self._provider = TracerProvider(resource=_resource(node), shutdown_on_exit=False)
        self._exporter = exporter or OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)

    def __call__(self, origin: Origin, arrived: float, written: float) -> None:
        """A result has been written: make a span if it has a valid traceparent."""
        given = origin.traceparent
        if not isinstance(given, str) or not TRACEPARENT.fullmatch(given):
            return
        started = origin.published_at
        if started is None or not arrived - MAX_LATENCY <= started <= arrived:  # clocks differ
            started = arrived
        span = self._tracer.start_span(
            "deliver",
            context=self._extract({"traceparent": given}),
            kind=SpanKind.CONSUMER,
            start_time=_nanoseconds(started),
            attributes={"messaging.system": "redis", "messaging.operation.name": "deliver"},
        )
        span.add_event("arrived at the node", timestamp=_nanoseconds(arrived))
        span.end(_nanoseconds(written))

    async def close(self) -> None:
        """Send the last spans, within LAST_SPANS."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        if not await _ended(sending, LAST_SPANS):
            self._exporter.shutdown()  # ends its pause before the next retry, and with it both threads
            await _ended(sending, GIVING_UP)


async def _ended(thread: threading.Thread, seconds: float) -> bool:
    """Whether `thread` has ended, waiting for so long at most."""
    end = asyncio.get_running_loop().time() + seconds
    while thread.is_alive() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - it is a thread
        await asyncio.sleep(0.02)
    return not thread.is_alive()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _resource(node: str) -> Resource:
    """The service; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    own = Resource(
        {"service.name": SERVICE_NAME, "service.version": __version__, "service.instance.id": node}
    )
    return own.merge(OTELResourceDetector().detect())
