"""Traces by OpenTelemetry: a span for each result whose publisher has sent a trace along.

It is imported only where the setting `tracing` asks for it, and sees only results that say where they come
from, once they are written. Where spans go, and how many, is said by OpenTelemetry's own variables
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
"""Seconds for the last spans to go out when the node stops; a collector that is away must not keep it."""

GIVING_UP: Final = 1.0
"""Seconds for the exporter to end after that. One that awaits a collector's answer goes on in its thread."""


class Tracing:
    """Makes spans, from a result's publishing to the browser's socket: see `Latency.trace`."""

    def __init__(self, node: str, exporter: SpanExporter | None = None) -> None:
        """`node` is this node's name. Without an `exporter`, OTLP over HTTP."""
        self._extract = TraceContextTextMapPropagator().extract
        # It ends with the node (see `close`), and not by waiting for a collector when the process exits.
        self._provider = TracerProvider(resource=_resource(node), shutdown_on_exit=False)
        self._exporter = exporter or OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)

    def __call__(self, origin: Origin, arrived: float, written: float) -> None:
        """A result has been written. Nothing comes of it unless it brings a trace."""
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
        """Send what is left, within LAST_SPANS."""
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
    """Who says so: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes first."""
    own = Resource(
        {"service.name": SERVICE_NAME, "service.version": __version__, "service.instance.id": node}
    )
    return own.merge(OTELResourceDetector().detect())
